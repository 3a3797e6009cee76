// A network in memory with real gateways on it, whose connections break as a test wants, and tools that count what they do.
package toolclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The token of the tests, and one to rotate to. They must be found nowhere but in messages.
const (
	goodToken  = "orch_the-secret-of-alice"
	otherToken = "orch_another-secret-of-alice"
)

// door lets alice in, who has two tokens, until they are revoked.
type door struct{ revoked *sync.Map }

func (d door) Identify(c auth.Credential) (auth.Identity, error) {
	if _, gone := d.revoked.Load(c.Token); gone {
		return auth.Identity{}, fault.New(fault.Unauthenticated, "token: was revoked")
	}
	switch c.Token {
	case goodToken:
		return auth.Identity{TokenID: "a1", Name: "alice", Role: auth.Client}, nil
	case otherToken:
		return auth.Identity{TokenID: "a2", Name: "alice", Role: auth.Client}, nil
	}
	return auth.Identity{}, fault.New(fault.Unauthenticated, "token: is unknown here")
}

func (door) As(ctx context.Context, _ auth.Credential) context.Context { return ctx }

func (d door) Recheck(who auth.Identity) (auth.Identity, error) {
	if who.TokenID == "a2" {
		return d.Identify(auth.Credential{Token: otherToken})
	}
	return d.Identify(auth.Credential{Token: goodToken})
}

func (door) AsCaller(ctx context.Context, _ auth.Identity) context.Context { return ctx }

// ledger is what the tools of all servers have done: an effect has one idempotency key, as in the cluster, and one answer.
type ledger struct {
	mu      sync.Mutex
	answers map[string]string          // by idempotency key
	keys    map[string]map[string]bool // the idempotency keys that came for one argument
	order   []string                   // arguments of effects, as they came
	runs    map[string]int             // by argument
	gates   map[string]chan struct{}
	ended   map[string]error // why held calls ended
	now     int              // calls that run
	most    int
}

func newLedger() *ledger {
	return &ledger{answers: map[string]string{}, keys: map[string]map[string]bool{}, runs: map[string]int{}, gates: map[string]chan struct{}{}, ended: map[string]error{}}
}

// gate is closed to let held calls of a key go.
func (l *ledger) gate(key string) chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gates[key] == nil {
		l.gates[key] = make(chan struct{})
	}
	return l.gates[key]
}

func (l *ledger) ran(key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.runs[key]
}

func (l *ledger) why(key string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended[key]
}

// effects are the answers of the effects that one argument had.
func (l *ledger) effects(key string) (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.keys[key] {
		all = append(all, l.answers[id])
	}
	return all
}

// apply has an effect, once for each idempotency key.
func (l *ledger) apply(id, key string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keys[key] == nil {
		l.keys[key] = map[string]bool{}
	}
	l.keys[key][id] = true
	if l.answers[id] == "" {
		l.answers[id] = strconv.Itoa(len(l.answers) + 1)
		l.order = append(l.order, key)
	}
	return l.answers[id]
}

// kit are the tools: apply has an effect, after a while; hold waits for its gate; stream streams and then waits; fail fails.
type kit struct {
	*tools.Set
	*ledger
}

func (k *kit) Find(name string) (*tools.Tool, bool) {
	switch name {
	case "apply", "hold", "stream", "fail":
		return &tools.Tool{Name: name, Schema: &tools.Schema{Type: "object", Values: &tools.Schema{Type: "string"}}}, true
	}
	return k.Set.Find(name)
}

