// Links over real WebSockets: codings, refusals, silence, full queues.

package nodelink

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// echoHandler acknowledges links and heartbeats, as a leader would, and keeps what happened.
type echoHandler struct {
	mu     sync.Mutex
	calls  []string
	links  map[string]Link // by node
	change chan struct{}
}

func newEchoHandler() *echoHandler {
	return &echoHandler{links: make(map[string]Link), change: make(chan struct{})}
}

func (h *echoHandler) note(call string, do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, call)
	do()
	close(h.change)
	h.change = make(chan struct{})
}

func (h *echoHandler) LinkUp(l Link) {
	h.note("up "+l.Hello().GetNodeId(), func() { h.links[l.Hello().GetNodeId()] = l })
	_ = l.Send(ackFrame())
}

func (h *echoHandler) LinkFrame(l Link, f *nodev1.Frame) {
	h.note(FrameType(f)+" "+l.Hello().GetNodeId(), func() {})
	if hb := f.GetHeartbeat(); hb != nil {
		_ = l.Send(heartbeatAckFrame(hb.GetSentAt()))
	}
}

func (h *echoHandler) LinkDown(l Link, reason string) {
	h.note("down "+l.Hello().GetNodeId()+": "+reason, func() {
		if h.links[l.Hello().GetNodeId()] == l {
			delete(h.links, l.Hello().GetNodeId())
		}
	})
}

// await waits until the condition holds of the handler's state.
func (h *echoHandler) await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		h.mu.Lock()
		ok, change, calls := cond(), h.change, strings.Join(h.calls, "; ")
		h.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-change:
		case <-timeout:
			t.Fatalf("never: %s; calls: %s", what, calls)
		}
	}
}

func (h *echoHandler) link(node string) Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.links[node]
}

// startHub serves a hub over real sockets, and returns its address.
func startHub(t testing.TB, o HubOptions) (*Hub, string) {
	t.Helper()
	if o.ServerID == "" {
		o.ServerID = "s1"
	}
	h := NewHub(o)
	mux := http.NewServeMux()
	mux.Handle(Path, h)
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Errorf("close hub: %v", err)
		}
		srv.Close()
	})
	return h, srv.Listener.Addr().String()
}

// dialTest dials and closes with the test.
func dialTest(t testing.TB, addr string, o DialOptions) Conn {
	t.Helper()
	c, err := DialWebSocket(o)(context.Background(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close("the test is over")
		go func() { _, _ = recvEndQuiet(c) }()
		c.(carrier).wait()
	})
	return c
}

func recvEndQuiet(c Conn) (*nodev1.Frame, error) {
	for {
		if f, err := c.Recv(context.Background()); err != nil {
			return f, err
		}
	}
}

func TestWebSocketBothCodings(t *testing.T) {
	for _, o := range []DialOptions{{}, {JSON: true}, {NoCompression: true}, {JSON: true, NoCompression: true}} {
		hub, addr := startHub(t, HubOptions{Logger: testLogger(t)})
		handler := newEchoHandler()
		hub.Lead(handler)
		c := dialTest(t, addr, o)
		mustSend(t, c, helloFrame("n1", 1, 1))
		sameFrame(t, recv(t, c), ackFrame())
		for i := range int64(300) { // in order, both ways
			mustSend(t, c, heartbeatFrame(i))
		}
		for i := range int64(300) {
			sameFrame(t, recv(t, c), heartbeatAckFrame(i))
		}
		// A large frame, compressible, through pools, fragments and compression.
		big := &nodev1.Frame{Payload: &nodev1.Frame_StreamData{StreamData: &nodev1.StreamData{StreamId: 1, Stdout: bytes.Repeat([]byte("orchestrator "), 150_000)}}}
		mustSend(t, handler.link("n1"), big)
		sameFrame(t, recv(t, c), big)
		mustSend(t, c, big)
		handler.await(t, "the large frame", func() bool { return handler.calls[len(handler.calls)-1] == "stream_data n1" })
		c.Close("bye")
		handler.await(t, "link down", func() bool { return handler.calls[len(handler.calls)-1] == "down n1: bye" })
		if _, err := recvEnd(t, c); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close, Recv gave %v", err)
		}
		if err := c.Send(heartbeatFrame(1)); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close, Send gave %v", err)
		}
	}
}

