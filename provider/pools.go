// All pools: made, called, run and closed.

package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/internal/fault"
)

// Options say what pools are made of.
type Options struct {
	Config Config
	// ConfigKey is where the configuration is in that of the program, for errors: "providers".
	ConfigKey string
	// SpendFile keeps what tenants have spent today over a restart; empty does not.
	SpendFile string
	// Dial opens connections (net.Dialer's).
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Rand is the chance in waiting times (math/rand's).
	Rand func() float64
	// Metrics takes the metrics; nil none.
	Metrics prometheus.Registerer
	Logger  *slog.Logger
}

// Pools are the providers of a program. Their methods may be called from any goroutine.
type Pools struct {
	cfg       Config
	log       *slog.Logger
	list      []*pool
	budgets   *budgets
	spendFile string
	chance    func() float64
	close     context.CancelFunc
	closing   context.Context
	calls     sync.WaitGroup
	mu        sync.Mutex // of closed, against calls
	closed    bool
}

// New checks the configuration and reads the keys. It connects to nobody: Run does, or the first call.
func New(o Options) (*Pools, error) {
	if err := o.Config.Validate(o.ConfigKey); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	closing, closeAll := context.WithCancel(context.Background())
	p := &Pools{cfg: o.Config, log: o.Logger, budgets: newBudgets(o.Config.Budgets), spendFile: o.SpendFile, chance: o.Rand, close: closeAll, closing: closing}
	prefix := ""
	if o.ConfigKey != "" {
		prefix = o.ConfigKey + "."
	}
	m := newHistograms()
	for i, c := range o.Config.Pools {
		one, err := newPool(closing, fmt.Sprintf("%spools[%d]", prefix, i), c, o, m)
		if err != nil {
			closeAll()
			return nil, err
		}
		p.list = append(p.list, one)
	}
	if err := p.loadSpent(time.Now()); err != nil {
		closeAll()
		return nil, err
	}
	if o.Metrics != nil {
		if err := m.register(o.Metrics, p); err != nil {
			closeAll()
			return nil, fmt.Errorf("provider: register metrics: %w", err)
		}
	}
	return p, nil
}

// Close refuses new calls, ends those under way, closes all connections, and waits for all that. Run should have ended before.
func (p *Pools) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.close()
	p.calls.Wait()
	for _, one := range p.list {
		one.slots.Close()
	}
	return p.saveSpent(time.Now())
}

// enter counts a call, unless the pools are closed.
func (p *Pools) enter() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fault.New(fault.Unavailable, "chat: %w; ask another server, or this one when it is back", errClosed)
	}
	p.calls.Add(1)
	return nil
}

// call is one Chat or Stream.
type call struct {
	req      *Request
	emit     func(Delta) error // nil for a whole answer
	estimate int               // of the tokens in
	hold     *hold
	sent     int
	history  []string // what went wrong before, in short: bounded by attempts and patience
}

// target is a provider that can answer a call, and how it names the model.
type target struct {
	pool      *pool
	model     ModelConfig
	maxTokens int
}

// Chat asks a model and returns its answer.
//
// Errors are of kind Invalid (the request, by us or the provider), NotFound (no such provider or model), FailedPrecondition (no provider
// is configured), Exhausted (a budget, a rate limit, all connections busy; with the time to come back), Unavailable (nobody could answer),
// Timeout (the caller's deadline, or one of the settings') and Aborted (the caller went away).
func (p *Pools) Chat(ctx context.Context, r Request) (*Response, error) { return p.do(ctx, &r, nil) }

// Stream is Chat, and gives each piece of the answer to emit as it comes, in order, from the caller's own goroutine. An error of emit
// ends the call, there too, and is wrapped in the error returned. Once a piece was given, the call is not tried elsewhere.
func (p *Pools) Stream(ctx context.Context, r Request, emit func(Delta) error) (*Response, error) {
	return p.do(ctx, &r, emit)
}

