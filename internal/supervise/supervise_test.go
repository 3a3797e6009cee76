// Daemons that fail, panic, keep failing, and do not stop.

package supervise

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// runs runs a tree in a bubble; stop ends it.
func runs(t *testing.T, daemons ...Daemon) (tree *Tree, stop func()) {
	t.Helper()
	tree = New(slog.New(slog.DiscardHandler), daemons...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); tree.Run(ctx) }()
	synctest.Wait()
	return tree, func() { cancel(); <-ended }
}

func until(ctx context.Context) error { <-ctx.Done(); return nil }

func state(t *testing.T, tree *Tree, name string) Status {
	t.Helper()
	all := tree.List()
	i := slices.IndexFunc(all, func(s Status) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("%s is not in %v", name, all)
	}
	return all[i]
}

// TestOneFailsTheOthersGoOn: an error and a panic are restarts of that daemon alone, with its last error.
func TestOneFailsTheOthersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := map[string]int{}
		var mu sync.Mutex
		counted := func(name string, run func(n int) error) func(context.Context) error {
			return func(ctx context.Context) error {
				mu.Lock()
				starts[name]++
				n := starts[name]
				mu.Unlock()
				if err := run(n); err != nil {
					return err
				}
				return until(ctx)
			}
		}
		tree, stop := runs(t,
			Daemon{Name: "calm", Run: counted("calm", func(int) error { return nil })},
			Daemon{Name: "weak", Run: counted("weak", func(n int) error {
				if n < 3 {
					return errors.New("no disk")
				}
				return nil
			})},
			Daemon{Name: "wild", Run: counted("wild", func(n int) error {
				if n == 1 {
					panic("out of bounds")
				}
				return nil
			})},
			Daemon{Name: "cut", Run: counted("cut", func(n int) error { // an end that is not the tree's is a failure
				if n == 1 {
					return context.Canceled
				}
				return nil
			})})
		synctest.Wait()
		for name, want := range map[string]struct {
			restarts int64
			err      string
		}{"calm": {0, ""}, "weak": {2, "no disk"}, "wild": {1, "panic: out of bounds"}, "cut": {1, "context canceled"}} {
			if s := state(t, tree, name); s.State != Running || s.Restarts != want.restarts || s.LastError != want.err || s.LastErrorTime.IsZero() != (want.err == "") {
				t.Errorf("%s: %+v", name, s)
			}
		}
		if why := tree.Failing(); why != "" {
			t.Errorf("nothing keeps failing, and it says %q", why)
		}
		stop()
		if s := state(t, tree, "calm"); s.State != Stopped {
			t.Errorf("it was stopped: %+v", s)
		}
	})
}

// TestKeepsFailing: more failures than MaxRestarts make a pause, of which the tree speaks; once it holds, all is well again.
func TestKeepsFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var starts []time.Duration
		tree, stop := runs(t, Daemon{Name: "weak", Run: func(ctx context.Context) error {
			if starts = append(starts, time.Since(begun)); len(starts) <= 2*(MaxRestarts+1)+3 {
				return errors.New("no disk")
			}
			return until(ctx)
		}})
		defer stop()
		synctest.Wait()
		if s, why := state(t, tree, "weak"), tree.Failing(); s.State != Failing || s.Restarts != MaxRestarts+1 || why != "daemon weak keeps failing: no disk" {
			t.Errorf("%+v, and it says %q", s, why)
		}
		time.Sleep(4 * Pause)
		if s, why := state(t, tree, "weak"), tree.Failing(); s.State != Running || s.Restarts != 2*(MaxRestarts+1)+3 || why != "" {
			t.Errorf("%+v, and it says %q", s, why)
		}
		for i, at := range starts {
			if pauses := i / (MaxRestarts + 1); at != time.Duration(pauses)*Pause {
				t.Errorf("start %d was after %s", i, at)
			}
		}
	})
}

// TestOrder: the last one that began stops first, and each has stopped before the next one is told to.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stopped []string
		daemon := func(name string) Daemon {
			return Daemon{Name: name, Run: func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Second)
				stopped = append(stopped, name)
				return nil
			}}
		}
		_, stop := runs(t, daemon("a"), daemon("b"), daemon("c"))
		stop()
		if got := strings.Join(stopped, " "); got != "c b a" {
			t.Errorf("they stopped in the order %s", got)
		}
	})
}

// TestDoesNotStop: one that does not stop is left behind after StopTimeout.
func TestDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		_, stop := runs(t, Daemon{Name: "deaf", Run: func(context.Context) error { <-free; return nil }})
		from := time.Now()
		stop()
		if took := time.Since(from); took != StopTimeout {
			t.Errorf("it was waited for %s", took)
		}
		close(free)
	})
}

// TestDone: a daemon with nothing more to do is not started again.
func TestDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tree, stop := runs(t, Daemon{Name: "once", Run: func(context.Context) error { return nil }, Queue: func() (int64, int64) { return 3, 10 }})
		time.Sleep(time.Minute)
		if s := state(t, tree, "once"); s.State != Done || s.Restarts != 0 || s.QueueDepth != 3 || s.QueueLimit != 10 {
			t.Errorf("%+v", s)
		}
		stop()
	})
}

// TestGoroutines: those that a daemon started are its own.
func TestGoroutines(t *testing.T) {
	started := make(chan struct{})
	var wait sync.WaitGroup
	tree := New(slog.New(slog.DiscardHandler), Daemon{Name: "many", Run: func(ctx context.Context) error {
		for range 7 {
			wait.Go(func() { <-ctx.Done() })
		}
		close(started)
		return until(ctx)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	wait.Go(func() { tree.Run(ctx) })
	<-started
	if n := state(t, tree, "many").Goroutines; n != 8 {
		t.Errorf("it has %d goroutines", n)
	}
	cancel()
	wait.Wait()
}
