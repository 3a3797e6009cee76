// Results on their way to clients: in their order, once, and not faster than a client takes them.
package dispatch_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

// Results wait for a client that takes none, on coming back, too, and are then given in order and once.
func TestResultsWaitForRoom(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s, here := &sink{}, &sink{}
		full := make(chan struct{})
		s.stuff(full)
		for i := range 3 {
			a.submit(s, fmt.Sprint(i), "echo", nil)
			synctest.Wait()
		}
		expect(t, s.take(), "0 accepted", "1 accepted", "2 accepted")
		// One that is kept is asked for, and comes beside the others.
		a.submit(s, "0", "echo", nil)
		expect(t, s.take(), "0 known", "0 done (kept)")
		close(full)
		expect(t, s.take(), "0 done", "1 done", "2 done")

		full = make(chan struct{})
		here.stuff(full)
		for _, after := range []uint64{0, 1} { // it comes a second time while it has taken nothing
			if _, err := b.Open(t.Context(), alice, here); err != nil {
				t.Fatal(err)
			}
			b.Resume(alice, after)
			expect(t, here.take())
		}
		a.submit(s, "3", "echo", nil)
		expect(t, here.take())
		close(full)
		expect(t, here.take(), "1 done", "2 done", "3 done")
		if !slices.Equal(here.orders, []uint64{2, 3, 4}) {
			t.Errorf("results came as %v", here.orders)
		}
		// One that leaves for good while it takes nothing is waited for no more.
		left := make(chan struct{})
		here.stuff(left)
		a.submit(s, "4", "echo", nil)
		synctest.Wait()
		b.Forget(alice, here)
		close(left)
		expect(t, here.take())
	})
}

// A server stops while a client takes nothing.
func TestAServerStopsWhileAClientTakesNothing(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), func(o *dispatch.Options) { o.MaxInFlight = 2 })
		s := &sink{}
		s.stuff(make(chan struct{}))
		a.submit(s, "1", "echo", nil)
		expect(t, s.take(), "1 accepted")
		began := time.Now()
		a.stop(t.Context())
		if time.Since(began) > 0 {
			t.Errorf("it took %s", time.Since(began))
		}
	})
}
