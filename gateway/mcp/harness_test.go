// What the tests stand on: an API, callers and a door of their own, and clients of the official SDK over each way there is.
package mcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// house is the API, the access and the door of a test. Session abc is alice's, and xyz is bob's.
type house struct {
	t        *testing.T
	mu       sync.Mutex
	revoked  map[string]bool
	callers  []string // who made calls of the API
	log      []*apiv1.LogLine
	grown    chan struct{} // closed when there are more lines
	over     bool          // the session has ended
	hold     chan struct{}
	ended    chan error
	started  chan struct{}
	full     atomic.Bool
	inFlight atomic.Int32
	conns    atomic.Int32
	maxConns int32
	said     bytes.Buffer // what was logged; under mu
	handler  *Handler
	server   *httptest.Server
}

// files are the workspace of abc.
var files = map[string]string{"notes.md": "# Notes\n", "empty": "", "bin/tool": "\x7fELF\x00\x01", "bin/run": "echo", "päth/a b": "spaced"}

type asWhom struct{}

func (h *house) Identify(c auth.Credential) (auth.Identity, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.Token != "alice" && c.Token != "bob" || h.revoked[c.Token] {
		return auth.Identity{}, fault.New(fault.Unauthenticated, "token: is unknown here")
	}
	return auth.Identity{TokenID: c.Token, Name: c.Token, Role: auth.Client}, nil
}

func (h *house) revoke(token string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.revoked[token] = true
}

func (h *house) As(ctx context.Context, c auth.Credential) context.Context {
	return context.WithValue(ctx, asWhom{}, c.Token)
}

func (h *house) Allows(r *http.Request) bool { return r.Header.Get("Origin") != "https://evil.example" }

func (h *house) Pace(*http.Request, auth.Identity) error {
	if h.full.Load() {
		return fault.New(fault.Exhausted, "too fast").WithRetry(1500 * time.Millisecond)
	}
	return nil
}

func (h *house) Admit(*http.Request) (func(), error) {
	if h.conns.Add(1) > h.maxConns {
		h.conns.Add(-1)
		return nil, fault.New(fault.Exhausted, "as many connections as may be").WithRetry(time.Second)
	}
	return func() { h.conns.Add(-1) }, nil
}

func (h *house) Begin() (func(), error) {
	h.inFlight.Add(1)
	return func() { h.inFlight.Add(-1) }, nil
}

// enter notes who calls, and says what a token that was revoked is told.
func (h *house) enter(ctx context.Context) (string, error) {
	token, _ := ctx.Value(asWhom{}).(string)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.callers = append(h.callers, token)
	if h.revoked[token] {
		return token, status.Error(codes.Unauthenticated, "token: is unknown here")
	}
	return token, nil
}

// sees is whether a caller sees a session.
func sees(token, id string) error {
	if map[string]string{"alice": "abc", "bob": "xyz"}[token] != id {
		return status.Errorf(codes.NotFound, "session %q: there is none", id)
	}
	return nil
}

func (h *house) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	token, err := h.enter(ctx)
	if err != nil {
		return err
	}
	if r, ok := args.(interface{ GetId() string }); ok {
		if err := sees(token, r.GetId()); err != nil {
			return err
		}
	}
	var answer proto.Message
	switch r := args.(type) {
	case *apiv1.GetSessionRequest:
		h.mu.Lock()
		answer = &apiv1.GetSessionResponse{Session: &apiv1.Session{Id: r.GetId(), Phase: apiv1.Session_RUNNING, OutputLine: uint64(len(h.log))}}
		h.mu.Unlock()
	case *apiv1.ListSessionsRequest:
		answer = listed(r)
	case *apiv1.ListFilesRequest:
		answer, err = listFiles(r)
	case *apiv1.ReadFileRequest:
		answer, err = readFile(r)
	case *apiv1.MigrateSessionRequest:
		select {
		case h.started <- struct{}{}:
		default:
		}
		select {
		case <-h.hold:
		case <-ctx.Done():
			h.ended <- context.Cause(ctx)
			return status.FromContextError(ctx.Err()).Err()
		}
		answer = &apiv1.MigrateSessionResponse{Session: &apiv1.Session{Id: "abc", Node: "node-2"}}
	}
	if err != nil {
		return err
	}
	if answer != nil {
		proto.Merge(reply.(proto.Message), answer)
	}
	return nil
}

