// A client: who is behind connections that come and go, its calls, and the frames that wait for it.

package socket

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
)

// frame is a message on its way to a client.
type frame struct {
	seq   uint64 // 0 for one that means something on one connection only
	order uint64 // of a result that the cluster keeps
	call  string // request_id
	data  []byte
}

func (f *frame) size() int { return len(f.data) + frameOverhead }

// client is a session_id of one caller. Its frames have sequence numbers that go up by one for its whole life.
type client struct {
	hub     *Hub
	session string // its id
	owner   string // whose it is; under hub.mu

	mu       sync.Mutex
	key      queue.ClientKey // its name in the cluster
	who      auth.Identity
	cred     auth.Credential
	self     context.Context // of callHere; nil until there was a call
	conn     *conn           // nil while it is not connected
	calls    map[string]*call
	inFlight int
	ended    []*call       // whose results are kept, the oldest first
	queue    []frame       // that wait to be written
	queued   int           // bytes of them
	held     bool          // whoever holds mu sees to their writing
	written  history       // the last that were written: a client may have missed them, and then says from where on
	seq      uint64        // of the last frame
	room     chan struct{} // closed when there is room in the queue again; nil while nobody waits
	since    time.Time     // when it was last connected
	retired  bool          // the hub does not know it any more
	beat     *time.Timer   // for the progress of all calls in flight; nil when none is, soon after

	inCluster bool   // the cluster knows it, or is about to
	given     uint64 // the last result that it was given of those that the cluster keeps
	// fetchedOrders are results behind that which it has fetched over HTTP.
	fetchedOrders map[uint64]struct{}
}

func newClient(h *Hub, key clientKey, who auth.Identity, cred auth.Credential) *client {
	c := &client{hub: h, session: key.session, owner: key.owner, key: queue.ClientKey{Owner: key.owner, Session: key.session}}
	c.renew(who, cred)
	return c
}

// renew notes with what its holder came last.
func (c *client) renew(who auth.Identity, cred auth.Credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.who, c.cred, c.self, c.since = who, cred, nil, time.Now()
}

// callHere returns a context for calls that go no further than this server: a token is not read again, but looked up. c.mu is held.
func (c *client) callHere() context.Context {
	switch {
	case c.self != nil:
	case c.who.TokenID != "":
		c.self = c.hub.o.Access.AsCaller(c.hub.life, c.who)
	default:
		c.self = c.hub.o.Access.As(c.hub.life, c.cred)
	}
	return c.self
}

// caller returns who it is, by which credential, and as whose its calls are counted.
func (c *client) caller() (who auth.Identity, cred auth.Credential, owner string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.who, c.cred, c.key.Owner
}

// retire reports whether it may be forgotten, and has it refuse everything from then on.
func (c *client) retire() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil || len(c.calls) > 0 || len(c.queue) > 0 {
		return false
	}
	c.retired = true
	c.dropHistory()
	if c.inCluster {
		c.hub.cluster.calls.Forget(c.key, c)
	}
	return true
}

// attach connects it, and has it told so. What it missed is written first: what still waits, and, when it says what it saw last, what it has
// not seen of that which was written. A former connection must have been closed. opened is what the cluster knows of it, nil where it was not asked; results of
// the cluster are to be given to it after the order that is returned.
func (c *client) attach(conn *conn, has seen, opened *dispatch.Opened, ack []byte) (after uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired || c.conn != nil {
		return 0, false
	}
	c.conn = conn
	var again []frame
	if has.seq != nil {
		for f := range c.written.all {
			if f.seq > *has.seq {
				again = append(again, f)
			}
		}
	}
	if opened != nil {
		after = c.pickUp(opened, has, again)
		again = slices.DeleteFunc(again, func(f frame) bool { return f.order > 0 })
	}
	if len(again) > 0 {
		c.dropHistory()
		for _, f := range again {
			c.queued += f.size()
			c.hub.count.kept.Add(int64(f.size()))
		}
		c.queue = append(again, c.queue...)
	}
	c.dropHistory()
	welcome := frame{data: ack}
	c.queue = append([]frame{welcome}, c.queue...)
	c.queued += welcome.size()
	c.hub.count.kept.Add(int64(welcome.size()))
	conn.startWriter()
	return after, true
}

// current returns the connection that it has.
func (c *client) current() *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// detach disconnects it from a connection that has ended; its writer does not run any more. Frames that mean something only there are dropped.
func (c *client) detach(conn *conn) {
	c.mu.Lock()
	if c.conn != conn {
		c.mu.Unlock()
		return
	}
	c.conn, c.since = nil, time.Now()
	stay := c.queue[:0]
	for _, f := range c.queue {
		if f.seq == 0 || f.order > 0 { // the cluster has results
			c.unqueue(&f)
			continue
		}
		stay = append(stay, f)
	}
	clear(c.queue[len(stay):])
	c.queue = stay
	if c.given > 0 {
		c.hub.cluster.calls.Delivered(c.key, c.given, true)
	}
	if c.room != nil { // who waits sees that it is away
		close(c.room)
		c.room = nil
	}
	idle := len(c.calls) == 0 && len(c.queue) == 0 && c.written.count == 0
	c.mu.Unlock()
	if idle {
		c.hub.forget(c)
	}
}

