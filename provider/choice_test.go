// Which endpoint and which provider a call goes to.

package provider

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fakeprovider"
	"github.com/neolith/orchestrator/internal/fault"
)

// keys counts calls by the key that they showed.
func keys(f *fakeprovider.Server) map[string]int {
	m := map[string]int{}
	for _, c := range f.Calls() {
		m[c.Key]++
	}
	return m
}

// withKeys gives a provider several keys.
func withKeys(t *testing.T, weights map[string]int) func(*PoolConfig) {
	return func(c *PoolConfig) {
		c.Insecure = true
		for _, k := range slices.Sorted(func(yield func(string) bool) {
			for k := range weights {
				if !yield(k) {
					return
				}
			}
		}) {
			c.Endpoints = append(c.Endpoints, EndpointConfig{KeyFile: keyFile(t, k), Weight: weights[k]})
		}
	}
}

func TestBalanceOverKeys(t *testing.T) {
	c := one(OpenAI, withKeys(t, map[string]int{"k1": 1, "k2": 1, "k3": 2}), func(c *PoolConfig) { c.Max = 40 })
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		fake := w.fakes["a"]
		for range 40 { // one after another: by turns
			if _, err := w.Chat(t.Context(), ask()); err != nil {
				t.Fatal(err)
			}
		}
		if got := keys(fake); got["k1"] != 10 || got["k2"] != 10 || got["k3"] != 20 {
			t.Errorf("by turns: %v", got)
		}
		if w.net.Dials("a:80") != 1 {
			t.Errorf("%d connections for three keys of one host, one call at a time", w.net.Dials("a:80"))
		}
		fake.Usually(step{Delay: time.Second})
		if failed := w.together(40); len(failed) > 0 { // at once: the least busy
			t.Fatal(failed)
		}
		if got := keys(fake); got["k1"] != 20 || got["k2"] != 20 || got["k3"] != 40 {
			t.Errorf("at once: %v", got)
		}
	})
}

func TestTheLeastBusyKeyIsTaken(t *testing.T) {
	c := one(OpenAI, withKeys(t, map[string]int{"k1": 1, "k2": 1}))
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		w.fakes["a"].Script(step{Delay: time.Minute})
		done := make(chan error)
		go func() { _, err := w.Chat(t.Context(), ask()); done <- err }()
		w.settle()
		busy := w.fakes["a"].Calls()[0].Key
		for range 5 {
			if _, err := w.Chat(t.Context(), ask()); err != nil {
				t.Fatal(err)
			}
		}
		if got := keys(w.fakes["a"]); got[busy] != 1 {
			t.Errorf("%s was busy: %v", busy, got)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A stream is read to its end, so that its connection serves the next.
func TestAStreamLeavesItsConnection(t *testing.T) {
	for _, dialect := range []string{OpenAI, Anthropic} {
		inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(dialect)}}}, func(t *testing.T, w *world) {
			for _, s := range []step{{}, {Status: 429, RetryAfter: "1"}, {Status: 500}, {}} {
				w.fakes["a"].Script(s)
				if _, _, err := w.stream(t.Context(), ask()); err != nil {
					t.Fatal(err)
				}
			}
			if d := w.net.Dials("a:80"); d != 1 {
				t.Errorf("%s: %d connections", dialect, d)
			}
		})
	}
}

// A key that is refused is left alone, the others take its calls, and a new one in its file is taken without a restart.
func TestAKeyThatIsRefused(t *testing.T) {
	c := one(OpenAI, withKeys(t, map[string]int{"bad": 1, "good": 1}))
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		fake := w.fakes["a"]
		fake.Accept("good", "new")
		for range 10 {
			if _, err := w.Chat(t.Context(), ask()); err != nil {
				t.Fatal(err)
			}
		}
		if got := keys(fake); got["bad"] != 1 || got["good"] != 10 {
			t.Errorf("%v", got)
		}
		s := w.List()[0]
		if e := s.Endpoints[0]; e.BlockedBecause != "key refused" || e.Breaker != "closed" || !s.Healthy {
			t.Errorf("%+v", s)
		}
		write(t, c.Endpoints[0].KeyFile, "new")
		w.run()
		time.Sleep(time.Second)
		for range 10 {
			if _, err := w.Chat(t.Context(), ask()); err != nil {
				t.Fatal(err)
			}
		}
		if got := keys(fake); got["bad"] != 1 || got["new"] != 5 {
			t.Errorf("%v", got)
		}
	})
}

