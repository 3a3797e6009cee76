// How the owner comes to a way to the cluster: attempts, pauses, the fallback and back.

package toolclient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/internal/fault"
)

// attempted is how an attempt ended: with a connection, with a route, or with neither.
type attempted struct {
	c     *Client
	e     *endpoint
	conn  *conn
	ack   *message
	route *route
	err   error // of the WebSocket, and where HTTP was tried, too, of both
	ws    bool  // a WebSocket was tried
}

// try makes an attempt at the next address, unless one is under way or there is nothing to try.
func (o *owner) try() {
	if o.trying || o.conn != nil {
		return
	}
	o.timers.stop(o.next)
	viaHTTP := o.route == nil && o.cfg.FallbackAfter > 0 && o.failures >= o.cfg.FallbackAfter
	e, wait := o.ring.next(viaHTTP)
	if e == nil {
		o.schedule(wait)
		return
	}
	hello := greeting{Op: "hello", SessionID: o.c.session}
	if o.server != "" && e.server == o.server {
		seq := o.seq
		hello.LastSeq = &seq
	}
	if o.order != 0 {
		order := o.order
		hello.LastOrder = &order
	}
	o.trying, o.tried = true, time.Now()
	token := o.token
	o.c.work.Go(func() {
		a := o.c.attempt(e, hello, token, viaHTTP)
		if !o.c.post(a) {
			a.dropped()
		}
	})
}

// attempt tries one address. Where the WebSocket has failed for some time HTTP goes first: it is likelier to work.
func (c *Client) attempt(e *endpoint, hello greeting, token *string, viaHTTP bool) attempted {
	a := attempted{c: c, e: e}
	ctx, cancel := context.WithTimeout(c.life, c.cfg.ConnectTimeout)
	defer cancel()
	switch {
	case token != nil:
		hello.Token = *token
	case c.cfg.Token != nil:
		var err error
		if hello.Token, err = c.cfg.Token(ctx); err != nil {
			a.err = fault.New(kindOr(err, fault.Unauthenticated), "get the token: %w", err)
			return a
		}
	}
	var overHTTP error
	if viaHTTP {
		overHTTP = e.byHTTP.guard(func() (err error) {
			a.route, err = c.helloHTTP(ctx, e, hello)
			return err
		})
		if overHTTP == nil {
			return a
		}
	}
	ctx, cancel = context.WithTimeout(c.life, c.cfg.ConnectTimeout)
	defer cancel()
	a.ws = true
	a.err = e.byWS.guard(func() (err error) {
		a.conn, a.ack, err = c.dial(ctx, e, hello)
		return err
	})
	if a.err != nil && overHTTP != nil {
		a.err = fmt.Errorf("%w; and %w", a.err, overHTTP)
	}
	return a
}

// guard makes an attempt if the breaker lets it, and tells the breaker how it went. A refused token says nothing about the address.
func (b *breaker) guard(f func() error) error {
	done, err := b.allow()
	if err != nil {
		return err
	}
	err = f()
	if fault.Is(err, fault.Unauthenticated) || errors.Is(err, context.Canceled) {
		done(errExcluded)
		return err
	}
	done(err)
	return err
}

func (e attempted) dropped() {
	if e.conn != nil {
		_ = e.conn.ws.Close()
	}
}

func (e attempted) handle(o *owner) {
	o.trying = false
	switch {
	case e.conn != nil:
		o.connected(e)
	case e.route != nil:
		o.refusals = 0
		o.route = e.route
		o.outages = 0
		o.cfg.Logger.Warn("client gateway: no WebSocket gets through; calls go over HTTP meanwhile", "address", e.e.name, "err", o.lastErr)
		o.emit(Event{State: Fallback, Address: e.e.name, Attempt: o.failures, Err: o.lastErr})
		o.schedule(o.pauseFor(o.failures))
		for _, q := range o.queries {
			o.askQuery(q)
		}
		o.askAgain()
	default:
		o.attemptFailed(e)
	}
}

