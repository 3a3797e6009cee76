// Results on their way to clients: in their order, once, and not faster than a client takes them.
package dispatch_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

func TestResultsAreGivenInTheirOrderAndOnce(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		for i := range 5 {
			a.submit(s, fmt.Sprint(i), "hold", nil)
		}
		synctest.Wait()
		s.take()
		here := &sink{}
		opened, err := b.Open(t.Context(), alice, here)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			close(a.work.gate(fmt.Sprint(i)))
			synctest.Wait()
		}
		expect(t, here.take()) // held back until it is resumed
		b.Resume(alice, opened.Delivered)
		expect(t, here.take(), "0 done", "1 done", "2 done")
		b.Delivered(alice, 2, false)
		time.Sleep(150 * time.Millisecond)
		if row := b.Client(alice); row.Delivered != 2 || row.Server != "b" {
			t.Errorf("%+v", row)
		}
		a.Delivered(alice, 3, true) // it is not there any more
		synctest.Wait()
		if row := b.Client(alice); row.Delivered != 2 {
			t.Errorf("%+v", row)
		}
		b.server.Hold(true) // the end of 3 is not seen here before that of 4, which is
		close(a.work.gate("3"))
		synctest.Wait()
		close(a.work.gate("4"))
		synctest.Wait()
		expect(t, here.take())
		b.server.Hold(false)
		expect(t, here.take(), "3 done", "4 done")
		opened, err = b.Open(t.Context(), alice, here)
		if err != nil || opened.Delivered != 2 {
			t.Fatalf("%+v %v", opened, err)
		}
		b.Resume(alice, 4)
		expect(t, here.take(), "4 done")
	})
}

// A client that is connected all the time, and makes no call for so long that the cluster forgets it, is answered as before.
func TestAClientThatWasForgotten(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s, other := &sink{}, &sink{}
		opened, err := a.Open(t.Context(), alice, s)
		if err != nil || opened.Known {
			t.Fatalf("opened %+v, %v", opened, err)
		}
		a.Resume(alice, opened.Delivered)
		for _, id := range []string{"1", "2"} {
			a.submit(s, id, "echo", nil)
			expect(t, s.take(), id+" accepted", id+" done")
		}
		time.Sleep(state.DefaultLimits().ClientKeep)
		for range 2 { // the results, then their client
			c.Do(&clusterv1.Command{Kind: &clusterv1.Command_CollectGarbage{CollectGarbage: &clusterv1.CollectGarbage{}}})
		}
		if a.Client(alice) != nil {
			t.Fatal("the client was not forgotten")
		}
		for _, id := range []string{"3", "4"} {
			a.submit(s, id, "echo", nil)
			expect(t, s.take(), id+" accepted", id+" done")
		}
		if !slices.IsSorted(s.orders) || len(slices.Compact(slices.Clone(s.orders))) != 4 {
			t.Errorf("the orders are %v", s.orders)
		}
		// A client that is new begins somewhere, and was not known.
		bob := queue.ClientKey{Owner: "token 2", Session: "bob"}
		if opened, err = a.Open(t.Context(), bob, other); err != nil || opened.Known || opened.Order != opened.Delivered {
			t.Errorf("opened %+v, %v", opened, err)
		}
	})
}

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
