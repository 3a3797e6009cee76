// One write to the kernel for several messages: what waits together goes out together.

package socket

import (
	"errors"
	"net"
	"sync"
)

// The bounds of what is written at once.
const (
	maxBatchFrames = 32
	maxBatchBytes  = 64 << 10
)

// errNoHalfClose is returned for connections that can only be closed as a whole.
var errNoHalfClose = errors.New("the connection cannot be closed by half")

// coalescer is a socket that can hold back what is written to it. The WebSocket library writes from one goroutine at a time.
type coalescer struct {
	net.Conn
	mu   sync.Mutex
	held bool
	buf  []byte
	ends []int // where messages end in buf
}

// Write implements net.Conn.
func (c *coalescer) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held {
		c.buf = append(c.buf, b...)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// hold keeps what is written from now on back, until release.
func (c *coalescer) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
}

// mark notes that a message ends here.
func (c *coalescer) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends = append(c.ends, len(c.buf))
}

// release writes what was held back, and returns how many of the marked messages were written whole.
func (c *coalescer) release() (whole int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	if len(c.buf) > 0 {
		n, err = c.Conn.Write(c.buf)
	}
	for whole < len(c.ends) && c.ends[whole] <= n {
		whole++
	}
	c.held, c.buf, c.ends = false, nil, nil // an idle connection keeps no buffer
	return whole, err
}

// CloseWrite ends the sending half, where the connection has halves.
func (c *coalescer) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errNoHalfClose
}
