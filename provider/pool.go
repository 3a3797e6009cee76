// A pool: one provider, its slots and its lanes.

package provider

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/puddle/v2"

	"github.com/neolith/orchestrator/internal/fault"
)

// idleConnMax is when a connection is closed that its slot has not used. The keeper uses or closes slots much earlier; this is for
// pools that nobody runs.
const idleConnMax = 2 * time.Hour

// pool is one provider.
type pool struct {
	cfg     PoolConfig // with defaults
	log     *slog.Logger
	dialect dialect
	tls     *tls.Config
	dial    dialFunc
	slots   *puddle.Pool[*slot]
	calls   chan struct{}   // holds one for each call under way
	closing context.Context // ends with Close
	metrics *histograms
	chance  func() float64

	connections atomic.Int64 // open now
	waiting     atomic.Int64 // calls that wait: for a slot, or to be tried again

	mu     sync.Mutex
	lanes  []*lane
	counts counts
}

// counts are what a pool has done since it was made.
type counts struct {
	sent, answered, failed, limited, unsure, elsewhere, full int64
	in, out, cached                                          int64
	costUSD                                                  float64
	lastError                                                string
	lastErrorTime                                            time.Time
}

// newPool reads keys and certificates; key is the path of the provider's settings. The pool's calls end with closing.
func newPool(closing context.Context, key string, c PoolConfig, o Options, m *histograms) (*pool, error) {
	fromConfig := len(c.Endpoints) > 0
	c = c.withDefaults()
	p := &pool{cfg: c, log: o.Logger.With("provider", c.Name), dialect: newDialect(c), closing: closing, metrics: m, chance: o.Rand, calls: make(chan struct{}, c.MaxInFlight)}
	var err error
	if p.tls, err = tlsConfig(key+".ca_file", c.CAFile); err != nil {
		return nil, err
	}
	p.dial = counted(o.Dial, c.ConnectTimeout, &p.connections)
	for i, e := range c.Endpoints {
		keyName := key + ".key_file"
		if fromConfig {
			keyName = fmt.Sprintf("%s.endpoints[%d].key_file", key, i)
		}
		l, err := newLane(p, i, e, keyName)
		if err != nil {
			return nil, err
		}
		p.lanes = append(p.lanes, l)
	}
	p.slots, err = puddle.NewPool(&puddle.Config[*slot]{
		Constructor: func(ctx context.Context) (*slot, error) { return p.newSlot(ctx) },
		Destructor:  func(s *slot) { s.close() },
		MaxSize:     int32(c.Max), //nolint:gosec // at most slotsMax
	})
	return p, err
}

// warmKey marks the context of a slot that is to be connected before it is needed.
type warmKey struct{}

