// What callers have over HTTP, beside calls: the list of tools, cancelling, and the same errors.
package toolclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

// quick makes a client whose first attempts come soon, for where WebSockets fail.
func quick(c *Config) { c.Backoff = Backoff{Min: 20 * time.Millisecond, Max: time.Second} }

// cancelled checks how a call ended whose caller did not want it any more, for both sides.
func cancelled(t *testing.T, n *network, key string, err error) {
	t.Helper()
	if !errors.Is(err, context.Canceled) || !fault.Is(err, fault.Aborted) || !strings.HasSuffix(err.Error(), "and stopped") {
		t.Errorf("%s: its caller is told %v", key, err)
	}
	if why := n.ledger.why(key); !errors.Is(why, tools.ErrCancelled) || len(n.ledger.effects(key)) != 0 {
		t.Errorf("%s: at the server it ended with %v, effects %v", key, why, n.ledger.effects(key))
	}
}

// Where no WebSocket gets through at all, everything but streams is there, and goes wrong in the same way.
func TestNoWebSocketAtAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		n.hosts["a"].noWS.Store(true)
		c := n.client(quick, "a")
		defer c.Close()
		list, err := c.ListTools(t.Context()) // before there is any way
		if err != nil || len(list) != len(tools.New(nil).List()) || list[0].Name == "" || list[0].Description == "" || !strings.HasPrefix(string(list[0].InputSchema), "{") {
			t.Fatalf("tools: %+v %v", list, err)
		}
		if c.State() != Fallback {
			t.Fatalf("it is %s", c.State())
		}
		k, err := c.Start(t.Context(), "hold", args("key", "k"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		began := time.Now()
		k.Cancel()
		_, err = k.Wait(t.Context())
		cancelled(t, n, "k", err)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s", took)
		}
		// One that is known to the server by its ack, as its result took longer than a request does.
		ctx, cancel := context.WithCancel(t.Context())
		if k, err = c.Start(ctx, "hold", args("key", "long"), WithDeadline(time.Now().Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(httpPoll + time.Second)
		cancel()
		_, err = k.Wait(t.Context())
		cancelled(t, n, "long", err)
		// The session has its results as ever, and there is nothing left of the two.
		if r := mustCall(t, c, "apply", args("key", "after")); r.Text() != "1" {
			t.Errorf("afterwards: %+v", r)
		}
		if _, err := c.Health(t.Context()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "needs a WebSocket") {
			t.Errorf("health: %v", err)
		}
		if s := c.Stats(); s.Connections != 0 || s.InFlight != 0 || n.hosts["a"].hub.Stats().InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Errors are the same in both ways: kind, code, field, and words.
func TestErrorsAreTheSameInBothWays(t *testing.T) {
	var told [2][]string
	for i, noWS := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t, "a")
			defer n.stopAll()
			n.hosts["a"].noWS.Store(noWS)
			c := n.client(quick, "a")
			defer c.Close()
			tell := func(err error) {
				f := fault.As(err)
				if f == nil {
					t.Fatalf("%v is no fault", err)
				}
				told[i] = append(told[i], fmt.Sprintf("%v %q %q %s: %v", f.Kind, CodeOf(err), f.Field, f.RetryAfter, err))
			}
			mustCall(t, c, "apply", args("key", "k"), WithRequestID("mine"))
			k, err := c.Start(t.Context(), "hold", args("key", "h"))
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			k.Cancel()
			_, err = k.Wait(t.Context())
			tell(err)
			for _, x := range []struct {
				name string
				a    any
				o    []Option
			}{
				{"nonesuch", nil, nil},
				{"fail", args("key", "x"), nil},
				{"apply", map[string]int{"key": 1}, nil},
				{"apply", args("key", "other"), []Option{WithRequestID("mine")}},
				{"fail", args("key", "z", "kind", "unavailable"), []Option{WithDeadline(time.Now().Add(10 * time.Millisecond))}},
				{"fail", args("key", "y", "kind", "full"), []Option{WithDeadline(time.Now().Add(time.Second))}},
			} {
				_, err := c.Call(t.Context(), x.name, x.a, x.o...)
				tell(err)
			}
			n.door.revoked.Store(goodToken, true)
			_, err = c.Call(t.Context(), "apply", nil)
			tell(err)
		})
	}
	if !slices.Equal(told[0], told[1]) {
		t.Errorf("over a WebSocket:\n%s\nover HTTP:\n%s", strings.Join(told[0], "\n"), strings.Join(told[1], "\n"))
	}
}

