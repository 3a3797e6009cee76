// A wire: one WebSocket as the SDK sees it. A goroutine of the SDK reads; one of the wire's own writes, pings, and closes.

package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/neolith/orchestrator/internal/fault"
)

// wire is one connection.
type wire struct {
	h      *Handler
	ws     *websocket.Conn
	from   *http.Request // its address, for the rates
	caller caller
	extra  *sdk.RequestExtra // goes with each request: who makes it

	queue  *queue
	ending atomic.Pointer[ending]
	life   context.Context // ends with ending
	gone   context.CancelFunc
	closed chan struct{} // closed when the socket is

	mu       sync.Mutex
	inFlight map[jsonrpc.ID]struct{} // calls that are not answered yet
	idle     chan struct{}           // closed when there are none, where somebody waits for that
}

// ending is how a connection ends; code is 0 when there is nobody to tell.
type ending struct {
	code   int
	reason string
	by     time.Time // what waits is written until then
}

func newWire(h *Handler, ws *websocket.Conn, from *http.Request, c caller) *wire {
	w := &wire{
		h: h, ws: ws, from: from, caller: c, extra: &sdk.RequestExtra{TokenInfo: c.tokenInfo()},
		queue: newQueue(h.o.Limits.QueueFrames, h.o.Limits.QueueBytes, h.queued), closed: make(chan struct{}), inFlight: map[jsonrpc.ID]struct{}{},
	}
	w.life, w.gone = context.WithCancel(context.Background()) // calls are answered when the server's has ended
	ws.SetReadLimit(0)                                        // receive has its own, which counts what decompression makes of a message
	ws.SetPongHandler(func(string) error { w.alive(); return nil })
	w.alive()
	return w
}

// Connect implements sdk.Transport: the connection is there already.
func (w *wire) Connect(context.Context) (sdk.Connection, error) { return w, nil }

// SessionID implements sdk.Connection: who holds the connection has the session.
func (w *wire) SessionID() string { return "" }

// alive notes that something came from the other side.
func (w *wire) alive() {
	_ = w.ws.SetReadDeadline(time.Now().Add((missedPings + 1) * w.h.o.Limits.PingEvery))
	if w.ending.Load() != nil { // end came before
		_ = w.ws.SetReadDeadline(time.Now())
	}
}

// errTooLarge and errBinary are messages that are not read.
var (
	errTooLarge = errors.New("the message is larger than it may be")
	errBinary   = errors.New("the message is binary; send text")
)

// receive returns the bytes of the next message.
func (w *wire) receive() ([]byte, error) {
	kind, r, err := w.ws.NextReader()
	if err != nil {
		return nil, err
	}
	if kind != websocket.TextMessage {
		return nil, errBinary
	}
	var b bytes.Buffer
	limit := int64(w.h.o.Limits.MessageBytes)
	n, err := b.ReadFrom(io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = errTooLarge
	}
	return b.Bytes(), err
}

// Read implements sdk.Connection. It answers calls that may not be made itself, and returns io.EOF when the connection ends.
func (w *wire) Read(context.Context) (jsonrpc.Message, error) {
	for {
		w.queue.wait(w.life) // who does not read is not read either
		data, err := w.receive()
		if w.ending.Load() != nil {
			return nil, io.EOF
		}
		if err != nil {
			w.end(whyEnded(err))
			return nil, io.EOF
		}
		w.alive()
		m, err := decode(data)
		if err != nil {
			w.answer(jsonrpc.ID{}, &jsonrpc.Error{Code: jsonrpc.CodeParseError, Message: err.Error()})
			w.end(closeBadJSON, err.Error())
			return nil, io.EOF
		}
		r, ok := m.(*jsonrpc.Request)
		if !ok {
			return m, nil
		}
		r.Extra = w.extra
		if !r.IsCall() {
			return r, nil
		}
		err = w.admit(r)
		if err == nil {
			return r, nil
		}
		w.answer(r.ID, rpcError(err, nil))
		if fault.Is(err, fault.Unauthenticated) {
			w.end(closeUnauthorized, err.Error())
			return nil, io.EOF
		}
	}
}

// decode reads one message of JSON-RPC.
func decode(data []byte) (jsonrpc.Message, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("the message is not UTF-8")
	}
	m, err := jsonrpc.DecodeMessage(data)
	if err != nil {
		return nil, fmt.Errorf("the message is none of JSON-RPC 2.0: %w", err)
	}
	return m, nil
}