func TestHandshakeRefusals(t *testing.T) {
	auth := func(r *http.Request) (string, error) {
		switch r.Header.Get("Authorization") {
		case "Bearer good":
			return "", nil
		case "Bearer viewer":
			return "", fault.New(fault.PermissionDenied, "the token's role is viewer; use a node token")
		case "Bearer early":
			return "", fault.New(fault.Unavailable, "tokens are not known yet")
		}
		return "", fault.New(fault.Unauthenticated, "no valid token; give one with --token")
	}
	_, addr := startHub(t, HubOptions{Authorize: auth, Logger: testLogger(t)})
	for _, tc := range []struct {
		token  string
		status int
		code   string
		kind   fault.Kind
	}{
		{"", 401, "UNAUTHENTICATED", fault.Unauthenticated},
		{"bad", 401, "UNAUTHENTICATED", fault.Unauthenticated},
		{"viewer", 403, "PERMISSION_DENIED", fault.PermissionDenied},
		{"early", 503, "UNAVAILABLE", fault.Unavailable},
	} {
		_, err := DialWebSocket(DialOptions{Token: func() (string, error) { return tc.token, nil }})(context.Background(), addr)
		if !fault.Is(err, tc.kind) {
			t.Errorf("token %q: dial gave %v, want kind %v", tc.token, err, tc.kind)
		}
		req, _ := http.NewRequest(http.MethodGet, "http://"+addr+Path, nil)
		req.Header.Set("Authorization", "Bearer "+tc.token)
		status, body := do(t, req)
		var r refusal
		if err := json.Unmarshal([]byte(body), &r); err != nil || status != tc.status || r.Code != tc.code || r.Error == "" || strings.Count(body, "\n") != 1 {
			t.Errorf("token %q: answered %d %q", tc.token, status, body)
		}
	}
	for name, tc := range map[string]struct {
		header map[string]string
		status int
	}{
		"no WebSocket":        {nil, 400},
		"a browser":           {map[string]string{"Origin": "http://" + addr}, 403},
		"another subprotocol": {map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "chat"}, 400},
	} {
		req, _ := http.NewRequest(http.MethodGet, "http://"+addr+Path, nil)
		req.Header.Set("Authorization", "Bearer good")
		for k, v := range tc.header {
			req.Header.Set(k, v)
		}
		status, body := do(t, req)
		if status != tc.status || !strings.HasPrefix(body, `{"error":"node link: `) {
			t.Errorf("%s: answered %d %q, want %d", name, status, body, tc.status)
		}
	}
	// A port that is no node link.
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	if _, err := DialWebSocket(DialOptions{})(context.Background(), web.Listener.Addr().String()); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "404") {
		t.Errorf("dialling a web server gave %v", err)
	}
	// Nobody there.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := DialWebSocket(DialOptions{})(context.Background(), l.Addr().String()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("dialling nobody gave %v", err)
	}
}

// A server that accepts connections and never answers.
func TestDialTimeout(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	began := time.Now()
	_, err = DialWebSocket(DialOptions{ConnectTimeout: 100 * time.Millisecond})(context.Background(), l.Addr().String())
	if !fault.Is(err, fault.Unavailable) || time.Since(began) > 5*time.Second {
		t.Errorf("gave %v after %s", err, time.Since(began))
	}
}

