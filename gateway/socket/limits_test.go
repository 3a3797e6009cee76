// Limits: what is full says so and when to come back; who does not read is not waited for.
package socket

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/gateway/tools"
)

// turnedAway expects a connection to be refused by a limit.
func (w *world) turnedAway(what string) {
	w.t.Helper()
	p := w.dial(nil)
	if m, _ := p.read(); m["op"] != "hello_ack" || m["ok"] != false || m["error"] != "over_capacity" {
		w.t.Errorf("%s: %v", what, m)
	}
	if m, code := p.read(); code != closeLimits {
		w.t.Errorf("%s: %v, closed with %d", what, m, code)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.Connections = 3 })
	first := w.hello("alice", "")
	w.hello("alice", "")
	w.hello("bob", "")
	w.turnedAway("the fourth")
	_ = first.ws.Close()
	eventually(t, "there is room", func() bool { return w.hub.Stats().Connections == 2 })
	w.hello("alice", "")
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.ConnectionsPerIP = 2 })
	w.hello("alice", "")
	w.hello("bob", "")
	w.turnedAway("the third of an address")
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if n := len(w.hub.perIP); n != 1 {
		t.Errorf("%d addresses are counted", n)
	}
}

func TestClientsAreBounded(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.Clients = 1 })
	p := w.hello("alice", "one")
	p.call("1", "echo", map[string]string{"key": "k"})
	p.until("call_tool_res")
	_ = p.ws.Close() // its result is kept, and so is the session
	q := w.dial(nil)
	q.send(map[string]any{"op": "hello", "token": "alice", "session_id": "two"})
	if m, _ := q.read(); m["error"] != "over_capacity" {
		t.Errorf("another session: %v", m)
	}
	w.hello("alice", "one")
}

func TestRates(t *testing.T) {
	once := Rate{Burst: 3, PerSecond: 0.001}
	for name, change := range map[string]func(*Limits){
		"of all": func(l *Limits) { l.Global = once }, "of an address": func(l *Limits) { l.PerIP = once }, "of a user": func(l *Limits) { l.PerUser = once },
	} {
		w := start(t, func(o *Options) { change(&o.Limits) })
		p := w.hello("alice", "")
		refused := 0
		for i := range 4 {
			p.call(fmt.Sprint(i), "echo", map[string]string{"key": "k"})
			m := p.next()
			if m["op"] == "call_tool_ack" {
				m = p.next()
			}
			if code(m) == "" {
				continue
			}
			refused++
			d := m["error"].(map[string]any)["details"].(map[string]any)
			if code(m) != codeOverCapacity || d["retry_after_ms"].(float64) < 1000 {
				t.Errorf("%s: %v", name, m)
			}
		}
		if refused == 0 || refused == 4 {
			t.Errorf("%s: %d of 4 calls were refused", name, refused)
		}
		p.send(map[string]any{"op": "ping"}) // is free
		if m := p.next(); m["op"] != "pong" {
			t.Errorf("%s: %v", name, m)
		}
	}
}

func TestCallsInFlightAreBounded(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.InFlight, o.Limits.InFlightClient = 3, 2 })
	p, q := w.hello("alice", ""), w.hello("bob", "")
	for i := range 3 {
		p.call(fmt.Sprint(i), "hold", map[string]string{"key": "k"})
	}
	if m := p.until("call_tool_res"); code(m) != codeOverCapacity || m["request_id"] != "2" {
		t.Errorf("the third of a client: %v", m)
	}
	q.call("a", "hold", map[string]string{"key": "k"})
	q.until("progress")
	q.call("b", "hold", map[string]string{"key": "k"})
	if m := q.until("call_tool_res"); code(m) != codeOverCapacity || m["request_id"] != "b" {
		t.Errorf("the fourth of all: %v", m)
	}
	close(w.bench.gate("k"))
	for range 2 {
		p.until("call_tool_res")
	}
	p.call("2", "echo", map[string]string{"key": "now"})
	if m := p.until("call_tool_res"); text(m) != "now" {
		t.Errorf("when there is room: %v", m)
	}
}

func TestKeptResultsAreBounded(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.KeptCalls = 5 })
	p := w.hello("alice", "kept")
	for i := range 20 { // delivered results make room
		p.call(fmt.Sprint(i), "echo", map[string]string{"key": "k"})
		if m := p.until("call_tool_res"); text(m) != "k" {
			t.Fatalf("call %d: %v", i, m)
		}
	}
	if st := w.hub.Stats(); st.Evicted < 10 {
		t.Errorf("%d were dropped", st.Evicted)
	}
	// Those that nobody has taken do not: over HTTP, nobody has fetched them.
	call := func(id, name, query string) (int, map[string]any) {
		return w.post("/v1/call_tool", "bob", query, map[string]any{"session_id": "bobs", "request_id": id, "name": name, "arguments": map[string]string{"key": "late"}})
	}
	for i := range 5 {
		if status, m := call(fmt.Sprint(i), "hold", "?wait_ms=0"); status != http.StatusAccepted {
			t.Fatalf("call %d: %d %v", i, status, m)
		}
	}
	close(w.bench.gate("late"))
	eventually(t, "they have ended", func() bool { return w.hub.Stats().InFlight == 0 })
	if status, m := call("more", "echo", ""); status != http.StatusTooManyRequests || code(m) != codeOverCapacity {
		t.Errorf("one too many: %d %v", status, m)
	}
	if status, m := call("0", "hold", ""); status != http.StatusOK || m["from_cache"] != true {
		t.Errorf("fetched: %d %v", status, m)
	}
	if status, m := call("more", "echo", ""); status != http.StatusOK {
		t.Errorf("once one was fetched: %d %v", status, m)
	}
}

