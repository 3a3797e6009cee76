// The shim's side of a connection: a reader, a writer, and a bounded queue between the shim and a peer that may be slow.

package shim

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	connsMax         = 64
	outboxBytesMax   = 1 << 20 // answers; a peer that leaves more unread is cut off
	attachedBytesMax = 256 << 10
)

// request is one frame with who sent it; a nil frame says that the connection ended.
type request struct {
	conn  *conn
	frame *frame
}

type conn struct {
	f          *os.File
	control    bool // the connection that the shim was launched with
	subscribed bool // owned by the session's goroutine, as is attached
	attached   bool

	mu      sync.Mutex
	out     [][]byte
	bytes   int
	grew    uint64 // the newest line to tell; 0 for none
	skipped uint64 // output bytes that found no room
	closing bool
	wake    chan struct{}

	ended chan struct{} // closed when write has returned
	sent  bool          // then: everything was sent
}

func newConn(f *os.File) *conn {
	return &conn{f: f, wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// read hands the peer's frames to the session's goroutine until the connection ends.
func (c *conn) read(to chan<- request, stop <-chan struct{}) {
	for {
		f, err := readFrame(c.f)
		r := request{conn: c}
		if err == nil {
			r.frame = &f
		}
		select {
		case to <- r:
		case <-stop:
			return
		}
		if err != nil {
			return
		}
	}
}

// write sends what is queued; it returns after finish, or when the peer is gone.
func (c *conn) write() {
	defer close(c.ended)
	for {
		b, closing := c.take()
		if len(b) > 0 {
			if _, err := c.f.Write(b); err != nil {
				return // the reader sees it too
			}
			continue
		}
		if closing {
			c.sent = true
			return
		}
		<-c.wake
	}
}

func (c *conn) take() (b []byte, closing bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) > 0 {
		b = bytes.Join(c.out, nil)
		c.out, c.bytes = nil, 0
	}
	if c.skipped > 0 {
		var f fields
		f.num(tagSkipped, c.skipped)
		b = append(b, encodeFrame(typeSkipped, 0, f)...)
		c.skipped = 0
	}
	if c.grew > 0 {
		var f fields
		f.num(tagLine, c.grew)
		b = append(b, encodeFrame(typeGrew, 0, f)...)
		c.grew = 0
	}
	return b, c.closing
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// send queues an answer or an event.
func (c *conn) send(typ frameType, request uint32, payload []byte) {
	c.mu.Lock()
	if c.bytes+len(payload) > outboxBytesMax {
		c.mu.Unlock()
		c.f.Close()
		return
	}
	b := encodeFrame(typ, request, payload)
	c.out = append(c.out, b)
	c.bytes += len(b)
	c.mu.Unlock()
	c.signal()
}

func (c *conn) refuse(request uint32, e *Error) {
	var f fields
	f.num(tagErrorCode, uint64(e.Code))
	f.str(tagMessage, e.Message)
	c.send(typeError, request, f)
}

// tellGrew replaces what the peer was not told yet.
func (c *conn) tellGrew(line uint64) {
	c.mu.Lock()
	c.grew = line
	c.mu.Unlock()
	c.signal()
}

// output copies bytes to an attached peer, and skips them when it does not keep up.
func (c *conn) output(b []byte) {
	var f fields
	f.bytes(tagData, b)
	c.mu.Lock()
	if c.skipped > 0 || c.bytes+len(b) > attachedBytesMax {
		c.skipped += uint64(len(b))
	} else {
		e := encodeFrame(typeOutput, 0, f)
		c.out = append(c.out, e)
		c.bytes += len(e)
	}
	c.mu.Unlock()
	c.signal()
}

// finish lets write end once all is sent, or the time is over.
func (c *conn) finish(patience time.Duration) {
	_ = c.f.SetWriteDeadline(time.Now().Add(patience)) // where deadlines do not work, a dead peer fails the write
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.signal()
}

// listen binds the socket in the working directory: the name stays short however deep the directory lies.
func listen() (*os.File, error) {
	if err := os.Remove(SockName); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	err = unix.Fchmod(fd, 0o600) // before bind: it becomes the file's mode
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: SockName})
	}
	if err == nil {
		err = unix.Listen(fd, connsMax)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen: %w", err)
	}
	return os.NewFile(uintptr(fd), SockName), nil
}

// accept hands new connections of this user, or of root, to the session's goroutine until the listener is closed.
func accept(l *os.File, to chan<- *conn, stop <-chan struct{}) {
	rc, err := l.SyscallConn()
	if err != nil {
		return
	}
	for {
		fd := -1
		var aerr error
		err := rc.Read(func(lfd uintptr) bool {
			fd, _, aerr = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return aerr != unix.EAGAIN
		})
		if err != nil {
			return
		}
		if aerr != nil {
			select { // no descriptors, or a peer that went away: try again, but not in a frenzy
			case <-time.After(10 * time.Millisecond):
				continue
			case <-stop:
				return
			}
		}
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || (cred.Uid != uint32(os.Geteuid()) && cred.Uid != 0) {
			unix.Close(fd)
			continue
		}
		select {
		case to <- newConn(os.NewFile(uintptr(fd), "peer")):
		case <-stop:
			unix.Close(fd)
			return
		}
	}
}
