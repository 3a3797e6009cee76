// The Go client of the client gateway where WebSockets are not let through, or not any more: it has the tools, and its cancels count.

package e2e

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client/toolclient"
	"github.com/neolith/orchestrator/internal/fault"
)

// front is a proxy before a server's client port, of the kind that may not let WebSockets through.
type front struct {
	address string
	blocks  atomic.Bool // WebSockets

	mu    sync.Mutex
	conns []net.Conn // of its clients
}

func newFront(t *testing.T, to string) *front {
	t.Helper()
	f := &front{}
	through := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	through.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // clients give requests up
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" && f.blocks.Load() {
			http.Error(w, "upgrades are not let through", http.StatusForbidden)
			return
		}
		through.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { f.cut(); web.Close() })
	f.address = web.Listener.Addr().String()
	return f
}

// dial is the way of its clients.
func (f *front) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		f.mu.Lock()
		f.conns = append(f.conns, conn)
		f.mu.Unlock()
	}
	return conn, err
}

// cut breaks all connections of its clients.
func (f *front) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, conn := range f.conns {
		_ = conn.Close()
	}
	f.conns = nil
}

func TestAClientWithoutWebSockets(t *testing.T) {
	s := startSmall(t, 1, 4*time.Second)
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	grpc, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	f := newFront(t, net.JoinHostPort(host, strconv.Itoa(grpc+2)))
	f.blocks.Store(true)
	c, err := toolclient.New(toolclient.Config{
		Addresses: []string{f.address}, SessionID: "story", Dial: f.dial, CancelPatience: 30 * time.Second,
		Backoff: toolclient.Backoff{Min: 50 * time.Millisecond, Max: 200 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reached := func(want toolclient.State) {
		t.Helper()
		s.until("the client is "+string(want), func(context.Context) bool { return c.State() == want })
	}
	// The row of a call in the cluster; nil while there is none.
	row := func(ctx context.Context, id string) *apiv1.Call {
		r, err := s.c.Queues.ListCalls(ctx, &apiv1.ListCallsRequest{Session: "story"})
		if err != nil {
			return nil
		}
		i := slices.IndexFunc(r.GetCalls(), func(k *apiv1.Call) bool { return k.GetRequestId() == id })
		if i < 0 {
			return nil
		}
		return r.GetCalls()[i]
	}
	list, err := c.ListTools(t.Context())
	if err != nil || !slices.ContainsFunc(list, func(tool toolclient.Tool) bool { return tool.Name == "session_send" && len(tool.InputSchema) > 2 }) {
		t.Fatalf("tools: %v %v", list, err)
	}
	silent := newSlow(t)
	r, err := c.Call(t.Context(), "session_spawn", map[string]any{"command": silent.command(), "wait": true})
	if err != nil {
		t.Fatal(err)
	}
	var session struct{ ID string }
	if err := r.Decode(&session); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Call(t.Context(), "session_get", map[string]any{"id": "nobody"}); !fault.Is(err, fault.NotFound) || toolclient.CodeOf(err) != "NOT_FOUND" {
		t.Errorf("nobody: %v", err)
	}
	begin := func(id string) *toolclient.Pending {
		t.Helper()
		k, err := c.Start(t.Context(), "session_send", map[string]any{"id": session.ID, "message": id}, toolclient.WithRequestID(id))
		if err != nil {
			t.Fatal(err)
		}
		s.until(id+" runs", func(ctx context.Context) bool { return row(ctx, id).GetStatus() == apiv1.Call_RUNNING })
		return k
	}
	ends := func(k *toolclient.Pending) {
		t.Helper()
		k.Cancel()
		if _, err := k.Wait(t.Context()); !errors.Is(err, context.Canceled) || !fault.Is(err, fault.Aborted) {
			t.Errorf("%s: its caller is told %v", k.RequestID(), err)
		}
		if got := row(t.Context(), k.RequestID()); !got.GetOutcome().GetCancelled() {
			t.Errorf("%s: in the cluster it is %v", k.RequestID(), got)
		}
	}
	ends(begin("over-http"))
	if c.State() != toolclient.Fallback {
		t.Errorf("the client is %s", c.State())
	}
	// WebSockets come, and go again in the middle of a call: its cancel finds the other way.
	f.blocks.Store(false)
	reached(toolclient.Connected)
	between := begin("between")
	f.blocks.Store(true)
	f.cut()
	ends(between)
	reached(toolclient.Fallback)
	if _, err := c.ListTools(t.Context()); err != nil {
		t.Errorf("tools: %v", err)
	}
	// What is not cancelled has its answer, whichever ways it went.
	stays := begin("stays")
	f.blocks.Store(false)
	reached(toolclient.Connected)
	silent.open(t)
	r, err = stays.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var turn struct{ Result string }
	if err := r.Decode(&turn); err != nil || turn.Result != "3 stays" { // messages outlive the calls that sent them
		t.Errorf("stays: %s %v", r.Text(), err)
	}
	if got := c.Stats(); got.InFlight != 0 || got.Connections != 2 || got.OverHTTP < 4 {
		t.Errorf("the client tells of %+v", got)
	}
}
