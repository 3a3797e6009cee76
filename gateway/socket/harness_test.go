// A hub with tools that do what a test wants, on a real port, and clients that speak the protocol by hand.
package socket

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// The tokens of the tests, and whom they stand for.
var holders = map[string]auth.Identity{
	"alice":   {TokenID: "a1", Name: "alice", Role: auth.Client},
	"alice-2": {TokenID: "a2", Name: "alice", Role: auth.Client},
	"bob":     {TokenID: "b1", Name: "bob", Role: auth.Client},
}

// door lets holders in, until they are revoked.
type door struct {
	mu      sync.Mutex
	revoked map[string]bool
}

func (d *door) Identify(c auth.Credential) (auth.Identity, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id, ok := holders[c.Token]
	if !ok || d.revoked[c.Token] {
		return auth.Identity{}, fault.New(fault.Unauthenticated, "token: is unknown here")
	}
	return id, nil
}

func (d *door) Recheck(who auth.Identity) (auth.Identity, error) {
	for token, id := range holders {
		if id == who {
			return d.Identify(auth.Credential{Token: token})
		}
	}
	return auth.Identity{}, fault.New(fault.Unauthenticated, "token: is unknown here")
}

func (d *door) As(ctx context.Context, c auth.Credential) context.Context { return ctx }

func (d *door) AsCaller(ctx context.Context, who auth.Identity) context.Context { return ctx }

func (d *door) revoke(token string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.revoked = map[string]bool{token: true}
}

// bench are tools for tests: echo answers at once; so does now, which need not wait to begin unless its key says so: full as long as that is held; hold until the test lets it go or it is cancelled; fail with a kind; panic; big.
type bench struct {
	*tools.Set
	mu      sync.Mutex
	held    map[string]chan struct{} // by the key of the arguments
	runs    map[string]int
	effects map[string]bool
	ended   chan error // why a held call ended
	reads   bool       // the tools change nothing
}

func newBench() *bench {
	return &bench{Set: tools.New(nil), held: map[string]chan struct{}{}, runs: map[string]int{}, effects: map[string]bool{}, ended: make(chan error, 1000)}
}

func (b *bench) Find(name string) (*tools.Tool, bool) {
	switch name {
	case "echo", "hold", "fail", "panic", "big", "stream", "now":
		return &tools.Tool{Name: name, ReadOnly: b.reads || name == "now", AtOnce: name == "now", Schema: &tools.Schema{Type: "object", Values: &tools.Schema{Type: "string"}}}, true
	}
	return b.Set.Find(name)
}

// gate is closed to let the calls of a key go.
func (b *bench) gate(key string) chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held[key] == nil {
		b.held[key] = make(chan struct{})
	}
	return b.held[key]
}

func (b *bench) Call(ctx context.Context, t *tools.Tool, c tools.Call) ([]tools.Output, error) {
	var a map[string]string
	if err := json.Unmarshal(c.Arguments, &a); err != nil {
		return nil, err
	}
	if c.AtOnce && a["key"] == "full" {
		return nil, tools.ErrWouldWait
	}
	b.mu.Lock()
	b.runs[a["key"]]++
	b.effects[c.ID] = true
	b.mu.Unlock()
	switch t.Name {
	case "now":
		if a["key"] == "broken" {
			panic("a defect")
		}
		if a["key"] != "full" {
			break
		}
		select {
		case <-b.gate("full"):
		case <-ctx.Done():
			b.ended <- context.Cause(ctx)
			return nil, ctx.Err()
		}
	case "hold":
		c.Progress("holding")
		select {
		case <-b.gate(a["key"]):
		case <-ctx.Done():
			b.ended <- context.Cause(ctx)
			return nil, ctx.Err()
		}
	case "fail":
		if a["kind"] == "exhausted" {
			return nil, fault.New(fault.Exhausted, "the mailbox is full").WithRetry(1500 * time.Millisecond)
		}
		return nil, fault.New(fault.NotFound, "session %q: there is none", a["key"])
	case "stream":
		for i := range 40 {
			if err := c.Chunk(ctx, fmt.Sprintf("%d:%s\n", i, strings.Repeat("x", 2000))); err != nil {
				return nil, err
			}
			if i == 19 && a["key"] != "" {
				<-b.gate(a["key"])
			}
		}
	case "panic":
		panic("a defect")
	case "big":
		noise := make([]byte, 50<<10) // which no compression makes small
		_, _ = rand.Read(noise)
		return []tools.Output{{Type: "text", Text: hex.EncodeToString(noise)}}, nil
	}
	return []tools.Output{{Type: "text", Text: a["key"]}}, nil
}

func (b *bench) ran(key string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.runs[key]
}

// world is a hub on a port.
type world struct {
	t     testing.TB
	hub   *Hub
	bench *bench
	door  *door
	http  *httptest.Server
}

