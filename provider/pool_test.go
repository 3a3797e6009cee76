// Pools over time: what is opened, kept warm and closed, who waits, and what a breaker does.

package provider

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestShippedPoolsWarmUpAndCool(t *testing.T) {
	for _, c := range []struct {
		name               string
		min, max, inFlight int
		idle               time.Duration
	}{{"moonshot", 2, 10, 6, 30 * time.Second}, {"zhipuai", 1, 5, 4, 45 * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			p := PoolConfig{Name: c.name, URL: "http://a", KeyFile: keyFile(t, "k"), Insecure: true}
			inBubble(t, Options{Config: Config{Pools: []PoolConfig{p}}}, func(t *testing.T, w *world) {
				w.run()
				if s := w.List()[0]; s.Open != c.min || s.Idle != c.min || w.net.Open() != c.min || s.Connections != c.min {
					t.Fatalf("after the start: %+v, %d connections", s, w.net.Open())
				}
				if w.fakes["a"].Probes() < c.min || w.fakes["a"].Count() != 0 {
					t.Errorf("%d probes, %d calls", w.fakes["a"].Probes(), w.fakes["a"].Count())
				}
				w.fakes["a"].Usually(step{Delay: time.Second})
				began := time.Now()
				if errs := w.together(c.max); len(errs) > 0 {
					t.Fatal(errs)
				}
				if took := time.Since(began); took != 2*time.Second {
					t.Errorf("%d calls of a second, %d at a time, took %s", c.max, c.inFlight, took)
				}
				w.settle() // the keeper may be looking after slots
				if s := w.List()[0]; s.Open != c.inFlight || s.Idle != s.Open || w.net.Open() != s.Open || s.Max != c.max || s.MaxInFlight != c.inFlight {
					t.Errorf("after %d calls at once: %+v", c.max, s)
				}
				time.Sleep(c.idle - 2*time.Second)
				w.settle()
				if s := w.List()[0]; s.Open != c.inFlight {
					t.Errorf("closed too early: %+v", s)
				}
				time.Sleep(4 * time.Second)
				w.settle()
				if s := w.List()[0]; s.Open != c.min || w.net.Open() != c.min {
					t.Errorf("idle for %s: %+v, %d connections", c.idle, s, w.net.Open())
				}
				dials := w.net.Dials("a:80")
				time.Sleep(10 * time.Minute)
				w.settle()
				if s := w.List()[0]; s.Open != c.min || w.net.Open() != c.min || w.net.Dials("a:80") != dials || !s.Healthy {
					t.Errorf("ten minutes later: %+v, %d dials more", s, w.net.Dials("a:80")-dials)
				}
			})
		})
	}
}

// together makes calls at once and returns what failed.
func (w *world) together(n int, change ...func(*Request)) (failed []error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			if _, err := w.Chat(w.t.Context(), ask(change...)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
		})
	}
	all.Wait()
	return failed
}

func TestAConnectionThatFailsIsTriedAgain(t *testing.T) {
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(OpenAI, func(c *PoolConfig) { c.BreakerFailures = 100 })}}}, func(t *testing.T, w *world) {
		w.net.Refuse("a:80", true)
		began := time.Now()
		time.AfterFunc(time.Second, func() { w.net.Refuse("a:80", false) })
		res, err := w.Chat(t.Context(), ask())
		if err != nil || res.Attempts != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		if d, took := w.net.Dials("a:80"), time.Since(began); d < 5 || d > 7 || took > 1500*time.Millisecond {
			t.Errorf("%d dials in %s, at 200ms each", d, took)
		}
		w.net.Refuse("a:80", true)
		w.list[0].slots.Reset()
		w.settle()
		began = time.Now()
		_, err = w.Chat(t.Context(), ask())
		wantKind(t, err, fault.Unavailable)
		if took := time.Since(began); took < 4*time.Second || took > 6*time.Second {
			t.Errorf("gave up after %s; acquire_timeout is 5s", took)
		}
		if w.fakes["a"].Count() != 1 {
			t.Errorf("%d calls", w.fakes["a"].Count())
		}
	})
}

