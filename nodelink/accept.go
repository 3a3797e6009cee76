// The server's end of the WebSocket handshake.

package nodelink

import (
	"bufio"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/internal/fault"
)

// Authorize says who is at the other end of a request, before it becomes a link: a name that the hub hands to
// HubOptions.Admit, may be empty. An error of kind PermissionDenied is answered with 403, Unavailable with 503, any
// other with 401.
type Authorize func(r *http.Request) (identity string, err error)

// handshakeTimeout bounds the writing of the answer to the upgrade.
const handshakeTimeout = 10 * time.Second

// acceptor turns requests into links.
type acceptor struct {
	authorize Authorize
	upgrader  websocket.Upgrader
	pool      *buffers
	work      *workers
}

func newAcceptor(authorize Authorize, noCompression bool) *acceptor {
	pool := new(buffers)
	return &acceptor{authorize: authorize, pool: pool, work: newWorkers(), upgrader: websocket.Upgrader{
		HandshakeTimeout: handshakeTimeout,
		// The read buffer is the hijacker's.
		WriteBufferSize: writeBufferBytes, WriteBufferPool: &pool.write,
		Subprotocols:      []string{SubprotocolBinary, SubprotocolJSON},
		EnableCompression: !noCompression,
		CheckOrigin:       func(*http.Request) bool { return true }, // accept has refused every Origin
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			writeRefusal(w, status, fault.New(fault.Invalid, "node link: %w; dial %s with a WebSocket", reason, Path))
		},
	}}
}

// accept returns the link, or answers the request with a refusal and returns why.
func (a *acceptor) accept(w http.ResponseWriter, r *http.Request) (c *wsConn, identity string, err error) {
	if r.Header.Get("Origin") != "" {
		err = fault.New(fault.PermissionDenied, "node link: a browser may not open one; leave out the Origin header")
		writeRefusal(w, http.StatusForbidden, err)
		return nil, "", err
	}
	if a.authorize != nil {
		if identity, err = a.authorize(r); err != nil {
			writeRefusal(w, refusalStatus(err), err)
			return nil, "", err
		}
	}
	if offered := websocket.Subprotocols(r); len(offered) > 0 && !slices.ContainsFunc(offered, func(p string) bool { return slices.Contains(a.upgrader.Subprotocols, p) }) {
		err = fault.New(fault.Invalid, "node link: none of the subprotocols %.200q is spoken here; offer %s or %s", offered, SubprotocolBinary, SubprotocolJSON)
		writeRefusal(w, http.StatusBadRequest, err)
		return nil, "", err
	}
	h := &hijacker{ResponseWriter: w}
	ws, err := a.upgrader.Upgrade(h, r, nil)
	if err != nil {
		return nil, "", fault.New(fault.Invalid, "node link: upgrade: %w", err)
	}
	codec, _ := codecFor(ws.Subprotocol())
	c = newWSConn(ws, codec, a.pool)
	c.work, c.incoming, c.received = a.work, h.incoming, make(chan error, 1)
	return c, identity, nil
}

// hijacker gives the WebSocket library a small read buffer that we know too.
type hijacker struct {
	http.ResponseWriter
	incoming *bufio.Reader
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil || rw.Reader.Buffered() > 0 { // the library refuses a client that does not wait for the answer
		return conn, rw, err
	}
	h.incoming = bufio.NewReaderSize(conn, readBufferBytes)
	return conn, bufio.NewReadWriter(h.incoming, rw.Writer), nil
}

func refusalStatus(err error) int {
	switch fault.KindOf(err) {
	case fault.PermissionDenied:
		return http.StatusForbidden
	case fault.Unavailable, fault.Exhausted:
		return http.StatusServiceUnavailable
	default:
		return http.StatusUnauthorized
	}
}

// refusal is the body of a refused handshake, one line of JSON.
type refusal struct {
	Error string `json:"error"`
	Code  string `json:"code"`
}

func writeRefusal(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="orchestrator"`)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	kind := fault.KindOf(err)
	if status == http.StatusUnauthorized {
		kind = fault.Unauthenticated
	}
	_ = json.NewEncoder(w).Encode(refusal{Error: err.Error(), Code: CodeOf(kind)}) // the caller has gone
}
