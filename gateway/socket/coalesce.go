// One write to the kernel for several messages: what waits together goes out together.

package socket

import (
	"errors"
	"net"
	"sync"
	"time"
)

// The bounds of what is written at once.
const (
	maxBatchFrames = 32
	maxBatchBytes  = 64 << 10
)

// errNoHalfClose is returned for connections that can only be closed as a whole.
var errNoHalfClose = errors.New("the connection cannot be closed by half")

// batch is what one coalescer holds back.
type batch struct {
	buf  []byte
	ends []int // where messages end in buf
}

// coalescer is a socket that can hold back what is written to it. The WebSocket library writes from one goroutine at a time.
type coalescer struct {
	net.Conn
	batches *sync.Pool // of *batch: an idle connection has none

	mu   sync.Mutex
	held *batch    // nil while nothing is held back
	by   time.Time // the write deadline
}

// Write implements net.Conn.
func (c *coalescer) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil {
		c.held.buf = append(c.held.buf, b...)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// SetWriteDeadline implements net.Conn. The library sets one for each frame; the same one again costs nothing.
func (c *coalescer) SetWriteDeadline(by time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if by.Equal(c.by) {
		return nil
	}
	c.by = by
	return c.Conn.SetWriteDeadline(by)
}

// hold keeps what is written from now on back, until release.
func (c *coalescer) hold() {
	b, ok := c.batches.Get().(*batch)
	if !ok {
		b = new(batch)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = b
}

// mark notes that a message ends here.
func (c *coalescer) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held.ends = append(c.held.ends, len(c.held.buf))
}

// release writes what was held back, and returns how many of the marked messages were written whole.
func (c *coalescer) release() (whole int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, n := c.held, 0
	if len(b.buf) > 0 {
		n, err = c.Conn.Write(b.buf)
	}
	for whole < len(b.ends) && b.ends[whole] <= n {
		whole++
	}
	c.held = nil
	if cap(b.buf) <= keepBufferBytes {
		b.buf, b.ends = b.buf[:0], b.ends[:0]
		c.batches.Put(b)
	}
	return whole, err
}

// CloseWrite ends the sending half, where the connection has halves.
func (c *coalescer) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errNoHalfClose
}