func TestAProviderThatIsDownAtTheStart(t *testing.T) {
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(OpenAI, func(c *PoolConfig) { c.Min = 3 })}}}, func(t *testing.T, w *world) {
		w.net.Refuse("a:80", true)
		w.run()
		time.Sleep(10 * time.Minute)
		w.settle()
		if d := w.net.Dials("a:80"); d > 60 { // five quick ones, then one for each time the breaker is half open
			t.Errorf("%d dials in ten minutes", d)
		}
		if s := w.List()[0]; s.Open != 0 || s.Endpoints[0].Health == "" || s.LastError == "" {
			t.Errorf("%+v", s)
		}
		w.net.Refuse("a:80", false)
		time.Sleep(time.Minute)
		w.settle()
		if s := w.List()[0]; s.Open != 3 || s.Endpoints[0].Health != "" || !s.Healthy {
			t.Errorf("back again: %+v", s)
		}
		if _, err := w.Chat(t.Context(), ask()); err != nil {
			t.Error(err)
		}
		if s := w.List()[0]; s.Breaker != "closed" {
			t.Errorf("breaker %s", s.Breaker)
		}
	})
}

func TestCallsWaitForASlotAndNoLonger(t *testing.T) {
	c := one(OpenAI, func(c *PoolConfig) { c.Max, c.WaitingMax, c.AcquireTimeout = 2, 3, 3*time.Second })
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		w.fakes["a"].Usually(step{Delay: 2 * time.Second})
		began := time.Now()
		if failed := w.together(4); len(failed) > 0 {
			t.Fatal(failed)
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("four calls by two took %s", took)
		}
		w.fakes["a"].Usually(step{Delay: 10 * time.Second})
		began = time.Now()
		results := make(chan error, 6)
		for range 6 { // two are served, three wait
			go func() { _, err := w.Chat(t.Context(), ask()); results <- err }()
			w.settle()
		}
		for i, want := range []struct {
			at  time.Duration
			say string
		}{{0, "3 calls wait for a connection already"}, {3 * time.Second, "2 calls, as many as may be (max_in_flight), were under way for 3s"}, {3 * time.Second, "under way"}, {3 * time.Second, "under way"},
			{10 * time.Second, ""}, {10 * time.Second, ""}} {
			err := <-results
			if at := time.Since(began); at != want.at {
				t.Errorf("ended %d after %s", i, at)
			}
			if want.say == "" {
				if err != nil {
					t.Error(err)
				}
				continue
			}
			wantKind(t, err, fault.Exhausted)
			if e := fault.As(err); e == nil || e.RetryAfter <= 0 || !strings.Contains(e.Message, want.say) {
				t.Errorf("come back in %s: %v", e.RetryAfter, err)
			}
		}
		if n := w.fakes["a"].Count(); n != 6 {
			t.Errorf("%d calls", n)
		}
		if s := w.List()[0]; s.Full < 4 || s.Open > 2 || s.InUse != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Fewer calls than connections: the caller who goes away, the end of the pools, and a call that fails leave their place to the next one.
func TestCallsInFlightAreBounded(t *testing.T) {
	c := one(OpenAI, func(c *PoolConfig) { c.Max, c.MaxInFlight, c.AcquireTimeout = 4, 1, time.Minute })
	inBubble(t, Options{Config: Config{AttemptsMax: 1, Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		w.fakes["a"].Usually(step{Delay: 2 * time.Second})
		began := time.Now()
		if failed := w.together(3); len(failed) > 0 || time.Since(began) != 6*time.Second {
			t.Errorf("three calls, one at a time, took %s: %v", time.Since(began), failed)
		}
		if s := w.List()[0]; s.Open != 1 {
			t.Errorf("they needed more than a connection: %+v", s)
		}
		w.fakes["a"].Usually(step{Status: 500})
		for range 3 {
			_, err := w.Chat(t.Context(), ask())
			wantKind(t, err, fault.Unavailable)
		}
		busy := w.list[0].slots.AcquireAllIdle() // as the keeper does
		for len(busy) < 4 {
			r, err := w.list[0].slots.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			busy = append(busy, r)
		}
		w.fakes["a"].Usually(step{})
		for range 2 {
			_, err := w.Chat(t.Context(), ask())
			if wantKind(t, err, fault.Exhausted); !strings.Contains(fmt.Sprint(err), "all 4 connections were busy for 1m0s") {
				t.Error(err)
			}
		}
		for _, r := range busy {
			r.Release()
		}
		w.fakes["a"].Usually(step{Delay: 10 * time.Second})
		ended := make(chan error, 3)
		go func() { _, err := w.Chat(t.Context(), ask()); ended <- err }()
		w.settle()
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		_, err := w.Chat(impatient, ask())
		if wantKind(t, err, fault.Timeout); time.Since(began) != time.Second {
			t.Errorf("who waited for a second waited for %s", time.Since(began))
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for range 2 { // one is under way, one waits, and the pools close
			go func() { _, err := w.Chat(t.Context(), ask()); ended <- err }()
			w.settle()
		}
		if s := w.List()[0]; s.InUse != 1 || s.Waiting != 1 {
			t.Errorf("%+v", s)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			wantKind(t, <-ended, fault.Unavailable)
		}
	})
}

func TestBreaker(t *testing.T) {
	c := one(OpenAI, func(c *PoolConfig) { c.BreakerFailures, c.BreakerOpen = 3, 20*time.Second })
	inBubble(t, Options{Config: Config{AttemptsMax: 1, Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		fake := w.fakes["a"]
		state := func() string { return w.List()[0].Breaker }
		for i := range 3 {
			if state() != "closed" {
				t.Fatalf("%s after %d failures", state(), i)
			}
			fake.Script(step{Status: 500})
			_, err := w.Chat(t.Context(), ask())
			wantKind(t, err, fault.Unavailable)
		}
		if state() != "open" || w.List()[0].Healthy {
			t.Fatalf("%s after 3 failures", state())
		}
		_, err := w.Chat(t.Context(), ask())
		wantKind(t, err, fault.Unavailable)
		if e := fault.As(err); e.RetryAfter < 19*time.Second || e.RetryAfter > 21*time.Second || fake.Count() != 3 {
			t.Errorf("open: come back in %s, %d calls: %v", e.RetryAfter, fake.Count(), err)
		}

		time.Sleep(21 * time.Second)
		if state() != "half-open" {
			t.Fatalf("%s after 21s", state())
		}
		fake.Script(step{Status: 500}) // what tries it fails: open again
		_, err = w.Chat(t.Context(), ask())
		wantKind(t, err, fault.Unavailable)
		if state() != "open" {
			t.Fatalf("%s after the trial failed", state())
		}

		time.Sleep(21 * time.Second)
		fake.Script(step{Delay: 10 * time.Second}) // one call tries it, and the others do not wait for it in the provider
		first := make(chan error)
		go func() { _, err := w.Chat(t.Context(), ask()); first <- err }()
		w.settle()
		before := fake.Count()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.Chat(ctx, ask()); err == nil || fake.Count() != before {
			t.Errorf("a second call while one tries: %v, %d calls", err, fake.Count()-before)
		}
		if err := <-first; err != nil || state() != "closed" {
			t.Errorf("%v, %s after the trial went well", err, state())
		}
		for range 10 { // what says nothing about the endpoint does not open it
			fake.Script(step{Status: 400})
			_, err := w.Chat(t.Context(), ask())
			wantKind(t, err, fault.Invalid)
		}
		if state() != "closed" {
			t.Errorf("%s after requests that were wrong", state())
		}
	})
}

func TestHealthChecksFindWhatIsDown(t *testing.T) {
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(Anthropic, func(c *PoolConfig) { c.HealthInterval, c.BreakerFailures = 5*time.Second, 2 })}}}, func(t *testing.T, w *world) {
		w.run()
		w.fakes["a"].Probe(503)
		time.Sleep(20 * time.Second)
		w.settle()
		if s := w.List()[0]; s.Breaker == "closed" || s.Endpoints[0].Health != "answers with status 503" {
			t.Errorf("%+v", s)
		}
		w.fakes["a"].Probe(404) // it has no such list, and is well
		time.Sleep(40 * time.Second)
		w.settle()
		if _, err := w.Chat(t.Context(), ask()); err != nil {
			t.Error(err)
		}
		if s := w.List()[0]; s.Breaker != "closed" || !s.Healthy {
			t.Errorf("%+v", s)
		}
	})
}

