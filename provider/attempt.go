// One attempt: a request over a slot, and its answer.

package provider

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	answerBytesMax = 8 << 20
	errorBytesMax  = 64 << 10
	// tailTime is how long the end of an answer's body may take, which lets its connection be used again.
	tailTime = time.Second
)

// attempt sends a call to a chosen lane, and gives the lane back.
func (p *pool) attempt(ctx context.Context, k *pick, c *call, t target) (*Response, *failure) {
	r, f := p.acquire(ctx)
	if f != nil {
		p.back(k)
		return nil, f
	}
	defer p.leave()
	e := &exchange{pool: p, lane: k.lane, call: c, target: t, slot: r.Value(), began: time.Now()}
	ended := false
	defer func() {
		if !ended { // the caller's emit panicked, and somebody above may go on
			r.Destroy()
			p.back(k)
		}
	}()
	f = e.run(ctx)
	ended = true
	if f != nil && f.gone {
		r.Destroy() // its connection is gone
	} else {
		r.Release()
	}
	took := time.Since(e.began)
	used, cost := e.usage(f), 0.0
	if f != nil && f.unsent {
		p.finish(k, f, nil, 0)
		return nil, f
	}
	p.finish(k, f, &e.limits, int64(used.Tokens()))
	if used.Tokens() > 0 {
		cost = t.model.cost(used)
		c.hold.spend(used, cost, time.Now())
		p.spent(used, cost)
	}
	outcome := "answered"
	if f != nil {
		outcome = "failed"
	}
	p.metrics.call.WithLabelValues(p.cfg.Name, outcome).Observe(took.Seconds())
	if f != nil {
		return nil, f
	}
	p.metrics.firstByte.WithLabelValues(p.cfg.Name).Observe(e.first.Seconds())
	return &Response{
		Provider: p.cfg.Name, Endpoint: k.name, Model: t.model.Name, ID: e.answer.id, Text: e.answer.text.String(), Reasoning: e.answer.reasoning.String(),
		Stop: e.answer.stop, Usage: used, CostUSD: cost, FirstByte: e.first, Took: took,
	}, nil
}

// spent adds to the pool's counters.
func (p *pool) spent(u Usage, cost float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.in += int64(u.InputTokens)
	p.counts.out += int64(u.OutputTokens)
	p.counts.cached += int64(u.CachedTokens)
	p.counts.costUSD += cost
}

// exchange is one request and its answer.
type exchange struct {
	pool   *pool
	lane   *lane
	call   *call
	target target
	slot   *slot
	began  time.Time

	connected atomic.Bool
	limits    limits
	answer    answer
	first     time.Duration // until the first piece, or the whole
}

// usage is what the exchange used: what the provider says, and otherwise an estimate, unless it certainly used nothing.
func (e *exchange) usage(f *failure) Usage {
	if f != nil && f.sure != unsure && (f.sure == refused || !f.gone) {
		return Usage{}
	}
	if e.answer.hasUsage && f == nil {
		return e.answer.usage
	}
	u := e.answer.usage
	u.Estimated = true
	u.InputTokens = max(u.InputTokens, e.call.estimate)
	u.OutputTokens = max(u.OutputTokens, (e.answer.bytes()+3)/4)
	return u
}

// run sends and reads. The caller's context, a timeout and the end of the pools all end the call there, too: by closing its connection.
func (e *exchange) run(caller context.Context) *failure {
	body, err := e.pool.dialect.encode(e.call.req, e.target.model.Upstream, e.target.maxTokens, e.call.emit != nil)
	if err != nil {
		return &failure{sure: final, unsent: true, err: fault.New(fault.Invalid, "chat: %w", err)}
	}
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	defer context.AfterFunc(e.pool.closing, func() { cancel(errClosed) })()
	defer time.AfterFunc(e.pool.cfg.CallTimeout, func() { cancel(errTooLong) }).Stop()
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { e.connected.Store(true) }})
	r, err := http.NewRequestWithContext(traced, http.MethodPost, e.lane.url.JoinPath(e.pool.dialect.chatPath()).String(), bytes.NewReader(body))
	if err != nil {
		return &failure{sure: final, unsent: true, err: fault.New(fault.Internal, "chat: %w", err)}
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", userAgent)
	e.pool.dialect.authorize(r.Header, e.lane.currentKey())
	if e.call.emit != nil {
		r.Header.Set("Accept", "text/event-stream")
		return e.stream(ctx, caller, cancel, r)
	}
	return e.whole(ctx, caller, r)
}