// listed is a page of 250 sessions, of which every other one has a checkpoint.
func listed(r *apiv1.ListSessionsRequest) *apiv1.ListSessionsResponse {
	out := &apiv1.ListSessionsResponse{}
	for i := range 250 {
		s := &apiv1.Session{Id: fmt.Sprintf("s-%03d", i), Phase: apiv1.Session_PAUSED}
		if i%2 == 0 {
			s.Name, s.Checkpoint = fmt.Sprint("web-", i), &apiv1.Session_Checkpoint{Sequence: 3}
		}
		if s.GetId() <= r.GetPageToken() {
			continue
		}
		if len(out.Sessions) == int(r.GetPageSize()) {
			out.NextPageToken = out.Sessions[len(out.Sessions)-1].GetId()
			break
		}
		out.Sessions = append(out.Sessions, s)
	}
	return out
}

func listFiles(r *apiv1.ListFilesRequest) (*apiv1.ListFilesResponse, error) {
	out := &apiv1.ListFilesResponse{SessionId: "abc", Checkpoint: &apiv1.Session_Checkpoint{Sequence: 7}}
	switch r.GetPath() {
	case "":
		for _, name := range []string{"bin", "empty", "notes.md", "päth"} {
			e := &apiv1.FileEntry{Name: name, Type: "f", Bytes: int64(len(files[name])), Mode: 0o644}
			if name == "bin" || name == "päth" {
				e.Type = "d"
			}
			out.Entries = append(out.Entries, e)
		}
	case "bin":
		if r.GetPageToken() == "" {
			out.Entries, out.NextPageToken = []*apiv1.FileEntry{{Name: "run", Type: "f"}}, "7.1"
		} else {
			out.Entries = []*apiv1.FileEntry{{Name: "tool", Type: "f"}}
		}
	default:
		return nil, status.Errorf(codes.NotFound, "%q: is not in the workspace", r.GetPath())
	}
	return out, nil
}

func readFile(r *apiv1.ReadFileRequest) (*apiv1.ReadFileResponse, error) {
	out := &apiv1.ReadFileResponse{SessionId: "abc", Checkpoint: &apiv1.Session_Checkpoint{Sequence: 7}, File: &apiv1.FileEntry{Type: "f"}}
	content, ok := files[r.GetPath()]
	switch {
	case ok:
		out.File.Bytes = int64(len(content))
		out.Content = []byte(content)[min(r.GetOffset(), int64(len(content))):]
		out.Content = out.Content[:min(len(out.Content), int(r.GetLimit()))]
	case r.GetPath() == "bin":
		out.File.Type = "d"
	case r.GetPath() == "link":
		out.File.Type, out.File.Target = "l", "notes.md"
	case r.GetPath() == "huge":
		out.File.Bytes = 40 << 20
		out.Content = bytes.Repeat([]byte("x"), int(r.GetLimit()))
	case strings.Contains(r.GetPath(), ".."):
		return nil, status.Error(codes.InvalidArgument, "path: has a component ..")
	default:
		return nil, status.Errorf(codes.NotFound, "%q: is not in the workspace", r.GetPath())
	}
	return out, nil
}

// write adds lines to the log of abc.
func (h *house) write(lines ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range lines {
		h.log = append(h.log, &apiv1.LogLine{Number: uint64(len(h.log) + 1), Stream: apiv1.LogLine_STDOUT, Text: []byte(l)})
	}
	close(h.grown)
	h.grown = make(chan struct{})
}

func (h *house) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != apiv1.SessionService_ReadLogs_FullMethodName {
		return nil, status.Error(codes.Unimplemented, "no such stream")
	}
	token, err := h.enter(ctx)
	return &logStream{house: h, ctx: ctx, token: token}, err
}

// logStream is a stream of ReadLogs.
type logStream struct {
	grpc.ClientStream
	house *house
	ctx   context.Context
	token string
	req   *apiv1.ReadLogsRequest
	next  uint64
}

func (s *logStream) SendMsg(m any) error {
	s.req = m.(*apiv1.ReadLogsRequest)
	s.next = max(s.req.GetFromLine(), 1)
	return sees(s.token, s.req.GetSessionId())
}

func (s *logStream) CloseSend() error             { return nil }
func (s *logStream) Header() (metadata.MD, error) { return nil, nil }

func (s *logStream) RecvMsg(m any) error {
	for {
		s.house.mu.Lock()
		var lines []*apiv1.LogLine
		for ; s.next <= uint64(len(s.house.log)) && len(lines) < 100; s.next++ {
			lines = append(lines, s.house.log[s.next-1])
		}
		grown, over := s.house.grown, s.house.over
		s.house.mu.Unlock()
		switch {
		case s.ctx.Err() != nil:
			return status.FromContextError(s.ctx.Err()).Err()
		case len(lines) > 0:
			m.(*apiv1.ReadLogsResponse).Lines = lines
			return nil
		case !s.req.GetFollow() || over:
			return io.EOF
		}
		select {
		case <-grown:
		case <-s.ctx.Done():
		}
	}
}

// Write is where the handler's log goes.
func (h *house) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.said.Write(b)
}