func (p *Pools) do(ctx context.Context, r *Request, emit func(Delta) error) (*Response, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.calls.Done()
	if err := r.check(); err != nil {
		return nil, err
	}
	targets, err := p.targets(r)
	if err != nil {
		return nil, err
	}
	c := &call{req: r, emit: emit, estimate: r.estimateTokens()}
	tokens, cost := int64(0), 0.0
	for _, t := range targets {
		most := Usage{InputTokens: c.estimate, OutputTokens: t.maxTokens}
		tokens, cost = max(tokens, int64(most.Tokens())), max(cost, t.model.cost(most))
	}
	if c.hold, err = p.budgets.reserve(r.Tenant, tokens, cost, time.Now()); err != nil {
		return nil, err
	}
	defer c.hold.release()
	began := time.Now()
	res, err := p.try(ctx, c, targets)
	if err != nil {
		return nil, err
	}
	res.Attempts, res.Took = c.sent, time.Since(began)
	return res, nil
}

// try asks one target after another, in rounds, until one answers, the outcome is final, or waiting for another round makes no sense.
func (p *Pools) try(ctx context.Context, c *call, targets []target) (*Response, error) {
	var last *failure
	var failing *pool // whose failure it was
	var waited, patience time.Duration
	hopeless, lanes := map[*lane]bool{}, 0
	for _, t := range targets {
		patience, lanes = max(patience, t.pool.cfg.AcquireTimeout), lanes+len(t.pool.lanes)
	}
	for round := 0; ; round++ {
		tried := maps.Clone(hopeless)
		for _, t := range targets {
			for {
				k, _, _ := t.pool.choose(t.tokens(c), tried, time.Now())
				if k == nil {
					break
				}
				tried[k.lane] = true
				if failing != nil {
					failing.again()
				}
				res, f := t.pool.attempt(ctx, k, c, t)
				if f == nil || !f.unsent {
					c.sent++
				}
				if f == nil {
					return res, nil
				}
				last, waited = f, waited+f.waited
				if !f.repeatable(c.req) || c.sent >= p.cfg.AttemptsMax || ctx.Err() != nil {
					return nil, c.failed(f, len(c.history))
				}
				if f.hopeless {
					hopeless[k.lane] = true
				}
				c.note(k.lane, f)
				failing = t.pool
				p.log.Debug("provider: a call may be tried elsewhere, or again", "endpoint", k.name, "tenant", c.req.Tenant, "error", f.err)
			}
		}
		if len(hopeless) == lanes {
			return nil, c.failed(last, len(c.history)-1)
		}
		pause, refusal := p.pause(c, targets, last, round)
		if waited += pause; waited > patience {
			return nil, refusal
		}
		if err := targets[0].pool.rest(ctx, pause); err != nil {
			if f, full := err.(*failure); full { //nolint:errorlint // rest returns it as it is
				return nil, f.err
			}
			if last == nil {
				last = &failure{err: fault.New(fault.Unavailable, "chat: every endpoint is busy or at its limit")}
			}
			return nil, interrupted(err, last)
		}
	}
}

// tokens is how many tokens the call may take of a limit: providers count what the answer may be.
func (t target) tokens(c *call) int64 { return int64(c.estimate + t.maxTokens) }

// pause returns how long to wait before all targets are asked again, and what to say when that is too long.
func (p *Pools) pause(c *call, targets []target, last *failure, round int) (time.Duration, error) {
	now := time.Now()
	soonest, retry := time.Duration(-1), time.Duration(0)
	var reasons []string
	limited := false
	for _, t := range targets {
		d, why := t.pool.soonest(t.tokens(c), now)
		if soonest < 0 || d < soonest {
			soonest, retry = d, t.pool.cfg.CreateRetry
		}
		if d > 0 {
			reasons = append(reasons, fmt.Sprintf("%s: %s for %s", t.pool.cfg.Name, why, d.Round(10*time.Millisecond)))
			limited = limited || why == "rate limit"
		}
	}
	if last == nil || !last.unsent { // a connection is tried again at the same interval, an answer that failed later and later
		retry <<= min(round, 6)
		retry += time.Duration(p.chance() * float64(retry) / 4)
	}
	pause := max(soonest, retry)
	if last != nil {
		err := *last.err
		err.RetryAfter = max(pause, err.RetryAfter)
		last = &failure{err: &err}
		return pause, c.failed(last, len(c.history)-1) // which is the last
	}
	kind := fault.Unavailable
	if limited {
		kind = fault.Exhausted
	}
	if len(reasons) == 0 {
		reasons = []string{"another call tries whether it is well"}
	}
	return pause, fault.New(kind, "chat: no provider takes a call now (%s); come back in %s", strings.Join(reasons, "; "), pause.Round(10*time.Millisecond)).WithRetry(pause)
}

