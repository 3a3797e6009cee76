// Rest: how a connection waits for its next message. Most connections wait most of the time, and what they have on their stacks then is most of what
// they take: a stack is halved when little of it is in use at a collection, and waiting in the midst of a frame, and of TLS, is not little.

package socket

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The parts of a pong's header (RFC 6455, 5.2), whole and masked as clients send it.
const (
	wholePong, masked   = 0x8a, 0x80
	headerBytes         = 2
	maskBytes           = 4
	maxControlBytes     = 125
	controlLengthOfByte = 0x7f
)

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// rest waits until something came that is no pong, or the connection is to end. What is wrong is left to who reads.
func (c *conn) rest() {
	for {
		if c.in.Buffered() == 0 {
			c.await()
		}
		h, err := c.in.Peek(headerBytes)
		if err != nil || h[0] != wholePong || h[1]&masked == 0 || h[1]&controlLengthOfByte > maxControlBytes {
			return
		}
		size := headerBytes + maskBytes + int(h[1]&controlLengthOfByte)
		if _, err := c.in.Peek(size); err != nil {
			return
		}
		_, _ = c.in.Discard(size)
		c.alive()
	}
}

// await waits until something came, or the connection is to end.
func (c *conn) await() {
	if !c.secure {
		_, _ = c.in.Peek(1)
		return
	}
	// TLS may have read more than it has given out: nobody else knows. So it is asked, in a way that has it give that and wait for nothing.
	by := c.heard
	c.hear(longAgo)
	_, err := c.in.Peek(1)
	c.hear(by)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.out.await()
	}
}

// await waits until the socket has something to read, or its deadline passes.
func (c *coalescer) await() {
	if c.raw == nil {
		return
	}
	waited := false
	_ = c.raw.Read(func(fd uintptr) bool { // who reads is told what is wrong
		if waited {
			return true
		}
		waited = true
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p[:], 0)
		return err != nil || n > 0
	})
}
