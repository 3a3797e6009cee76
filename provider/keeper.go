// The keeper: what a pool does of its own accord. It opens slots before they are needed, keeps them warm, closes those that are idle,
// and asks endpoints whether they are well.

package provider

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/jackc/puddle/v2"
	"github.com/sony/gobreaker/v2"
)

// keepInterval is how often a pool is looked after.
const keepInterval = time.Second

// saveInterval is how often what was spent is written down.
const saveInterval = 5 * time.Second

// Run keeps the pools until ctx ends, which is no error. Calls work without it, too, but nothing is warm, and nothing idle is closed.
func (p *Pools) Run(ctx context.Context) error {
	var keepers sync.WaitGroup
	defer keepers.Wait()
	for _, one := range p.list {
		keepers.Go(func() { one.keep(ctx) })
	}
	tick := time.NewTicker(saveInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return p.saveSpent(time.Now())
		case <-p.closing.Done():
			return nil
		case now := <-tick.C:
			if err := p.saveSpent(now); err != nil {
				p.log.Error("provider: what tenants have spent cannot be written down; after a restart it would be counted from the last time it could", "error", err)
			}
		}
	}
}

// keep is the loop of one pool.
func (p *pool) keep(ctx context.Context) {
	for {
		next := keepInterval
		if !p.fill(ctx) {
			next = min(next, p.cfg.CreateRetry)
		}
		p.tend(ctx)
		if sleep(ctx, p.closing, next) != nil {
			return
		}
	}
}

// fill opens slots up to min; false when one could not be connected.
func (p *pool) fill(ctx context.Context) bool {
	for int(p.slots.Stat().TotalResources()) < p.cfg.Min && ctx.Err() == nil {
		l := p.mostOverdue()
		if l == nil {
			return true // every endpoint is left alone for a while
		}
		err := p.slots.CreateResource(context.WithValue(ctx, warmKey{}, l))
		if err != nil {
			if ctx.Err() == nil {
				p.log.Debug("provider: a connection cannot be opened", "endpoint", l.name, "error", err)
			}
			return false
		}
	}
	return true
}

// mostOverdue is the lane that was asked longest ago, of those whose breaker is not open; nil when all are.
func (p *pool) mostOverdue() *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	var most *lane
	for _, l := range p.lanes {
		if l.breaker.State() != gobreaker.StateOpen && (most == nil || l.healthTime.Before(most.healthTime)) {
			most = l
		}
	}
	return most
}

// tend looks after the slots that nobody uses, longest idle first. Each is held for as long as it takes to ask over it, and the others
// are free meanwhile.
func (p *pool) tend(ctx context.Context) {
	stat := p.slots.Stat()
	if stat.IdleResources() == 0 {
		return
	}
	idle := p.slots.AcquireAllIdle()
	slices.SortFunc(idle, func(a, b *puddle.Resource[*slot]) int { return cmp.Compare(b.IdleDuration(), a.IdleDuration()) })
	spare := int(stat.TotalResources()) - p.cfg.Min
	var cold []*puddle.Resource[*slot]
	for _, r := range idle {
		switch old := r.IdleDuration() >= p.cfg.IdleTimeout; {
		case old && spare > 0:
			spare--
			r.Destroy()
		case old:
			cold = append(cold, r)
		default:
			r.ReleaseUnused()
		}
	}
	for _, r := range cold { // to be kept, and so kept warm
		if l := p.mostOverdue(); l != nil {
			p.refresh(ctx, r, l)
		} else {
			r.Destroy()
		}
	}
	for _, l := range p.due() {
		if ctx.Err() != nil {
			return
		}
		idle := p.slots.AcquireAllIdle()
		for i, r := range idle {
			if i > 0 {
				r.ReleaseUnused()
			}
		}
		if len(idle) == 0 {
			return // all busy, and their calls tell how the endpoint is
		}
		p.look(ctx, idle[0], l)
	}
}

// refresh asks over a slot so that its connection stays open.
func (p *pool) refresh(ctx context.Context, r *puddle.Resource[*slot], l *lane) {
	if p.probe(ctx, r.Value(), l) != nil {
		r.Destroy()
		return
	}
	r.Release()
}

// look asks over a slot without making it look used.
func (p *pool) look(ctx context.Context, r *puddle.Resource[*slot], l *lane) {
	if p.probe(ctx, r.Value(), l) != nil {
		r.Destroy()
		return
	}
	r.ReleaseUnused()
}

// due are the lanes that are to be asked.
func (p *pool) due() []*lane {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*lane
	for _, l := range p.lanes {
		if now.Sub(l.healthTime) >= p.cfg.HealthInterval && l.breaker.State() != gobreaker.StateOpen {
			all = append(all, l)
		}
	}
	return all
}

// probed takes what came of asking an endpoint: a status, or an error. What is bad counts against the breaker, also while it is half open,
// so that it costs no caller's time; what is good does not count for it, for an endpoint may list its models and answer no call.
func (l *lane) probed(status int, err error) {
	health := ""
	switch {
	case err != nil:
		health = "cannot be reached"
	case status == http.StatusUnauthorized: // 403 may forbid the list alone
		health = "key refused"
	case status >= 500 && status != http.StatusNotImplemented:
		health = fmt.Sprintf("answers with status %d", status)
	}
	unwell := health != "" && health != "key refused"
	if unwell {
		if done, allow := l.breaker.Allow(); allow == nil {
			done(fmt.Errorf("%s %s", l.name, health))
		}
	}
	changed := l.reloadKey()
	now := time.Now()
	l.pool.mu.Lock()
	was := l.health
	l.health, l.healthTime = health, now
	switch {
	case changed:
		l.blockedUntil, l.health = time.Time{}, ""
	case health == "key refused":
		l.blockedUntil, l.blockedBecause = now.Add(max(l.pool.cfg.BreakerOpen, l.pool.cfg.HealthInterval)), health
	case health == "" && l.blockedBecause == "key refused":
		l.blockedUntil = time.Time{}
	}
	if health != "" {
		l.lastError, l.lastErrorTime = l.name+" "+health, now
	}
	l.pool.mu.Unlock()
	if was != health {
		l.pool.log.Info("provider: an endpoint's health has changed", "endpoint", l.name, "was", cmp.Or(was, "well"), "is", cmp.Or(health, "well"))
	}
}