// generous are limits that tests do not run into by chance.
func generous() Limits {
	l := DefaultLimits()
	l.ConnectionsPerIP, l.Global, l.PerIP, l.PerUser = l.Connections, Rate{}, Rate{}, Rate{}
	return l
}

func start(t testing.TB, change func(*Options)) *world {
	t.Helper()
	w := &world{t: t, bench: newBench(), door: &door{}}
	o := Options{
		Server: "server-1", Tools: w.bench, Access: w.door, Ready: func() (bool, string) { return true, "" }, Limits: generous(),
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&o)
	}
	w.hub = New(o)
	mux := http.NewServeMux()
	mux.Handle("/mcp", w.hub)
	w.hub.Handle(mux)
	w.http = httptest.NewServer(mux)
	sweeping, stopSweeping := context.WithCancel(context.Background())
	swept := make(chan struct{})
	go func() { defer close(swept); w.hub.Sweep(sweeping) }()
	t.Cleanup(func() {
		stopSweeping()
		<-swept
		ctx, cancel := context.WithTimeout(context.Background(), 0)
		defer cancel()
		w.hub.Close(ctx)
		w.http.Close()
		if kept := w.hub.Stats(); kept.InFlight != 0 || kept.Connections != 0 {
			t.Errorf("after its end the hub has %+v", kept)
		}
	})
	return w
}

// peer is a client by hand.
type peer struct {
	t  testing.TB
	ws *websocket.Conn
}

func (w *world) dial(header http.Header) *peer {
	w.t.Helper()
	p, resp, err := w.tryDial(header)
	if err != nil {
		w.t.Fatalf("dial: %v (%v)", err, resp)
	}
	return p
}

func (w *world) tryDial(header http.Header) (*peer, *http.Response, error) {
	d := websocket.Dialer{HandshakeTimeout: patience, EnableCompression: true}
	ws, resp, err := d.Dial("ws"+strings.TrimPrefix(w.http.URL, "http")+"/mcp", header)
	if err != nil {
		return nil, resp, err
	}
	w.t.Cleanup(func() { _ = ws.Close() })
	return &peer{w.t, ws}, resp, nil
}

// hello connects as a holder.
func (w *world) hello(token, session string) *peer {
	w.t.Helper()
	p := w.dial(nil)
	p.send(map[string]any{"op": "hello", "token": token, "session_id": session})
	if m := p.next(); m["op"] != "hello_ack" || m["ok"] != true || session != "" && m["session_id"] != session {
		w.t.Fatalf("hello was answered with %v", m)
	}
	return p
}

func (p *peer) send(v any) {
	p.t.Helper()
	if err := p.ws.WriteJSON(v); err != nil {
		p.t.Fatal(err)
	}
}

// raw sends a frame as it is.
func (p *peer) raw(kind int, data []byte) {
	_ = p.ws.WriteMessage(kind, data) // the other side may have closed meanwhile
}

func (p *peer) call(id, name string, arguments map[string]string) {
	p.t.Helper()
	p.send(map[string]any{"op": "call_tool", "request_id": id, "name": name, "arguments": arguments})
}

// next returns the next message.
func (p *peer) next() map[string]any {
	p.t.Helper()
	m, code := p.read()
	if m == nil {
		p.t.Fatalf("the connection was closed with %d", code)
	}
	return m
}

// read returns the next message, or the code of the close.
func (p *peer) read() (map[string]any, int) {
	p.t.Helper()
	_ = p.ws.SetReadDeadline(time.Now().Add(patience))
	var m map[string]any
	err := p.ws.ReadJSON(&m)
	var closed *websocket.CloseError
	var timeout net.Error
	switch {
	case err == nil:
		return m, 0
	case errors.As(err, &closed):
		return nil, closed.Code
	case errors.As(err, &timeout) && timeout.Timeout():
		p.t.Fatal("nothing came")
	}
	return nil, websocket.CloseAbnormalClosure
}

// until reads up to a message of an op, and returns it.
func (p *peer) until(op string) map[string]any {
	p.t.Helper()
	for {
		if m := p.next(); m["op"] == op {
			return m
		}
	}
}

// code returns the code of a message's error.
func code(m map[string]any) string {
	e, _ := m["error"].(map[string]any)
	s, _ := e["code"].(string)
	return s
}

// text returns the text of a message's first output.
func text(m map[string]any) string {
	list, _ := m["outputs"].([]any)
	if len(list) == 0 {
		return ""
	}
	o, _ := list[0].(map[string]any)
	s, _ := o["text"].(string)
	return s
}

// eventually waits for a condition of the hub that nothing tells of.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	giveUp := time.After(patience)
	for !f() {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-giveUp:
			t.Fatalf("never: %s", what)
		}
	}
}
