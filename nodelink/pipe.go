// A link in memory, for simulations and tests: the same codec, queue bounds, pings and closes as a WebSocket, and faults
// on demand. Nothing in it sleeps or polls, so it runs in a testing/synctest bubble.

package nodelink

import (
	"context"
	"fmt"
	"sync"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// Direction says which way a frame travels on a pipe.
type Direction uint8

// The directions.
const (
	Up   Direction = iota // node to server
	Down                  // server to node
)

// String returns "up" or "down".
func (d Direction) String() string {
	if d == Up {
		return "up"
	}
	return "down"
}

// Verdict is what a pipe does to one frame. The zero value delivers it.
type Verdict struct {
	Drop       bool          // it never arrives
	Duplicates int           // it arrives this many times more
	Delay      time.Duration // it arrives later; frames behind it with a smaller delay overtake it
	Cut        bool          // the link breaks instead, for both sides, without a word
}

// Faults decide about every frame on a pipe. A real link neither loses nor doubles nor reorders frames, but links that
// end and begin again do all three, and the node and the leader must bear it.
type Faults func(d Direction, f *nodev1.Frame) Verdict

// Pipe returns the two ends of a perfect link in memory.
func Pipe() (node, server Conn) { return FaultyPipe(nil) }

// FaultyPipe returns the two ends of a link in memory whose frames go through faults, which may be nil. A ping or pong
// goes through it as a nil frame; one that is dropped long enough makes both sides give the link up. faults is called by
// whoever sends, so that it decides in the order of the sending.
func FaultyPipe(faults Faults) (node, server Conn) {
	if faults == nil {
		faults = func(Direction, *nodev1.Frame) Verdict { return Verdict{} }
	}
	n := &pipeConn{out: Up, faults: faults, ready: make(chan struct{}, 1), done: make(chan struct{})}
	s := &pipeConn{out: Down, faults: faults, ready: make(chan struct{}, 1), done: make(chan struct{})}
	n.peer, s.peer = s, n
	for _, c := range []*pipeConn{n, s} {
		c.live.start(defaultIdle, defaultSilence, func() { c.control(false) }, func(silent time.Duration) {
			c.abort(fmt.Sprintf("nothing was received for %s", silent))
		})
	}
	return n, s
}

// pipeConn is one end; it implements carrier. Its queue holds what the other end sent and this one has not received.
type pipeConn struct {
	peer   *pipeConn
	out    Direction
	faults Faults
	live   liveness
	ready  chan struct{} // holds a token when the queue or end changed
	done   chan struct{}

	mu     sync.Mutex
	queue  sendQueue
	sealed *CloseError // the other side closed: this is the end once the queue is empty
	end    *CloseError
}

// Send implements Conn.
func (c *pipeConn) Send(f *nodev1.Frame) error {
	b, err := Binary{}.Encode(f)
	if err != nil {
		return err
	}
	return c.transmit(f, b)
}

func (c *pipeConn) sendBinary(b []byte) error {
	f, err := Binary{}.Decode(b)
	if err != nil {
		return err
	}
	return c.transmit(f, b)
}

func (c *pipeConn) transmit(f *nodev1.Frame, b []byte) error {
	select {
	case <-c.done:
		return ErrClosed
	default:
	}
	v := c.faults(c.out, f)
	switch {
	case v.Cut:
		c.cut("the link was cut")
		return nil // the sender of a frame cannot know
	case v.Drop:
		return nil
	}
	bulk := isBulk(f)
	for range v.Duplicates {
		c.after(v.Delay, func() { c.peer.offer(b, bulk) })
	}
	if v.Delay > 0 {
		c.after(v.Delay, func() { c.peer.offer(b, bulk) })
		return nil
	}
	if !c.peer.offer(b, bulk) {
		return ErrQueueFull
	}
	return nil
}

func (c *pipeConn) after(d time.Duration, do func()) {
	if d <= 0 {
		do()
		return
	}
	time.AfterFunc(d, do)
}

// offer puts a frame into this end's queue; false when it is full. A frame for an ended link is lost.
func (c *pipeConn) offer(b []byte, bulk bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil || c.sealed != nil {
		return true
	}
	if !c.queue.push(b, bulk) {
		return false
	}
	c.wake()
	return true
}

func (c *pipeConn) wake() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// control sends a ping or pong; the other end answers a ping at once, as a WebSocket's reader would.
func (c *pipeConn) control(pong bool) {
	v := c.faults(c.out, nil)
	switch {
	case v.Cut:
		c.cut("the link was cut")
	case v.Drop:
	default:
		c.after(v.Delay, func() {
			c.peer.live.touch()
			if !pong {
				c.peer.control(true)
			}
		})
	}
}

// Recv implements Conn.
func (c *pipeConn) Recv(ctx context.Context) (*nodev1.Frame, error) {
	var got *nodev1.Frame
	err := c.receive(ctx, func(f *nodev1.Frame, _ []byte) { got = f })
	return got, err
}

func (c *pipeConn) receive(ctx context.Context, deliver func(*nodev1.Frame, []byte)) error {
	for {
		c.mu.Lock()
		b, end := c.queue.pop(), c.end
		if b == nil && end == nil && c.sealed != nil {
			end = c.sealed
			c.finish(end)
		}
		c.mu.Unlock()
		if end != nil {
			return end
		}
		if b != nil {
			c.live.touch()
			f, err := Binary{}.Decode(b)
			if err != nil {
				return err
			}
			deliver(f, b)
			return nil
		}
		select {
		case <-c.ready:
		case <-c.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close implements Conn.
func (c *pipeConn) Close(reason string) { c.closeWith(CloseNormal, reason) }

// closeWith ends this side at once; the other receives what was sent before, then the reason.
func (c *pipeConn) closeWith(code int, reason string) {
	c.mu.Lock()
	first := c.end == nil
	c.finish(&CloseError{Code: code, Reason: reason})
	c.mu.Unlock()
	if !first {
		return
	}
	v := c.faults(c.out, nil)
	switch {
	case v.Drop:
	case v.Cut:
		c.cut("the link was cut")
	default:
		c.after(v.Delay, func() { c.peer.seal(&CloseError{Code: code, Reason: reason, Remote: true}) })
	}
}

// seal says that nothing more will come. The end is reached when what has come is received.
func (c *pipeConn) seal(end *CloseError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed == nil {
		c.sealed = end
		c.wake()
	}
}

func (c *pipeConn) abort(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish(&CloseError{Code: CloseAbnormal, Reason: reason})
}

// cut breaks the link for both sides.
func (c *pipeConn) cut(reason string) {
	c.abort(reason)
	c.peer.abort(reason)
}

// finish ends this side. c.mu is held.
func (c *pipeConn) finish(end *CloseError) {
	if c.end != nil {
		return
	}
	c.end = end
	c.queue.clear()
	c.live.stop()
	close(c.done)
}

// Done implements Conn.
func (c *pipeConn) Done() <-chan struct{} { return c.done }

func (c *pipeConn) wait() { <-c.done }

func (c *pipeConn) setLiveness(idle, silence time.Duration) { c.live.set(idle, silence) }

func (c *pipeConn) reserve(n int) {
	c.peer.mu.Lock()
	defer c.peer.mu.Unlock()
	c.peer.queue.reserve(n)
}

// Cut breaks a link that Pipe or FaultyPipe made, for both sides and without a word, as a cable that is pulled does
// once somebody notices. Other links are closed.
func Cut(c Conn) {
	if p, ok := c.(*pipeConn); ok {
		p.cut("the link was cut")
		return
	}
	c.Close("the link was cut")
}
