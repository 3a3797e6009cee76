// Calls: begun once for each request_id, run beside their connection, and told when they have ended. Who keeps a call, and runs it, is its keeper's.

package socket

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/neolith/orchestrator/auth"
)

// keeper is who keeps calls: this server (memory.go), or the cluster (durable.go).
type keeper interface {
	// take begins a call, whose client's mu is held; accept or refuse follows, and in the end finish.
	take(k *call, t toolCall)
	// cancel has a call in flight end; failed is called when it cannot be. client.mu is not held.
	cancel(k *call, failed func(*failure))
	// keeps is told of a call that has finished, with what was said of it. client.mu is held.
	keeps(k *call, v *verdict)
}

// call is one call of a tool. What says nothing else is never changed.
type call struct {
	client   *client
	keeper   keeper
	id, name string
	hash     uint64 // of what was asked for
	began    time.Time
	deadline time.Time

	// Under client.mu.
	settled  signal // it is accepted, or refused
	done     signal // result is there
	accepted bool
	owed     int   // acks to be given once it is accepted
	conn     *conn // on which it was asked for last; nil when over HTTP
	moved    bool  // it was asked for again on another connection
	joined   int   // how often it was asked for again on the same one
	cached   bool  // it had ended when it was asked for
	result   *message
	taken    bool // the result was handed out over HTTP
	again    bool // the outcome is not for good: asking again makes a new call
	bytes    int
	ends     time.Time
	due      time.Time // for progress
	// Of its stream: whether there is one, and whether chunks were left out because nobody took them.
	streamed, truncated bool

	stop       context.CancelCauseFunc // of one that this server keeps
	number     uint64                  // of one that the cluster keeps, once it is accepted
	cancelling bool                    // of one that the cluster keeps: that was asked for
}

// signal is something that happens once. Few wait for it: there is a channel only where somebody does.
type signal struct {
	happened bool
	c        chan struct{}
}

func (s *signal) happen() {
	s.happened = true
	if s.c != nil {
		close(s.c)
	}
}

// when returns a channel that is closed once a signal of the call has happened. client.mu is not held.
func (k *call) when(s *signal) <-chan struct{} {
	k.client.mu.Lock()
	defer k.client.mu.Unlock()
	if s.c == nil {
		s.c = make(chan struct{})
		if s.happened {
			close(s.c)
		}
	}
	return s.c
}

// errStopping is the cause of calls that end because the server does.
var errStopping = errors.New("the server is stopping")

// elsewhere is the connection of calls that were made on one of another server.
var elsewhere = &conn{}

// hashOf tells whether a repeated request_id means the same.
func (t *toolCall) hashOf() uint64 {
	h := xxhash.New()
	_, _ = h.WriteString(t.name)
	_, _ = h.Write([]byte{0})
	_, _ = h.WriteString(t.priority)
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(t.arguments)
	return h.Sum64()
}

// effectID names what a call changes, at whichever server it is made: by who calls, the session, and the request_id.
func effectID(who auth.Identity, session, request string) string {
	text := make([]byte, 0, 512) // more than most of them are
	for _, s := range [...]string{who.String(), who.Namespace, session, request} {
		text = append(strconv.AppendInt(text, int64(len(s)), 10), ':')
		text = append(text, s...)
	}
	sum := sha256.Sum256(text)
	return string(hex.AppendEncode(append(text[:0], "call-"...), sum[:20]))
}

// begin makes a call, or finds the one that was made before. What a connection is told, the ack and the result, comes by its
// queue; over HTTP (conn is nil) the result is waited for.
func (c *client) begin(conn *conn, t toolCall) (*call, *failure) {
	h := c.hub
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = conn != nil // its reader flushes
	defer func() { c.held = false }()
	if c.retired {
		return nil, failed(codeUnavailable, "the session has just expired; say hello again")
	}
	if k := c.calls[t.id]; k != nil && (k.result == nil || !k.again && time.Since(k.ends) < h.o.Limits.ResultTTL) {
		return k, c.repeat(k, conn, t.hashOf())
	}
	tool, ok := h.o.Tools.Find(t.name)
	if !ok {
		return nil, failed(codeToolNotFound, fmt.Sprintf("tool %.64q: there is none; list_tools tells the names", t.name))
	}
	if err := tool.Schema.Check(t.arguments); err != nil {
		return nil, failureOf(err)
	}
	keeper, f := c.keeperOf(&t, conn)
	if f != nil {
		return nil, f
	}
	if f := c.mayBegin(keeper == h.memory); f != nil {
		return nil, f
	}
	if t.timeout == 0 {
		t.timeout = h.o.Limits.CallTimeout
	}
	t.tool = tool
	k := c.newCall(keeper, t.id, t.name, time.Now().Add(t.timeout))
	k.hash, k.conn = t.hashOf(), conn
	if conn != nil {
		k.owed = 1
	}
	h.count.calls.Add(1)
	keeper.take(k, t)
	return k, nil
}

