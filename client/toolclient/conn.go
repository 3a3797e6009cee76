// A connection: one WebSocket, with a goroutine that reads it and one that writes it.

package toolclient

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/internal/fault"
)

// conn is a connection whose hello was accepted.
type conn struct {
	ws     *websocket.Conn
	e      *endpoint
	token  string // its session's
	server string
	limit  int64

	began  time.Time // the owner's
	served bool      // a call was answered on it; the owner's

	gone chan struct{}
	once sync.Once
	wake chan struct{}

	mu    sync.Mutex
	queue [][]byte
}

// errBinary is a message that no server sends.
var errBinary = errors.New("the server sent a binary message")

// dial connects to an address and says hello. Errors are of kind Unauthenticated when the token is not good, otherwise of kind
// Unavailable.
func (c *Client) dial(ctx context.Context, e *endpoint, hello greeting) (*conn, *message, error) {
	d := websocket.Dialer{
		NetDialContext: c.cfg.Dial, HandshakeTimeout: c.cfg.ConnectTimeout, TLSClientConfig: c.tls(), Proxy: c.proxy,
		Subprotocols: []string{subprotocol}, EnableCompression: true, ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10, WriteBufferPool: &c.buffers,
	}
	ws, resp, err := d.DialContext(ctx, e.ws, nil) //nolint:bodyclose // the library has read it
	if err != nil {
		return nil, nil, dialError(e, resp, err)
	}
	k := &conn{ws: ws, e: e, token: hello.Token, limit: int64(c.cfg.MaxAnswerBytes), gone: make(chan struct{}), wake: make(chan struct{}, 1)}
	stop := context.AfterFunc(ctx, func() { _ = ws.NetConn().Close() })
	defer stop()
	ack, err := k.greet(hello)
	if err != nil || !stop() {
		_ = ws.Close()
		if err == nil {
			err = ctx.Err()
		}
		return nil, nil, fault.New(kindOr(err, fault.Unavailable), "connect to %s: hello: %w", e.name, err)
	}
	return k, ack, nil
}

// kindOr is the kind of an error, or another one when it has none.
func kindOr(err error, kind fault.Kind) fault.Kind {
	if f := fault.As(err); f != nil {
		return f.Kind
	}
	return kind
}

// dialError says why a dial failed, in the server's own words where it gave some.
func dialError(e *endpoint, resp *http.Response, err error) error {
	if resp == nil || !errors.Is(err, websocket.ErrBadHandshake) {
		return fault.New(fault.Unavailable, "connect to %s: %w", e.name, err)
	}
	var m message
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // what was read is enough
	if json.Unmarshal(body, &m) == nil {
		if f := m.failure(); f != nil {
			return fault.New(fault.Unavailable, "connect to %s: refused (%d): %w", e.name, resp.StatusCode, f)
		}
	}
	return fault.New(fault.Unavailable, "connect to %s: no WebSocket there (%s); is this a client port?", e.name, resp.Status)
}

// greet says hello and reads the answer. The caller bounds it in time, by closing the connection.
func (k *conn) greet(hello greeting) (*message, error) {
	if err := k.ws.WriteMessage(websocket.TextMessage, encode(hello)); err != nil {
		return nil, err
	}
	ack, err := k.read()
	if err != nil {
		return nil, err
	}
	if ack.Op != "hello_ack" {
		return nil, fmt.Errorf("it was answered with %.40q", ack.Op)
	}
	if ack.OK {
		k.server = ack.Server
		if k.server == "" {
			k.server = k.e.name // an address stands for one server
		}
		return ack, nil
	}
	var word string
	_ = json.Unmarshal(ack.Error, &word) // what cannot be read is shown as it is
	switch word {
	case "unauthorized":
		return nil, fault.New(fault.Unauthenticated, "the token is not valid")
	case "over_capacity":
		return nil, fault.New(fault.Unavailable, "the server has as many connections or sessions as it may")
	}
	return nil, fmt.Errorf("refused: %.100s", ack.Error)
}

// read returns the next message.
func (k *conn) read() (*message, error) {
	kind, r, err := k.ws.NextReader()
	if err != nil {
		return nil, err
	}
	if kind != websocket.TextMessage {
		return nil, errBinary
	}
	b, err := io.ReadAll(io.LimitReader(r, k.limit+1)) // counts what decompression makes of it
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > k.limit {
		return nil, fmt.Errorf("the server sent a message of more than %d bytes", k.limit)
	}
	m := &message{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("the server sent what is no message: %w", err)
	}
	return m, nil
}

// readLoop hands on what comes, until the connection ends.
func (k *conn) readLoop(post func(event) bool) {
	for {
		m, err := k.read()
		if err != nil {
			k.close()
			post(disconnected{k, err})
			return
		}
		if !post(received{k, m}) {
			k.close()
			return
		}
	}
}

// write queues a message; false when there is no room, which ends the connection.
func (k *conn) write(v any) (bytes int, ok bool) {
	b := encode(v)
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) >= maxQueuedFrames {
		return 0, false
	}
	k.queue = append(k.queue, b)
	select {
	case k.wake <- struct{}{}:
	default:
	}
	return len(b), true
}

// writeLoop writes what waits, until the connection ends; then it closes the socket.
func (k *conn) writeLoop() {
	defer func() {
		_ = k.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeGrace))
		_ = k.ws.Close()
	}()
	for {
		select {
		case <-k.wake:
		case <-k.gone:
			return
		}
		k.mu.Lock()
		batch := k.queue
		k.queue = nil
		k.mu.Unlock()
		for _, b := range batch {
			_ = k.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
			k.ws.EnableWriteCompression(len(b) >= compressMinBytes)
			if k.ws.WriteMessage(websocket.TextMessage, b) != nil {
				k.close() // the reader sees why
				return
			}
			select {
			case <-k.gone:
				return
			default:
			}
		}
	}
}

// close has the writer close the socket; a write that hangs ends soon.
func (k *conn) close() {
	k.once.Do(func() {
		close(k.gone)
		_ = k.ws.NetConn().SetWriteDeadline(time.Now().Add(closeGrace))
	})
}

// tls is the configuration for one connection; nil for the system's.
func (c *Client) tls() *tls.Config {
	if c.cfg.TLS == nil {
		return nil
	}
	return c.cfg.TLS.Clone()
}