// newSlot makes a slot, and connects it when it is to be warm.
func (p *pool) newSlot(ctx context.Context) (*slot, error) {
	s := newSlot(p.tls, p.dial, p.cfg.ConnectTimeout, idleConnMax)
	if l, ok := ctx.Value(warmKey{}).(*lane); ok {
		if err := p.probe(ctx, s, l); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// pick is a lane chosen for one call, with what was taken of its limits.
type pick struct {
	*lane
	done             func(error)
	tokens           int64
	requestAt, tokAt int64
}

// choose takes the lane that a call of so many tokens goes to, of those that were not tried: the least busy for its weight, and among
// equals by turns. Without one, it says how long until there may be, and why.
func (p *pool) choose(tokens int64, tried map[*lane]bool, now time.Time) (*pick, time.Duration, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var able []*lane
	soonest, why := time.Duration(0), ""
	notYet := func(d time.Duration, because string) {
		if soonest == 0 || d < soonest {
			soonest, why = d, because
		}
	}
	for _, l := range p.lanes {
		if tried[l] {
			continue
		}
		if d, because := l.wait(tokens, now); d > 0 {
			notYet(d, because)
			continue
		}
		able = append(able, l)
	}
	slices.SortStableFunc(able, func(a, b *lane) int {
		return cmp.Or(cmp.Compare(a.inFlight*b.weight, b.inFlight*a.weight), cmp.Compare(b.credit+b.weight, a.credit+a.weight))
	})
	for _, l := range able {
		done, err := l.breaker.Allow()
		if err != nil { // half open, and another call tries it
			notYet(p.cfg.CreateRetry, "breaker half-open")
			continue
		}
		total := 0
		for _, other := range able {
			other.credit += other.weight
			total += other.weight
		}
		l.credit -= total
		l.inFlight++
		return &pick{lane: l, done: done, tokens: tokens, requestAt: l.requests.take(1, now), tokAt: l.tokens.take(tokens, now)}, 0, ""
	}
	return nil, soonest, why
}

// soonest returns how long until some lane may be taken; 0 when one may be now.
func (p *pool) soonest(tokens int64, now time.Time) (time.Duration, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, why := time.Duration(-1), ""
	for _, l := range p.lanes {
		if d, because := l.wait(tokens, now); first < 0 || d < first {
			first, why = d, because
		}
	}
	return max(first, 0), why
}

// finish gives a lane back with what came of it.
func (p *pool) finish(k *pick, f *failure, lim *limits, used int64) {
	now := time.Now()
	switch {
	case f == nil:
		k.done(nil)
	case f.unwell:
		k.done(f)
	default:
		k.done(errExcluded)
	}
	reload := f != nil && f.badKey && k.reloadKey()
	p.mu.Lock()
	defer p.mu.Unlock()
	l := k.lane
	l.inFlight--
	l.tokens.settle(k.tokAt, k.tokens, used, now)
	if f != nil && f.unsent {
		l.requests.settle(k.requestAt, 1, 0, now)
	}
	if lim != nil {
		l.requests.told(lim.requests, now)
		l.tokens.told(lim.tokens, now)
		l.calls++
		p.counts.sent++
	}
	if f == nil {
		l.refusals = 0
		p.counts.answered++
		return
	}
	if f.limited {
		l.refusals++
		p.counts.limited++
	}
	if f.sure == unsure {
		p.counts.unsure++
	}
	if f.block > 0 && !reload {
		l.blockedUntil, l.blockedBecause = now.Add(f.block), f.blockReason
	}
	l.failed++
	l.lastError, l.lastErrorTime = f.Error(), now
	p.counts.failed++
	p.counts.lastError, p.counts.lastErrorTime = f.Error(), now
}

// back gives a lane back that was not used.
func (p *pool) back(k *pick) {
	k.done(errExcluded)
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	k.inFlight--
	k.requests.settle(k.requestAt, 1, 0, now)
	k.lane.tokens.settle(k.tokAt, k.tokens, 0, now)
}

// acquire waits until there may be one call more, and for a slot; leave ends what it began.
func (p *pool) acquire(ctx context.Context) (*puddle.Resource[*slot], *failure) {
	patient, cancel := context.WithTimeout(ctx, p.cfg.AcquireTimeout)
	defer cancel()
	if f := p.enter(ctx, patient); f != nil {
		return nil, f
	}
	r, err := p.slots.Acquire(patient)
	if err != nil {
		p.leave()
		return nil, p.missed(ctx, err, fmt.Sprintf("all %d connections were busy for %s", p.cfg.Max, p.cfg.AcquireTimeout))
	}
	return r, nil
}

// enter counts a call in. One for which there is room does not count as waiting, however many come at once.
func (p *pool) enter(ctx, patient context.Context) *failure {
	select {
	case p.calls <- struct{}{}:
		return nil
	default:
	}
	if p.waiting.Add(1) > int64(p.cfg.WaitingMax) {
		p.waiting.Add(-1)
		return p.fullFailure("%d calls wait for a connection already", p.cfg.WaitingMax)
	}
	defer p.waiting.Add(-1)
	select {
	case p.calls <- struct{}{}:
		return nil
	case <-patient.Done():
		return p.missed(ctx, patient.Err(), fmt.Sprintf("%d calls, as many as may be (max_in_flight), were under way for %s", p.cfg.MaxInFlight, p.cfg.AcquireTimeout))
	}
}

// leave ends a call that acquire has begun, after its slot was given back.
func (p *pool) leave() { <-p.calls }

// missed is the failure of a call whose turn did not come: the pool is closed, the caller went away, or the pool was full for too long.
func (p *pool) missed(ctx context.Context, err error, full string) *failure {
	switch {
	case errors.Is(err, puddle.ErrClosedPool):
		return &failure{sure: final, err: fault.New(fault.Unavailable, "chat: %s: %w; ask another server, or this one when it is back", p.cfg.Name, errClosed)}
	case ctx.Err() != nil:
		kind := fault.Aborted
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			kind = fault.Timeout
		}
		return &failure{sure: final, err: fault.New(kind, "chat: %s: %w while waiting for a connection", p.cfg.Name, context.Cause(ctx))}
	}
	return p.fullFailure("%s", full)
}

// fullFailure refuses a call. The next provider may take it; this one is not to be asked again.
func (p *pool) fullFailure(format string, args ...any) *failure {
	err := fault.New(fault.Exhausted, "chat: %s: "+format+"; come back later, or raise max and max_in_flight of the provider", append([]any{p.cfg.Name}, args...)...)
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.full++
	p.counts.lastError, p.counts.lastErrorTime = err.Error(), now
	return &failure{sure: refused, unsent: true, waited: p.cfg.AcquireTimeout, err: err.WithRetry(p.cfg.AcquireTimeout)}
}
