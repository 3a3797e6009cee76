// What callers are promised while all goes well, and what they are told when it does not.
package toolclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		c := n.client(nil, "a")
		defer c.Close()
		list, err := c.ListTools(t.Context())
		if err != nil || len(list) != len(tools.New(nil).List()) || list[0].Name == "" || !bytes.HasPrefix(list[0].InputSchema, []byte("{")) {
			t.Fatalf("tools: %+v %v", list, err)
		}
		if h, err := c.Health(t.Context()); err != nil || h.Status != "ok" || h.Server != "a" || h.Connections != 1 {
			t.Errorf("health: %+v %v", h, err)
		}
		r := mustCall(t, c, "apply", args("key", "k"), WithRequestID("mine"), WithPriority(High))
		var got int
		if err := r.Decode(&got); err != nil || got != 1 || r.RequestID != "mine" || r.FromCache {
			t.Errorf("the answer: %+v %v", r, err)
		}
		if r := mustCall(t, c, "apply", args("key", "k"), WithRequestID("mine"), WithPriority(High)); !r.FromCache || r.Text() != "1" {
			t.Errorf("asked again: %+v", r)
		}
		for _, x := range []struct {
			name string
			a    any
			o    []Option
			kind fault.Kind
			code string
		}{
			{"nonesuch", nil, nil, fault.NotFound, "TOOL_NOT_FOUND"},
			{"fail", args("key", "x"), nil, fault.NotFound, "NOT_FOUND"},
			{"apply", map[string]int{"key": 1}, nil, fault.Invalid, "VALIDATION_ERROR"},
			{"apply", args("key", "other"), []Option{WithRequestID("mine")}, fault.AlreadyExists, "DUPLICATE"},
			{"apply", args("key", strings.Repeat("x", 1<<20)), nil, fault.Invalid, ""},
			{"apply", []int{1}, nil, fault.Invalid, ""},
			{"apply", func() {}, nil, fault.Invalid, ""},
			{"apply", nil, []Option{WithRequestID("a b")}, fault.Invalid, ""},
			{"apply", nil, []Option{WithKey(strings.Repeat("k", 200))}, fault.Invalid, ""},
			{"", nil, nil, fault.Invalid, ""},
			{"fail", args("key", "y", "kind", "full"), []Option{WithDeadline(time.Now().Add(time.Second))}, fault.Exhausted, "OVER_CAPACITY"},
			{"hold", args("key", "z"), []Option{WithDeadline(time.Now().Add(time.Second))}, fault.Timeout, ""},
		} {
			_, err := c.Call(t.Context(), x.name, x.a, x.o...)
			if !fault.Is(err, x.kind) || CodeOf(err) != x.code {
				t.Errorf("%s %.40v: %v", x.name, x.a, err)
			}
		}
		if s := c.Stats(); s.InFlight != 0 || s.Connections != 1 || s.Repeated != 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestStreamsAndProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		c := n.client(nil, "a")
		defer c.Close()
		var text strings.Builder
		close(n.ledger.gate("s"))
		r := mustCall(t, c, "stream", args("key", "s", "n", "500"), OnChunk(func(ch Chunk) { text.WriteString(ch.Text) }))
		if r.Truncated || !strings.HasPrefix(text.String(), "0;1;2;") || !strings.HasSuffix(text.String(), "498;499;") || r.Text() != "streamed" {
			t.Errorf("streamed %q, %+v", text.String(), r)
		}
		// Who does not take the chunks does not hold up anybody, misses the end of the stream, and is told so.
		var taken int
		k, err := c.Start(t.Context(), "stream", args("key", "s", "n", "3000"), OnChunk(func(Chunk) { taken++ }))
		if err != nil {
			t.Fatal(err)
		}
		<-k.Done()
		if r, err := k.Wait(t.Context()); err != nil || !r.Truncated || taken != maxNotes {
			t.Errorf("not taken: %+v %v, %d chunks", r, err, taken)
		}
		var notes []string
		held, err := c.Start(t.Context(), "hold", args("key", "h"), OnProgress(func(s string) { notes = append(notes, s) }))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		close(n.ledger.gate("h"))
		if _, err := held.Wait(t.Context()); err != nil || len(notes) != 3 || notes[0] != "holding h" {
			t.Errorf("in 20 s it said %q, %v", notes, err)
		}
	})
}

