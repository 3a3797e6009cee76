// What happens when connections, servers and ways to them fail: calls take longer, and nothing else.
package toolclient

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestAConnectionBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		c := n.client(nil, "a")
		defer c.Close()
		until(t, c, Connected)
		events, _ := c.Subscribe(100)
		var all []*Pending
		for i := range 10 {
			all = append(all, begin(t.Context(), t, c, "hold", args("key", fmt.Sprint("h", i))))
		}
		n.hosts["a"].cut()
		close(n.ledger.gate("h0")) // while nobody is connected
		synctest.Wait()
		for i := 1; i < 5; i++ {
			close(n.ledger.gate(fmt.Sprint("h", i)))
		}
		until(t, c, Connected)
		synctest.Wait()
		for i := 5; i < 10; i++ {
			close(n.ledger.gate(fmt.Sprint("h", i)))
		}
		for i, k := range all {
			key := fmt.Sprint("h", i)
			if _, err := k.Wait(t.Context()); err != nil || len(n.ledger.effects(key)) != 1 || n.ledger.ran(key) != 1 {
				t.Errorf("%s: %v, ran %d times", key, err, n.ledger.ran(key))
			}
		}
		var states []State
		for range 2 {
			states = append(states, (<-events).State)
		}
		if fmt.Sprint(states) != "[reconnecting connected]" {
			t.Errorf("it said %v", states)
		}
		// What had ended before it came back was kept and came by itself; the rest was asked for again.
		if s := c.Stats(); s.Connections != 2 || s.Repeated != 5 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The server dies with calls in flight: another one is asked, and there is one effect of each.
func TestAServerDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a", "b", "c")
		defer n.stopAll()
		c := n.client(func(c *Config) { c.Rand = func() float64 { return 0 } }, "a", "b", "c")
		defer c.Close()
		var text []string
		held := begin(t.Context(), t, c, "hold", args("key", "h"))
		streams, err := c.Start(t.Context(), "stream", args("key", "s", "n", "2"), OnChunk(func(ch Chunk) { text = append(text, fmt.Sprint(ch.Text, ch.Again)) }))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n.hosts["a"].kill()
		until(t, c, Connected)
		synctest.Wait()
		n.hosts["b"].kill()
		until(t, c, Connected)
		close(n.ledger.gate("h"))
		close(n.ledger.gate("s"))
		if _, err := held.Wait(t.Context()); err != nil || len(n.ledger.effects("h")) != 1 || n.ledger.ran("h") != 3 {
			t.Errorf("%v, keys %v, ran %d times", err, n.ledger.effects("h"), n.ledger.ran("h"))
		}
		if _, err := streams.Wait(t.Context()); err != nil || fmt.Sprint(text) != "[0;false 1;false 0;true 1;false 0;true 1;false]" {
			t.Errorf("streamed %v, %v", text, err)
		}
	})
}

// A server that stops answers with SERVICE_UNAVAILABLE and closes with 1001: its calls go on elsewhere.
func TestAServerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a", "b")
		defer n.stopAll()
		c := n.client(func(c *Config) { c.Rand = func() float64 { return 0 } }, "a", "b")
		defer c.Close()
		k := begin(t.Context(), t, c, "hold", args("key", "h"))
		events, _ := c.Subscribe(100)
		n.hosts["a"].stop(3 * time.Second)
		until(t, c, Connected)
		var closed *websocket.CloseError
		if e := <-events; e.State != Reconnecting || !errors.As(e.Err, &closed) || closed.Code != websocket.CloseGoingAway {
			t.Errorf("it ended with %+v", e)
		}
		close(n.ledger.gate("h"))
		if r, err := k.Wait(t.Context()); err != nil || r.Text() != "1" || len(n.ledger.effects("h")) != 1 {
			t.Errorf("%+v %v", r, err)
		}
	})
}

// Another client with the same session takes it over. It is not fought over: the first one waits before it takes it back.
func TestATakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		share := func(c *Config) { c.SessionID = "shared" }
		c := n.client(share, "a")
		defer c.Close()
		k := begin(t.Context(), t, c, "hold", args("key", "h"), WithRequestID("h"))
		other := n.client(share, "a")
		until(t, c, Reconnecting)
		began := time.Now()
		// It may have the result of the other one's call.
		close(n.ledger.gate("h"))
		if r := mustCall(t, other, "hold", args("key", "h"), WithRequestID("h")); r.Text() != "1" {
			t.Errorf("the other one: %+v", r)
		}
		_ = other.Close()
		r, err := k.Wait(t.Context())
		if err != nil || r.Text() != "1" || n.ledger.ran("h") != 1 {
			t.Errorf("the first one: %+v %v", r, err)
		}
		if took := time.Since(began); took < 29*time.Second {
			t.Errorf("it took the session back after %s", took)
		}
	})
}

