// Clients at the gateway of a real cluster: sessions are started, spoken to and moved over WebSockets, at the leader and at followers.

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// clientOf is a client of one server, by hand.
type clientOf struct {
	t    *testing.T
	ws   *websocket.Conn
	next int
}

// reply is what a server says.
type reply struct {
	Op        string `json:"op"`
	OK        bool   `json:"ok"`
	SessionID string `json:"session_id"`
	Server    string `json:"server"`
	Resumed   bool   `json:"resumed"`
	Order     uint64 `json:"order"`
	Message   string `json:"message"`
	RequestID string `json:"request_id"`
	Chunk     string `json:"chunk"`
	Outputs   []struct{ Type, Text string }
	Error     json.RawMessage `json:"error"`
}

// connect says hello at a server's client port; with nil for trust, in plain text.
func connect(t *testing.T, address string, trust *tls.Config, token, session string) *clientOf {
	t.Helper()
	c, _ := greet(t, address, trust, token, session)
	return c
}

// greet is connect, with the answer to the hello.
func greet(t *testing.T, address string, trust *tls.Config, token, session string) (*clientOf, reply) {
	t.Helper()
	dialer := websocket.Dialer{TLSClientConfig: trust, HandshakeTimeout: 30 * time.Second}
	scheme := "wss://"
	if trust == nil {
		scheme = "ws://"
	}
	ws, _, err := dialer.Dial(scheme+address+"/mcp", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.Close() })
	c := &clientOf{t: t, ws: ws}
	if err := ws.WriteJSON(map[string]any{"op": "hello", "token": token, "session_id": session}); err != nil {
		t.Fatal(err)
	}
	r := c.read()
	if r.Op != "hello_ack" || !r.OK || r.SessionID != session {
		t.Fatalf("hello: %+v", r)
	}
	return c, r
}

// send makes a call, and does not wait for anything.
func (c *clientOf) send(id, tool string, arguments map[string]any) {
	c.t.Helper()
	if err := c.ws.WriteJSON(map[string]any{"op": "call_tool", "request_id": id, "name": tool, "arguments": arguments}); err != nil {
		c.t.Fatal(err)
	}
}

// until reads up to a message of an op.
func (c *clientOf) until(op string) reply {
	c.t.Helper()
	for {
		if r := c.read(); r.Op == op {
			return r
		}
	}
}

func (c *clientOf) read() (r reply) {
	c.t.Helper()
	_ = c.ws.SetReadDeadline(time.Now().Add(time.Minute))
	if err := c.ws.ReadJSON(&r); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// ask makes a call under an id, and returns what its first output says.
func (c *clientOf) ask(id, tool string, arguments map[string]any) map[string]any {
	c.t.Helper()
	if err := c.ws.WriteJSON(map[string]any{"op": "call_tool", "request_id": id, "name": tool, "arguments": arguments}); err != nil {
		c.t.Fatal(err)
	}
	for {
		r := c.read()
		if r.Op != "call_tool_res" || r.RequestID != id {
			continue
		}
		if r.Error != nil || len(r.Outputs) != 1 {
			c.t.Fatalf("%s %v: %s", tool, arguments, r.Error)
		}
		var out map[string]any
		if err := json.Unmarshal([]byte(r.Outputs[0].Text), &out); err != nil {
			c.t.Fatalf("%s answered %q", tool, r.Outputs[0].Text)
		}
		return out
	}
}

// call is ask under an id of its own.
func (c *clientOf) call(tool string, arguments map[string]any) map[string]any {
	c.t.Helper()
	c.next++
	return c.ask(fmt.Sprint(tool, "-", c.next), tool, arguments)
}

func TestClientsAtAnyServer(t *testing.T) {
	d := startDev(t, 2)
	o := newObserver(t)
	command := make([]any, 0, 4)
	for _, word := range o.keeping() {
		command = append(command, word)
	}
	for server := range 3 { // one of them leads, the others do not
		c := connect(t, d.at(server, 4), d.trust, d.token, fmt.Sprint("story-", server))
		name := fmt.Sprint("spoken-to-", server)
		s := c.call("session_spawn", map[string]any{"name": name, "command": command, "wait": true})
		if s["phase"] != "RUNNING" {
			t.Fatalf("spawned: %v", s)
		}
		id := s["id"].(string)
		for n := 1; n <= 2; n++ {
			if got := c.call("session_send", map[string]any{"id": id, "message": "x"}); got["result"] != strconv.Itoa(n) || got["status"] != "ACKED" {
				t.Fatalf("message %d: %v", n, got)
			}
		}
		target := map[any]string{"node-1": "node-2", "node-2": "node-1"}[s["node"]]
		moved := c.call("session_migrate", map[string]any{"id": id, "target": target})
		if moved["node"] != target || moved["epoch"] != 2.0 {
			t.Fatalf("moved to %s: %v", target, moved)
		}
		// What it counted came along; and a message that is sent again under its request_id, at another server, is the same one.
		if got := c.ask("third", "session_send", map[string]any{"id": id, "message": "x"}); got["result"] != "3" {
			t.Fatalf("after the move: %v", got)
		}
		other := connect(t, d.at((server+1)%3, 4), d.trust, d.token, fmt.Sprint("story-", server))
		if got := other.ask("third", "session_send", map[string]any{"id": id, "message": "x"}); got["result"] != "3" {
			t.Fatalf("sent again at another server: %v", got)
		}
		if got := other.call("session_get", map[string]any{"id": name}); got["phase"] != "RUNNING" || got["node"] != target {
			t.Errorf("get: %v", got)
		}
		if got := other.call("session_terminate", map[string]any{"id": id, "grace": "0s"}); !strings.Contains(fmt.Sprint(got["phase"]), "TERMINAT") {
			t.Errorf("terminated: %v", got)
		}
		_ = other.ws.Close()
		_ = c.ws.Close()
	}
	streams(t, connect(t, d.at(1, 4), d.trust, d.token, "streams"))
	for server := range 3 {
		speaksMCP(t, d.at(server, 4), d.trust, d.token)
	}
	c := connect(t, d.at(0, 4), d.trust, d.token, "looks")
	if nodes := c.call("node_list", nil)["nodes"].([]any); len(nodes) != 2 {
		t.Errorf("nodes: %v", nodes)
	}
	o.check(t)
}

// A server that is told to stop sends its clients elsewhere: what the cluster keeps goes on there, and what only this server keeps is answered.
func TestAServerSendsItsClientsElsewhere(t *testing.T) {
	s := startSmall(t, 1, 4*time.Second)
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	grpc, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, net.JoinHostPort(host, strconv.Itoa(grpc+2)), nil, "", "stays")
	id := c.call("session_spawn", map[string]any{"command": []string{"/bin/sh", "-c", "sleep 1000"}, "wait": true})["id"]
	// The session never answers: the call is in flight when the server is told to stop.
	for request, durable := range map[string]bool{"kept": true, "waits": false} {
		if err := c.ws.WriteJSON(map[string]any{"op": "call_tool", "request_id": request, "name": "session_send", "durable": durable, "arguments": map[string]any{"id": id, "message": "x"}}); err != nil {
			t.Fatal(err)
		}
		if r := c.until("call_tool_ack"); r.RequestID != request {
			t.Fatalf("the call: %+v", r)
		}
	}
	s.server.signal(syscall.SIGTERM)
	r := c.read()
	for r.Op == "progress" {
		r = c.read()
	}
	if r.Op != "call_tool_res" || r.RequestID != "waits" || !strings.Contains(string(r.Error), "SERVICE_UNAVAILABLE") {
		t.Errorf("the call ended with %+v %s", r, r.Error)
	}
	_ = c.ws.SetReadDeadline(time.Now().Add(time.Minute))
	if _, _, err := c.ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the connection ended with %v", err)
	}
}

