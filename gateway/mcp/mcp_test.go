// MCP as clients of the official SDK see it, and what happens before it begins.
package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/neolith/orchestrator/gateway/tools"
)

func said(r *sdk.CallToolResult) string {
	var b strings.Builder
	for _, c := range r.Content {
		if t, ok := c.(*sdk.TextContent); ok {
			b.WriteString(t.Text)
		}
	}
	return b.String()
}

func TestAnSDKClient(t *testing.T) { everyWay(t, testAnSDKClient) }

func testAnSDKClient(t *testing.T, h *house, w way) {
	s := h.connect(t, w, "alice", nil)
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
	h.revoke("alice")
	if r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "session_get", Arguments: map[string]any{"id": "abc"}}); err == nil {
		t.Errorf("after revoking: %+v", r)
	}
}

// A long call says that it goes on; one that its client cancels ends as cancelled, and not only its answer.
func TestProgressAndCancelling(t *testing.T) { everyWay(t, testProgressAndCancelling) }

func testProgressAndCancelling(t *testing.T, h *house, w way) {
	notes := make(chan string, 1000)
	s := h.connect(t, w, "alice", &sdk.ClientOptions{ProgressNotificationHandler: func(_ context.Context, r *sdk.ProgressNotificationClientRequest) {
		notes <- fmt.Sprintf("%v %v %s", r.Params.ProgressToken, r.Params.Progress, r.Params.Message)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	params := func() *sdk.CallToolParams {
		p := &sdk.CallToolParams{Name: "session_migrate", Arguments: map[string]any{"id": "abc"}}
		p.SetProgressToken("token")
		return p
	}
	done := make(chan error, 1)
	go func() { _, err := s.CallTool(ctx, params()); done <- err }()
	for last := ""; !strings.Contains(last, "has been at it"); { // after what the tool itself says
		if last = <-notes; !strings.HasPrefix(last, "token ") {
			t.Errorf("progress: %s", last)
		}
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a cancelled call has a result")
	}
	if why := <-h.ended; !errors.Is(why, tools.ErrCancelled) {
		t.Errorf("the call ended with %v", why)
	}
	close(h.hold)
	r, err := s.CallTool(t.Context(), params())
	if err != nil || !strings.Contains(said(r), "node-2") {
		t.Errorf("afterwards: %+v %v", r, err)
	}
}

// A server that stops ends the calls that wait, and says so; it does not undo them.
func TestStopping(t *testing.T) { everyWay(t, testStopping) }

func testStopping(t *testing.T, h *house, w way) {
	s := h.connect(t, w, "alice", nil)
	type outcome struct {
		r   *sdk.CallToolResult
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := s.CallTool(context.WithoutCancel(t.Context()), &sdk.CallToolParams{Name: "session_migrate", Arguments: map[string]any{"id": "abc"}})
		done <- outcome{r, err}
	}()
	<-h.started
	h.handler.Close()
	if o := <-done; o.err == nil && (!o.r.IsError || !strings.Contains(said(o.r), "server-1 is stopping")) || o.err != nil && w.socket {
		t.Errorf("%+v %v", o.r, o.err)
	}
	if why := <-h.ended; !errors.Is(why, errStopping) {
		t.Errorf("the call ended with %v", why)
	}
	resp, err := h.server.Client().Get(h.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("afterwards: %s", resp.Status)
	}
}

// Nothing is answered before it is known who asks: not initialize, not a session of another caller, not a page from elsewhere.
func TestBeforeAnythingElse(t *testing.T) {
	h := start(t)
	url := h.server.URL
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