// newCall counts a call in. c.mu is held.
func (c *client) newCall(keeper keeper, id, name string, deadline time.Time) *call {
	k := &call{client: c, keeper: keeper, id: id, name: name, began: time.Now(), deadline: deadline}
	if c.calls == nil {
		c.calls = map[string]*call{}
	}
	c.calls[id] = k
	c.inFlight++
	return k
}

// mayBegin says what is full; it counts a call in that this server keeps. c.mu is held.
func (c *client) mayBegin(here bool) *failure {
	h, l := c.hub, &c.hub.o.Limits
	switch {
	case h.stopping.Load():
		return failed(codeUnavailable, "server "+h.o.Server+" is stopping; connect to another one")
	case c.inFlight >= l.InFlightClient:
		return full(fmt.Sprintf("%d calls are in flight on this session, which is as many as may be", c.inFlight), time.Second)
	}
	if c.keepsTooMuch() {
		c.evict()
	}
	if c.keepsTooMuch() {
		return full("as many results are kept as may be; fetch those that wait", time.Second)
	}
	if !here { // it waits for its turn
		h.count.durable.Add(1)
		return nil
	}
	if h.count.inFlight.Add(1) > int64(l.InFlight) {
		h.count.inFlight.Add(-1)
		return full("as many calls are in flight on this server as may be", time.Second)
	}
	return nil
}

// repeat answers a request_id that is known. c.mu is held.
func (c *client) repeat(k *call, conn *conn, hash uint64) *failure {
	if k.hash != hash {
		return failed(codeDuplicate, "request_id was used for another call; give each call one of its own")
	}
	if k.result != nil {
		c.hub.count.cached.Add(1)
		if conn != nil {
			c.ack(k)
			m := *k.result
			m.FromCache = true
			c.answer(&m)
		}
		return nil
	}
	switch {
	case conn == nil:
	case k.conn != conn:
		k.conn, k.moved = conn, true
	case k.joined >= maxJoined:
		return full("the call has been asked for too often; it is still in flight", time.Second)
	default:
		k.joined++
	}
	c.hub.count.joined.Add(1)
	switch {
	case conn == nil:
	case k.accepted:
		c.ack(k)
	default:
		k.owed++
	}
	return nil
}

// ack tells that a call was taken. c.mu is held.
func (c *client) ack(k *call) {
	c.answer(&message{Op: "call_tool_ack", RequestID: k.id, Name: k.name, Accepted: true, Timeout: max(time.Until(k.deadline), 0).Round(time.Millisecond).Seconds()})
}

// accept tells that the call was taken. client.mu is held.
func (k *call) accept() {
	if k.accepted || k.result != nil {
		return
	}
	k.accepted = true
	for range k.owed {
		k.client.ack(k)
	}
	k.owed = 0
	k.settled.happen()
	every := k.client.hub.o.Limits.ProgressEvery
	k.due = time.Now().Add(every)
	if k.client.beat == nil {
		k.client.beat = time.AfterFunc(every, k.client.tick)
	}
}

// refuse tells that the call was not taken, and forgets it. client.mu is held.
func (k *call) refuse(f *failure) {
	if k.accepted || k.result != nil {
		return
	}
	c := k.client
	m := message{Op: "call_tool_res", RequestID: k.id, Error: f}
	k.result, k.again = &m, true
	c.hub.note(f)
	if k.conn != nil && c.conn == k.conn {
		for range max(k.owed, 1) {
			c.push(frame{call: k.id, data: m.encode()})
		}
	}
	if c.calls[k.id] == k {
		delete(c.calls, k.id)
	}
	k.leave()
	k.settled.happen()
	k.done.happen()
}

// leave counts the call out. client.mu is held.
func (k *call) leave() {
	c := k.client
	c.inFlight--
	if k.keeper == c.hub.memory {
		c.hub.count.inFlight.Add(-1)
	} else {
		c.hub.count.durable.Add(-1)
	}
	if c.conn == nil {
		c.since = time.Now() // its time to come back runs from now
	}
}