// attemptFailed counts an attempt that reached nobody, and plans the next.
func (o *owner) attemptFailed(e attempted) {
	o.lastErr = e.err
	if e.ws {
		o.failures++
	}
	if fault.Is(e.err, fault.Unauthenticated) {
		o.refusals++
	} else {
		o.refusals = 0
	}
	state := o.c.State()
	if o.route == nil {
		o.outages++
	}
	delay := o.pauseFor(max(o.outages, 1))
	switch {
	case o.route != nil:
		delay = o.pauseFor(o.failures)
	case o.failures == o.cfg.FallbackAfter && e.ws:
		delay = 0 // it is HTTP's turn
	}
	o.cfg.Logger.Info("client gateway: an attempt failed", "address", e.e.name, "attempt", o.failures, "again_in", delay, "err", e.err)
	o.emit(Event{State: state, Address: e.e.name, Attempt: max(o.failures, o.outages), Delay: delay, Err: e.err})
	switch {
	case o.route != nil:
		for _, q := range o.queries {
			if !q.overHTTP() {
				o.answerQuery(q, nil, fault.New(fault.Unavailable, "%s: needs a WebSocket, and only HTTP gets through; try again later: %w", q.request.Op, e.err))
			}
		}
	case o.refusals >= len(o.ring.all): // all of them: one may only not have heard of the token yet
		o.failAll(fault.New(fault.Unauthenticated, "%w", e.err))
	case o.hopeless():
		o.failAll(fault.New(fault.Unavailable, "no server was reached in %d attempts: %w", o.outages, e.err))
	}
	o.schedule(delay)
}

// tokenRead is the token of now, after a server refused something.
type tokenRead struct {
	conn  *conn
	token string
	err   error
}

// readToken asks for the token again: the one of this connection may have been revoked, or have come to its end.
func (o *owner) readToken() {
	k := o.conn
	if k == nil || o.reading || o.token != nil || o.cfg.Token == nil {
		return
	}
	o.reading = true
	o.c.work.Go(func() {
		ctx, cancel := context.WithTimeout(o.c.life, o.c.cfg.ConnectTimeout)
		defer cancel()
		token, err := o.c.cfg.Token(ctx)
		o.c.post(tokenRead{k, token, err})
	})
}

func (e tokenRead) handle(o *owner) {
	o.reading = false
	if e.err == nil && o.conn == e.conn && e.token != e.conn.token {
		o.lose(e.conn, fault.New(fault.Unauthenticated, "there is another token by now; connecting with it"))
	}
}

func (tokenRead) dropped() {}

// hopeless reports whether so many attempts have failed that calls do not wait any more.
func (o *owner) hopeless() bool {
	return o.cfg.GiveUpAfter > 0 && o.outages >= o.cfg.GiveUpAfter
}

// failAll ends all calls and questions.
func (o *owner) failAll(err error) {
	for _, k := range o.inOrder() {
		o.finish(k, nil, err)
	}
	for _, q := range o.queries {
		o.answerQuery(q, nil, err)
	}
}

// pauseFor is how long to wait after so many failures in a row.
func (o *owner) pauseFor(failures int) time.Duration {
	b := &o.cfg.Backoff
	if slow := failures - b.Attempts; slow >= 0 {
		bound := b.SlowMax
		if slow < 20 {
			bound = min(b.SlowMin<<slow, b.SlowMax)
		}
		return b.SlowMin + time.Duration(o.cfg.Rand()*float64(max(bound-b.SlowMin, 0)))
	}
	bound := b.Max
	if shift := max(failures-1, 0); shift < 20 {
		bound = min(b.Min<<shift, b.Max)
	}
	return time.Duration(o.cfg.Rand() * float64(bound))
}

// schedule plans the next attempt.
func (o *owner) schedule(d time.Duration) {
	o.timers.stop(o.next)
	o.next = o.timers.after(d, o.try)
}

// hurry brings the next attempt forward, to the first pause of all, but not before that time has passed.
func (o *owner) hurry(not time.Duration) {
	if soon := max(o.pauseFor(1), not); !o.trying && o.next != nil && o.next.i >= 0 && time.Until(o.next.at) > soon {
		o.schedule(soon)
	}
}

// wentWell ends the row of failures: a server does its work.
func (o *owner) wentWell() {
	o.outages = 0
	if o.conn != nil {
		o.conn.served = true
		o.failures = 0
	}
}