func TestResultsExpire(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.ResultTTL = 30 * time.Millisecond })
	p := w.hello("alice", "kept")
	p.call("1", "echo", map[string]string{"key": "k"})
	p.until("call_tool_res")
	eventually(t, "it is made anew", func() bool {
		p.call("1", "echo", map[string]string{"key": "k"})
		return p.until("call_tool_res")["from_cache"] == nil
	})
	_ = p.ws.Close()
	eventually(t, "the client is forgotten", func() bool { st := w.hub.Stats(); return st.Clients == 0 && st.KeptBytes == 0 })
}

func TestWhoDoesNotReadIsClosed(t *testing.T) {
	w := start(t, func(o *Options) {
		o.Limits.WriteTimeout, o.Limits.QueueFrames, o.Limits.QueueBytes = time.Second, 10, 1<<20
		o.Limits.InFlightClient, o.Limits.InFlight = 500, 500
	})
	p := w.hello("alice", "slow")
	for i := range 400 { // of 100 KiB each
		_ = p.ws.WriteJSON(map[string]any{"op": "call_tool", "request_id": fmt.Sprint(i), "name": "big"})
	}
	eventually(t, "it was closed", func() bool { return w.hub.Stats().Connections == 0 })
	if st := w.hub.Stats(); st.KeptBytes > 128<<20 {
		t.Errorf("%d bytes are kept", st.KeptBytes)
	}
	// It comes back, reads, and gets what it missed.
	q := w.dial(nil)
	q.send(map[string]any{"op": "hello", "token": "alice", "session_id": "slow"})
	q.send(map[string]any{"op": "ping"}) // is answered behind what it missed
	seen := map[float64]bool{}
	for m := q.next(); m["op"] != "pong"; m = q.next() {
		seq, _ := m["seq"].(float64)
		if seq != 0 && seen[seq] || m["op"] == "call_tool_res" && len(text(m)) != 100<<10 {
			t.Errorf("message %v again, or of %d bytes", m["seq"], len(text(m)))
		}
		seen[seq] = true
	}
	if len(seen) < 5 {
		t.Errorf("it missed %d messages only", len(seen))
	}
}

func TestSilenceIsNoticed(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.PingEvery = 20 * time.Millisecond })
	deaf, good := w.hello("alice", ""), w.hello("bob", "")
	pings := make(chan struct{}, 100)
	answer := good.ws.PingHandler()
	good.ws.SetPingHandler(func(s string) error { pings <- struct{}{}; return answer(s) })
	go func() { // ends with the connection
		for {
			if _, _, err := good.ws.ReadMessage(); err != nil {
				return
			}
		}
	}()
	eventually(t, "who answers no ping is gone", func() bool { return w.hub.Stats().Connections == 1 })
	for range 10 {
		<-pings
	}
	if w.hub.Stats().Connections != 1 {
		t.Error("who answers is gone, too")
	}
	_ = deaf.ws.Close()
}

// post asks the fallback.
func (w *world) post(path, token, query string, body any) (int, map[string]any) {
	w.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.ask(http.MethodPost, path+query, token, strings.NewReader(string(b)))
}

func (w *world) ask(method, path, token string, body io.Reader, header ...string) (int, map[string]any) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.http.URL+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	var m map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		w.t.Fatalf("%s %s: %d: %v", method, path, resp.StatusCode, err)
	}
	if resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") == "" {
		w.t.Error("429 without Retry-After")
	}
	return resp.StatusCode, m
}