// tick says which calls go on, and comes again when the next one is due; not while none is in flight.
func (c *client) tick() {
	for _, k := range c.dueCalls(time.Now()) {
		k.progress(k.whereabouts())
	}
}

// dueCalls returns the calls of which it is time to say that they go on.
func (c *client) dueCalls(now time.Time) (due []*call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.beat == nil {
		return nil // the client is left behind
	}
	every := c.hub.o.Limits.ProgressEvery
	again := time.Duration(-1)
	for _, k := range c.calls {
		if k.result != nil || !k.accepted {
			continue
		}
		if !k.due.After(now) {
			due = append(due, k)
			k.due = now.Add(every)
		}
		if wait := k.due.Sub(now); again < 0 || wait < again {
			again = wait
		}
	}
	if again < 0 {
		c.beat = nil
	} else {
		c.beat.Reset(again)
	}
	return due
}

// progress tells whoever is connected that the call goes on. It is never kept.
func (k *call) progress(note string) {
	c := k.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.result != nil || !k.accepted || k.conn == nil || c.conn == nil || !c.hasRoom() {
		return
	}
	m := message{Op: "progress", RequestID: k.id, Message: note}
	c.push(frame{call: k.id, data: m.encode()})
}

// chunk queues a part of the answer. While its client reads too slowly it waits; while its client is away and the queue is full,
// it is left out, and the end of the stream says so: the answer itself is whole in any case.
func (k *call) chunk(ctx context.Context, text string) error {
	select {
	case <-k.when(&k.settled): // nothing comes before the ack
	case <-ctx.Done():
		return ctx.Err()
	}
	c := k.client
	for {
		c.mu.Lock()
		if k.conn == nil || k.result != nil || k.truncated { // nobody streams over HTTP
			c.mu.Unlock()
			return nil
		}
		k.streamed = true
		room := c.waitRoom()
		if room == nil {
			c.answer(&message{Op: "stream_chunk", RequestID: k.id, Chunk: text})
			c.mu.Unlock()
			return nil
		}
		if c.conn == nil {
			k.truncated = true
			c.hub.count.truncated.Add(1)
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// finish tells how the call came out; order is that of its result, where the cluster counts it. client.mu is held.
func (k *call) finish(v verdict, order uint64) {
	c, m := k.client, v.message(k.id)
	m.Order, m.FromCache = order, k.cached
	if k.result != nil {
		return
	}
	k.accept() // where its end comes first
	k.result, k.ends = &m, time.Now()
	k.keeper.keeps(k, &v)
	k.leave()
	if v.cancelled {
		c.hub.count.cancelled.Add(1)
	}
	if k.streamed {
		c.answer(&message{Op: "stream_complete", RequestID: k.id, Truncated: k.truncated})
	}
	if k.conn != nil && (order == 0 || c.conn != nil) { // what the cluster keeps, a client that is away is given when it comes back
		first := m
		first.FromInflight = k.moved && !k.cached
		c.answer(&first)
		for range k.joined {
			more := m
			more.FromInflight = !v.cancelled && !k.cached
			c.answer(&more)
		}
	}
	k.done.happen()
}

// abandon cancels a call in flight; its end tells so. What cannot be cancelled is told to failed. c.mu is not held.
func (c *client) abandon(id string, failed func(*failure)) {
	c.mu.Lock()
	k := c.calls[id]
	inFlight := k != nil && k.result == nil
	c.mu.Unlock()
	switch {
	case inFlight:
		k.keeper.cancel(k, failed)
	case c.hub.cluster != nil:
		c.hub.cluster.abandon(c, id, failed)
	default:
		failed(notInFlight())
	}
}

func notInFlight() *failure {
	return failed(codeNotFound, "no call of this request_id is in flight; it may have ended")
}

// find returns a call and, when it has ended, its result.
func (c *client) find(id string) (k *call, result *message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k = c.calls[id]; k == nil || k.result != nil && time.Since(k.ends) >= c.hub.o.Limits.ResultTTL {
		return nil, nil
	}
	return k, k.result
}

// fetched takes back the frames of a call whose result was handed out over HTTP, and returns the result.
func (c *client) fetched(k *call) message {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.withdraw(k.id)
	k.taken = true
	if k.result.Order > 0 {
		c.took(k.result.Order)
	}
	return *k.result
}
