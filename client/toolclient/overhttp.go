// The owner's part of the fallback: calls, cancels and questions over HTTP, and the end of that way.

package toolclient

import (
	"context"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

type (
	answered struct { // a call
		k     *Pending
		route *route
		m     *message
		err   error // of the way
	}
	cancelAnswered struct {
		k     *Pending
		route *route
		m     *message
		err   error
	}
	queryAnswered struct {
		q     *query
		route *route
		m     *message
		err   error
	}
)

// askHTTP asks for a call, and goes on until it has its result.
func (o *owner) askHTTP(k *Pending) {
	r := o.route
	ctx, cancel := context.WithDeadline(o.c.life, k.deadline)
	k.poll, k.viaHTTP = cancel, true
	o.pace.asked(k)
	k.pause = o.timers.after(refusedWithin, func() { o.pace.taken(k); o.pump() })
	o.c.count.overHTTP.Add(1)
	o.c.work.Go(func() {
		defer cancel()
		m, err := o.c.ask(ctx, r, k)
		o.c.post(answered{k, r, m, err})
	})
}

func (e answered) handle(o *owner) {
	k := e.k
	if o.calls[k.id] != k || k.poll == nil || o.route != e.route {
		if o.calls[k.id] == k && e.m != nil && e.m.failure() == nil { // it was on its way when the WebSocket came back
			o.outcome(k, e.m)
		}
		return
	}
	if e.err != nil {
		o.routeLost(e.err)
		return
	}
	k.poll = nil
	o.wentWell()
	switch f := e.m.failure(); {
	case f == nil:
		o.pace.taken(k)
	case f.Code == codeUnauthorized:
		o.finish(k, nil, f.fault())
		o.routeLost(f)
		return
	case f.Code == codeNotFound && e.m.Op == "cancelled": // it is not known there any more; what became of it, the answer to the cancel says
		return
	}
	o.outcome(k, e.m)
}

func (answered) dropped() {}

// cancelHTTP asks the server to end a call. The request for its result goes on: it may have come to its end just before.
func (o *owner) cancelHTTP(k *Pending) {
	if o.route == nil || k.cancelling != nil {
		return
	}
	r := o.route
	ctx, stop := context.WithCancel(o.c.life)
	k.cancelling = stop
	o.c.work.Go(func() {
		defer stop()
		m, err := o.c.cancel(ctx, r, k.id)
		o.c.post(cancelAnswered{k, r, m, err})
	})
}

// sayCancel has a call cancelled, in whichever way there is.
func (o *owner) sayCancel(k *Pending) {
	switch {
	case o.conn != nil:
		o.write(request{Op: "cancel", RequestID: k.id})
		if k.viaHTTP { // that it is not in flight any more is all that is said here
			o.cancelAgain(k, 0)
		}
	case o.route != nil:
		o.cancelHTTP(k)
	}
}

// cancelAgain says it again after a pause, which doubles.
func (o *owner) cancelAgain(k *Pending, notBefore time.Duration) {
	pause := max(cancelAgainFirst<<min(k.cancels, 4), notBefore)
	k.cancels++
	o.timers.stop(k.again)
	k.again = o.timers.after(pause, func() { o.sayCancel(k) })
}

// mayArrive reports whether a call that no server knows may only be on its way there. Requests overtake one another: it would run for
// nobody if it were not cancelled again.
func (k *Pending) mayArrive() bool { return k.poll != nil || time.Now().Before(k.stray) }

// handle takes the answer to a cancel.
func (e cancelAnswered) handle(o *owner) {
	k := e.k
	if o.calls[k.id] != k {
		return
	}
	if o.route != e.route { // a later way asks again, unless it is known by now
		if e.m != nil && e.m.Op == "cancelled" && e.m.failure() == nil {
			o.outcome(k, e.m)
		}
		return
	}
	k.cancelling = nil
	if e.err != nil {
		o.routeLost(e.err)
		return
	}
	f := e.m.failure()
	switch {
	case f == nil || f.Code == codeNotFound:
		o.outcome(k, e.m)
	case f.Code == codeUnauthorized: // with another token it may be
		o.routeLost(f)
	case f.passing() || f.Code == codeTimeout:
		o.cancelAgain(k, f.RetryAfter)
	default:
		o.finish(k, nil, fault.New(fault.Aborted, "%s: %w; the server does not cancel it, so it may go on: %w", k.name, k.cancelled, f))
	}
}

func (cancelAnswered) dropped() {}

// leaveHTTP ends a call's HTTP requests, if it has any. The call itself goes on.
func (o *owner) leaveHTTP(k *Pending) {
	if k.cancelling != nil {
		k.cancelling()
		k.cancelling = nil
	}
	o.timers.stop(k.again)
	if k.poll == nil {
		return
	}
	k.poll()
	k.poll, k.stray = nil, time.Now().Add(strayWithin)
	o.timers.stop(k.pause)
	o.pace.forget(k)
}

// overHTTP reports whether servers answer the question over HTTP, too.
func (q *query) overHTTP() bool { return q.request.Op == "list_tools" }

// queryHTTP asks a question.
func (o *owner) queryHTTP(q *query) {
	r := o.route
	ctx, cancel := context.WithTimeout(o.c.life, o.cfg.ConnectTimeout)
	q.poll = cancel
	o.c.work.Go(func() {
		defer cancel()
		m, err := o.c.tools(ctx, r)
		o.c.post(queryAnswered{q, r, m, err})
	})
}

func (e queryAnswered) handle(o *owner) {
	q := e.q
	if o.queries[q.request.RequestID] != q || q.poll == nil || o.route != e.route {
		return
	}
	q.poll = nil
	if e.err != nil { // it is asked again on the next way
		o.routeLost(e.err)
		return
	}
	o.wentWell()
	o.replyTo(q, e.m)
	if f := e.m.failure(); f != nil && f.Code == codeUnauthorized {
		o.routeLost(f)
	}
}

func (queryAnswered) dropped() {}

// leaveQuery ends a question's HTTP request, if it has one. The question still waits for its answer.
func (o *owner) leaveQuery(q *query) {
	if q.poll != nil {
		q.poll()
		q.poll = nil
	}
}

// routeLost ends the way over HTTP.
func (o *owner) routeLost(err error) {
	if o.route == nil {
		return
	}
	o.lastErr = err
	e := o.route.e
	if done, shut := e.byHTTP.allow(); shut == nil {
		done(err)
	}
	o.route = nil
	for _, call := range o.calls {
		o.leaveHTTP(call)
	}
	for _, q := range o.queries {
		o.leaveQuery(q)
	}
	o.outages++
	delay := o.pauseFor(o.outages)
	o.emit(Event{State: Reconnecting, Address: e.name, Attempt: o.outages, Delay: delay, Err: err})
	o.schedule(delay)
}

// strayWithin is how long a request may still be on its way when nobody waits for its answer any more.
const strayWithin = time.Second

// cancelAgainFirst is the pause before a server is asked to cancel for a second time; it doubles, up to sixteen times that.
const cancelAgainFirst = 25 * time.Millisecond