func TestSeveralHosts(t *testing.T) {
	c := one(OpenAI, func(c *PoolConfig) { c.Endpoints = []EndpointConfig{{URL: "http://a"}, {URL: "http://b"}} })
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		for range 10 {
			if _, err := w.Chat(t.Context(), ask()); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := w.fakes["a"].Count(), w.fakes["b"].Count(); a != 5 || b != 5 {
			t.Errorf("%d and %d", a, b)
		}
		w.net.Refuse("a:80", true)
		w.list[0].slots.Reset()
		w.settle()
		for range 10 {
			if _, err := w.Chat(t.Context(), ask()); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := w.fakes["a"].Count(), w.fakes["b"].Count(); a != 5 || b != 15 {
			t.Errorf("%d and %d with a down", a, b)
		}
	})
}

func TestFailover(t *testing.T) {
	base := one(OpenAI)
	base.Models = []ModelConfig{{Name: "shared", Upstream: "m-of-a"}, {Name: "only-a"}}
	other := one(Anthropic, func(c *PoolConfig) { c.Models = []ModelConfig{{Name: "own"}, {Name: "shared", Upstream: "m-of-b"}} })
	for _, c := range []struct {
		name   string
		a      []step
		down   bool // a cannot be reached
		change func(*Request)
		want   string // the provider that answers; the kind when none
		model  string // that it was asked for, by its own name
		seen   [2]int
	}{
		{name: "the first, by order", want: "a", model: "m-of-a", seen: [2]int{1, 0}},
		{name: "500", a: []step{{Status: 500}}, want: "b", model: "own", seen: [2]int{1, 1}},
		{name: "429", a: []step{{Status: 429, RetryAfter: "1"}}, want: "b", model: "own", seen: [2]int{1, 1}},
		{name: "401", a: []step{{Status: 401}}, want: "b", model: "own", seen: [2]int{1, 1}},
		{name: "404", a: []step{{Status: 404}}, want: "b", model: "own", seen: [2]int{1, 1}},
		{name: "unreachable", down: true, want: "b", model: "own", seen: [2]int{0, 1}},
		{name: "400 would be the same elsewhere", a: []step{{Status: 400}}, want: "invalid", seen: [2]int{1, 0}},
		{name: "an unsure one stays", a: []step{{DropConnection: true}}, want: "unavailable", seen: [2]int{1, 0}},
		{name: "an unsure one goes on request", a: []step{{DropConnection: true}}, change: func(r *Request) { r.RepeatUnsure = true }, want: "b", model: "own", seen: [2]int{1, 1}},
		{name: "a shared model, by its name at each", a: []step{{Status: 503}}, change: func(r *Request) { r.Model = "shared" }, want: "b", model: "m-of-b", seen: [2]int{1, 1}},
		{name: "a model of one alone", a: []step{{Status: 503}}, change: func(r *Request) { r.Model = "only-a" }, want: "a", model: "only-a", seen: [2]int{2, 0}},
		{name: "a model of the second alone", change: func(r *Request) { r.Model = "own" }, want: "b", model: "own", seen: [2]int{0, 1}},
		{name: "a named provider, and no other", a: []step{{Status: 503}}, change: func(r *Request) { r.Provider = "a" }, want: "a", model: "m-of-a", seen: [2]int{2, 0}},
		{name: "a preferred provider", change: func(r *Request) { r.PreferProvider = "b" }, want: "b", model: "own", seen: [2]int{0, 1}},
		{name: "a preferred model there", change: func(r *Request) { r.PreferProvider, r.PreferModel = "b", "shared" }, want: "b", model: "m-of-b", seen: [2]int{0, 1}},
		{name: "a preferred provider that is down", a: []step{{Status: 503}}, change: func(r *Request) { r.PreferProvider, r.PreferModel = "a", "only-a" }, want: "b", model: "own", seen: [2]int{1, 1}},
		{name: "a preferred provider that is gone", change: func(r *Request) { r.PreferProvider, r.PreferModel = "gone", "own" }, want: "b", model: "own", seen: [2]int{0, 1}},
		{name: "a preference that is gone", change: func(r *Request) { r.PreferProvider, r.PreferModel = "gone", "none" }, want: "a", model: "m-of-a", seen: [2]int{1, 0}},
		{name: "a provider before a preference", change: func(r *Request) { r.Provider, r.PreferProvider, r.PreferModel = "b", "a", "shared" }, want: "b", model: "m-of-b", seen: [2]int{0, 1}},
		{name: "a model before a preference", change: func(r *Request) { r.Model, r.PreferProvider, r.PreferModel = "shared", "b", "own" }, want: "b", model: "m-of-b", seen: [2]int{0, 1}},
		{name: "no such model", change: func(r *Request) { r.Model = "none" }, want: "not found"},
		{name: "no such provider", change: func(r *Request) { r.Provider = "none" }, want: "not found"},
		{name: "not its model", change: func(r *Request) { r.Provider, r.Model = "b", "only-a" }, want: "not found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Options{Config: Config{Pools: []PoolConfig{base, named("b", other)}}}, func(t *testing.T, w *world) {
				w.fakes["a"].Script(c.a...)
				w.net.Refuse("a:80", c.down)
				r := ask()
				if c.change != nil {
					c.change(&r)
				}
				res, text, err := w.stream(t.Context(), r)
				got := ""
				if err != nil {
					got = fault.KindOf(err).String()
				} else if got = res.Provider; text != "echo: hello there" {
					t.Errorf("%+v", res)
				}
				if got != c.want {
					t.Errorf("%s, %v", got, err)
				}
				a, b := w.fakes["a"].Calls(), w.fakes["b"].Calls()
				if len(a) != c.seen[0] || len(b) != c.seen[1] {
					t.Errorf("a saw %d, b saw %d", len(a), len(b))
				}
				if all := append(a, b...); err == nil && all[len(all)-1].Model != c.model {
					t.Errorf("asked for %s", all[len(all)-1].Model)
				}
			})
		})
	}
}

