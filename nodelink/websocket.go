// A link over a WebSocket.
//
//	Send ──► queue ──► drain (a goroutine, while there is something to write) ──► socket
//	Recv ◄── decode ◄────────────────────────── the caller's goroutine ◄───────── socket
//	liveness: one timer; pings go beside the queue
//
// An idle link costs its reader's goroutine, on a small stack, and nothing else: write buffers are pooled, a goroutine
// writes only while frames wait, and there is none for pings.

package nodelink

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

const (
	writeTimeout     = 10 * time.Second // for one frame to be taken by the kernel
	closeGrace       = 3 * time.Second  // for what waits to be written, and the other side's close to come back
	readBufferBytes  = 512              // a larger frame is read past the buffer
	writeBufferBytes = 16 << 10         // pooled; in use only while a frame is written
	compressMinBytes = 16 << 10         // smaller frames are not worth compressing
	keepBufferBytes  = 64 << 10         // larger receive buffers are not kept
	maxCloseReason   = 123              // bytes that fit into a close frame
)

// buffers are shared by the links of one hub or dialer.
type buffers struct {
	write   sync.Pool // of the WebSocket library
	receive sync.Pool // of *bytes.Buffer
}

func (p *buffers) get() *bytes.Buffer {
	if b, ok := p.receive.Get().(*bytes.Buffer); ok {
		return b
	}
	return new(bytes.Buffer)
}

func (p *buffers) put(b *bytes.Buffer) {
	if b.Cap() <= keepBufferBytes {
		b.Reset()
		p.receive.Put(b)
	}
}

// wsConn implements carrier.
type wsConn struct {
	ws    *websocket.Conn
	codec Codec
	pool  *buffers
	work  *workers // nil on a node
	done  chan struct{}
	live  liveness
	limit limitedReader // of the one reader
	// On a server: what the library reads from, and where receive waits for the goroutine that handles a frame.
	incoming *bufio.Reader
	received chan error

	mu      sync.Mutex
	queue   sendQueue
	writing bool // a drain goroutine runs
	closing bool // Send refuses; the queue is still drained
	ended   bool
	end     *CloseError
	grace   *time.Timer
	writers sync.WaitGroup
}

func newWSConn(ws *websocket.Conn, codec Codec, pool *buffers) *wsConn {
	c := &wsConn{ws: ws, codec: codec, pool: pool, done: make(chan struct{})}
	ws.SetReadLimit(0) // receive has its own, which also counts what decompression makes of a message
	ws.SetPongHandler(func(string) error { c.live.touch(); return nil })
	answer := ws.PingHandler()
	ws.SetPingHandler(func(data string) error { c.live.touch(); return answer(data) })
	c.live.start(defaultIdle, defaultSilence, c.ping, func(silent time.Duration) {
		c.abort(fmt.Sprintf("nothing was received for %s", silent.Round(time.Millisecond)))
	})
	return c
}

// Send implements Conn. The frame is encoded here, so that a frame that cannot be encoded is its sender's error.
func (c *wsConn) Send(f *nodev1.Frame) error {
	if isSpare(f) && c.busy() {
		return ErrQueueFull
	}
	b, err := c.codec.Encode(f)
	if err != nil {
		return err
	}
	return c.enqueue(b, isBulk(f))
}

func (c *wsConn) sendBinary(b []byte) error {
	if !c.codec.Text() {
		return c.enqueue(b, isBulkBinary(b))
	}
	f, err := Binary{}.Decode(b)
	if err != nil {
		return err
	}
	return c.Send(f)
}

// busy reports whether frames wait.
func (c *wsConn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queue.len() > 0
}

func (c *wsConn) enqueue(b []byte, bulk bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.ended {
		return ErrClosed
	}
	if !c.queue.push(b, bulk) {
		return ErrQueueFull
	}
	c.startWriter()
	return nil
}

func (c *wsConn) reserve(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue.reserve(n)
}

// startWriter makes sure that a writer runs. c.mu is held.
func (c *wsConn) startWriter() {
	if c.writing || c.ended {
		return
	}
	c.writing = true
	c.writers.Add(1)
	c.work.run(c.drain)
}

// drain writes until nothing waits. It is the only goroutine that writes messages.
func (c *wsConn) drain() {
	defer c.writers.Done()
	kind := websocket.BinaryMessage
	if c.codec.Text() {
		kind = websocket.TextMessage
	}
	for {
		c.mu.Lock()
		b, closing, end := c.queue.pop(), c.closing, c.end
		if b == nil && !closing || c.ended {
			c.writing = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if b == nil {
			// The last thing that is written; c.writing stays set. The reader, or closeGrace, ends the link.
			_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(end.Code, end.Reason), time.Now().Add(closeGrace))
			return
		}
		_ = c.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
		c.ws.EnableWriteCompression(len(b) >= compressMinBytes)
		if err := c.ws.WriteMessage(kind, b); err != nil {
			c.finish(CloseAbnormal, "write: "+err.Error(), false)
			return
		}
	}
}

// Recv implements Conn.
func (c *wsConn) Recv(ctx context.Context) (*nodev1.Frame, error) {
	var got *nodev1.Frame
	err := c.receive(ctx, func(f *nodev1.Frame, _ []byte) { got = f })
	return got, err
}