// The WebSocket goes in the middle: what was begun on it is cancelled over HTTP, also when that was said while nobody was reached; and
// what was begun over HTTP is cancelled on the WebSocket that comes back.
func TestCancellingAcrossWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		a := n.hosts["a"]
		c := n.client(func(c *Config) { quick(c); c.CancelPatience = time.Minute }, "a")
		defer c.Close()
		between, later, returns := begin(t.Context(), t, c, "hold", args("key", "between")), begin(t.Context(), t, c, "hold", args("key", "later")),
			begin(t.Context(), t, c, "hold", args("key", "returns"), WithDeadline(time.Now().Add(time.Hour)))
		a.noWS.Store(true)
		a.cut()
		until(t, c, Reconnecting)
		between.Cancel()
		_, err := between.Wait(t.Context())
		cancelled(t, n, "between", err)
		if c.State() != Fallback {
			t.Errorf("it is %s", c.State())
		}
		if list, err := c.ListTools(t.Context()); err != nil || len(list) == 0 {
			t.Errorf("tools: %v %v", list, err)
		}
		later.Cancel()
		_, err = later.Wait(t.Context())
		cancelled(t, n, "later", err)
		// The way over HTTP goes as well, before the cancel is said there.
		a.refuses.Store(true)
		a.cut()
		returns.Cancel()
		until(t, c, Reconnecting)
		a.noWS.Store(false)
		a.refuses.Store(false)
		_, err = returns.Wait(t.Context())
		if !errors.Is(err, context.Canceled) || !fault.Is(err, fault.Aborted) || !errors.Is(n.ledger.why("returns"), tools.ErrCancelled) {
			t.Errorf("back on the WebSocket: %v; at the server %v", err, n.ledger.why("returns"))
		}
		if s := c.Stats(); s.InFlight != 0 || a.hub.Stats().InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Two requests overtake one another: a call that arrives behind its cancel is not left to run.
func TestACancelThatComesBeforeItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		a := n.hosts["a"]
		a.noWS.Store(true)
		var cancels atomic.Int32
		late := make(chan struct{})
		a.through = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			switch r.URL.Path {
			case "/v1/call_tool":
				<-late
			case "/v1/cancel":
				if cancels.Add(1) == 2 {
					defer close(late)
				}
			}
			next.ServeHTTP(w, r)
		}
		c := n.client(quick, "a")
		defer c.Close()
		k, err := c.Start(t.Context(), "hold", args("key", "k"))
		if err != nil {
			t.Fatal(err)
		}
		until(t, c, Fallback)
		synctest.Wait()
		k.Cancel()
		_, err = k.Wait(t.Context())
		cancelled(t, n, "k", err)
		if got := cancels.Load(); got != 3 {
			t.Errorf("it was cancelled %d times", got)
		}
	})
}