func TestErrorsTellOfAllThatWasTried(t *testing.T) {
	inBubble(t, Options{Config: Config{AttemptsMax: 2, Pools: []PoolConfig{one(OpenAI), named("b", one(OpenAI))}}}, func(t *testing.T, w *world) {
		w.fakes["a"].Usually(step{Status: 429, RetryAfter: "7"})
		w.fakes["b"].Usually(step{Status: 500})
		_, err := w.Chat(t.Context(), ask())
		wantKind(t, err, fault.Unavailable)
		if want := "chat: b/1: failed (status 500): the script says 500 (tried before: a/1 (exhausted))"; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
	p, err := New(Options{Config: Defaults()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = p.Chat(t.Context(), ask())
	wantKind(t, err, fault.FailedPrecondition)
}

func TestRateLimits(t *testing.T) {
	t.Run("requests a minute", func(t *testing.T) {
		c := one(OpenAI, func(c *PoolConfig) { c.RequestsPerMinute = 10 })
		inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
			for i := range 10 {
				if _, err := w.Chat(t.Context(), ask()); err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
			}
			if left := w.List()[0].Endpoints[0].RequestsLeft; left != 0 {
				t.Errorf("%d left", left)
			}
			_, err := w.Chat(t.Context(), ask())
			wantKind(t, err, fault.Exhausted)
			if e := fault.As(err); e.RetryAfter < 55*time.Second || e.RetryAfter > 75*time.Second {
				t.Errorf("come back in %s", e.RetryAfter)
			}
			time.Sleep(58 * time.Second) // short enough to wait for
			if _, err := w.Chat(t.Context(), ask()); err != nil {
				t.Error(err)
			}
			if n := w.fakes["a"].Count(); n != 11 {
				t.Errorf("%d calls", n)
			}
		})
	})
	t.Run("what was not sent does not count", func(t *testing.T) {
		c := one(OpenAI, func(c *PoolConfig) { c.RequestsPerMinute, c.TokensPerMinute, c.BreakerFailures = 2, 10_000, 100 })
		inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
			w.net.Refuse("a:80", true)
			time.AfterFunc(2*time.Second, func() { w.net.Refuse("a:80", false) })
			for range 2 {
				if _, err := w.Chat(t.Context(), ask()); err != nil {
					t.Error(err)
				}
			}
		})
	})
	t.Run("waiting for a limit is waiting", func(t *testing.T) {
		c := one(OpenAI, func(c *PoolConfig) { c.WaitingMax, c.AcquireTimeout = 3, time.Minute })
		inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
			w.fakes["a"].Script(step{Status: 429, RetryAfter: "10"})
			results := make(chan error, 5)
			for range 5 {
				go func() { _, err := w.Chat(t.Context(), ask()); results <- err }()
				w.settle()
			}
			if s := w.List()[0]; s.Waiting != 3 {
				t.Errorf("%d wait", s.Waiting)
			}
			good := 0
			for range 5 {
				if err := <-results; err == nil {
					good++
				} else {
					wantKind(t, err, fault.Exhausted)
				}
			}
			if good != 3 {
				t.Errorf("%d of 5 were answered", good)
			}
		})
	})
	t.Run("tokens a minute", func(t *testing.T) {
		c := one(OpenAI, func(c *PoolConfig) { c.TokensPerMinute = 1000 })
		inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
			few := func(r *Request) { r.MaxTokens = 400 }
			w.fakes["a"].Usually(step{InputTokens: 50, OutputTokens: 100})
			for range 4 { // what is set aside (400 and more) is settled with what was used (150)
				if _, err := w.Chat(t.Context(), ask(few)); err != nil {
					t.Fatal(err)
				}
			}
			if left := w.List()[0].Endpoints[0].TokensLeft; left != 400 {
				t.Errorf("%d left", left)
			}
			_, err := w.Chat(t.Context(), ask(few))
			wantKind(t, err, fault.Exhausted)
		})
	})
	for dialect, header := range map[string]map[string]string{
		OpenAI:    {"X-Ratelimit-Remaining-Requests": "1", "X-Ratelimit-Reset-Requests": "20s", "X-Ratelimit-Remaining-Tokens": "77777", "X-Ratelimit-Reset-Tokens": "1m0s"},
		Anthropic: {"Anthropic-Ratelimit-Requests-Remaining": "1", "Anthropic-Ratelimit-Requests-Reset": "2000-01-01T00:00:20Z", "Anthropic-Ratelimit-Tokens-Remaining": "77777", "Anthropic-Ratelimit-Tokens-Reset": "2000-01-01T00:01:00Z"},
	} {
		t.Run("what the header of "+dialect+" says", func(t *testing.T) {
			inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(dialect)}}}, func(t *testing.T, w *world) {
				w.fakes["a"].Script(step{Header: header})
				for range 2 {
					if _, err := w.Chat(t.Context(), ask()); err != nil {
						t.Fatal(err)
					}
				}
				if e := w.List()[0].Endpoints[0]; e.RequestsLeft != 0 || e.TokensLeft > 77777 || e.TokensLeft < 70000 {
					t.Errorf("%+v", e)
				}
				_, err := w.Chat(t.Context(), ask())
				wantKind(t, err, fault.Exhausted)
				if e := fault.As(err); e.RetryAfter < 15*time.Second || e.RetryAfter > 25*time.Second || w.fakes["a"].Count() != 2 {
					t.Errorf("come back in %s, %d calls", e.RetryAfter, w.fakes["a"].Count())
				}
				time.Sleep(21 * time.Second)
				if _, err := w.Chat(t.Context(), ask()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Newer models of OpenAI refuse the old name.
func TestTheNameOfTheLimit(t *testing.T) {
	c := one(OpenAI, func(c *PoolConfig) { c.MaxTokensField, c.MaxTokens = "max_completion_tokens", 9 })
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		if _, err := w.Chat(t.Context(), ask()); err != nil {
			t.Fatal(err)
		}
		body := w.fakes["a"].Calls()[0].Body
		if body["max_completion_tokens"] != 9.0 || body["max_tokens"] != nil {
			t.Errorf("%v", body)
		}
	})
}

