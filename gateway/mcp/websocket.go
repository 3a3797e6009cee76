// MCP over a WebSocket: how one is chosen, made, and ended.

package mcp

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// Subprotocol is what clients offer that speak MCP over a WebSocket.
const Subprotocol = "mcp"

// Wanted reports whether a request is for this package: all that is not for a WebSocket, and WebSockets of subprotocol mcp.
func Wanted(r *http.Request) bool {
	return !websocket.IsWebSocketUpgrade(r) || slices.Contains(websocket.Subprotocols(r), Subprotocol)
}

// The bounds of WebSockets.
const (
	bufferBytes      = 1 << 10 // of reading and of writing, each
	compressMinBytes = 1 << 10
	farewellTime     = time.Second // for what waits to be written, and for the other side to take a close
	missedPings      = 3
	maxCloseReason   = 123 // bytes that fit into a close frame
	maxDiscardBytes  = 64 << 20
)

// The close codes, those of docs/protocol/client-gateway.md.
const (
	closeGoingAway    = 1001
	closeLimits       = 1008
	closeTooLarge     = 1009
	closeBadJSON      = 4000
	closeProtocol     = 4001
	closeUnauthorized = 4003
)

func (h *Handler) newUpgrader() websocket.Upgrader {
	return websocket.Upgrader{
		HandshakeTimeout: h.o.Limits.WriteTimeout, ReadBufferSize: bufferBytes, WriteBufferSize: bufferBytes, WriteBufferPool: new(sync.Pool),
		EnableCompression: true, Subprotocols: []string{Subprotocol},
		CheckOrigin: func(*http.Request) bool { return true }, // ServeHTTP has checked
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			http.Error(w, reason.Error(), status)
		},
	}
}

// take makes a connection of a caller who is known; a goroutine goes on with it.
func (h *Handler) take(w http.ResponseWriter, r *http.Request, c caller) {
	leave, err := h.o.Door.Admit(r)
	if err != nil {
		refuse(w, err)
		return
	}
	ws, err := h.upgrader.Upgrade(w, r, nil)
	if err != nil {
		leave()
		return // the upgrader has answered
	}
	conn := newWire(h, ws, &http.Request{RemoteAddr: r.RemoteAddr}, c)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		leave()
		conn.end(0, "")
		_ = ws.Close()
		return
	}
	h.wires[conn] = struct{}{}
	h.work.Go(func() {
		defer leave()
		h.serve(conn)
	})
}

// serve is the life of a connection.
func (h *Handler) serve(w *wire) {
	h.o.Logger.Debug("MCP client connected", "caller", w.caller.who.String(), "address", w.from.RemoteAddr)
	go w.write() // Close waits for it
	if s, err := h.server.Connect(h.life, w, nil); err == nil {
		_ = s.Wait() // how it ended, the wire knows
	}
	_ = w.Close()
	h.mu.Lock()
	delete(h.wires, w)
	h.mu.Unlock()
	e := w.ending.Load()
	h.o.Logger.Debug("MCP client disconnected", "caller", w.caller.who.String(), "address", w.from.RemoteAddr, "code", e.code, "reason", e.reason)
}

var _ sdk.Transport = (*wire)(nil)

// clipReason fits a reason into a close frame.
func clipReason(s string) string {
	if len(s) > maxCloseReason {
		s = strings.ToValidUTF8(s[:maxCloseReason], "")
	}
	return s
}
