// Calls: begun once for each request_id, run beside their connection, and kept when they have ended.

package socket

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

// call is one call of a tool. What says nothing else is never changed.
type call struct {
	client   *client
	id, name string
	tool     *tools.Tool
	hash     uint64 // of what was asked for
	began    time.Time
	deadline time.Time
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed once result is there

	// Under client.mu.
	conn   *conn // on which it was asked for last; nil when over HTTP
	moved  bool  // it was asked for again on another connection
	joined int   // how often it was asked for again on the same one
	result *message
	taken  bool // the result was handed out over HTTP
	again  bool // the outcome is not for good: asking again makes a new call
	bytes  int
	ends   time.Time
	beat   *time.Timer // for progress
	// Of its stream: whether there is one, and whether chunks were left out because nobody took them.
	streamed, truncated bool
}

// errStopping is the cause of calls that end because the server does.
var errStopping = errors.New("the server is stopping")

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
	var text []byte
	for _, s := range []string{who.String(), who.Namespace, session, request} {
		text = append(strconv.AppendInt(text, int64(len(s)), 10), ':')
		text = append(text, s...)
	}
	sum := sha256.Sum256(text)
	return "call-" + hex.EncodeToString(sum[:20])
}

// begin makes a call, or finds the one that was made before. What a connection is told, the ack and the result, comes by its
// queue; over HTTP (conn is nil) the result is waited for.
func (c *client) begin(conn *conn, t toolCall) (*call, *failure) {
	h := c.hub
	c.mu.Lock()
	defer c.mu.Unlock()
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
	if f := c.mayBegin(); f != nil {
		return nil, f
	}
	if t.timeout == 0 {
		t.timeout = h.o.Limits.CallTimeout
	}
	k := &call{client: c, id: t.id, name: t.name, tool: tool, hash: t.hashOf(), began: time.Now(), done: make(chan struct{}), conn: conn}
	k.deadline = k.began.Add(t.timeout)
	ctx, cancel := context.WithDeadline(h.o.Access.As(h.life, c.cred), k.deadline)
	ctx, k.cancel = context.WithCancelCause(ctx)
	if c.calls == nil {
		c.calls = map[string]*call{}
	}
	c.calls[t.id] = k
	c.inFlight++
	h.count.calls.Add(1)
	if conn != nil {
		c.ack(k)
	}
	who := c.who
	h.work.Go(func() { defer cancel(); k.run(ctx, tool, t, effectID(who, c.session, t.id)) })
	return k, nil
}

// mayBegin counts a call in, or says what is full. c.mu is held.
func (c *client) mayBegin() *failure {
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
	if h.count.inFlight.Add(1) > int64(l.InFlight) {
		h.count.inFlight.Add(-1)
		return full("as many calls are in flight on this server as may be", time.Second)
	}
	return nil
}

// keepsTooMuch reports whether there is no room for a further result. c.mu is held.
func (c *client) keepsTooMuch() bool {
	l := &c.hub.o.Limits
	return len(c.ended) >= l.KeptCalls || c.hub.count.kept.Load() > int64(l.KeptBytes)
}

// evict forgets results that were delivered, the oldest first, until there is room. c.mu is held.
func (c *client) evict() {
	waiting := map[string]bool{}
	for i := range c.queue {
		waiting[c.queue[i].call] = true
	}
	for i := 0; i < len(c.ended) && c.keepsTooMuch(); {
		if k := c.ended[i]; waiting[k.id] || k.conn == nil && !k.taken {
			i++
			continue
		}
		c.drop(i)
		c.hub.count.evicted.Add(1)
	}
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
			c.answer(m)
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
	if conn != nil {
		c.ack(k)
	}
	return nil
}

// ack tells that a call was taken. c.mu is held.
func (c *client) ack(k *call) {
	c.answer(message{Op: "call_tool_ack", RequestID: k.id, Name: k.name, Accepted: yes(), Timeout: max(time.Until(k.deadline), 0).Round(time.Millisecond).Seconds()})
}

// run has the tool do its work.
func (k *call) run(ctx context.Context, tool *tools.Tool, t toolCall, effect string) {
	c := k.client
	c.mu.Lock()
	k.beat = time.AfterFunc(c.hub.o.Limits.ProgressEvery, k.tick)
	c.mu.Unlock()
	outputs, err := k.protected(ctx, tool, tools.Call{ID: effect, Origin: tools.Origin{Client: c.session, RequestID: k.id}, Arguments: t.arguments, Priority: t.priority, Progress: k.progress, Chunk: k.chunk})
	k.finish(ctx, outputs, err)
}

