// WebSockets: who is let in, what is refused, what is bounded, and how connections end.
package mcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// reply is a message of the server.
type reply struct {
	ID     any             `json:"id"`
	Method string          `json:"method"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Code    int            `json:"code"`
		Message string         `json:"message"`
		Data    map[string]any `json:"data"`
	} `json:"error"`
}

// next reads a message, or how the connection was closed.
func next(t *testing.T, ws *websocket.Conn) (r reply, closed int) {
	t.Helper()
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, data, err := ws.ReadMessage()
	var c *websocket.CloseError
	switch {
	case errors.As(err, &c):
		return r, c.Code
	case err != nil:
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return r, 0
}

func send(t *testing.T, ws *websocket.Conn, format string, args ...any) {
	t.Helper()
	if err := ws.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, format, args...)); err != nil {
		t.Fatal(err)
	}
}

const initialize = `{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`

// initialized is a connection of alice on which MCP has begun.
func (h *house) initialized(t *testing.T) *websocket.Conn {
	t.Helper()
	ws := h.dial(t, http.Header{"Authorization": {"Bearer alice"}}, Subprotocol)
	send(t, ws, initialize)
	if r, _ := next(t, ws); r.ID != "i" || r.Error != nil {
		t.Fatalf("initialize: %+v", r)
	}
	send(t, ws, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return ws
}

const move = `{"jsonrpc":"2.0","id":%q,"method":"tools/call","params":{"name":"session_migrate","arguments":{"id":"abc"}}}`

// Who asks is known before there is a WebSocket: by a header, or by a subprotocol, which is neither sent back nor logged.
func TestWhoMayConnect(t *testing.T) {
	h := start(t)
	for name, c := range map[string]struct {
		header       http.Header
		subprotocols []string
		want         int
	}{
		"a header":              {http.Header{"Authorization": {"Bearer alice"}}, []string{"mcp"}, 101},
		"a subprotocol":         {nil, []string{"mcp", "bearer.alice"}, 101},
		"the header counts":     {http.Header{"Authorization": {"Bearer mallory-header"}}, []string{"mcp", "bearer.alice"}, 401},
		"no token":              {nil, []string{"mcp"}, 401},
		"a wrong header":        {http.Header{"Authorization": {"Bearer mallory-header"}}, []string{"mcp"}, 401},
		"a wrong subprotocol":   {nil, []string{"bearer.mallory-page", "mcp"}, 401},
		"a password":            {http.Header{"Authorization": {"Basic YTpi"}}, []string{"mcp"}, 401},
		"a page from elsewhere": {http.Header{"Authorization": {"Bearer alice"}, "Origin": {"https://evil.example"}}, []string{"mcp"}, 403},
	} {
		ws, resp, err := h.tryDial(c.header, c.subprotocols...)
		if resp == nil || resp.StatusCode != c.want {
			t.Errorf("%s: %v %v", name, resp, err)
			continue
		}
		if got := resp.Header.Get("Sec-Websocket-Protocol"); c.want == 101 && got != "mcp" || c.want != 101 && got != "" {
			t.Errorf("%s: subprotocol %q was chosen", name, got)
		}
		if c.want == 401 && resp.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: 401 without WWW-Authenticate", name)
		}
		if ws != nil {
			send(t, ws, initialize)
			if r, _ := next(t, ws); r.Error != nil || r.Result == nil {
				t.Errorf("%s: %+v", name, r)
			}
			_ = ws.Close()
		}
	}
	eventually(t, "they are gone", func() bool { return h.handler.Stats().WebSockets == 0 })
	h.mu.Lock()
	defer h.mu.Unlock()
	if log := h.said.String(); !strings.Contains(log, "MCP client connected") || strings.Contains(log, "bearer.") || strings.Contains(log, "mallory-") {
		t.Errorf("what was logged:\n%s", log)
	}
}

func TestWebSocketsAreBounded(t *testing.T) {
	h := start(t)
	h.maxConns = 2
	header := http.Header{"Authorization": {"Bearer alice"}}
	first := h.dial(t, header, Subprotocol)
	h.dial(t, header, Subprotocol)
	if _, resp, err := h.tryDial(header, Subprotocol); err == nil || resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the third: %v %v", resp, err)
	}
	_ = first.Close()
	eventually(t, "there is room", func() bool { return h.conns.Load() == 1 })
	h.dial(t, header, Subprotocol)
}

func TestWantedWebSockets(t *testing.T) {
	for header, want := range map[string]bool{"": false, "mcp": true, "mcp, bearer.x": true, "orchestrator.client.v1": false, "xmcp": false} {
		r := &http.Request{Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {header}}}
		if got := Wanted(r); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
	if !Wanted(&http.Request{Header: http.Header{}}) {
		t.Error("HTTP is not wanted")
	}
}

// What is no message of JSON-RPC is answered, and ends the connection with a code that says why.
func TestMalformedMessages(t *testing.T) {
	h := start(t)
	large := strings.Repeat(" ", 1<<20)
	for name, c := range map[string]struct {
		kind    int
		message string
		answer  bool
		code    int
	}{
		"no JSON":                   {websocket.TextMessage, "{", true, 4000},
		"nothing":                   {websocket.TextMessage, "", true, 4000},
		"no object":                 {websocket.TextMessage, `"x"`, true, 4000},
		"a batch":                   {websocket.TextMessage, `[{"jsonrpc":"2.0","id":1,"method":"ping"}]`, true, 4000},
		"no version":                {websocket.TextMessage, `{"id":1,"method":"ping"}`, true, 4000},
		"neither call nor answer":   {websocket.TextMessage, `{"jsonrpc":"2.0"}`, true, 4000},
		"an id that is an object":   {websocket.TextMessage, `{"jsonrpc":"2.0","id":{},"method":"ping"}`, true, 4000},
		"a method that is a number": {websocket.TextMessage, `{"jsonrpc":"2.0","id":1,"method":5}`, true, 4000},
		"not UTF-8":                 {websocket.TextMessage, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", true, 4000},
		"nested deeply":             {websocket.TextMessage, `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}}`, true, 4000},
		"binary":                    {websocket.BinaryMessage, `{"jsonrpc":"2.0","id":1,"method":"ping"}`, false, 4001},
		"too large, and compressed": {websocket.TextMessage, `{"jsonrpc":"2.0","id":1,"method":"ping"}` + large, false, 1009},
	} {
		ws := h.initialized(t)
		ws.EnableWriteCompression(true)
		if err := ws.WriteMessage(c.kind, []byte(c.message)); err != nil {
			t.Fatal(err)
		}
		r, code := next(t, ws)
		if c.answer {
			if r.Error == nil || r.Error.Code != -32700 || r.ID != nil {
				t.Errorf("%s: answered with %+v", name, r)
			}
			_, code = next(t, ws)
		}
		if code != c.code {
			t.Errorf("%s: closed with %d", name, code)
		}
	}
	// What is wrong within a message is answered, and the connection stays.
	ws := h.initialized(t)
	for name, c := range map[string]struct {
		message string
		code    int
	}{
		"an unknown method":      {`{"jsonrpc":"2.0","id":"x","method":"rm"}`, -32601},
		"no params":              {`{"jsonrpc":"2.0","id":"x","method":"tools/call"}`, -32600},
		"params of another type": {`{"jsonrpc":"2.0","id":"x","method":"tools/call","params":5}`, -32602},
		"an unknown tool":        {`{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"rm"}}`, -32602},
	} {
		send(t, ws, "%s", c.message)
		if r, closed := next(t, ws); r.ID != "x" || r.Error == nil || r.Error.Code != c.code {
			t.Errorf("%s: %+v, closed with %d", name, r, closed)
		}
	}
}

func TestBeforeInitialize(t *testing.T) {
	h := start(t)
	ws := h.dial(t, http.Header{"Authorization": {"Bearer alice"}}, Subprotocol)
	send(t, ws, `{"jsonrpc":"2.0","id":"x","method":"tools/list"}`)
	if r, _ := next(t, ws); r.ID != "x" || r.Error == nil {
		t.Errorf("%+v", r)
	}
}

// Calls in flight are bounded by connection, and so is how often they are made; pings always get through.
func TestCallsAreBounded(t *testing.T) {
	h := start(t)
	ws := h.initialized(t)
	for i := range limits().InFlight {
		send(t, ws, move, fmt.Sprint(i))
	}
	send(t, ws, move, "more")
	if r, _ := next(t, ws); r.ID != "more" || r.Error == nil || r.Error.Code != codeRefused || r.Error.Data["code"] != "OVER_CAPACITY" || r.Error.Data["retry_after_ms"] != 1000.0 {
		t.Errorf("one too many: %+v", r)
	}
	close(h.hold)
	for range limits().InFlight {
		if r, _ := next(t, ws); r.Error != nil {
			t.Errorf("%+v", r)
		}
	}
	h.full.Store(true)
	send(t, ws, move, "fast")
	if r, _ := next(t, ws); r.ID != "fast" || r.Error == nil || r.Error.Data["retry_after_ms"] != 1500.0 {
		t.Errorf("too fast: %+v", r)
	}
	send(t, ws, `{"jsonrpc":"2.0","id":"p","method":"ping"}`)
	if r, _ := next(t, ws); r.ID != "p" || r.Error != nil {
		t.Errorf("a ping: %+v", r)
	}
}

// A token that was revoked is refused at the next request, and its connection ends.
func TestRevokedConnection(t *testing.T) {
	h := start(t)
	ws := h.initialized(t)
	h.revoke("alice")
	send(t, ws, `{"jsonrpc":"2.0","id":"x","method":"tools/list"}`)
	if r, _ := next(t, ws); r.ID != "x" || r.Error == nil || r.Error.Data["code"] != "UNAUTHORIZED" {
		t.Errorf("%+v", r)
	}
	if _, code := next(t, ws); code != closeUnauthorized {
		t.Errorf("closed with %d", code)
	}
}

// A connection that is lost ends its calls, and does not undo them.
func TestLostConnection(t *testing.T) {
	h := start(t)
	ws := h.initialized(t)
	send(t, ws, move, "m")
	<-h.started
	_ = ws.NetConn().Close()
	if why := <-h.ended; !errors.Is(why, errGone) {
		t.Errorf("the call ended with %v", why)
	}
	eventually(t, "the connection is gone", func() bool { return h.conns.Load() == 0 })
}

// A client that does not read has a bounded queue, is not read from, and is disconnected when it takes nothing for too long.
func TestSlowReader(t *testing.T) {
	h := start(t, func(l *Limits) { l.QueueFrames, l.WriteTimeout = 3, 300*time.Millisecond })
	plain := websocket.Dialer{Subprotocols: []string{Subprotocol}} // what is compressed would take long to fill the kernel's buffers
	ws, _, err := plain.DialContext(t.Context(), "ws"+strings.TrimPrefix(h.server.URL, "http"), http.Header{"Authorization": {"Bearer alice"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	send(t, ws, initialize)
	_ = ws.SetWriteDeadline(time.Now().Add(20 * time.Second))
	sent := 0
	for much := `{"jsonrpc":"2.0","id":%d,"method":"resources/read","params":{"uri":"session://abc/workspace/huge?bytes=2097152"}}`; ; sent++ {
		if ws.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, much, sent)) != nil {
			break
		}
		if sent > 1_000_000 {
			t.Fatal("it is read from for ever")
		}
	}
	eventually(t, "it is disconnected", func() bool { return h.conns.Load() == 0 })
	t.Logf("after %d requests", sent)
}

// A connection whose other end is silent is closed after three pings; one that answers them stays.
func TestPings(t *testing.T) {
	h := start(t, func(l *Limits) { l.PingEvery = 20 * time.Millisecond })
	silent, lively := h.initialized(t), h.initialized(t)
	pings := 0
	silent.SetPingHandler(func(string) error { pings++; return nil })
	answered := make(chan struct{})
	n := 0
	pong := lively.PingHandler()
	lively.SetPingHandler(func(s string) error {
		if n++; n == 20 {
			close(answered)
		}
		return pong(s)
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _, _ = lively.ReadMessage()
	}()
	if _, code := next(t, silent); code != closeGoingAway || pings < missedPings {
		t.Errorf("closed with %d after %d pings", code, pings)
	}
	<-answered
	send(t, lively, `{"jsonrpc":"2.0","id":"p","method":"ping"}`)
	<-ended
}

// A server that stops closes with 1001, once it has answered.
func TestStoppingWebSockets(t *testing.T) {
	h := start(t)
	idle, busy := h.initialized(t), h.initialized(t)
	send(t, busy, move, "m")
	<-h.started
	done := make(chan struct{})
	go func() { defer close(done); h.handler.Close() }()
	if _, code := next(t, idle); code != closeGoingAway {
		t.Errorf("idle: closed with %d", code)
	}
	if r, _ := next(t, busy); r.ID != "m" || !strings.Contains(string(r.Result), "server-1 is stopping") {
		t.Errorf("busy: %+v %s", r, r.Result)
	}
	if _, code := next(t, busy); code != closeGoingAway {
		t.Errorf("busy: closed with %d", code)
	}
	<-done
	if _, resp, err := h.tryDial(http.Header{"Authorization": {"Bearer alice"}}, Subprotocol); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("afterwards: %v %v", resp, err)
	}
}
