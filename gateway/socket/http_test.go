// What the fallback has beside calls and results: the list of tools, cancelling, and pages of other origins.

package socket

import (
	"io"
	"net/http"
	"testing"

	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

func TestToolsAndCancellingOverHTTP(t *testing.T) {
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	if status, m := a.ask(http.MethodGet, "/v1/tools", "alice", nil); status != http.StatusOK || m["op"] != "list_tools_res" || len(m["tools"].([]any)) != len(a.hub.tools) {
		t.Errorf("tools: %d %v", status, m)
	}
	if status, m := a.ask(http.MethodGet, "/v1/tools", "mallory", nil); status != http.StatusUnauthorized || code(m) != codeUnauthorized {
		t.Errorf("tools for nobody: %d %v", status, m)
	}
	no := false
	for i, kept := range []*bool{nil, &no} { // by the cluster; by the server
		for _, at := range []*member{a, b} {
			if kept != nil && at == b {
				continue // nobody else knows it
			}
			id := []string{"durable", "not"}[i] + at.hub.o.Server
			call := map[string]any{"session_id": "web", "request_id": id, "name": "hold", "arguments": map[string]string{"key": id}}
			if kept != nil {
				call["durable"] = *kept
			}
			if status, m := a.post("/v1/call_tool", "alice", "?wait_ms=0", call); status != http.StatusAccepted {
				t.Fatalf("%s: %d %v", id, status, m)
			}
			cancel := map[string]any{"session_id": "web", "request_id": id}
			eventually(t, "the call is known there", func() bool {
				status, m := at.post("/v1/cancel", "alice", "", cancel)
				return status == http.StatusOK && m["op"] == "cancelled" && m["request_id"] == id
			})
			if status, m := at.post("/v1/cancel", "alice", "", cancel); status != http.StatusNotFound || m["op"] != "cancelled" || code(m) != codeNotFound {
				t.Errorf("%s, cancelled again: %d %v", id, status, m)
			}
		}
	}
	if status, m := a.post("/v1/cancel", "alice", "", map[string]any{"session_id": "web"}); status != http.StatusBadRequest || code(m) != codeInvalidRequest {
		t.Errorf("no request_id: %d %v", status, m)
	}
	if status, m := a.post("/v1/cancel", "bob", "", map[string]any{"session_id": "web", "request_id": "durablea"}); status != http.StatusNotFound || code(m) != codeNotFound {
		t.Errorf("another's call: %d %v", status, m)
	}
}

func TestPagesOfOtherOrigins(t *testing.T) {
	w := start(t, func(o *Options) { o.Origins = []string{"https://console.example.com"} })
	ask := func(method, origin string) *http.Response {
		t.Helper()
		r, _ := http.NewRequestWithContext(t.Context(), method, w.http.URL+"/v1/tools", nil)
		r.Header.Set("Origin", origin)
		if method != http.MethodOptions {
			r.Header.Set("Authorization", "Bearer alice")
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
		return resp
	}
	for _, method := range []string{http.MethodOptions, http.MethodGet} {
		good, bad := ask(method, "https://console.example.com"), ask(method, "https://evil.example.com")
		if good.StatusCode >= 300 || good.Header.Get("Access-Control-Allow-Origin") != "https://console.example.com" || good.Header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: %d %v", method, good.StatusCode, good.Header)
		}
		if bad.StatusCode != http.StatusForbidden || bad.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s of another origin: %d %v", method, bad.StatusCode, bad.Header)
		}
	}
	if h := ask(http.MethodOptions, "https://console.example.com").Header; h.Get("Access-Control-Allow-Headers") != "Authorization, Content-Type, "+SessionHeader {
		t.Errorf("headers: %v", h)
	}
}
