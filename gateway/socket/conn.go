// A connection: one WebSocket, read by one goroutine, written by one while there is something to write.

package socket

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// conn is a connection. client is set by the handshake and not changed after it.
type conn struct {
	hub    *Hub
	ws     *websocket.Conn
	in     *bufio.Reader // of ws; the reader's
	out    *coalescer    // beneath ws
	ip     string
	tls    *tls.ConnectionState // until the hello
	secure bool                 // it is TLS
	client *client
	start  time.Time

	ping *time.Timer
	// The reader's: what it reads, frames refused in a row, and the read deadline that it set last.
	message io.LimitedReader
	refused int
	heard   time.Time
	writeBy time.Time // the write deadline that was set last; the writer's

	ending atomic.Pointer[ending]
	kicked chan struct{} // closed with ending
	gone   chan struct{} // closed when the connection has ended and its client is free for another

	writing, closing bool // under client.mu: a writer runs; none may be started
	writers          sync.WaitGroup
}

// ending is how a connection is to end.
type ending struct {
	code   int
	reason string
	by     time.Time // what waits is written until then
}

// maxRefusing bounds connections that are told that there are too many.
const maxRefusing = 64

// ServeHTTP takes a WebSocket. It returns when the connection is made; a goroutine of the hub goes on with it.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.Allows(r) {
		refuse(w, http.StatusForbidden, failed(codeUnauthorized, "origin: pages of this origin may not connect; add it to gateway.origins"))
		return
	}
	if !h.enter() {
		refuse(w, http.StatusServiceUnavailable, failed(codeUnavailable, "server "+h.o.Server+" is stopping; connect to another one"))
		return
	}
	defer h.work.Done()
	c := &conn{hub: h, ip: h.addressOf(r), tls: r.TLS, secure: r.TLS != nil, start: time.Now(), kicked: make(chan struct{}), gone: make(chan struct{})}
	full := h.admit(c)
	if full == nil {
		if retry, ok := h.buckets.take(c.ip, ""); !ok {
			h.dismiss(c)
			full = tooFast(retry)
		}
	}
	if full != nil && !h.mayRefuse(full) {
		refuse(w, statusOf(full), full)
		return
	}
	hijack := &hijacker{ResponseWriter: w, batches: &h.batches}
	ws, err := h.upgrader.Upgrade(hijack, r, nil)
	if err != nil {
		h.dismiss(c)
		if full != nil {
			h.refusing.Add(-1)
		}
		return // the upgrader has answered
	}
	ws.SetReadLimit(0) // read has its own, which counts what decompression makes of a message
	c.in, c.out = hijack.in, hijack.out
	if !h.start(c, ws, full) {
		_ = ws.Close()
		h.dismiss(c)
	}
}

// start runs a connection, unless the hub ends.
func (h *Hub) start(c *conn, ws *websocket.Conn, full *failure) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	c.ws = ws
	h.work.Go(func() {
		defer h.dismiss(c)
		if full != nil {
			defer h.refusing.Add(-1)
			c.turnAway(full)
			return
		}
		c.serve()
	})
	return true
}

// mayRefuse counts in a connection that is told in the protocol why it is refused; others are told in HTTP.
func (h *Hub) mayRefuse(f *failure) bool {
	h.count.refused.Add(1)
	if f.Code == codeOverCapacity {
		h.count.overCapacity.Add(1)
		if h.refusing.Add(1) <= maxRefusing {
			return true
		}
		h.refusing.Add(-1)
	}
	return false
}

// hijacker gives the WebSocket library a small read buffer, and lets the one of the HTTP server go.
type hijacker struct {
	http.ResponseWriter
	batches *sync.Pool
	in      *bufio.Reader
	out     *coalescer
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil || rw.Reader.Buffered() > 0 { // the library refuses a client that does not wait for the answer
		return conn, rw, err
	}
	h.in, h.out = bufio.NewReaderSize(conn, readBufferBytes), newCoalescer(conn, h.batches)
	return h.out, bufio.NewReadWriter(h.in, rw.Writer), nil
}

// errTooLarge and errBinary are messages that are not read.
var (
	errTooLarge = errors.New("the message is larger than it may be")
	errBinary   = errors.New("the message is binary; send text")
)