// receive implements carrier. On a server the caller's goroutine only waits for the first byte, and a worker reads and handles
// the frame: what grows a stack does not happen on that of the long wait, and ten thousand idle links have small ones.
func (c *wsConn) receive(ctx context.Context, deliver func(*nodev1.Frame, []byte)) error {
	if c.incoming == nil || ctx.Done() != nil {
		return c.receiveHere(ctx, deliver)
	}
	_, _ = c.incoming.Peek(1) // an error comes again when the frame is read
	c.work.run(func() { c.received <- c.receiveHere(ctx, deliver) })
	return <-c.received
}

func (c *wsConn) receiveHere(ctx context.Context, deliver func(*nodev1.Frame, []byte)) error {
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { c.abort(context.Cause(ctx).Error()) })
		defer stop()
	}
	for {
		kind, r, err := c.nextReader()
		if err != nil {
			return c.readFailed(err)
		}
		c.live.touch()
		f, err := c.readFrame(kind, r, deliver)
		switch {
		case err != nil && !isViolation(err):
			return c.readFailed(err)
		case c.isClosing():
			continue // read on to the other side's close, so that ours is not lost to a reset
		case err != nil:
			var v *violation
			errors.As(err, &v)
			refuse(c, v)
			continue
		case f:
			return nil
		}
	}
}

func isViolation(err error) bool {
	var v *violation
	return errors.As(err, &v)
}

// nextReader guards against reading on after a failure, which the library answers with a panic.
func (c *wsConn) nextReader() (int, io.Reader, error) {
	select {
	case <-c.done:
		return 0, nil, io.EOF
	default:
		return c.ws.NextReader()
	}
}

// readFrame reads one message, and delivers it unless the link is closing. It reports whether it did.
func (c *wsConn) readFrame(kind int, r io.Reader, deliver func(*nodev1.Frame, []byte)) (bool, error) {
	buf := c.pool.get()
	defer c.pool.put(buf)
	c.limit = limitedReader{r: r, left: MaxFrameBytes + 1, live: &c.live}
	_, err := buf.ReadFrom(&c.limit)
	c.limit.r = nil
	var corrupt flate.CorruptInputError
	if errors.As(err, &corrupt) {
		return false, violates(CloseBadFrame, fault.Invalid, "the message is not compressed as it says: %w", err)
	}
	if err != nil {
		return false, err
	}
	if text := kind == websocket.TextMessage; text != c.codec.Text() {
		return false, violates(CloseBadFrame, fault.Invalid, "the subprotocol %s has no messages of this kind (text: %t)", c.codec.Subprotocol(), text)
	}
	f, err := c.codec.Decode(buf.Bytes())
	if err != nil || c.isClosing() {
		return false, err
	}
	var binary []byte
	if !c.codec.Text() {
		binary = buf.Bytes()
	}
	deliver(f, binary)
	return true, nil
}

// limitedReader is an io.LimitReader that notes each sign of life, so that a large frame over a slow line is one.
type limitedReader struct {
	r    io.Reader
	left int
	live *liveness
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, io.EOF
	}
	if len(p) > l.left {
		p = p[:l.left]
	}
	n, err := l.r.Read(p)
	l.left -= n
	l.live.touch()
	return n, err
}

func (c *wsConn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// readFailed ends the link after a failed read, and says how it ended.
func (c *wsConn) readFailed(err error) error {
	var ce *websocket.CloseError
	switch {
	case errors.As(err, &ce) && ce.Code != websocket.CloseAbnormalClosure:
		c.finish(ce.Code, ce.Text, true)
	case errors.As(err, &ce):
		c.finish(CloseAbnormal, "the connection broke", true)
	default:
		c.finish(CloseAbnormal, "read: "+err.Error(), false)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

// Close implements Conn.
func (c *wsConn) Close(reason string) { c.closeWith(CloseNormal, reason) }

func (c *wsConn) closeWith(code int, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.ended {
		return
	}
	c.closing = true
	c.end = &CloseError{Code: code, Reason: clip(reason, maxCloseReason)}
	c.grace = time.AfterFunc(closeGrace, func() { c.finish(code, reason, false) })
	c.startWriter()
}

func (c *wsConn) abort(reason string) { c.finish(CloseAbnormal, reason, false) }

// finish ends the link. The first reason given stays.
func (c *wsConn) finish(code int, reason string, remote bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	if c.end == nil {
		c.end = &CloseError{Code: code, Reason: reason, Remote: remote}
	}
	if c.grace != nil {
		c.grace.Stop()
	}
	c.queue.clear()
	c.live.stop()
	_ = c.ws.NetConn().Close() // an error here tells nobody anything
	close(c.done)
}

// Done implements Conn.
func (c *wsConn) Done() <-chan struct{} { return c.done }

func (c *wsConn) wait() {
	<-c.done
	c.writers.Wait()
}

func (c *wsConn) setLiveness(idle, silence time.Duration) { c.live.set(idle, silence) }

// ping goes beside the queue: what waits there may be long.
func (c *wsConn) ping() {
	_ = c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout)) // a failure shows as silence
}

// clip shortens s to at most n bytes, at the border of a character.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