// tick says that the call goes on, and comes again.
func (k *call) tick() {
	k.progress(fmt.Sprintf("%s has been at it for %s", k.name, time.Since(k.began).Round(time.Second)))
	k.client.mu.Lock()
	defer k.client.mu.Unlock()
	if k.result == nil {
		k.beat.Reset(k.client.hub.o.Limits.ProgressEvery)
	}
}

// protected keeps a defect of a tool from ending the server.
func (k *call) protected(ctx context.Context, tool *tools.Tool, c tools.Call) (_ []tools.Output, err error) {
	defer func() {
		if p := recover(); p != nil {
			k.client.hub.o.Logger.Error("a tool panicked", "tool", k.name, "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "%s: the server ran into a defect; its log says where", k.name)
		}
	}()
	return k.client.hub.o.Tools.Call(ctx, tool, c)
}

// progress tells whoever is connected that the call goes on. It is never kept.
func (k *call) progress(note string) {
	c := k.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.result != nil || k.conn == nil || c.conn == nil || !c.hasRoom() {
		return
	}
	m := message{Op: "progress", RequestID: k.id, Message: note}
	c.push(frame{call: k.id, data: m.encode()})
}

// chunk queues a part of the answer. While its client reads too slowly it waits; while its client is away and the queue is full,
// it is left out, and the end of the stream says so: the answer itself is whole in any case.
func (k *call) chunk(ctx context.Context, text string) error {
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
			c.answer(message{Op: "stream_chunk", RequestID: k.id, Chunk: text})
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

// outcome is the message that ends a call.
func (k *call) outcome(ctx context.Context, outputs []tools.Output, err error) message {
	m := message{Op: "call_tool_res", RequestID: k.id}
	size := 0
	for _, o := range outputs {
		size += len(o.Text)
	}
	limit := k.client.hub.o.Limits.ResultBytes
	switch cause := context.Cause(ctx); {
	case err == nil && size > limit:
		m.Error = failed(codeToolExecution, fmt.Sprintf("%s: the answer is %d bytes, more than %d; ask for less at a time", k.name, size, limit))
	case err == nil:
		if outputs == nil {
			outputs = []tools.Output{}
		}
		m.Outputs = &outputs
	case errors.Is(cause, tools.ErrCancelled):
		m.Op = "cancelled"
	case errors.Is(cause, context.DeadlineExceeded):
		m.Error = failed(codeTimeout, fmt.Sprintf("%s: no answer within %s; what it began may go on, ask again with the same request_id", k.name, k.deadline.Sub(k.began)))
	case k.client.hub.life.Err() != nil:
		m.Error = failed(codeUnavailable, k.name+": "+errStopping.Error()+"; ask another one, with the same session_id and request_id")
		m.Error.Details = &details{RetryAfterMS: 1}
	default:
		m.Error = failureIn(k.tool, err)
	}
	return m
}

// finish keeps the outcome and tells it.
func (k *call) finish(ctx context.Context, outputs []tools.Output, err error) {
	c, m := k.client, k.outcome(ctx, outputs, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	k.beat.Stop()
	k.result, k.ends = &m, time.Now()
	k.again = m.Op == "cancelled" || m.Error != nil && transient[m.Error.Code]
	if k.bytes = frameOverhead + len(k.id); m.Outputs != nil {
		for _, o := range *m.Outputs {
			k.bytes += len(o.Text)
		}
	}
	c.ended = append(c.ended, k)
	c.hub.count.kept.Add(int64(k.bytes))
	c.inFlight--
	c.hub.count.inFlight.Add(-1)
	if c.conn == nil {
		c.since = time.Now() // its time to come back runs from now
	}
	if m.Op == "cancelled" {
		c.hub.count.cancelled.Add(1)
	}
	if k.streamed {
		c.answer(message{Op: "stream_complete", RequestID: k.id, Truncated: k.truncated})
	}
	if k.conn != nil {
		first := m
		first.FromInflight = k.moved
		c.answer(first)
		for range k.joined {
			more := m
			more.FromInflight = m.Op != "cancelled"
			c.answer(more)
		}
	}
	close(k.done)
}

// abandon cancels a call in flight; its end tells so. c.mu is not held.
func (c *client) abandon(id string) *failure {
	c.mu.Lock()
	k := c.calls[id]
	inFlight := k != nil && k.result == nil
	c.mu.Unlock()
	if !inFlight {
		return failed(codeNotFound, "no call of this request_id is in flight; it may have ended")
	}
	k.cancel(tools.ErrCancelled)
	return nil
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
	return *k.result
}
