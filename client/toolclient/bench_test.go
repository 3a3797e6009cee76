// What a call costs on the client's side and the gateway's together, over loopback, with a tool that does nothing.
package toolclient

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
)

// idle is a tool that does nothing.
type idle struct{ *tools.Set }

func (idle) Find(string) (*tools.Tool, bool) {
	return &tools.Tool{Name: "idle", Schema: &tools.Schema{Type: "object"}}, true
}

func (idle) Call(context.Context, *tools.Tool, tools.Call) ([]tools.Output, error) {
	return []tools.Output{{Type: "text", Text: "{}"}}, nil
}

func benchClient(b *testing.B) *Client {
	hub := socket.New(socket.Options{
		Server: "a", Tools: idle{tools.New(nil)}, Access: door{new(sync.Map)}, Ready: func() (bool, string) { return true, "" }, Limits: generous(),
		Logger: slog.New(slog.DiscardHandler),
	})
	mux := http.NewServeMux()
	mux.Handle("/mcp", hub)
	s := httptest.NewServer(mux)
	c, err := New(Config{Addresses: []string{strings.TrimPrefix(s.URL, "http://")}, Token: StaticToken(goodToken)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 0)
		defer cancel()
		hub.Close(ctx)
		s.Close()
	})
	return c
}

func BenchmarkCall(b *testing.B) {
	c := benchClient(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Call(b.Context(), "idle", nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCallsOf64(b *testing.B) {
	c := benchClient(b)
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := c.Call(b.Context(), "idle", nil); err != nil {
				b.Error(err)
			}
		}
	})
}