func (k *kit) Call(ctx context.Context, t *tools.Tool, c tools.Call) ([]tools.Output, error) {
	var a struct{ Key, Takes, Kind, N string }
	if err := json.Unmarshal(c.Arguments, &a); err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.runs[a.Key]++
	k.now++
	k.most = max(k.most, k.now)
	k.mu.Unlock()
	defer func() { k.mu.Lock(); k.now--; k.mu.Unlock() }()
	takes, _ := time.ParseDuration(a.Takes)
	wait := func() error {
		select {
		case <-k.gate(a.Key):
			return nil
		case <-ctx.Done():
			k.mu.Lock()
			k.ended[a.Key] = context.Cause(ctx)
			k.mu.Unlock()
			return ctx.Err()
		}
	}
	switch t.Name {
	case "apply":
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return []tools.Output{{Type: "text", Text: k.apply(c.ID, a.Key)}}, nil
	case "hold":
		c.Progress("holding " + a.Key)
		if err := wait(); err != nil {
			return nil, err
		}
		return []tools.Output{{Type: "text", Text: k.apply(c.ID, a.Key)}}, nil
	case "stream":
		n, _ := strconv.Atoi(a.N)
		for i := range n {
			if err := c.Chunk(ctx, fmt.Sprintf("%d;", i)); err != nil {
				return nil, err
			}
		}
		if err := wait(); err != nil {
			return nil, err
		}
		return []tools.Output{{Type: "text", Text: "streamed"}}, nil
	}
	switch a.Kind { // fail
	case "full-once":
		if k.ran(a.Key) == 1 {
			return nil, fault.New(fault.Exhausted, "the mailbox is full").WithRetry(1500 * time.Millisecond)
		}
		return []tools.Output{{Type: "text", Text: "taken"}}, nil
	case "full":
		return nil, fault.New(fault.Exhausted, "the mailbox is full").WithRetry(1500 * time.Millisecond)
	case "unavailable":
		return nil, fault.New(fault.Unavailable, "nobody leads")
	}
	return nil, fault.New(fault.NotFound, "session %q: there is none", a.Key)
}

// host is a server on the network.
type host struct {
	hub  *socket.Hub // nil for one that a test speaks for
	web  *http.Server
	in   chan net.Conn
	down chan struct{} // closed when it has ended

	refuses atomic.Bool // new connections
	noWS    atomic.Bool // refuses WebSockets, as some proxies do
	dials   atomic.Int64
	asked   atomic.Int64 // HTTP requests that are no WebSocket
	// through, when set before clients come, is the way of those requests to the gateway.
	through func(w http.ResponseWriter, r *http.Request, next http.Handler)

	mu    sync.Mutex
	conns []*wire
}

// network is where hosts are.
type network struct {
	t      *testing.T
	ledger *ledger
	door   door
	mu     sync.Mutex
	hosts  map[string]*host
	names  []string // a server's port is its place among them
	// budget, when set, says after how many bytes, in both directions together, a new connection breaks; negative for never.
	budget func() int64
	dialed []time.Time
}

func newNetwork(t *testing.T, names ...string) *network {
	n := &network{t: t, ledger: newLedger(), door: door{new(sync.Map)}, hosts: map[string]*host{}}
	for _, name := range names {
		n.start(name, nil)
	}
	return n
}

// generous are limits that tests do not run into by chance.
func generous() socket.Limits {
	l := socket.DefaultLimits()
	l.ConnectionsPerIP, l.Global, l.PerIP, l.PerUser = l.Connections, socket.Rate{}, socket.Rate{}, socket.Rate{}
	return l
}

// start puts a server on the network, in the place of an earlier one of the name.
func (n *network) start(name string, change func(*socket.Options)) *host {
	h := &host{}
	o := socket.Options{
		Server: name, Tools: &kit{tools.New(nil), n.ledger}, Access: n.door, Ready: func() (bool, string) { return true, "" }, Limits: generous(),
		Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	h.hub = socket.New(o)
	mux := http.NewServeMux()
	mux.HandleFunc("/mcp", func(w http.ResponseWriter, r *http.Request) {
		if h.noWS.Load() {
			http.Error(w, "upgrades are not let through", http.StatusBadGateway)
			return
		}
		h.hub.ServeHTTP(w, r)
	})
	rest := http.NewServeMux()
	h.hub.Handle(rest)
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if h.through != nil {
			h.through(w, r, rest)
			return
		}
		rest.ServeHTTP(w, r)
	})
	n.serve(h, name, mux)
	return h
}

// serve puts what answers requests on the network.
func (n *network) serve(h *host, name string, handler http.Handler) {
	h.in, h.down = make(chan net.Conn), make(chan struct{})
	h.web = &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	n.mu.Lock()
	if n.hosts[name] == nil {
		n.names = append(n.names, name)
	}
	n.hosts[name] = h
	n.mu.Unlock()
	go func() { _ = h.web.Serve(h) }()
}

// stop ends a server in good order.
func (h *host) stop(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if h.hub != nil {
		h.hub.Close(ctx)
	}
	_ = h.web.Close()
}

// kill breaks all connections of a server, takes no others, and ends it.
func (h *host) kill() {
	h.refuses.Store(true)
	h.cut()
	h.stop(0)
}

// cut breaks all connections.
func (h *host) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.conns {
		w.cut()
	}
	h.conns = nil
}

// mute has nothing come through any more on connections that are there.
func (h *host) mute() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.conns {
		w.mute()
	}
}

// stopAll ends all servers.
func (n *network) stopAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.hosts {
		h.stop(0)
	}
}