// read returns the next message, whose bytes are good until give.
func (c *conn) read() (*bytes.Buffer, error) {
	kind, r, err := c.ws.NextReader()
	if err != nil {
		return nil, err
	}
	if kind != websocket.TextMessage {
		return nil, errBinary
	}
	b, ok := c.hub.receive.Get().(*bytes.Buffer)
	if !ok {
		b = new(bytes.Buffer)
	}
	limit := int64(c.hub.o.Limits.FrameBytes)
	c.message = io.LimitedReader{R: r, N: limit + 1}
	n, err := b.ReadFrom(&c.message)
	c.message.R = nil
	if err == nil && n > limit {
		err = errTooLarge
	}
	if err != nil {
		c.give(b)
		return nil, err
	}
	c.hub.count.framesIn.Add(1)
	c.hub.count.bytesIn.Add(uint64(n))
	return b, nil
}

// give returns a message's buffer.
func (c *conn) give(b *bytes.Buffer) {
	if b.Cap() <= keepBufferBytes {
		b.Reset()
		c.hub.receive.Put(b)
	}
}

// within returns a deadline that is so far away, or up to an eighth farther: the one that there is, where it is, as that needs not be set again.
func within(by time.Time, d time.Duration) time.Time {
	now := time.Now()
	if left := by.Sub(now); left >= d && left <= d+d/8 {
		return by
	}
	return now.Add(d + d/8)
}

// alive notes that something came from the other side.
func (c *conn) alive() { c.hear(within(c.heard, (missedPings+1)*c.hub.o.Limits.PingEvery)) }

// hear sets until when something must come. Only the reader's goroutine calls it.
func (c *conn) hear(by time.Time) {
	if by.Equal(c.heard) {
		return
	}
	c.heard = by
	_ = c.ws.SetReadDeadline(by)
	if c.ending.Load() != nil { // kick came before
		_ = c.ws.SetReadDeadline(time.Now())
	}
}

// serve is the life of a connection, in its reader's goroutine.
func (c *conn) serve() {
	if !c.handshake() {
		return
	}
	c.hub.o.Logger.Debug("client connected", "client", c.client.session, "address", c.ip)
	c.tls = nil // it is large; a credential has it where that is needed
	c.ws.SetCloseHandler(c.closed)
	c.ws.SetPongHandler(func(string) error { c.alive(); return nil })
	c.alive()
	c.client.mu.Lock()
	c.ping = time.AfterFunc(c.hub.o.Limits.PingEvery, c.sendPing)
	c.client.mu.Unlock()
	code, reason := c.readAll()
	c.finish(code, reason)
}

// readAll handles messages until the connection is to end; code is 0 when there is nobody to tell.
func (c *conn) readAll() (code int, reason string) {
	for {
		c.rest()
		b, err := c.read()
		if e := c.ending.Load(); e != nil {
			return e.code, e.reason
		}
		if err != nil {
			return c.whyEnded(err)
		}
		c.alive()
		code, reason = c.handle(b.Bytes())
		c.give(b)
		c.flush()
		if code != 0 {
			return code, reason
		}
		if room := c.room(); room != nil { // who does not read is not read either
			select {
			case <-room:
			case <-c.kicked:
			}
		}
	}
}

func (c *conn) room() <-chan struct{} {
	c.client.mu.Lock()
	defer c.client.mu.Unlock()
	return c.client.waitRoom()
}

// whyEnded is how a failed read ends the connection.
func (c *conn) whyEnded(err error) (code int, reason string) {
	switch {
	case errors.Is(err, errTooLarge):
		c.hub.count.malformed.Add(1)
		return closeTooLarge, err.Error()
	case errors.Is(err, errBinary):
		c.hub.count.malformed.Add(1)
		return closeProtocol, err.Error()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return closeGoingAway, "nothing was heard for too long"
	default:
		return 0, "" // the other side has closed, or is gone, or does not speak WebSocket
	}
}

// sendPing asks for a sign of life, again and again.
func (c *conn) sendPing() {
	cl := c.client
	cl.mu.Lock()
	if c.closing {
		cl.mu.Unlock()
		return
	}
	c.writers.Add(1)
	cl.mu.Unlock()
	defer c.writers.Done()
	_ = c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(c.hub.o.Limits.WriteTimeout)) // the reader sees what fails
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if !c.closing {
		c.ping.Reset(c.hub.o.Limits.PingEvery)
	}
}

// startWriter makes sure that what waits is written. client.mu is held.
func (c *conn) startWriter() {
	if c.mayWrite() {
		c.hub.pool.run(c.drain)
	}
}

// mayWrite makes the caller the one who writes, if something waits and nobody does; drain ends that. client.mu is held.
func (c *conn) mayWrite() bool {
	if c.writing || c.closing || len(c.client.queue) == 0 {
		return false
	}
	c.writing = true
	c.writers.Add(1)
	return true
}

