// Both ways over TLS and real sockets: what the network in memory does not have.
package toolclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestOverTLS(t *testing.T) {
	hub := socket.New(socket.Options{
		Server: "a", Tools: &kit{tools.New(nil), newLedger()}, Access: door{new(sync.Map)}, Ready: func() (bool, string) { return true, "" }, Limits: generous(),
		Logger: slog.New(slog.DiscardHandler),
	})
	var noWS atomic.Bool
	mux, rest := http.NewServeMux(), http.NewServeMux()
	hub.Handle(rest)
	mux.Handle("/below/v1/", http.StripPrefix("/below", rest))
	mux.HandleFunc("/below/mcp", func(w http.ResponseWriter, r *http.Request) {
		if noWS.Load() {
			http.Redirect(w, r, "http://127.0.0.1:9/", http.StatusFound) // nobody may be led away with the token
			return
		}
		hub.ServeHTTP(w, r)
	})
	s := httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 0)
		defer cancel()
		hub.Close(ctx)
		s.Close()
	}()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	connect := func(trust *tls.Config) *Client {
		t.Helper()
		c, err := New(Config{
			Addresses: []string{s.URL + "/below"}, Token: StaticToken(goodToken), TLS: trust, FallbackAfter: 1, GiveUpAfter: 3, Backoff: Backoff{Min: time.Millisecond, Max: 5 * time.Millisecond}, Breaker: Breaker{Failures: 1 << 20},
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	good := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	c := connect(good)
	defer c.Close()
	mustCall(t, c, "apply", args("key", "over the WebSocket"))
	noWS.Store(true)
	d := connect(good)
	defer d.Close()
	if r := mustCall(t, d, "apply", args("key", "over HTTP")); r.Text() != "2" || d.Stats().OverHTTP != 1 {
		t.Errorf("over HTTP: %+v, %+v", r, d.Stats())
	}
	noWS.Store(false)
	until(t, d, Connected)
	if r := mustCall(t, d, "apply", args("key", "over the WebSocket again")); r.Text() != "3" {
		t.Errorf("again: %+v", r)
	}
	stranger := connect(nil)
	defer stranger.Close()
	if _, err := stranger.Call(t.Context(), "apply", nil); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "x509") {
		t.Errorf("at a server that is not known: %v", err)
	}
}