// rest waits before all is asked again, among the calls that wait.
func (p *pool) rest(ctx context.Context, d time.Duration) error {
	if p.waiting.Add(1) > int64(p.cfg.WaitingMax) {
		p.waiting.Add(-1)
		return p.fullFailure("%d calls wait already", p.cfg.WaitingMax)
	}
	defer p.waiting.Add(-1)
	return sleep(ctx, p.closing, d)
}

// again counts a call that is tried elsewhere.
func (p *pool) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.elsewhere++
}

// historyMax is how many earlier failures an error tells of.
const historyMax = 3

func (c *call) note(l *lane, f *failure) {
	c.history = append(c.history, l.name+" ("+f.err.Kind.String()+")")
}

// failed is the error for the caller: the last failure, and which there were before it.
func (c *call) failed(f *failure, before int) error {
	if before == 0 {
		return f.err
	}
	earlier := c.history[:before]
	more := ""
	if n := len(earlier) - historyMax; n > 0 {
		earlier, more = earlier[n:], fmt.Sprintf("%d more, ", n)
	}
	err := fault.New(f.err.Kind, "%w (tried before: %s%s)", f.err, more, strings.Join(earlier, ", "))
	err.RetryAfter = f.err.RetryAfter
	return err
}

// targets are the providers that can answer, in order.
func (p *Pools) targets(r *Request) ([]target, error) {
	if len(p.list) == 0 {
		return nil, fault.New(fault.FailedPrecondition, "chat: no model provider is configured; name one under providers.pools in the server's configuration")
	}
	var all []target
	found := false
	for _, one := range p.list {
		if r.Provider != "" && r.Provider != one.cfg.Name {
			continue
		}
		found = true
		if m, ok := one.preferred(r); ok {
			t := target{pool: one, model: m, maxTokens: r.MaxTokens}
			if t.maxTokens == 0 {
				t.maxTokens = one.cfg.MaxTokens
			}
			all = append(all, t)
		}
	}
	switch {
	case !found:
		return nil, fault.New(fault.NotFound, "chat: there is no provider %.64q; there is %s", r.Provider, strings.Join(p.names(), ", "))
	case len(all) == 0:
		return nil, fault.New(fault.NotFound, "chat: no provider has the model %.64q; there is %s", r.Model, strings.Join(p.modelNames(r.Provider), ", "))
	}
	slices.SortStableFunc(all, func(a, b target) int { return cmp.Compare(a.rank(r), b.rank(r)) })
	return all, nil
}

// rank is how much a target is preferred: the less, the more.
func (t target) rank(r *Request) int {
	switch {
	case r.PreferProvider != "" && t.pool.cfg.Name == r.PreferProvider:
		return 0
	case r.PreferModel != "" && t.model.Name == r.PreferModel:
		return 1
	default:
		return 2
	}
}

// preferred finds the model that a call asks for, or the one that it would rather have.
func (p *pool) preferred(r *Request) (ModelConfig, bool) {
	if r.Model == "" && r.PreferModel != "" {
		if m, ok := p.model(r.PreferModel); ok {
			return m, true
		}
	}
	return p.model(r.Model)
}

// model finds a model by its name; the first without one.
func (p *pool) model(name string) (ModelConfig, bool) {
	if name == "" {
		return p.cfg.Models[0], true
	}
	for _, m := range p.cfg.Models {
		if m.Name == name {
			return m, true
		}
	}
	return ModelConfig{}, false
}

// sleep waits, unless the caller goes away or the pools close.
func sleep(ctx, closing context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-closing.Done():
		return errClosed
	}
}

// interrupted is the error of a call that was ended while it waited to be tried again.
func interrupted(err error, last *failure) error {
	switch {
	case errors.Is(err, errClosed):
		return fault.New(fault.Unavailable, "chat: %w; ask another server, or this one when it is back", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Timeout, "chat: %w while waiting to try again; before that, %s", err, last.err.Message)
	}
	return fault.New(fault.Aborted, "chat: %w while waiting to try again; before that, %s", err, last.err.Message)
}
