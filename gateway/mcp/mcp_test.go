// MCP as clients of the official SDK see it, and what happens before it begins.
package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// house is the API, the access and the door of a test.
type house struct {
	mu       sync.Mutex
	revoked  map[string]bool
	callers  []string // who made calls of the API
	hold     chan struct{}
	ended    chan error
	full     atomic.Bool
	inFlight atomic.Int32
}

type callerOf struct{}

func (h *house) Identify(c auth.Credential) (auth.Identity, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.Token != "alice" && c.Token != "bob" || h.revoked[c.Token] {
		return auth.Identity{}, fault.New(fault.Unauthenticated, "token: is unknown here")
	}
	return auth.Identity{TokenID: c.Token, Name: c.Token, Role: auth.Client}, nil
}

func (h *house) As(ctx context.Context, c auth.Credential) context.Context {
	return context.WithValue(ctx, callerOf{}, c.Token)
}

func (h *house) Allows(r *http.Request) bool { return r.Header.Get("Origin") != "https://evil.example" }

func (h *house) Pace(*http.Request, auth.Identity) error {
	if h.full.Load() {
		return fault.New(fault.Exhausted, "too fast").WithRetry(1500 * time.Millisecond)
	}
	return nil
}

func (h *house) Begin() (func(), error) {
	h.inFlight.Add(1)
	return func() { h.inFlight.Add(-1) }, nil
}

func (h *house) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	h.mu.Lock()
	token, _ := ctx.Value(callerOf{}).(string)
	h.callers = append(h.callers, token)
	h.mu.Unlock()
	switch r := args.(type) {
	case *apiv1.GetSessionRequest:
		if r.GetId() != "abc" {
			return status.Errorf(codes.NotFound, "session %q: there is none", r.GetId())
		}
		proto.Merge(reply.(proto.Message), &apiv1.GetSessionResponse{Session: &apiv1.Session{Id: "abc", Phase: apiv1.Session_RUNNING}})
	case *apiv1.MigrateSessionRequest:
		select {
		case <-h.hold:
		case <-ctx.Done():
			h.ended <- context.Cause(ctx)
			return status.FromContextError(ctx.Err()).Err()
		}
		proto.Merge(reply.(proto.Message), &apiv1.MigrateSessionResponse{Session: &apiv1.Session{Id: "abc", Node: "node-2"}})
	}
	return nil
}

func (h *house) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

func start(t *testing.T) (*house, string) {
	t.Helper()
	h := &house{hold: make(chan struct{}), ended: make(chan error, 10), revoked: map[string]bool{}}
	handler, err := New(Options{Server: "server-1", Version: "test", Tools: tools.New(h), Access: h, Door: h, MaxBodyBytes: 1 << 20,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(handler)
	t.Cleanup(func() {
		handler.Close()
		s.Close()
		if n := h.inFlight.Load(); n != 0 {
			t.Errorf("%d calls are in flight after the end", n)
		}
	})
	return h, s.URL
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

// connect is a session of an SDK client.
func connect(t *testing.T, url, token string, o *sdk.ClientOptions) *sdk.ClientSession {
	t.Helper()
	base := &http.Transport{}
	c := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, o)
	s, err := c.Connect(t.Context(), &sdk.StreamableClientTransport{Endpoint: url, HTTPClient: &http.Client{Transport: &bearer{token, base}}, MaxRetries: -1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); base.CloseIdleConnections() })
	return s
}

func said(r *sdk.CallToolResult) string {
	var b strings.Builder
	for _, c := range r.Content {
		if t, ok := c.(*sdk.TextContent); ok {
			b.WriteString(t.Text)
		}
	}
	return b.String()
}

func TestAnSDKClient(t *testing.T) {
	h, url := start(t)
	s := connect(t, url, "alice", nil)
	list, err := s.ListTools(t.Context(), nil)
	if err != nil || len(list.Tools) != len(tools.New(h).List()) {
		t.Fatalf("%v %v", list, err)
	}
	for _, tool := range list.Tools {
		if schema, ok := tool.InputSchema.(map[string]any); !ok || schema["type"] != "object" || tool.Description == "" || tool.Annotations == nil {
			t.Errorf("a tool is shown as %+v", tool)
		}
	}
	r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "session_get", Arguments: map[string]any{"id": "abc"}})
	if err != nil || r.IsError || !strings.Contains(said(r), "RUNNING") {
		t.Errorf("get: %+v %v", r, err)
	}
	if m, ok := r.StructuredContent.(map[string]any); !ok || m["id"] != "abc" {
		t.Errorf("get, structured: %v", r.StructuredContent)
	}
	for name, c := range map[string]struct {
		tool      string
		arguments any
		want      string
	}{
		"not there": {"session_get", map[string]any{"id": "none"}, "there is none"}, "no id": {"session_get", nil, "id: is missing"},
		"a wrong type": {"session_get", map[string]any{"id": 5}, "id: is a number"},
	} {
		if r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: c.tool, Arguments: c.arguments}); err != nil || !r.IsError || !strings.Contains(said(r), c.want) {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
	if _, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "rm"}); err == nil {
		t.Error("a tool that is not there was called")
	}
	for _, who := range h.callers {
		if who != "alice" {
			t.Errorf("a call was made as %q", who)
		}
	}
	// A token that was revoked gets nothing any more, in the session that it opened neither.
	h.mu.Lock()
	h.revoked["alice"] = true
	h.mu.Unlock()
	if r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "session_get", Arguments: map[string]any{"id": "abc"}}); err == nil {
		t.Errorf("after revoking: %+v", r)
	}
}

