// One write to the kernel for several messages: what waits together goes out together.

package socket

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"
)

// The bounds of what is written at once.
const (
	maxBatchFrames = 32
	maxBatchBytes  = 64 << 10
	// takenBytes are taken by a socket that says that it can be written to: a third of its buffer, of 16 KiB at least, is free then.
	takenBytes = 4 << 10
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

	raw    syscall.RawConn // of the socket; nil where it cannot be asked
	asks   func(fd uintptr)
	credit int // bytes that it takes still, by what it said last

	mu   sync.Mutex
	held *batch    // nil while nothing is held back
	by   time.Time // the write deadline
	shut bool      // a close was written, or is about to be
}

func newCoalescer(conn net.Conn, batches *sync.Pool) *coalescer {
	c := &coalescer{Conn: conn, batches: batches}
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = over.NetConn()
	}
	if socket, ok := conn.(syscall.Conn); ok {
		c.raw, _ = socket.SyscallConn() // without it nothing is asked
		c.asks = func(fd uintptr) {
			p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, err := unix.Poll(p[:], 0)
			if c.credit = 0; err == nil && n == 1 && p[0].Revents == unix.POLLOUT {
				c.credit = takenBytes
			}
		}
	}
	return c
}

// takes reports whether the kernel takes so many bytes without anybody waiting, as long as nobody else writes. One goroutine at a time may ask.
func (c *coalescer) takes(bytes int) bool {
	if c.credit < bytes && (c.raw == nil || c.raw.Control(c.asks) != nil) {
		return false
	}
	c.credit -= bytes
	return c.credit >= 0
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

// text adds a message of text, as one frame of the protocol (RFC 6455, 5.2), which the library would do by way of two buffers. It is to be held back.
func (c *coalescer) text(data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut {
		return websocket.ErrCloseSent
	}
	const finalText, size16 = 0x80 | websocket.TextMessage, 126
	b := c.held
	if len(data) < size16 {
		b.buf = append(b.buf, finalText, byte(len(data)))
	} else {
		b.buf = append(b.buf, finalText, size16, byte(len(data)>>8), byte(len(data)))
	}
	b.buf = append(b.buf, data...)
	b.ends = append(b.ends, len(b.buf))
	return nil
}

// shutText has no text be added any more: the other side is told that nothing comes.
func (c *coalescer) shutText() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = true
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