// A call that its server does not know any more is made anew, unless it was cancelled.
func TestMakingACallAnew(t *testing.T) {
	for _, unwanted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t, "a")
			defer n.stopAll()
			a := n.hosts["a"]
			a.noWS.Store(true)
			var made, asked atomic.Int32
			ended := make(chan struct{})
			a.through = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				switch {
				case r.URL.Path == "/v1/call_tool":
					made.Add(1)
				case r.URL.Path == "/v1/cancel":
					next.ServeHTTP(w, r)
					close(ended)
					time.Sleep(time.Second) // its answer is on its way for long
					return
				case asked.Add(1) == 1 && strings.HasPrefix(r.URL.Path, "/v1/results/"):
					if unwanted {
						<-ended
					}
					w.WriteHeader(http.StatusNotFound)
					_, _ = io.WriteString(w, `{"op":"call_tool_res","error":{"code":"NOT_FOUND","message":"it is not known"}}`)
					return
				}
				next.ServeHTTP(w, r)
			}
			c := n.client(quick, "a")
			defer c.Close()
			until(t, c, Fallback)
			asked.Store(0) // hello
			k, err := c.Start(t.Context(), "hold", args("key", "k"), WithDeadline(time.Now().Add(time.Hour)))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(httpPoll + time.Second)
			want := int32(2)
			if unwanted {
				want = 1
				k.Cancel()
			} else {
				close(n.ledger.gate("k"))
			}
			switch _, err := k.Wait(t.Context()); {
			case unwanted:
				cancelled(t, n, "k", err)
			case err != nil:
				t.Error(err)
			}
			if got := made.Load(); got != want {
				t.Errorf("cancelled %v: it was made %d times", unwanted, got)
			}
		})
	}
}

// A result that came before the cancel is the call's end.
func TestAResultBeforeTheCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a")
		defer n.stopAll()
		a := n.hosts["a"]
		a.noWS.Store(true)
		arrived, goes := make(chan struct{}), make(chan struct{})
		a.through = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Path == "/v1/cancel" {
				close(arrived)
				<-goes
			}
			next.ServeHTTP(w, r)
		}
		c := n.client(quick, "a")
		defer c.Close()
		k, err := c.Start(t.Context(), "hold", args("key", "k"))
		if err != nil {
			t.Fatal(err)
		}
		until(t, c, Fallback)
		synctest.Wait()
		k.Cancel()
		<-arrived
		close(n.ledger.gate("k"))
		if r, err := k.Wait(t.Context()); err != nil || r.Text() != "1" {
			t.Errorf("%+v %v", r, err)
		}
		close(goes)
	})
}

// A server that takes a cancel and says nothing is waited for as long as CancelPatience; one that is full is asked again when it says.
func TestACancelThatIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.start("a", func(o *socket.Options) { o.Limits.PerUser = socket.Rate{Burst: 3, PerSecond: 2} })
		defer n.stopAll()
		a.noWS.Store(true)
		var silent atomic.Bool
		quiet := make(chan struct{})
		a.through = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Path == "/v1/cancel" && silent.Load() {
				<-quiet
			}
			next.ServeHTTP(w, r)
		}
		c := n.client(quick, "a")
		defer c.Close()
		until(t, c, Fallback)
		k, err := c.Start(t.Context(), "hold", args("key", "full"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := c.ListTools(t.Context()); err != nil { // the last that it takes for now
			t.Fatal(err)
		}
		k.Cancel()
		_, err = k.Wait(t.Context())
		cancelled(t, n, "full", err)
		if refused := a.hub.Stats().OverCapacity; refused == 0 || refused > 3 {
			t.Errorf("%d refusals", refused)
		}
		// Who lists while it is full waits, too.
		if _, err := c.ListTools(t.Context()); err != nil {
			t.Error(err)
		}
		silent.Store(true)
		if k, err = c.Start(t.Context(), "hold", args("key", "silent")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		began := time.Now()
		k.Cancel()
		if _, err := k.Wait(t.Context()); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "may go on") || time.Since(began) != DefaultCancelPatience {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		close(quiet)
	})
}