func TestFallback(t *testing.T) {
	w := start(t, nil)
	status, m := w.post("/v1/hello", "", "", map[string]any{"op": "hello", "token": "alice"})
	if status != 200 || m["op"] != "hello_ack" || m["ok"] != true {
		t.Fatalf("hello: %d %v", status, m)
	}
	session := m["session_id"]
	call := map[string]any{"op": "call_tool", "session_id": session, "request_id": "1", "name": "hold", "arguments": map[string]string{"key": "k"}}
	if status, m = w.post("/v1/call_tool", "alice", "?wait_ms=0", call); status != http.StatusAccepted || m["op"] != "call_tool_ack" || m["accepted"] != true {
		t.Errorf("a long call: %d %v", status, m)
	}
	results := fmt.Sprintf("/v1/results/1?session_id=%s&wait_ms=", session)
	get := func(wait string) (int, map[string]any) {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, w.http.URL+results+wait, nil)
		r.Header.Set("Authorization", "Bearer alice")
		r.Header.Set(SessionHeader, session.(string))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer http.DefaultClient.CloseIdleConnections()
		defer resp.Body.Close()
		var m map[string]any
		_ = json.NewDecoder(resp.Body).Decode(&m)
		return resp.StatusCode, m
	}
	if status, m = get("0"); status != http.StatusAccepted || m["op"] != "call_tool_ack" {
		t.Errorf("not yet: %d %v", status, m)
	}
	close(w.bench.gate("k"))
	if status, m = get("20000"); status != 200 || m["op"] != "call_tool_res" || text(m) != "k" {
		t.Errorf("the result: %d %v", status, m)
	}
	if status, m = w.post("/v1/call_tool", "alice", "", call); status != 200 || m["from_cache"] != true {
		t.Errorf("asked again: %d %v", status, m)
	}
	for range 2 { // a refusal for want of room is not kept
		full := map[string]any{"session_id": session, "request_id": "full", "name": "fail", "arguments": map[string]string{"kind": "exhausted"}}
		if status, m = w.post("/v1/call_tool", "alice", "", full); status != http.StatusTooManyRequests || m["from_cache"] != nil {
			t.Errorf("full: %d %v", status, m)
		}
	}
	// The same session by WebSocket.
	p := w.hello("alice", session.(string))
	p.call("1", "hold", map[string]string{"key": "k"})
	if m := p.until("call_tool_res"); m["from_cache"] != true {
		t.Errorf("by WebSocket: %v", m)
	}
	for name, c := range map[string]struct {
		path, token, body string
		status            int
		code              string
	}{
		"no token":          {"/v1/hello", "", `{}`, 401, codeUnauthorized},
		"an unknown token":  {"/v1/call_tool", "mallory", `{}`, 401, codeUnauthorized},
		"a wrong body":      {"/v1/call_tool", "alice", `{`, 400, codeInvalidRequest},
		"an array":          {"/v1/hello", "alice", `[]`, 400, codeInvalidRequest},
		"a large body":      {"/v1/hello", "alice", `{"x":"` + strings.Repeat("x", 2<<20) + `"}`, 400, codeInvalidRequest},
		"no session":        {"/v1/call_tool", "alice", `{"request_id":"1","name":"echo"}`, 400, codeInvalidRequest},
		"a bad session":     {"/v1/call_tool", "alice", `{"session_id":"!","request_id":"1","name":"echo"}`, 400, codeInvalidRequest},
		"no request_id":     {"/v1/call_tool", "alice", `{"session_id":"abc","name":"echo"}`, 400, codeInvalidRequest},
		"an unknown tool":   {"/v1/call_tool", "alice", `{"session_id":"abc","request_id":"1","name":"rm"}`, 404, codeToolNotFound},
		"an argument":       {"/v1/call_tool", "alice", `{"session_id":"abc","request_id":"1","name":"session_get"}`, 400, codeValidation},
		"another's session": {"/v1/call_tool", "bob", `{"session_id":"abc","request_id":"1","name":"fail","arguments":{"key":"x"}}`, 404, codeNotFound},
		"a strange wait":    {"/v1/call_tool?wait_ms=x", "alice", `{}`, 400, codeInvalidRequest},
		"a wait too long":   {"/v1/call_tool?wait_ms=99999999", "alice", `{}`, 400, codeInvalidRequest},
	} {
		if status, m := w.ask(http.MethodPost, c.path, c.token, strings.NewReader(c.body)); status != c.status || code(m) != c.code {
			t.Errorf("%s: %d %v", name, status, m)
		}
	}
	if status, m := w.ask(http.MethodGet, "/v1/results/none", "alice", nil); status != 404 || code(m) != codeNotFound || m["request_id"] != "none" {
		t.Errorf("no such result: %d %v", status, m)
	}
}

// TestWhatOrdersCalls: a key, or else the conversation; a conversation that has no id yet orders nothing.
func TestWhatOrdersCalls(t *testing.T) {
	chat, _ := tools.New(nil).Find("chat")
	list, _ := tools.New(nil).Find("node_list")
	for _, c := range []struct {
		call toolCall
		want string
	}{
		{toolCall{tool: chat, arguments: []byte(`{"prompt":"x","conversation_id":"c"}`)}, "c"},
		{toolCall{tool: chat, arguments: []byte(`{"prompt":"x","conversation_id":"c"}`), key: "k"}, "k"},
		{toolCall{tool: chat, arguments: []byte(`{"prompt":"x","conversation_id":"new"}`)}, ""},
		{toolCall{tool: chat, arguments: []byte(`{"prompt":"x"}`)}, ""},
		{toolCall{tool: list, arguments: []byte(`{"conversation_id":"c"}`)}, ""},
	} {
		if got := c.call.orderKey(); got != c.want {
			t.Errorf("%s: %q, want %q", c.call.arguments, got, c.want)
		}
	}
}