func TestProgressAndCancelling(t *testing.T) {
	h, url := start(t)
	notes := make(chan string, 100)
	s := connect(t, url, "alice", &sdk.ClientOptions{ProgressNotificationHandler: func(_ context.Context, r *sdk.ProgressNotificationClientRequest) {
		notes <- r.Params.Message
	}})
	ctx, cancel := context.WithCancel(t.Context())
	params := &sdk.CallToolParams{Name: "session_migrate", Arguments: map[string]any{"id": "abc"}}
	params.SetProgressToken("token")
	done := make(chan error, 1)
	go func() { _, err := s.CallTool(ctx, params); done <- err }()
	if note := <-notes; note == "" {
		t.Error("progress says nothing")
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a cancelled call has a result")
	}
	if why := <-h.ended; !errors.Is(why, tools.ErrCancelled) {
		t.Errorf("the call ended with %v", why)
	}
	close(h.hold)
	r, err := s.CallTool(t.Context(), params)
	if err != nil || !strings.Contains(said(r), "node-2") {
		t.Errorf("afterwards: %+v %v", r, err)
	}
}

// Nothing is answered before it is known who asks: not initialize, not a session of another caller, not a page from elsewhere.
func TestBeforeAnythingElse(t *testing.T) {
	h, url := start(t)
	initialize := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`
	ask := func(method, body string, header map[string]string) (*http.Response, string) {
		r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", "application/json, text/event-stream")
		for k, v := range header {
			r.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer http.DefaultClient.CloseIdleConnections()
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return resp, string(b)
	}
	alice := map[string]string{"Authorization": "Bearer alice"}
	resp, body := ask(http.MethodPost, initialize, alice)
	session := resp.Header.Get(sessionIDHeader)
	if resp.StatusCode != 200 || session == "" || !strings.Contains(body, `"orchestrator"`) {
		t.Fatalf("alice: %d %s", resp.StatusCode, body)
	}
	call := `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"session_get","arguments":{"id":"abc"}}}`
	for name, c := range map[string]struct {
		method, body string
		header       map[string]string
		want         int
	}{
		"initialize without a token":  {http.MethodPost, initialize, nil, 401},
		"initialize as a stranger":    {http.MethodPost, initialize, map[string]string{"Authorization": "Bearer mallory"}, 401},
		"initialize with a password":  {http.MethodPost, initialize, map[string]string{"Authorization": "Basic YTpi"}, 401},
		"what the SDK is told":        {http.MethodPost, initialize, map[string]string{"Authorization": "Bearer " + anonymousBearer}, 401},
		"a stream without a token":    {http.MethodGet, "", map[string]string{sessionIDHeader: session}, 401},
		"the end without a token":     {http.MethodDelete, "", map[string]string{sessionIDHeader: session}, 401},
		"nonsense without a token":    {http.MethodPost, "{", nil, 401},
		"bob in alice's session":      {http.MethodPost, call, map[string]string{"Authorization": "Bearer bob", sessionIDHeader: session}, 403},
		"bob ends alice's session":    {http.MethodDelete, "", map[string]string{"Authorization": "Bearer bob", sessionIDHeader: session}, 403},
		"a page from elsewhere":       {http.MethodPost, initialize, map[string]string{"Authorization": "Bearer alice", "Origin": "https://evil.example"}, 403},
		"a session that is not there": {http.MethodPost, call, map[string]string{"Authorization": "Bearer alice", sessionIDHeader: "none"}, 404},
		"nonsense":                    {http.MethodPost, "{", alice, 400},
		"too much":                    {http.MethodPost, strings.Repeat(" ", 2<<20), alice, 413},
	} {
		if resp, body := ask(c.method, c.body, c.header); resp.StatusCode != c.want {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		} else if c.want == 401 && resp.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: 401 without WWW-Authenticate", name)
		}
	}
	h.full.Store(true)
	if resp, _ := ask(http.MethodPost, initialize, alice); resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "2" {
		t.Errorf("too fast: %d, after %s", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	h.full.Store(false)
	resp, body = ask(http.MethodPost, call, map[string]string{"Authorization": "Bearer alice", sessionIDHeader: session})
	if resp.StatusCode != 200 || !strings.Contains(body, "RUNNING") || !json.Valid([]byte(body[strings.Index(body, "{"):strings.LastIndex(body, "}")+1])) {
		t.Errorf("alice's call: %d %s", resp.StatusCode, body)
	}
}