// A caller that leaves ends the call at the provider, too, at every stage, and the slot is free again.
func TestCancellation(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		t.Run(fmt.Sprint(streamed), func(t *testing.T) {
			inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(OpenAI, func(c *PoolConfig) { c.Max = 1 })}}}, func(t *testing.T, w *world) {
				fake := w.fakes["a"]
				call := func(ctx context.Context) error {
					if streamed {
						_, _, err := w.stream(ctx, ask())
						return err
					}
					_, err := w.Chat(ctx, ask())
					return err
				}
				fake.Script(step{Hang: true})
				ctx, cancel := context.WithCancel(t.Context())
				held := make(chan error)
				go func() { held <- call(ctx) }()
				w.settle()
				waiting, cancelWaiting := context.WithTimeout(t.Context(), time.Second)
				defer cancelWaiting()
				err := call(waiting) // for the slot
				wantKind(t, err, fault.Timeout)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				if fake.Running() != 1 || fake.Count() != 1 {
					t.Errorf("%d running, %d in all", fake.Running(), fake.Count())
				}
				cancel()
				err = <-held
				wantKind(t, err, fault.Aborted)
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				w.settle()
				if fake.Running() != 0 || fake.Gone() != 1 || w.net.Open() != 0 || w.List()[0].InUse != 0 {
					t.Errorf("%d running, %d gone, %d connections, %+v", fake.Running(), fake.Gone(), w.net.Open(), w.List()[0])
				}
				if w.List()[0].Breaker != "closed" || w.List()[0].Endpoints[0].InFlight != 0 {
					t.Errorf("%+v", w.List()[0])
				}
				if err := call(t.Context()); err != nil {
					t.Error(err)
				}
				fake.Script(step{Status: 503, RetryAfter: "4"}) // and while it waits to try again
				ctx, cancel = context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began := time.Now()
				wantKind(t, call(ctx), fault.Timeout)
				if time.Since(began) != time.Second {
					t.Errorf("took %s", time.Since(began))
				}
			})
		})
	}
}