// push queues a frame and has it written. c.mu is held.
func (c *client) push(f frame) {
	c.queue = append(c.queue, f)
	c.queued += f.size()
	c.hub.count.kept.Add(int64(f.size()))
	if c.conn != nil && !c.held {
		c.conn.startWriter()
	}
}

// claim makes the caller the writer of what waits; nil when there is nothing to write, or somebody who does. c.mu is held.
func (c *client) claim() *conn {
	if c.conn == nil || !c.conn.mayWrite() {
		return nil
	}
	return c.conn
}

// unqueue counts a frame out of the queue. c.mu is held.
func (c *client) unqueue(f *frame) {
	c.queued -= f.size()
	c.hub.count.kept.Add(-int64(f.size()))
}

// answer numbers a message that belongs to a call, and queues it: it is written once, now or on a later connection. c.mu is held.
func (c *client) answer(m *message) {
	c.seq++
	m.Seq = c.seq
	c.push(frame{seq: c.seq, order: m.Order, call: m.RequestID, data: m.encode()})
}

// hasRoom reports whether more than what must be written may be queued. c.mu is held.
func (c *client) hasRoom() bool {
	return len(c.queue) < c.hub.o.Limits.QueueFrames && c.queued < c.hub.o.Limits.QueueBytes
}

// makeRoom wakes who waits for room. c.mu is held.
func (c *client) makeRoom() {
	if c.room != nil && c.hasRoom() {
		close(c.room)
		c.room = nil
	}
}

// waitRoom returns a channel that is closed when there is room; nil when there is. c.mu is held.
func (c *client) waitRoom() <-chan struct{} {
	if c.hasRoom() {
		return nil
	}
	if c.room == nil {
		c.room = make(chan struct{})
	}
	return c.room
}

// next returns the frames to be written next, of which its writer knows that there are some. They stay in the queue.
func (c *client) next() []frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, size := 1, len(c.queue[0].data)
	for n < len(c.queue) && n < maxBatchFrames && size+len(c.queue[n].data) <= maxBatchBytes {
		size += len(c.queue[n].data)
		n++
	}
	return c.queue[:n:n]
}

// wrote takes frames from the front of the queue: they were written on a connection. Those of calls are remembered for a while. more reports whether its
// writer is to go on; when it is not, or could not write, it is the writer no longer.
func (c *client) wrote(conn *conn, batch []frame, failed error) (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	given, was := c.given, c.queued+c.written.bytes
	for i := range batch {
		f := &c.queue[i]
		c.given = max(c.given, f.order)
		c.queued -= f.size()
		if f.seq != 0 {
			c.written.remember(f)
		}
		*f = frame{}
	}
	c.hub.count.kept.Add(int64(c.queued + c.written.bytes - was))
	switch {
	case len(batch) < len(c.queue):
		c.queue = c.queue[len(batch):]
	case cap(c.queue) <= keepQueueFrames:
		c.queue = c.queue[:0]
	default:
		c.queue = nil // a long queue's array is not kept
	}
	if c.given > given {
		c.joinFetched()
		c.hub.cluster.calls.Delivered(c.key, c.given, false)
	}
	c.makeRoom()
	if conn.closing = conn.closing || failed != nil; failed != nil || len(c.queue) == 0 {
		conn.writing = false
	}
	return conn.writing
}

// dropHistory forgets what was written. c.mu is held.
func (c *client) dropHistory() {
	c.hub.count.kept.Add(-int64(c.written.bytes))
	c.written = history{}
}

// withdraw takes the frames of a call from the queue: its answer was fetched in another way. c.mu is held.
func (c *client) withdraw(id string) {
	if c.conn != nil {
		return // they are being written
	}
	stay := c.queue[:0]
	for _, f := range c.queue {
		if f.call == id {
			c.unqueue(&f)
			continue
		}
		stay = append(stay, f)
	}
	clear(c.queue[len(stay):])
	c.queue = stay
}

// expire drops results that were kept long enough, and reports whether the client has been gone so long that all of it may be.
func (c *client) expire(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ttl := c.hub.o.Limits.ResultTTL
	for len(c.ended) > 0 && !now.Before(c.ended[0].ends.Add(ttl)) {
		c.drop(0)
	}
	if c.conn != nil || c.inFlight > 0 || now.Sub(c.since) < ttl {
		return false
	}
	for i := range c.queue {
		c.unqueue(&c.queue[i])
	}
	c.queue = nil
	c.dropHistory()
	return len(c.calls) == 0
}

// drop forgets a result, by its place among the ended ones. c.mu is held.
func (c *client) drop(i int) {
	old := c.ended[i]
	if i == 0 {
		c.ended[0] = nil
		c.ended = c.ended[1:]
	} else {
		c.ended = slices.Delete(c.ended, i, i+1)
	}
	if c.calls[old.id] == old {
		delete(c.calls, old.id)
	}
	c.hub.count.kept.Add(-int64(old.bytes))
}