func limits() Limits {
	return Limits{MessageBytes: 1 << 20, QueueFrames: 100, QueueBytes: 1 << 20, QueuedBytes: 64 << 20, InFlight: 4, CallTimeout: time.Minute, ProgressEvery: 20 * time.Millisecond,
		PingEvery: 10 * time.Second, WriteTimeout: 5 * time.Second}
}

func start(t *testing.T, change ...func(*Limits)) *house {
	t.Helper()
	h := &house{t: t, hold: make(chan struct{}), ended: make(chan error, 10), started: make(chan struct{}, 1), grown: make(chan struct{}), revoked: map[string]bool{}, maxConns: 100}
	l := limits()
	for _, f := range change {
		f(&l)
	}
	var err error
	h.handler, err = New(Options{Server: "server-1", Version: "test", Tools: tools.New(h), API: h, Access: h, Door: h, Limits: l,
		Logger: slog.New(slog.NewTextHandler(h, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	h.server = httptest.NewServer(h.handler)
	t.Cleanup(func() {
		h.handler.Close()
		h.server.Close()
		if n, c, s := h.inFlight.Load(), h.conns.Load(), h.handler.Stats(); n != 0 || c != 0 || s != (Stats{}) {
			t.Errorf("after the end %d calls are in flight, %d connections are counted, and there are %+v", n, c, s)
		}
		if !h.handler.queued.TryAcquire(h.handler.queued.total) {
			t.Error("after the end bytes are counted that wait for nobody")
		}
	})
	return h
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

// way is a transport with a version of the protocol; the newest when that is empty.
type way struct {
	socket  bool
	version string
}

func (w way) String() string {
	name := "HTTP "
	if w.socket {
		name = "WebSocket "
	}
	if w.version == "" {
		return name + "newest"
	}
	return name + w.version
}

// ways are those that are spoken.
var ways = []way{{false, "2025-06-18"}, {false, "2025-11-25"}, {false, ""}, {true, "2025-06-18"}, {true, "2025-11-25"}, {true, ""}}

// everyWay runs a test over each.
func everyWay(t *testing.T, test func(t *testing.T, h *house, w way)) {
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) { test(t, start(t), w) })
	}
}

// connect is a session of an SDK client.
func (h *house) connect(t *testing.T, w way, token string, o *sdk.ClientOptions) *sdk.ClientSession {
	t.Helper()
	base := &http.Transport{}
	var transport sdk.Transport = &sdk.StreamableClientTransport{Endpoint: h.server.URL, HTTPClient: &http.Client{Transport: &bearer{token, base}}, MaxRetries: -1}
	if w.socket {
		transport = &clientWire{ws: h.dial(t, http.Header{"Authorization": {"Bearer " + token}}, Subprotocol)}
	}
	c := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, o)
	s, err := c.Connect(t.Context(), transport, &sdk.ClientSessionOptions{ProtocolVersion: w.version})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.InitializeResult().ProtocolVersion; w.version != "" && got != w.version || w.version == "" && got < sessionless {
		t.Fatalf("%s speaks version %s", w, got)
	}
	t.Cleanup(func() { _ = s.Close(); base.CloseIdleConnections() })
	return s
}

// dial opens a WebSocket.
func (h *house) dial(t *testing.T, header http.Header, subprotocols ...string) *websocket.Conn {
	t.Helper()
	ws, resp, err := h.tryDial(header, subprotocols...)
	if err != nil {
		t.Fatalf("%v %v", err, resp)
	}
	t.Cleanup(func() { _ = ws.Close() })
	return ws
}

func (h *house) tryDial(header http.Header, subprotocols ...string) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{Subprotocols: subprotocols, EnableCompression: true}
	return d.DialContext(h.t.Context(), "ws"+strings.TrimPrefix(h.server.URL, "http"), header)
}

// clientWire is a client's end of MCP over a WebSocket.
type clientWire struct {
	ws *websocket.Conn
	mu sync.Mutex // writers
}

func (c *clientWire) Connect(context.Context) (sdk.Connection, error) { return c, nil }
func (c *clientWire) SessionID() string                               { return "" }
func (c *clientWire) Close() error                                    { return c.ws.Close() }

func (c *clientWire) Read(context.Context) (jsonrpc.Message, error) {
	_, data, err := c.ws.ReadMessage()
	if err != nil {
		return nil, errors.Join(io.EOF, err)
	}
	return jsonrpc.DecodeMessage(data)
}

func (c *clientWire) Write(_ context.Context, m jsonrpc.Message) error {
	data, err := jsonrpc.EncodeMessage(m)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ws.WriteMessage(websocket.TextMessage, data)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, came func() bool) {
	t.Helper()
	patience := time.After(20 * time.Second)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !came() {
		select {
		case <-poll.C:
		case <-patience:
			t.Fatal("waited in vain until " + what)
		}
	}
}