// userAgent says who calls.
const userAgent = "neolith-orchestrator"

// open sends the request and reads the header; what is not 200 is a failure.
func (e *exchange) open(ctx, caller context.Context, r *http.Request) (*http.Response, *failure) {
	res, err := e.slot.roundTrip(r)
	if err != nil {
		return nil, e.lane.broken(ctx, caller, err, e.connected.Load(), 0)
	}
	e.limits = readLimits(res.Header, time.Now())
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, errorBytesMax)) // whatever came of it
	return nil, e.lane.refusal(res.StatusCode, text, e.limits, e.target.model.Upstream)
}

func (e *exchange) whole(ctx, caller context.Context, r *http.Request) *failure {
	res, f := e.open(ctx, caller, r)
	if f != nil {
		return f
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, answerBytesMax+1))
	e.first = time.Since(e.began)
	if err == nil && len(body) > answerBytesMax {
		err = errAnswerTooLong
	}
	if err == nil {
		err = e.pool.dialect.decode(body, &e.answer)
	} else if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errCut
	}
	if err != nil {
		return e.lane.broken(ctx, caller, err, true, 0)
	}
	return nil
}

var errAnswerTooLong = errors.New("the answer is longer than 8 MiB")

// stream passes pieces on as they come. It is complete when it says so, or has said why it stopped.
func (e *exchange) stream(ctx, caller context.Context, cancel context.CancelCauseFunc, r *http.Request) *failure {
	begin := time.AfterFunc(e.pool.cfg.FirstByteTimeout, func() { cancel(errFirstByte) })
	defer begin.Stop()
	res, f := e.open(ctx, caller, r)
	if f != nil {
		return f
	}
	defer res.Body.Close()
	stall := time.AfterFunc(e.pool.cfg.CallTimeout, func() { cancel(errStalled) })
	defer stall.Stop()
	events := newSSEReader(res.Body, func() { begin.Stop(); stall.Reset(e.pool.cfg.StallTimeout) })
	for !e.answer.ended {
		ev, err := events.next()
		var d Delta
		if err == nil {
			d, err = e.pool.dialect.event(ev, &e.answer)
		}
		switch {
		case errors.Is(err, io.EOF) && e.answer.stop != "":
			e.answer.ended = true
			continue
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			err = errCut
		case err == nil && e.answer.bytes() > answerBytesMax:
			err = errAnswerTooLong
		}
		if err != nil {
			return e.lane.broken(ctx, caller, err, true, e.answer.bytes())
		}
		if d == (Delta{}) {
			continue
		}
		if e.first == 0 {
			e.first = time.Since(e.began)
		}
		stall.Stop() // the time that the reader takes is not the provider's
		if err := e.call.emit(d); err != nil {
			return &failure{sure: final, gone: true, err: fault.New(fault.Aborted, "chat: %s: the answer's reader stopped: %w", e.lane.name, err)}
		}
		stall.Reset(e.pool.cfg.StallTimeout)
	}
	stall.Reset(tailTime)
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // up to its end, so that the connection can be used again
	return nil
}

// cost is what a call costs, in US dollars.
func (m ModelConfig) cost(u Usage) float64 {
	return (float64(u.InputTokens)*m.InputPrice + float64(u.OutputTokens)*m.OutputPrice) / 1e6
}

// probe asks an endpoint whether it is well, over a slot, which is connected then. An answer that only says that there is no such
// list is one.
func (p *pool) probe(ctx context.Context, s *slot, l *lane) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectTimeout+probeTime)
	defer cancel()
	defer context.AfterFunc(p.closing, cancel)()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url.JoinPath(p.dialect.healthPath()).String(), nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", userAgent)
	p.dialect.authorize(r.Header, l.currentKey())
	res, err := s.roundTrip(r)
	if err != nil {
		l.probed(0, err)
		return fault.New(fault.Unavailable, "%s cannot be reached: %w; check the network, and the provider's url", l.name, err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, answerBytesMax)) // so that the connection can be used again
	l.probed(res.StatusCode, nil)
	return nil
}

// probeTime bounds the answer to a probe.
const probeTime = 10 * time.Second