// Nothing comes any more, and nothing says so: three pings later another connection is made.
func TestASilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a", "b")
		defer n.stopAll()
		c := n.client(func(c *Config) { c.PingEvery, c.Rand = 10*time.Second, func() float64 { return 0 } }, "a", "b")
		defer c.Close()
		k := begin(t.Context(), t, c, "hold", args("key", "h"))
		time.Sleep(time.Hour) // pings are answered
		if s := c.Stats(); s.Connections != 1 {
			t.Fatalf("in an hour: %+v", s)
		}
		k.Cancel()
		_, _ = k.Wait(t.Context())
		k = begin(t.Context(), t, c, "hold", args("key", "i"), WithDeadline(time.Now().Add(time.Hour)))
		n.hosts["a"].mute()
		began := time.Now()
		until(t, c, Reconnecting)
		if took := time.Since(began); took < 20*time.Second || took > 40*time.Second {
			t.Errorf("it was noticed after %s", took)
		}
		close(n.ledger.gate("i"))
		if _, err := k.Wait(t.Context()); err != nil || len(n.ledger.effects("i")) != 1 {
			t.Error(err)
		}
	})
}

// The pauses double from 1 s to 30 s, and after ten attempts go from 30 s to 5 min. It never gives up.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		n.hosts["a"].refuses.Store(true)
		c := n.client(func(c *Config) {
			c.Rand = func() float64 { return 0.999999 } // the bounds
			c.FallbackAfter = -1
			c.Breaker.Failures = 1000
		}, "a")
		defer c.Close()
		k, err := c.Start(t.Context(), "apply", args("key", "k"), WithDeadline(time.Now().Add(2*time.Hour)))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		var got []string
		n.mu.Lock()
		for i := 1; i < min(len(n.dialed), 18); i++ {
			got = append(got, n.dialed[i].Sub(n.dialed[i-1]).Round(100*time.Millisecond).String())
		}
		n.mu.Unlock()
		if want := "1s 2s 4s 8s 16s 30s 30s 30s 30s 30s 1m0s 2m0s 4m0s 5m0s 5m0s 5m0s 5m0s"; strings.Join(got, " ") != want {
			t.Errorf("pauses were %v", got)
		}
		// Who comes new, when an attempt has just failed, does not wait for minutes.
		for before := n.hosts["a"].dials.Load(); n.hosts["a"].dials.Load() == before; {
			time.Sleep(time.Second)
		}
		n.hosts["a"].refuses.Store(false)
		began := time.Now()
		mustCall(t, c, "apply", args("key", "new"))
		if took := time.Since(began); took > 31*time.Second {
			t.Errorf("a new call took %s", took)
		}
		if _, err := k.Wait(t.Context()); err != nil {
			t.Errorf("after an hour: %v", err)
		}
	})
}

// Full jitter: pauses are anywhere between 0 and their bound.
func TestPauses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at, failures := rapid.Float64Range(0, 0.999).Draw(t, "rand"), rapid.IntRange(0, 10_000).Draw(t, "failures")
		cfg := Config{Addresses: []string{"127.0.0.1:1"}, Rand: func() float64 { return at }}
		if _, err := cfg.check(); err != nil {
			t.Fatal(err)
		}
		o := owner{cfg: &cfg}
		d := o.pauseFor(failures)
		switch {
		case failures < 10 && (d < 0 || d > 30*time.Second || failures <= 1 && d > time.Second):
			t.Errorf("after %d failures it waits %s", failures, d)
		case failures >= 10 && (d < 30*time.Second || d > 5*time.Minute):
			t.Errorf("after %d failures it waits %s", failures, d)
		}
	})
}

