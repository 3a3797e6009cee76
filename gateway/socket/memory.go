// Calls that this server alone keeps: what is asked with durable false, and can simply be asked again when the server is lost.

package socket

import (
	"context"
	"fmt"
	"time"

	"github.com/neolith/orchestrator/gateway/tools"
)

// memory keeps calls in this server.
type memory struct{ hub *Hub }

// take implements keeper: the call is taken by having been found in order.
func (m *memory) take(k *call, t toolCall) {
	if t.tool.AtOnce && m.atOnce(k, &t) {
		return
	}
	m.beside(k, t)
}

// beside makes a call in a goroutine of its own. client.mu is held.
func (m *memory) beside(k *call, t toolCall) {
	c, h := k.client, m.hub
	ctx, cancel := context.WithDeadline(h.o.Access.As(h.life, c.cred), k.deadline)
	ctx, k.stop = context.WithCancelCause(ctx)
	k.accept()
	effect := "" // a tool that changes nothing has none
	if !t.tool.ReadOnly {
		effect = effectID(c.who, c.session, k.id)
	}
	h.work.Add(1)
	h.pool.run(func() {
		defer h.work.Done()
		v := h.worker.do(ctx, t.tool, tools.Call{ID: effect, Origin: tools.Origin{Client: c.session, RequestID: k.id}, Arguments: t.arguments, Priority: t.priority, Progress: k.progress, Chunk: k.chunk}, k.began)
		cancel()
		c.mu.Lock()
		c.held = true
		k.finish(v, 0)
		c.held = false
		conn := c.claim()
		c.mu.Unlock()
		if conn != nil { // this goroutine may wait for the client as well as another one
			conn.drain()
		}
	})
}

// atOnce makes a call where it is: a tool that waits for nothing is done before another goroutine had begun with it. It reports false where it would have
// to wait to begin. client.mu is held; who holds it for so long sees nothing of the call but that it has ended.
func (m *memory) atOnce(k *call, t *toolCall) bool {
	c := k.client
	v, begun := m.hub.worker.try(c.callHere(), t.tool, tools.Call{Origin: tools.Origin{Client: c.session, RequestID: k.id}, Arguments: t.arguments, Priority: t.priority, AtOnce: true}, k.began)
	if begun {
		k.finish(v, 0)
	}
	return begun
}

// cancel implements keeper.
func (m *memory) cancel(k *call, _ func(*failure)) { k.stop(tools.ErrCancelled) }

// keeps implements keeper: the result stays for whoever asks again.
func (m *memory) keeps(k *call, v *verdict) {
	c := k.client
	k.again = !v.kept()
	k.bytes = frameOverhead + len(k.id) + len(v.outputs)
	c.ended = append(c.ended, k)
	m.hub.count.kept.Add(int64(k.bytes))
}

// whereabouts says what the call is at.
func (k *call) whereabouts() string {
	at := fmt.Sprintf("%s has been at it for %s", k.name, time.Since(k.began).Round(time.Second))
	if d, ok := k.keeper.(*replicated); ok {
		return d.whereabouts(k, at)
	}
	return at
}

// keepsTooMuch reports whether there is no room for a further result. c.mu is held.
func (c *client) keepsTooMuch() bool {
	l := &c.hub.o.Limits
	return len(c.ended) >= l.KeptCalls || c.hub.count.kept.Load() > int64(l.KeptBytes)
}

// evict forgets results that were delivered, the oldest first, until there is room. c.mu is held.
func (c *client) evict() {
	var waiting map[string]bool // for most there is nothing to write when they call
	if len(c.queue) > 0 {
		waiting = make(map[string]bool, len(c.queue))
		for i := range c.queue {
			waiting[c.queue[i].call] = true
		}
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