// So many calls as may be are at the server; others wait, the most urgent first; what is beyond is refused.
func TestBoundsAndPriorities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		c := n.client(func(c *Config) { c.MaxInFlight, c.MaxWaiting = 1, 8 }, "a")
		defer c.Close()
		first := begin(t.Context(), t, c, "hold", args("key", "first"))
		var all []*Pending
		for i, p := range []Priority{Low, Normal, Critical, High, Low, "", Critical, High} {
			k, err := c.Start(t.Context(), "apply", args("key", fmt.Sprint(i, p)), WithPriority(p))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, k)
		}
		if _, err := c.Start(t.Context(), "apply", args("key", "beyond")); !fault.Is(err, fault.Exhausted) {
			t.Errorf("one too many: %v", err)
		}
		close(n.ledger.gate("first"))
		for _, k := range append(all, first) {
			if _, err := k.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if got, want := fmt.Sprint(n.ledger.order), "[first 2critical 6critical 3high 7high 1normal 5 0low 4low]"; got != want {
			t.Errorf("they ran as %s, not %s", got, want)
		}
		if n.ledger.most != 1 || c.Stats().InFlight != 0 {
			t.Errorf("%d at once, %+v", n.ledger.most, c.Stats())
		}
	})
}

func TestCancelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		c := n.client(nil, "a")
		defer c.Close()
		ctx, cancel := context.WithCancel(t.Context())
		k := begin(ctx, t, c, "hold", args("key", "k"))
		began := time.Now()
		cancel()
		if _, err := k.Wait(t.Context()); !errors.Is(err, context.Canceled) || !fault.Is(err, fault.Aborted) || time.Since(began) > time.Second {
			t.Errorf("cancelled: %v after %s", err, time.Since(began))
		}
		if why := n.ledger.why("k"); !errors.Is(why, tools.ErrCancelled) {
			t.Errorf("at the server it ended with %v", why)
		}
		// Two that ask for one id at a time: the second is told, the first is not touched.
		k = begin(t.Context(), t, c, "hold", args("key", "m"), WithRequestID("m"))
		if _, err := c.Call(t.Context(), "hold", args("key", "m"), WithRequestID("m")); !fault.Is(err, fault.AlreadyExists) {
			t.Errorf("a second of the id: %v", err)
		}
		// A server that does not answer is not waited for.
		n.hosts["a"].mute()
		k.Cancel()
		if _, err := k.Wait(t.Context()); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "may go on") {
			t.Errorf("cancelled at nobody: %v", err)
		}
		// One that was never sent is cancelled at once.
		n.hosts["a"].refuses.Store(true)
		n.hosts["a"].cut()
		until(t, c, Reconnecting)
		ctx, cancel = context.WithCancel(t.Context())
		k, err := c.Start(ctx, "apply", args("key", "never"))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := k.Wait(t.Context()); !errors.Is(err, context.Canceled) || n.ledger.ran("never") != 0 {
			t.Errorf("cancelled before: %v", err)
		}
		if _, err := c.Start(ctx, "apply", nil); !errors.Is(err, context.Canceled) {
			t.Errorf("begun with a context that has ended: %v", err)
		}
	})
}

func TestRefusalsAreWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.start("a", func(o *socket.Options) { o.Limits.PerUser = socket.Rate{Burst: 5, PerSecond: 10} })
		defer n.stopAll()
		c := n.client(nil, "a")
		defer c.Close()
		began := time.Now()
		if r := mustCall(t, c, "fail", args("key", "k", "kind", "full-once")); r.Text() != "taken" || n.ledger.ran("k") != 2 {
			t.Errorf("%+v, asked %d times", r, n.ledger.ran("k"))
		}
		if took := time.Since(began); took < 1500*time.Millisecond || took > 2*time.Second {
			t.Errorf("it came back after %s", took)
		}
		// A thousand calls against ten a second: none is refused for good, and the server is not asked so often that it ends the connection.
		var all []*Pending
		for i := range 1000 {
			k, err := c.Start(t.Context(), "apply", args("key", fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, k)
		}
		for _, k := range all {
			if _, err := k.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(n.ledger.answers); got != 1000 {
			t.Errorf("%d effects", got)
		}
		if took := time.Since(began); took > 2*time.Minute {
			t.Errorf("at ten a second they took %s", took)
		}
		if refused := n.hosts["a"].hub.Stats().OverCapacity; refused > 2000 || c.Stats().Connections != 1 {
			t.Errorf("%d refusals, %+v", refused, c.Stats())
		}
		if _, err := c.Call(t.Context(), "fail", args("key", "u", "kind", "unavailable"), WithDeadline(time.Now().Add(10*time.Second))); !fault.Is(err, fault.Unavailable) || n.ledger.ran("u") < 3 {
			t.Errorf("unavailable: %v, asked %d times", err, n.ledger.ran("u"))
		}
	})
}

func TestClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		c := n.client(nil, "a")
		events, _ := c.Subscribe(10)
		k := begin(t.Context(), t, c, "hold", args("key", "k"))
		_ = c.Close()
		if _, err := k.Wait(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("in flight: %v", err)
		}
		if _, err := c.Call(t.Context(), "apply", nil); !errors.Is(err, ErrClosed) {
			t.Errorf("after it: %v", err)
		}
		if _, err := c.Health(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("after it: %v", err)
		}
		last := Event{}
		for e := range events {
			last = e
		}
		if last.State != Closed || c.State() != Closed {
			t.Errorf("its last event is %+v", last)
		}
		_ = c.Close()
	})
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a", "b")
		defer n.stopAll()
		var log bytes.Buffer
		token := "orch_a-wrong-secret"
		c := n.client(func(c *Config) {
			c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			c.Token = func(context.Context) (string, error) { return token, nil }
		}, "a", "b")
		_, err := c.Call(t.Context(), "apply", args("key", "k"))
		if !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("with a wrong token: %v", err)
		}
		said := err.Error()
		// A good one is taken without a new client; and so is another one, when the first is revoked while it is connected.
		token = otherToken
		mustCall(t, c, "apply", args("key", "k"))
		n.door.revoked.Store(otherToken, true)
		token = goodToken
		if _, err := c.Call(t.Context(), "apply", args("key", "k2")); !fault.Is(err, fault.PermissionDenied) {
			t.Errorf("with a revoked token: %v", err)
		}
		mustCall(t, c, "apply", args("key", "k2"))
		n.door.revoked.Delete(otherToken)
		k := begin(t.Context(), t, c, "hold", args("key", "h"))
		if err := c.RotateToken(t.Context(), "orch_a-wrong-secret"); !fault.Is(err, fault.PermissionDenied) {
			t.Errorf("rotated to a wrong one: %v", err)
		}
		if err := c.RotateToken(t.Context(), otherToken); err != nil {
			t.Fatal(err)
		}
		// The next connection uses it, and the session is the same.
		for _, h := range n.hosts {
			h.cut()
		}
		until(t, c, Connected)
		close(n.ledger.gate("h"))
		if _, err := k.Wait(t.Context()); err != nil || len(n.ledger.effects("h")) != 1 {
			t.Errorf("across the rotation: %v, effects %v", err, n.ledger.effects("h"))
		}
		_ = c.Close()
		for _, secret := range []string{goodToken, otherToken, "wrong-secret"} {
			if strings.Contains(log.String(), secret) || strings.Contains(said, secret) {
				t.Errorf("the token %s was said:\n%s", secret, log.String())
			}
		}
		if !strings.Contains(log.String(), "connected") {
			t.Error("nothing was logged")
		}
	})
}

func TestConfig(t *testing.T) {
	secure := &tls.Config{MinVersion: tls.VersionTLS13}
	for _, x := range []struct {
		cfg  Config
		want string // what is wrong, or the WebSocket's URL
	}{
		{Config{}, "no server address"},
		{Config{Addresses: make([]string, 65)}, "more than 64"},
		{Config{Addresses: []string{"host"}}, "write it as host:port"},
		{Config{Addresses: []string{"ftp://host"}}, "its scheme"},
		{Config{Addresses: []string{"https://user:secret@host"}}, "is not a URL"},
		{Config{Addresses: []string{"far.example:8079"}}, "refused to connect"},
		{Config{Addresses: []string{"far.example:8079"}, Insecure: true, Token: StaticToken("x")}, "refused to send a token"},
		{Config{Addresses: []string{"http://far.example"}, TLS: secure}, "refused to connect"},
		{Config{Addresses: []string{"127.0.0.1:1"}, SessionID: "no"}, "session id"},
		{Config{Addresses: []string{"127.0.0.1:1"}, SessionID: "no spaces"}, "session id"},
		{Config{Addresses: []string{"127.0.0.1:1"}, Token: StaticToken("x")}, "ws://127.0.0.1:1/mcp"},
		{Config{Addresses: []string{"far.example:8079"}, Insecure: true}, "ws://far.example:8079/mcp"},
		{Config{Addresses: []string{"far.example:8079"}, TLS: secure, Token: StaticToken("x")}, "wss://far.example:8079/mcp"},
		{Config{Addresses: []string{"https://far.example/orch/"}, Token: StaticToken("x")}, "wss://far.example/orch/mcp"},
		{Config{Addresses: []string{"wss://far.example/mcp"}}, "wss://far.example/mcp"},
	} {
		all, err := x.cfg.check()
		got := ""
		if err != nil {
			got = err.Error()
			if !fault.Is(err, fault.Invalid) || strings.Contains(got, "secret") {
				t.Errorf("%v: %v", x.cfg.Addresses, err)
			}
		} else {
			got = all[0].ws
		}
		if !strings.Contains(got, x.want) {
			t.Errorf("%v: %q, not %q", x.cfg.Addresses, got, x.want)
		}
	}
}