// An address that keeps failing is left alone; after a while one attempt is let through.
func TestBreakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "bad", "good")
		defer n.stopAll()
		bad, good := n.hosts["bad"], n.hosts["good"]
		bad.refuses.Store(true)
		c := n.client(func(c *Config) {
			c.Rand = rand.New(rand.NewPCG(1, 2)).Float64
			c.FallbackAfter = -1
			c.Breaker = Breaker{Failures: 3, OpenFor: time.Minute}
			c.Backoff = Backoff{Min: time.Second, Max: 2 * time.Second}
		}, "bad", "good")
		defer c.Close()
		until(t, c, Connected)
		began := time.Now()
		for time.Since(began) < 55*time.Second { // the good one's connections break again and again
			mustCall(t, c, "apply", args("key", "k"))
			good.cut()
			synctest.Wait()
		}
		if tried := bad.dials.Load(); tried > 4 {
			t.Errorf("the bad one was tried %d times", tried)
		}
		if tried := good.dials.Load(); tried < 20 {
			t.Errorf("the good one was tried %d times", tried)
		}
		before := bad.dials.Load()
		bad.refuses.Store(false)
		for bad.dials.Load() == before { // half-open
			mustCall(t, c, "apply", args("key", "k"))
			good.cut()
			synctest.Wait()
		}
		good.refuses.Store(true)
		mustCall(t, c, "apply", args("key", "k"))
	})
}

// Where no WebSocket gets through, HTTP is used: what was in flight goes on, and new calls are taken; and back again.
func TestFallbackAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a", "b")
		defer n.stopAll()
		c := n.client(nil, "a", "b")
		defer c.Close()
		held := begin(t.Context(), t, c, "hold", args("key", "h"))
		long := begin(t.Context(), t, c, "hold", args("key", "l"), WithDeadline(time.Now().Add(time.Hour)))
		for _, h := range n.hosts {
			h.noWS.Store(true)
			h.cut()
		}
		until(t, c, Fallback)
		var all []*Pending
		for i := range 20 {
			k, err := c.Start(t.Context(), "apply", args("key", fmt.Sprint("over http ", i), "takes", "40s"))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, k)
		}
		for _, k := range all {
			if r, err := k.Wait(t.Context()); err != nil || r.Text() == "" {
				t.Errorf("over HTTP: %+v %v", r, err)
			}
		}
		close(n.ledger.gate("h"))
		if _, err := held.Wait(t.Context()); err != nil || len(n.ledger.effects("h")) != 1 {
			t.Errorf("what was in flight: %v", err)
		}
		if _, err := c.Call(t.Context(), "fail", args("key", "x")); !fault.Is(err, fault.NotFound) || CodeOf(err) != codeNotFound {
			t.Errorf("a refusal over HTTP: %v", err)
		}
		if r := mustCall(t, c, "fail", args("key", "busy", "kind", "full-once")); r.Text() != "taken" {
			t.Errorf("a refusal for a while: %+v", r)
		}
		if list, err := c.ListTools(t.Context()); err != nil || len(list) != len(tools.New(nil).List()) {
			t.Errorf("the tools over HTTP: %v %v", list, err)
		}
		// The server that is asked dies: the other one is asked.
		for _, h := range n.hosts {
			if h.asked.Load() > 0 {
				h.kill()
			}
		}
		mustCall(t, c, "apply", args("key", "after"))
		ctx, cancel := context.WithCancel(t.Context())
		k, err := c.Start(ctx, "hold", args("key", "c"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		cancel()
		if _, err := k.Wait(t.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled over HTTP: %v", err)
		}
		if why := n.ledger.why("c"); !errors.Is(why, tools.ErrCancelled) {
			t.Errorf("at the server it ended with %v", why)
		}
		for _, h := range n.hosts {
			h.noWS.Store(false)
		}
		until(t, c, Connected)
		synctest.Wait()
		close(n.ledger.gate("l"))
		if r, err := long.Wait(t.Context()); err != nil || len(n.ledger.effects("l")) != 1 {
			t.Errorf("what went over HTTP goes on: %+v %v", r, err)
		}
		if s := c.Stats(); s.OverHTTP < 20 || s.Connections != 2 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A server whose rate is reached over HTTP is left alone as it asks for.
func TestRefusalsOverHTTPAreWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		h := n.start("a", func(o *socket.Options) { o.Limits.PerUser = socket.Rate{Burst: 5, PerSecond: 10} })
		h.noWS.Store(true)
		defer n.stopAll()
		c := n.client(func(c *Config) { c.FallbackAfter = 1 }, "a")
		defer c.Close()
		var all []*Pending
		for i := range 300 {
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
		if refused := h.hub.Stats().OverCapacity; refused > 1000 || len(n.ledger.answers) != 300 {
			t.Errorf("%d refusals, %d effects", refused, len(n.ledger.answers))
		}
	})
}