// A server that dies while it is asked for its tools is not waited for: another one has the same.
func TestListingAtAServerThatDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, "a", "b")
		defer n.stopAll()
		asked := make(chan *host, 2)
		var first atomic.Bool
		for _, h := range n.hosts {
			h.noWS.Store(true)
			h.through = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Path == "/v1/tools" && first.CompareAndSwap(false, true) {
					asked <- h
					<-r.Context().Done()
					return
				}
				next.ServeHTTP(w, r)
			}
		}
		c := n.client(quick, "a", "b")
		defer c.Close()
		listed := make(chan error)
		go func() {
			list, err := c.ListTools(t.Context())
			if err == nil && len(list) == 0 {
				err = errors.New("there are none")
			}
			listed <- err
		}()
		(<-asked).kill()
		if err := <-listed; err != nil {
			t.Error(err)
		}
		// Nobody waits for a list whose caller has gone, or whose client is closed.
		first.Store(false)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		if _, err := c.ListTools(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	})
}

// However connections break, in both ways: a call whose caller was told that it was cancelled runs no more.
func TestWhatIsCancelledDoesNotRunOn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		calls := rapid.IntRange(1, 30).Draw(rt, "calls")
		most := rapid.Int64Range(1500, 20_000).Draw(rt, "bytes of a connection, at most")
		fallback := rapid.SampledFrom([]int{-1, 1, 3}).Draw(rt, "fallback after")
		noWS := rapid.Bool().Draw(rt, "no WebSocket")
		wrong := ""
		synctest.Test(t, func(t *testing.T) { wrong = runsOn(t, seed, calls, most, fallback, noWS && fallback > 0) })
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

func runsOn(t *testing.T, seed uint64, calls int, most int64, fallback int, noWS bool) (wrong string) {
	chance := rand.New(rand.NewPCG(seed, 0))
	n := newNetwork(t, "a")
	defer n.stopAll()
	defer time.Sleep(time.Second) // until no request is on its way
	a := n.hosts["a"]
	a.noWS.Store(noWS)
	var mu sync.Mutex
	delays := rand.New(rand.NewPCG(seed, 3))
	a.through = func(w http.ResponseWriter, r *http.Request, next http.Handler) { // requests overtake one another
		mu.Lock()
		d := time.Duration(delays.Int64N(int64(50 * time.Millisecond)))
		mu.Unlock()
		time.Sleep(d)
		next.ServeHTTP(w, r)
	}
	n.budget = func() int64 { return chance.Int64N(most) } // under its lock
	c := n.client(func(c *Config) {
		c.Rand = rand.New(rand.NewPCG(seed, 1)).Float64
		c.FallbackAfter, c.CancelPatience = fallback, 24*time.Hour
		c.Backoff = Backoff{Min: 20 * time.Millisecond, Max: 100 * time.Millisecond, Attempts: 1 << 30}
		c.Breaker = Breaker{Failures: 1000}
	}, "a")
	defer c.Close()
	pauses := rand.New(rand.NewPCG(seed, 2))
	var all []*Pending
	for i := range calls {
		k, err := c.Start(t.Context(), "hold", args("key", fmt.Sprint(i)), WithDeadline(time.Now().Add(24*time.Hour)))
		if err != nil {
			return err.Error()
		}
		all = append(all, k)
		time.Sleep(time.Duration(pauses.Int64N(int64(100 * time.Millisecond))))
		all[pauses.IntN(len(all))].Cancel()
	}
	for _, k := range all {
		k.Cancel()
	}
	time.Sleep(2 * time.Second)
	n.mu.Lock()
	n.budget = func() int64 { return -1 }
	n.mu.Unlock()
	for i, k := range all {
		if _, err := k.Wait(t.Context()); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "may go on") {
			return fmt.Sprintf("call %d: %v", i, err)
		}
	}
	synctest.Wait()
	for i := range all {
		key := fmt.Sprint(i)
		if n.ledger.ran(key) > 0 && !errors.Is(n.ledger.why(key), tools.ErrCancelled) {
			return fmt.Sprintf("call %d runs on, %v", i, n.ledger.why(key))
		}
	}
	return ""
}