// admit counts a call in, or says why it may not be made: its caller's token was revoked, or a limit is reached.
func (w *wire) admit(r *jsonrpc.Request) error {
	if w.h.life.Err() != nil {
		return w.h.stopping()
	}
	if _, err := w.h.o.Access.Identify(w.caller.cred); err != nil {
		return err
	}
	if r.Method != "ping" {
		if err := w.h.o.Door.Pace(w.from, w.caller.who); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.inFlight); n >= w.h.o.Limits.InFlight {
		return fault.New(fault.Exhausted, "%d calls are in flight on this connection, which is as many as may be", n).WithRetry(time.Second)
	}
	w.inFlight[r.ID] = struct{}{}
	return nil
}

// answered counts a call out.
func (w *wire) answered(id jsonrpc.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.inFlight, id)
	if len(w.inFlight) == 0 && w.idle != nil {
		close(w.idle)
		w.idle = nil
	}
}

// Write implements sdk.Connection: it waits for room in the queue.
func (w *wire) Write(ctx context.Context, m jsonrpc.Message) error {
	if r, ok := m.(*jsonrpc.Response); ok {
		defer w.answered(r.ID)
	}
	data, err := jsonrpc.EncodeMessage(m)
	if err != nil {
		return err
	}
	return w.queue.put(ctx, w.life, data)
}

// answer answers a request that the SDK does not see. The queue has room, as nothing else is read meanwhile; where others have taken
// it since, the answer waits.
func (w *wire) answer(id jsonrpc.ID, err error) {
	data, encodeErr := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": id.Raw(), "error": err})
	if encodeErr == nil {
		_ = w.queue.put(w.life, w.life, data)
	}
}

// whyEnded is how a failed read ends the connection.
func whyEnded(err error) (code int, reason string) {
	switch {
	case errors.Is(err, errTooLarge):
		return closeTooLarge, err.Error()
	case errors.Is(err, errBinary):
		return closeProtocol, err.Error()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return closeGoingAway, "nothing was heard for too long"
	default:
		return 0, "" // the other side has closed, or is gone, or does not speak WebSocket
	}
}

// end has the connection end. The first reason counts.
func (w *wire) end(code int, reason string) {
	if w.ending.CompareAndSwap(nil, &ending{code, reason, time.Now().Add(farewellTime)}) {
		w.gone()
		_ = w.ws.SetReadDeadline(time.Now())
	}
}

// leave ends the connection once its calls are answered, which they are soon as the server ends; not much later in any case.
func (w *wire) leave() {
	idle := make(chan struct{})
	w.mu.Lock()
	if len(w.inFlight) > 0 {
		w.idle = idle
	} else {
		close(idle)
	}
	w.mu.Unlock()
	t := time.NewTimer(farewellTime)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	case <-w.life.Done():
	}
	w.end(closeGoingAway, w.h.stopping().Error())
}

// Close implements sdk.Connection. The socket is closed when it returns.
func (w *wire) Close() error {
	w.end(0, "")
	<-w.closed
	return nil
}

// write is the writer: whatever is queued, pings, and at last the close.
func (w *wire) write() {
	defer close(w.closed)
	defer w.ws.Close()
	defer w.queue.close()
	ping := time.NewTicker(w.h.o.Limits.PingEvery)
	defer ping.Stop()
	for {
		select {
		case <-w.queue.news:
			if w.writeAll(w.h.o.Limits.WriteTimeout) != nil {
				w.end(closeLimits, "the client does not take what is written to it")
				return
			}
		case <-ping.C:
			_ = w.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(w.h.o.Limits.WriteTimeout)) // the reader sees what fails
		case <-w.life.Done():
			if e := w.ending.Load(); e.code != 0 {
				if w.writeAll(time.Until(e.by)) == nil {
					w.sayClose(e)
				}
			}
			return
		}
	}
}

// writeAll writes what is queued; each message may take so long.
func (w *wire) writeAll(patience time.Duration) error {
	for data, ok := w.queue.take(); ok; data, ok = w.queue.take() {
		_ = w.ws.SetWriteDeadline(time.Now().Add(patience))
		w.ws.EnableWriteCompression(len(data) >= compressMinBytes)
		err := w.ws.WriteMessage(websocket.TextMessage, data)
		w.queue.written(data)
		if err != nil {
			return err
		}
	}
	return nil
}

// sayClose tells the other side why, and gives it a moment to take it: closing a socket with unread bytes would reset it,
// and the close might never be seen.
func (w *wire) sayClose(e *ending) {
	by := time.Now().Add(farewellTime)
	if w.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(e.code, clipReason(e.reason)), by) != nil {
		return
	}
	conn := w.ws.NetConn()
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = conn.SetReadDeadline(by)
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, maxDiscardBytes))
}