// flush writes what the reader has queued, in its goroutine, which saves another one's being woken; not where that might have it wait, as it must hear
// a cancel behind what it answers, nor where more has come in already, as that can be answered meanwhile.
func (c *conn) flush() {
	c.client.mu.Lock()
	mine, bytes := c.mayWrite(), c.client.queued
	c.client.mu.Unlock()
	if !mine {
		return
	}
	if bytes <= takenBytes && c.in.Buffered() == 0 && c.out.takes(bytes) && !c.writeSome() {
		c.writers.Done()
		return
	}
	c.hub.pool.run(c.drain)
}

// drain writes what waits, until nothing does.
func (c *conn) drain() {
	defer c.writers.Done()
	for c.writeSome() {
	}
}

// writeSome writes what waits for longest; more reports whether something waits still, and the caller is its writer. A frame that could not be written
// stays for the next connection.
func (c *conn) writeSome() (more bool) {
	batch := c.client.next()
	n, err := c.writeAll(batch)
	more = c.client.wrote(c, batch[:n], err)
	if err != nil {
		c.kick(closeLimits, "the client does not take what is written to it", 0)
		_ = c.ws.Close()
	}
	return more
}

// writeAll writes messages at once, and returns how many were written whole.
func (c *conn) writeAll(batch []frame) (n int, err error) {
	if len(batch) == 1 && len(batch[0].data) >= compressMinBytes { // it need not be held back, which copies it
		if err := c.write(batch[0].data); err != nil {
			return 0, err
		}
		return 1, nil
	}
	c.boundWrite()
	c.out.hold()
	for _, f := range batch {
		if len(f.data) < compressMinBytes {
			c.hub.count.wrote(f.data)
			err = c.out.text(f.data)
		} else if err = c.send(f.data); err == nil {
			c.out.mark()
		}
		if err != nil {
			break
		}
	}
	n, lost := c.out.release()
	return n, errors.Join(err, lost)
}

// write writes one message; one goroutine at a time may.
func (c *conn) write(data []byte) error {
	c.boundWrite()
	return c.send(data)
}

// boundWrite sets until when what is written next must be taken.
func (c *conn) boundWrite() {
	c.writeBy = within(c.writeBy, c.hub.o.Limits.WriteTimeout)
	by := c.writeBy
	if e := c.ending.Load(); e != nil && e.by.Before(by) {
		by = e.by
	}
	_ = c.ws.SetWriteDeadline(by)
	_ = c.out.SetWriteDeadline(by)
}

// send writes one message within that time.
func (c *conn) send(data []byte) error {
	c.ws.EnableWriteCompression(len(data) >= compressMinBytes)
	c.hub.count.wrote(data)
	return c.ws.WriteMessage(websocket.TextMessage, data)
}

// closed answers a close of the other side, as the library would; nothing is written behind it.
func (c *conn) closed(code int, _ string) error {
	c.out.shutText()
	_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), time.Now().Add(closeGrace)) // the reader ends in any case
	return nil
}

// kick has the connection end; what waits may be written for so long. The first reason counts.
func (c *conn) kick(code int, reason string, patience time.Duration) {
	if c.ending.CompareAndSwap(nil, &ending{code, reason, time.Now().Add(patience)}) {
		close(c.kicked)
		_ = c.ws.SetReadDeadline(time.Now())
	}
}

// finish ends the connection: what waits is written when somebody is there to read it; then it is closed, and its client is free.
func (c *conn) finish(code int, reason string) {
	if code == 0 {
		_ = c.ws.Close()
	} else {
		c.kick(code, reason, c.hub.o.Limits.WriteTimeout)
	}
	cl := c.client
	cl.mu.Lock()
	c.closing = true
	c.ping.Stop()
	cl.mu.Unlock()
	c.writers.Wait()
	cl.detach(c)
	close(c.gone)
	if code != 0 {
		c.sayClose(code, reason)
	}
	c.hub.o.Logger.Debug("client disconnected", "client", cl.session, "address", c.ip, "code", code, "reason", reason)
}

// sayClose tells the other side why, and gives it a moment to take it: closing a socket with unread bytes would reset it,
// and the close might never be seen.
func (c *conn) sayClose(code int, reason string) {
	if len(reason) > maxCloseReason {
		reason = reason[:maxCloseReason]
	}
	by := time.Now().Add(closeGrace)
	if c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), by) == nil {
		_ = c.out.CloseWrite()
		_ = c.out.SetReadDeadline(by)
		_, _ = io.Copy(io.Discard, io.LimitReader(c.out, 2*MaxFrameBytes))
	}
	_ = c.ws.Close()
}

// turnAway tells a connection that there are too many.
func (c *conn) turnAway(f *failure) {
	_ = c.write((&message{Op: "hello_ack", OK: no(), Reason: "over_capacity"}).encode())
	c.sayClose(closeLimits, f.Message)
}