// GiveUpAfter has calls fail that nobody takes.
func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		n.hosts["a"].refuses.Store(true)
		c := n.client(func(c *Config) { c.GiveUpAfter, c.FallbackAfter = 3, 1 }, "a")
		defer c.Close()
		if _, err := c.Call(t.Context(), "apply", nil); !fault.Is(err, fault.Unavailable) || !errors.Is(err, errRefused) {
			t.Errorf("at nobody: %v", err)
		}
		if _, err := c.ListTools(t.Context()); !fault.Is(err, fault.Unavailable) {
			t.Errorf("at nobody: %v", err)
		}
		n.hosts["a"].refuses.Store(false)
		mustCall(t, c, "apply", args("key", "k"))
	})
}

// A call whose message is too large for the server is refused, and does not end one connection after the other.
func TestACallThatIsTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.start("a", func(o *socket.Options) { o.Limits.FrameBytes = 10_000 })
		defer n.stopAll()
		c := n.client(nil, "a")
		defer c.Close()
		k := begin(t.Context(), t, c, "hold", args("key", "h"))
		if _, err := c.Call(t.Context(), "apply", args("key", strings.Repeat("x", 20_000))); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "max_frame_bytes") {
			t.Errorf("too large: %v", err)
		}
		close(n.ledger.gate("h"))
		if _, err := k.Wait(t.Context()); err != nil {
			t.Errorf("its neighbour: %v", err)
		}
	})
}

// Each call has one effect and one answer, which is that effect's, however connections break and servers die.
func TestOneAnswerWhateverBreaks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		servers := rapid.IntRange(1, 3).Draw(rt, "servers")
		calls := rapid.IntRange(1, 100).Draw(rt, "calls")
		most := rapid.Int64Range(1500, 20_000).Draw(rt, "bytes of a connection, at most")
		fallback := rapid.SampledFrom([]int{-1, 1, 3}).Draw(rt, "fallback after")
		deaths := rapid.IntRange(0, 4).Draw(rt, "deaths")
		wrong := ""
		synctest.Test(t, func(t *testing.T) { wrong = oneAnswer(t, seed, servers, calls, most, fallback, deaths) })
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

func oneAnswer(t *testing.T, seed uint64, servers, calls int, most int64, fallback, deaths int) (wrong string) {
	chance := rand.New(rand.NewPCG(seed, 0))
	names := []string{"a", "b", "c"}[:servers]
	n := newNetwork(t, names...)
	defer n.stopAll()
	n.budget = func() int64 { return chance.Int64N(most) } // under its lock
	c := n.client(func(c *Config) {
		c.Rand = rand.New(rand.NewPCG(seed, 1)).Float64
		c.FallbackAfter, c.MaxInFlight = fallback, 16
		c.Backoff = Backoff{Min: 20 * time.Millisecond, Max: 100 * time.Millisecond, Attempts: 1 << 30}
		c.Breaker = Breaker{Failures: 1000}
	}, names...)
	defer c.Close()
	var all []*Pending
	for i := range calls {
		k, err := c.Start(t.Context(), "apply", args("key", fmt.Sprint(i), "takes", (time.Duration(i%7)*10*time.Millisecond).String()), WithDeadline(time.Now().Add(24*time.Hour)))
		if err != nil {
			return err.Error()
		}
		all = append(all, k)
	}
	for i := range deaths {
		time.Sleep(100 * time.Millisecond)
		name := names[i%servers]
		n.hosts[name].kill()
		n.start(name, nil)
	}
	time.Sleep(2 * time.Second)
	n.mu.Lock()
	n.budget = func() int64 { return -1 } // what is larger than any connection lasts gets through in the end
	n.mu.Unlock()
	for i, k := range all {
		r, err := k.Wait(t.Context())
		if err != nil {
			return fmt.Sprintf("call %d: %v", i, err)
		}
		effects := n.ledger.effects(fmt.Sprint(i))
		if len(effects) != 1 || effects[0] != r.Text() {
			return fmt.Sprintf("call %d was answered %s; its effects were %v", i, r.Text(), effects)
		}
	}
	if s := c.Stats(); s.InFlight != 0 {
		return fmt.Sprintf("after all of them: %+v", s)
	}
	return ""
}