// Accept, Close and Addr implement net.Listener.
func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.in:
		return c, nil
	case <-h.down:
		return nil, net.ErrClosed
	}
}

func (h *host) Close() error   { close(h.down); return nil }
func (h *host) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

var errRefused = errors.New("connection refused")

// dial is Config.Dial.
func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	i, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	h, budget := n.hosts[n.names[i]], int64(-1)
	if n.budget != nil {
		budget = n.budget()
	}
	n.dialed = append(n.dialed, time.Now())
	n.mu.Unlock()
	h.dials.Add(1)
	if h.refuses.Load() {
		return nil, errRefused
	}
	here, there := net.Pipe()
	w := &wire{Conn: here, muted: make(chan struct{}), closed: make(chan struct{})}
	w.left.Store(budget)
	w.bounded = budget >= 0
	select {
	case h.in <- there:
	case <-h.down:
		return nil, errRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	h.mu.Lock()
	h.conns = append(h.conns, w)
	h.mu.Unlock()
	return w, nil
}

// wire is a connection that can break at any byte, and that can fall silent.
type wire struct {
	net.Conn
	bounded       bool
	left          atomic.Int64
	muted, closed chan struct{}
	once, hush    sync.Once
}

func (w *wire) cut()  { w.once.Do(func() { close(w.closed); _ = w.Conn.Close() }) }
func (w *wire) mute() { w.hush.Do(func() { close(w.muted) }) }

func (w *wire) Close() error { w.cut(); return nil }

// take counts bytes, and says how many of them go through.
func (w *wire) take(n int) int {
	if !w.bounded {
		return n
	}
	left := w.left.Add(-int64(n)) + int64(n)
	return int(max(min(left, int64(n)), 0))
}

func (w *wire) silent() bool {
	select {
	case <-w.muted:
		<-w.closed
		return true
	default:
		return false
	}
}

// SetWriteDeadline notices nothing of the other side's end, when that cannot be noticed.
func (w *wire) SetWriteDeadline(t time.Time) error {
	select {
	case <-w.muted:
		return nil
	default:
		return w.Conn.SetWriteDeadline(t)
	}
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.silent() {
		return 0, net.ErrClosed
	}
	if ok := w.take(n); ok < n {
		w.cut()
		return ok, io.ErrUnexpectedEOF
	}
	return n, err
}

func (w *wire) Write(b []byte) (int, error) {
	select {
	case <-w.muted:
		return len(b), nil // into the void
	default:
	}
	ok := w.take(len(b))
	n, err := w.Conn.Write(b[:ok])
	if ok < len(b) {
		w.cut()
		return n, io.ErrClosedPipe
	}
	return n, err
}

// client makes a client of hosts.
func (n *network) client(change func(*Config), names ...string) *Client {
	n.t.Helper()
	cfg := Config{Token: StaticToken(goodToken), Dial: n.dial, Rand: func() float64 { return 0.5 }}
	for _, name := range names {
		cfg.Addresses = append(cfg.Addresses, "127.0.0.1:"+strconv.Itoa(slices.Index(n.names, name)))
	}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// until waits for a state.
func until(t *testing.T, c *Client, want State) {
	t.Helper()
	events, stop := c.Subscribe(100)
	defer stop()
	for c.State() != want {
		e, ok := <-events
		if !ok {
			t.Fatalf("the client was closed before it was %s", want)
		}
		if e.State == want {
			return
		}
	}
}

func args(kv ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

// mustCall makes a call that succeeds.
func mustCall(t *testing.T, c *Client, name string, a map[string]string, opts ...Option) *Result {
	t.Helper()
	r, err := c.Call(t.Context(), name, a, opts...)
	if err != nil {
		t.Fatalf("%s %v: %v", name, a, err)
	}
	return r
}

// begin starts a call and waits until it runs at a server.
func begin(ctx context.Context, t *testing.T, c *Client, name string, a map[string]string, opts ...Option) *Pending {
	t.Helper()
	runs := make(chan struct{}, 100)
	k, err := c.Start(ctx, name, a, append(opts, OnProgress(func(text string) {
		if strings.HasPrefix(text, "holding") {
			runs <- struct{}{}
		}
	}))...)
	if err != nil {
		t.Fatal(err)
	}
	waitCtx, stop := context.WithCancel(context.Background())
	go func() {
		<-runs
		stop()
	}()
	if _, err := k.Wait(waitCtx); waitCtx.Err() == nil {
		t.Fatalf("%s ended before it ran: %v", name, err)
	}
	return k
}