// bearer adds a token to each request.
type bearer struct {
	token string
	base  *http.Transport
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.base.RoundTrip(r)
}

// speaksMCP has a client of the official SDK look at the nodes, on the path where WebSockets are.
func speaksMCP(t *testing.T, address string, trust *tls.Config, token string) {
	t.Helper()
	base := &http.Transport{TLSClientConfig: trust}
	defer base.CloseIdleConnections()
	transport := &mcp.StreamableClientTransport{Endpoint: "https://" + address + "/mcp", HTTPClient: &http.Client{Transport: &bearer{token, base}}}
	s, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), transport, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "node_list"})
	if err != nil || r.IsError {
		t.Fatalf("node_list: %+v %v", r, err)
	}
	if nodes, _ := r.StructuredContent.(map[string]any); len(nodes["nodes"].([]any)) != 2 {
		t.Errorf("node_list: %v", r.StructuredContent)
	}
	stranger := &mcp.StreamableClientTransport{Endpoint: transport.Endpoint, HTTPClient: &http.Client{Transport: base}, MaxRetries: -1}
	if _, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), stranger, nil); err == nil {
		t.Error("a client without a token was let in")
	}
}

// streams has a session's output come while its answer is waited for: all of it, in order, before the answer.
func streams(t *testing.T, c *clientOf) {
	t.Helper()
	worker := `while read -r l; do id=${l#*'"id":"'}; id=${id%%'"'*}; for i in 1 2 3 4 5; do echo "step $i"; done; echo '{"type":"result","id":"'$id'","text":"done"}'; done`
	s := c.call("session_spawn", map[string]any{"name": "streams", "command": []string{"/bin/sh", "-c", worker}, "protocol": "json", "wait": true})
	for round := range 2 {
		id := fmt.Sprint("streamed-", round)
		if err := c.ws.WriteJSON(map[string]any{"op": "call_tool", "request_id": id, "name": "session_send",
			"arguments": map[string]any{"id": s["id"], "message": "go", "stream": true}}); err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for {
			r := c.read()
			if r.Op == "stream_chunk" {
				text.WriteString(r.Chunk)
				continue
			}
			if r.Op != "call_tool_res" {
				continue
			}
			if r.Error != nil || !strings.Contains(r.Outputs[0].Text, `"result":"done"`) {
				t.Errorf("round %d: %+v %s", round, r, r.Error)
			}
			break
		}
		if got, _, _ := strings.Cut(text.String(), "{"); got != "step 1\nstep 2\nstep 3\nstep 4\nstep 5\n" {
			t.Errorf("round %d streamed %q", round, text.String())
		}
	}
	c.call("session_terminate", map[string]any{"id": s["id"], "grace": "0s"})
}