func TestAReaderThatStopsEndsTheCall(t *testing.T) {
	c := one(Anthropic, func(c *PoolConfig) { c.CallTimeout = time.Hour })
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
		fake := w.fakes["a"]
		fake.Script(step{Text: "one two three", Pause: time.Second})
		enough := errors.New("enough")
		_, err := w.Stream(t.Context(), ask(), func(Delta) error { return enough })
		if !errors.Is(err, enough) {
			t.Error(err)
		}
		time.Sleep(5 * time.Second)
		if fake.Running() != 0 || fake.Gone() != 1 || fake.Count() != 1 {
			t.Errorf("%d running, %d gone of %d", fake.Running(), fake.Gone(), fake.Count())
		}
		// A reader that is slow is not a provider that stalls.
		res, err := w.Stream(t.Context(), ask(), func(Delta) error { time.Sleep(70 * time.Second); return nil })
		if err != nil || res.Text != "echo: hello there" {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

// A panic of the caller's own goes up to the caller, and takes nothing of the pool along.
func TestAReaderThatPanics(t *testing.T) {
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(OpenAI, func(c *PoolConfig) { c.Max = 1 })}}}, func(t *testing.T, w *world) {
		func() {
			defer func() {
				if recover() != "oh" {
					t.Error("the panic was swallowed")
				}
			}()
			_, _ = w.Stream(t.Context(), ask(), func(Delta) error { panic("oh") })
		}()
		w.settle()
		if s := w.List()[0]; s.InUse != 0 || s.Endpoints[0].InFlight != 0 || w.fakes["a"].Running() != 0 {
			t.Errorf("%+v", s)
		}
		if _, err := w.Chat(t.Context(), ask()); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseEndsCalls(t *testing.T) {
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(OpenAI, func(c *PoolConfig) { c.Max = 1 })}}}, func(t *testing.T, w *world) {
		w.run()
		w.fakes["a"].Usually(step{Hang: true})
		ended := make(chan error, 2)
		for range 2 { // one hangs, the other waits for the slot
			go func() { _, err := w.Chat(t.Context(), ask()); ended <- err }()
		}
		w.settle()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			wantKind(t, <-ended, fault.Unavailable)
		}
		_, err := w.Chat(t.Context(), ask())
		wantKind(t, err, fault.Unavailable)
		w.settle()
		if w.fakes["a"].Running() != 0 || w.fakes["a"].Count() != 1 || w.net.Open() != 0 {
			t.Errorf("%d running of %d, %d connections", w.fakes["a"].Running(), w.fakes["a"].Count(), w.net.Open())
		}
	})
}