// What goes over the wire: who says what, the limits, and where a system message goes.
func TestWhatIsSent(t *testing.T) {
	half := 0.5
	r := ask(func(r *Request) {
		r.Messages = []Message{{System, "be brief"}, {User, "one"}, {Assistant, "two"}, {System, "in English"}, {User, "three"}}
		r.MaxTokens, r.Temperature, r.TopP, r.Stop = 7, &half, &half, []string{"END"}
	})
	for dialect, want := range map[string]string{
		OpenAI:    "map[max_tokens:7 messages:[map[content:be brief role:system] map[content:one role:user] map[content:two role:assistant] map[content:in English role:system] map[content:three role:user]] model:m stop:[END] stream:true stream_options:map[include_usage:true] temperature:0.5 top_p:0.5]",
		Anthropic: "map[max_tokens:7 messages:[map[content:one role:user] map[content:two role:assistant] map[content:three role:user]] model:m stop_sequences:[END] stream:true system:be brief\n\nin English temperature:0.5 top_p:0.5]",
	} {
		inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(dialect, func(c *PoolConfig) {
			c.URL, c.Models = "http://a/base", []ModelConfig{{Name: "m", InputPrice: 1, OutputPrice: 2}}
		})}}}, func(t *testing.T, w *world) {
			w.fakes["a"].Script(step{Reasoning: "hm", InputTokens: 1_000_000, OutputTokens: 500_000, StopReason: map[string]string{OpenAI: "length", Anthropic: "max_tokens"}[dialect]})
			var thought strings.Builder
			res, err := w.Stream(t.Context(), r, func(d Delta) error { thought.WriteString(d.Reasoning); return nil })
			if err != nil {
				t.Fatal(err)
			}
			call := w.fakes["a"].Calls()[0]
			if got := fmt.Sprint(call.Body); got != want {
				t.Errorf("%s:\ngot  %s\nwant %s", dialect, got, want)
			}
			if !strings.HasPrefix(call.Path, "/base/") || call.Dialect != dialect {
				t.Errorf("%+v", call)
			}
			if res.CostUSD != 2 || res.Usage.Tokens() != 1_500_000 || res.Stop != StopLength || res.Reasoning != "hm" || thought.String() != "hm" || res.ID == "" || res.Endpoint != "a/1" {
				t.Errorf("%+v", res)
			}
			w.fakes["a"].Script(step{NoUsage: true})
			res, err = w.Chat(t.Context(), r)
			if err != nil || !res.Usage.Estimated || res.Usage.InputTokens == 0 || res.Usage.OutputTokens == 0 {
				t.Errorf("%+v, %v", res, err)
			}
		})
	}
}