func do(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// What a node may not say is answered with an error frame and a close code, and the hub goes on.
func TestHelloRefusals(t *testing.T) {
	hub, addr := startHub(t, HubOptions{
		Logger: testLogger(t),
		Admit: func(_ string, h *nodev1.Hello) error {
			if h.GetClusterId() == "other" {
				return fault.New(fault.FailedPrecondition, "the node belongs to cluster other")
			}
			if h.GetName() == "taken" {
				return fault.New(fault.PermissionDenied, "the name is another node's")
			}
			return nil
		},
	})
	_, impatient := startHub(t, HubOptions{Logger: testLogger(t), HelloTimeout: 300 * time.Millisecond})
	handler := newEchoHandler()
	hub.Lead(handler)
	hello := func(change func(*nodev1.Hello)) []byte {
		f := helloFrame("n1", 1, 1)
		change(f.GetHello())
		b, err := Binary{}.Encode(f)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := hello(func(*nodev1.Hello) {})
	bomb := deflated(t, bytes.Repeat([]byte{0}, MaxFrameBytes+100))
	for _, tc := range []struct {
		name        string
		subprotocol string
		kind        int
		send        [][]byte
		closeCode   int
		code        string
		says        string
	}{
		{"garbage", SubprotocolBinary, websocket.BinaryMessage, [][]byte{{0xff, 0xff}}, CloseBadFrame, "INVALID_ARGUMENT", "not a frame"},
		{"garbage after hello", SubprotocolBinary, websocket.BinaryMessage, [][]byte{good, {0xff, 0xff}}, CloseBadFrame, "INVALID_ARGUMENT", "not a frame"},
		{"garbage JSON", SubprotocolJSON, websocket.TextMessage, [][]byte{[]byte("hello?")}, CloseBadFrame, "INVALID_ARGUMENT", "not a frame"},
		{"text in binary", SubprotocolBinary, websocket.TextMessage, [][]byte{[]byte("{}")}, CloseBadFrame, "INVALID_ARGUMENT", "no messages of this kind"},
		{"unknown type", SubprotocolJSON, websocket.TextMessage, [][]byte{[]byte(`{"type":"dance"}`)}, CloseProtocol, "UNIMPLEMENTED", `\"dance\" is not known`},
		{"too large", SubprotocolBinary, websocket.BinaryMessage, [][]byte{make([]byte, MaxFrameBytes+5000)}, CloseTooLarge, "RESOURCE_EXHAUSTED", "larger than 4194304 bytes"},
		{"a bomb", SubprotocolBinary, websocket.BinaryMessage, [][]byte{bomb}, CloseTooLarge, "RESOURCE_EXHAUSTED", "larger than"},
		{"no hello", SubprotocolBinary, websocket.BinaryMessage, nil, CloseHelloTimeout, "DEADLINE_EXCEEDED", "no hello within 300ms"},
		{"another frame first", SubprotocolJSON, websocket.TextMessage, [][]byte{[]byte(`{"type":"heartbeat"}`)}, CloseProtocol, "FAILED_PRECONDITION", "must be hello"},
		{"hello twice", SubprotocolBinary, websocket.BinaryMessage, [][]byte{good, good}, CloseProtocol, "FAILED_PRECONDITION", "said already"},
		{"a later version", SubprotocolBinary, websocket.BinaryMessage, [][]byte{hello(func(h *nodev1.Hello) { h.ProtocolMin, h.ProtocolMax = 2, 3 })}, CloseProtocol, "FAILED_PRECONDITION", "the node speaks 2 to 3, server s1 speaks 1 to 1"},
		{"no version", SubprotocolBinary, websocket.BinaryMessage, [][]byte{hello(func(h *nodev1.Hello) { h.ProtocolMin, h.ProtocolMax = 0, 0 })}, CloseProtocol, "FAILED_PRECONDITION", "no common protocol version"},
		{"no id", SubprotocolBinary, websocket.BinaryMessage, [][]byte{hello(func(h *nodev1.Hello) { h.NodeId = "" })}, CloseProtocol, "INVALID_ARGUMENT", "node_id"},
		{"another cluster", SubprotocolBinary, websocket.BinaryMessage, [][]byte{hello(func(h *nodev1.Hello) { h.ClusterId = "other" })}, CloseProtocol, "FAILED_PRECONDITION", "belongs to cluster other"},
		{"not its name", SubprotocolBinary, websocket.BinaryMessage, [][]byte{hello(func(h *nodev1.Hello) { h.Name = "taken" })}, CloseAuth, "PERMISSION_DENIED", "another node's"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := websocket.Dialer{Subprotocols: []string{tc.subprotocol}, EnableCompression: true, WriteBufferSize: 8 << 20}
			addr := addr
			if tc.send == nil {
				addr = impatient
			}
			ws, _, err := d.Dial("ws://"+addr+Path, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Close()
			for _, b := range tc.send {
				if tc.name == "a bomb" {
					sendRawCompressed(t, ws, b)
					continue
				}
				ws.EnableWriteCompression(false)
				if err := ws.WriteMessage(tc.kind, b); err != nil {
					t.Fatal(err)
				}
			}
			codec, _ := codecFor(tc.subprotocol)
			var said *nodev1.Error
			for {
				_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
				_, b, err := ws.ReadMessage()
				if err != nil {
					var ce *websocket.CloseError
					if !errors.As(err, &ce) || ce.Code != tc.closeCode {
						t.Errorf("ended with %v, want close code %d", err, tc.closeCode)
					}
					break
				}
				f, err := codec.Decode(b)
				if err != nil {
					t.Fatal(err)
				}
				if f.GetError() != nil {
					said = f.GetError()
				}
			}
			if said.GetCode() != tc.code || !strings.Contains(strings.ReplaceAll(said.GetError(), `"`, `\"`), tc.says) {
				t.Errorf("said %v; want %s, %q", said, tc.code, tc.says)
			}
		})
	}
	c := dialTest(t, addr, DialOptions{})
	mustSend(t, c, helloFrame("still-alive", 1, 1))
	sameFrame(t, recv(t, c), ackFrame())
	if got := hub.Stats().Refused; got < 12 {
		t.Errorf("%d refusals were counted, want at least 12", got)
	}
}

// deflated returns the content of a compressed WebSocket message.
func deflated(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(b)
	_ = w.Flush()
	return bytes.TrimSuffix(out.Bytes(), []byte{0, 0, 0xff, 0xff})
}

// sendRawCompressed writes a binary message with RSV1 set and the content as it is, masked with zero.
func sendRawCompressed(t *testing.T, ws *websocket.Conn, content []byte) {
	t.Helper()
	head := []byte{0xc2, 0x80 | 126, byte(len(content) >> 8), byte(len(content)), 0, 0, 0, 0}
	if len(content) > 65535 {
		t.Fatal("the bomb is too large to be one")
	}
	if _, err := ws.NetConn().Write(append(head, content...)); err != nil {
		t.Fatal(err)
	}
}

// A node that does not read: its server's queue fills, Send says so, and nothing blocks.
func TestQueueFull(t *testing.T) {
	hub, addr := startHub(t, HubOptions{Logger: testLogger(t)})
	handler := newEchoHandler()
	hub.Lead(handler)
	c := dialTest(t, addr, DialOptions{NoCompression: true})
	mustSend(t, c, helloFrame("n1", 1, 1))
	handler.await(t, "link up", func() bool { return handler.links["n1"] != nil })
	l := handler.link("n1")
	big := &nodev1.Frame{Payload: &nodev1.Frame_SessionState{SessionState: &nodev1.SessionState{SessionId: strings.Repeat("x", 1<<20)}}}
	sent := 0
	for ; sent < 3*SendQueueMax; sent++ {
		if err := l.Send(big); err != nil {
			if !errors.Is(err, ErrQueueFull) {
				t.Fatalf("frame %d: %v", sent, err)
			}
			break
		}
	}
	if sent == 3*SendQueueMax {
		t.Fatal("the queue never filled")
	}
	// Once it reads, everything that was taken arrives, in order, and there is room again.
	sameFrame(t, recv(t, c), ackFrame())
	for range sent {
		if FrameType(recv(t, c)) != "session_state" {
			t.Fatal("something else came")
		}
	}
	mustSend(t, l, heartbeatAckFrame(7))
	sameFrame(t, recv(t, c), heartbeatAckFrame(7))
}

// A node whose machine has gone: nothing comes, not even an answer to a ping.
func TestSilenceEndsLink(t *testing.T) {
	hub, addr := startHub(t, HubOptions{Logger: testLogger(t)})
	handler := newEchoHandler()
	hub.Lead(handler)
	ws, _, err := websocket.DefaultDialer.Dial("ws://"+addr+Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	b, _ := Binary{}.Encode(helloFrame("n1", 1, 1))
	if err := ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
		t.Fatal(err)
	}
	handler.await(t, "link up", func() bool { return handler.links["n1"] != nil })
	hub.mu.Lock()
	for _, s := range hub.sockets {
		s.conn.setLiveness(20*time.Millisecond, 60*time.Millisecond)
	}
	hub.mu.Unlock()
	handler.await(t, "link down", func() bool {
		return strings.HasPrefix(handler.calls[len(handler.calls)-1], "down n1: nothing was received for")
	})
}

// A node that only answers pings stays linked.
func TestPongsKeepLink(t *testing.T) {
	hub, addr := startHub(t, HubOptions{Logger: testLogger(t)})
	handler := newEchoHandler()
	hub.Lead(handler)
	ws, _, err := websocket.DefaultDialer.Dial("ws://"+addr+Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	b, _ := Binary{}.Encode(helloFrame("n1", 1, 1))
	if err := ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
		t.Fatal(err)
	}
	handler.await(t, "link up", func() bool { return handler.links["n1"] != nil })
	hub.mu.Lock()
	for _, s := range hub.sockets {
		s.conn.setLiveness(20*time.Millisecond, 10*time.Second)
	}
	hub.mu.Unlock()
	pings := 0
	answer := ws.PingHandler()
	ws.SetPingHandler(func(s string) error {
		pings++
		if err := answer(s); err != nil {
			return err
		}
		if pings == 5 {
			_ = ws.WriteMessage(websocket.BinaryMessage, mustEncode(heartbeatFrame(5)))
		}
		return nil
	})
	for {
		_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, b, err := ws.ReadMessage()
		if err != nil {
			t.Fatalf("after %d pings: %v", pings, err)
		}
		if f, err := (Binary{}).Decode(b); err == nil && f.GetHeartbeatAck().GetSentAt() == 5 {
			return
		}
	}
}

func mustEncode(f *nodev1.Frame) []byte {
	b, err := Binary{}.Encode(f)
	if err != nil {
		panic(err)
	}
	return b
}

func TestMaxLinks(t *testing.T) {
	_, addr := startHub(t, HubOptions{MaxLinks: 1})
	dialTest(t, addr, DialOptions{})
	if _, err := DialWebSocket(DialOptions{})(context.Background(), addr); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "holds 1 links already") {
		t.Errorf("the second link gave %v", err)
	}
}