// connected begins a connection's life: all that was in flight is asked for again on it.
func (o *owner) connected(e attempted) {
	k := e.conn
	o.refusals, o.lastErr = 0, nil
	same := e.ack.Resumed && k.server == o.server
	if !same {
		o.seq = 0
	}
	for _, call := range o.calls {
		call.anew = call.anew || call.streamed && !same
	}
	o.conn, o.server, e.e.server = k, k.server, k.server
	k.began = time.Now()
	o.timers.stop(o.next)
	o.c.count.connections.Add(1)
	o.c.work.Go(k.writeLoop)
	o.c.work.Go(func() { k.readLoop(o.c.post) })
	if o.route != nil { // what goes over HTTP goes on here
		o.route = nil
		for _, call := range o.calls {
			o.leaveHTTP(call)
		}
		for _, q := range o.queries {
			o.leaveQuery(q)
		}
	}
	if !same { // how busy the former one was says nothing about it
		o.pace = newPace(o.cfg.MaxInFlight)
	}
	o.cfg.Logger.Info("client gateway: connected", "address", e.e.name, "server", k.server, "session", o.c.session, "resumed", e.ack.Resumed, "in_flight", len(o.calls))
	o.emit(Event{State: Connected, Address: e.e.name, Server: e.ack.Server})
	o.heard, o.missed, o.barrier = true, 0, ""
	o.timers.stop(o.ping)
	o.ping = o.timers.after(o.cfg.PingEvery, o.pings)
	for _, q := range o.queries {
		o.askQuery(q)
	}
	for _, call := range o.inOrder() {
		if call.phase == delayed && call.code == codeUnavailable { // it was the former server that was not available
			o.enqueue(call)
		}
	}
	if e.ack.Resumed {
		o.mark() // results that were kept come first
		o.pump()
		return
	}
	o.askAgain()
}

// pings asks for a sign of life, and ends a connection that has given none for too long.
func (o *owner) pings() {
	if o.conn == nil {
		return
	}
	if o.missed++; o.heard {
		o.heard, o.missed = false, 0
	}
	if o.missed >= maxMissedPings {
		o.lose(o.conn, fault.New(fault.Unavailable, "%s has said nothing for %s", o.conn.e.name, time.Duration(maxMissedPings)*o.cfg.PingEvery))
		return
	}
	o.ping = o.timers.after(o.cfg.PingEvery, o.pings)
	o.write(request{Op: "ping"})
}

func (e disconnected) handle(o *owner) { o.lose(e.conn, e.err) }

func (disconnected) dropped() {}

// lose ends the present connection, and plans the next attempt.
func (o *owner) lose(k *conn, err error) {
	if o.conn != k {
		return
	}
	k.close()
	o.conn, o.lastErr, o.barrier = nil, err, ""
	o.timers.stop(o.ping)
	if k.served || time.Since(k.began) >= stableAfter {
		o.failures, o.outages = 0, 0
	} else {
		o.failures++
	}
	o.outages++
	delay := o.pauseFor(o.outages)
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		switch closed.Code {
		case closeProtocol:
			// Two that share a session would take it from each other as fast as they can.
			delay = max(delay, o.cfg.Backoff.Max)
			o.cfg.Logger.Error("client gateway: another client took the session over; give each its own session id", "session", o.c.session, "err", err)
		case closeTooLarge:
			o.tooLarge(k, closed)
		}
	}
	for _, call := range o.calls {
		o.pace.forget(call)
		call.on = nil
	}
	for _, q := range o.queries {
		if q.on != nil && q.token != "" { // whether it was done is not known; the new token is good in both cases
			o.token = &q.token
			o.answerQuery(q, nil, fault.New(fault.Unavailable, "rotate_token: the connection was lost before the answer came; the new token is used: %w", err))
			continue
		}
		q.on = nil
	}
	o.cfg.Logger.Info("client gateway: the connection was lost", "address", k.e.name, "after", time.Since(k.began).Round(time.Millisecond), "again_in", delay, "err", err)
	o.emit(Event{State: Reconnecting, Address: k.e.name, Attempt: o.failures, Delay: delay, Err: err})
	o.schedule(delay)
}

// tooLarge fails the call whose message was too large for the server: asking again would end every connection.
func (o *owner) tooLarge(k *conn, why error) {
	var largest *Pending
	for _, call := range o.calls {
		if call.on == k && call.open && (largest == nil || call.bytes > largest.bytes) {
			largest = call
		}
	}
	if largest != nil {
		o.finish(largest, nil, fault.New(fault.Invalid, "%s: its %d bytes are more than the server takes in one message (gateway.max_frame_bytes): %w", largest.name, largest.bytes, why))
	}
}

func (o *owner) emit(e Event) { o.c.events.emit(e) }
