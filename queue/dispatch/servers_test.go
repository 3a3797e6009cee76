// Servers that stop, die, come back, or only seem to: what becomes of their calls.
package dispatch_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

// What another server did with a call counts: its end is told here, and a call that it was given is not ended by this one.
func TestAServerIsLost(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		c.Lead("b")
		a.submit(s, "again", "hold", nil)
		a.submit(s, "never", "hold", func(r *dispatch.Request) { r.Repeatable = false })
		a.submit(s, "done", "echo", nil)
		expect(t, s.take(), "again accepted", "never accepted", "done accepted", "done done")
		a.Delivered(alice, 0, false) // it says nothing of what it gave
		a.crash()
		here := &sink{}
		opened, err := b.Open(t.Context(), alice, here)
		if err != nil || !opened.Known || opened.Order != 1 || opened.Delivered != 0 || len(opened.Unfinished) != 2 {
			t.Fatalf("opened %+v, %v", opened, err)
		}
		b.Resume(alice, opened.Delivered)
		expect(t, here.take(), "done done")
		c.Do(&clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: &clusterv1.AssignCalls{FromServerId: "a", ToServerIds: []string{"b"}, Reason: "server a was lost", Limit: 100}}})
		expect(t, here.take(), "never SERVICE_UNAVAILABLE (dead)")
		if got := b.work.order(); !slices.Equal(got, []string{"again"}) {
			t.Errorf("b began %v", got)
		}
		close(b.work.gate("again"))
		expect(t, here.take(), "again done")
		if !slices.Equal(here.orders, []uint64{1, 2, 3}) {
			t.Errorf("results came as %v", here.orders)
		}
	})
}

func TestAServerThatWasThoughtDeadEndsNothing(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		a.submit(s, "1", "hold", nil)
		expect(t, s.take(), "1 accepted")
		a.server.Hold(true) // it sees nothing of what follows
		c.Lead("b")
		c.Do(&clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: &clusterv1.AssignCalls{FromServerId: "a", ToServerIds: []string{"b"}, Limit: 100}}})
		synctest.Wait()
		close(a.work.gate("1"))
		synctest.Wait()
		if row := b.Find(request("1", "").Key); row.Status != queue.Running || row.Server != "b" {
			t.Fatalf("the call is %+v", row)
		}
		a.server.Hold(false)
		close(b.work.gate("1"))
		expect(t, s.take(), "1 done")
		if row := b.Find(request("1", "").Key); row.Status != queue.Ended || row.Server != "b" {
			t.Errorf("the call is %+v", row)
		}
	})
}

// A server that is started anew knows its calls from the state.
func TestAServerComesBack(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		server := c.Add("a")
		a := start(t, server, func(o *dispatch.Options) { o.MaxInFlight = 2 })
		s := &sink{}
		a.submit(s, "again", "hold", nil)
		a.submit(s, "never", "hold", func(r *dispatch.Request) { r.Repeatable = false })
		synctest.Wait()
		a.submit(s, "waits", "echo", nil)
		expect(t, s.take(), "again accepted", "never accepted", "waits accepted")
		a.stop(done())
		expect(t, s.take())
		a = start(t, server, nil)
		here := &sink{}
		opened, err := a.Open(t.Context(), alice, here)
		if err != nil {
			t.Fatal(err)
		}
		a.Resume(alice, opened.Delivered)
		close(a.work.gate("again"))
		said := here.take()
		slices.Sort(said)
		expect(t, said, "again done", "never SERVICE_UNAVAILABLE (dead)", "waits done")
		if row := a.Find(request("again", "").Key); row.Attempt != 2 {
			t.Errorf("it ended with attempt %d", row.Attempt)
		}
		if n := a.Stats().Orphans; n != 2 {
			t.Errorf("%d orphans", n)
		}
	})
}

func TestTheLogFails(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		c.LoseAnswers(1) // the submission is committed, and sent again
		a.submit(s, "lost", "echo", func(r *dispatch.Request) { r.Repeatable = false })
		time.Sleep(time.Second)
		expect(t, s.take(), "lost accepted", "lost done")
		a.submit(s, "ends", "hold", nil)
		expect(t, s.take(), "ends accepted")
		c.LoseAnswers(2)
		close(a.work.gate("ends"))
		time.Sleep(time.Second)
		expect(t, s.take(), "ends done")
		// Without a leader a call is refused in time, and what ended is told once there is one.
		a.submit(s, "waits", "hold", nil)
		expect(t, s.take(), "waits accepted")
		c.Lead("")
		close(a.work.gate("waits"))
		a.submit(s, "refused", "echo", nil)
		if _, err := a.Open(t.Context(), alice, s); !fault.Is(err, fault.Unavailable) {
			t.Errorf("open: %v", err)
		}
		time.Sleep(20 * time.Second)
		expect(t, s.take(), "refused refused: unavailable")
		c.Lead("a")
		expect(t, s.take(), "waits done")
	})
}

// A server that stops lets calls end, begins none, and leaves the rest to others.
func TestAServerStops(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), func(o *dispatch.Options) { o.MaxInFlight = 2 })
		s := &sink{}
		a.submit(s, "ends", "hold", nil)
		a.submit(s, "stays", "hold", nil)
		synctest.Wait()
		a.submit(s, "waits", "hold", nil)
		expect(t, s.take(), "ends accepted", "stays accepted", "waits accepted")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		stopped := make(chan struct{})
		go func() { defer close(stopped); a.Close(ctx) }()
		synctest.Wait()
		a.submit(s, "new", "hold", nil)
		close(a.work.gate("ends"))
		expect(t, s.take(), "new refused: unavailable", "ends done")
		<-stopped
		expect(t, s.take())
		for id, status := range map[string]queue.Status{"stays": queue.Running, "waits": queue.Queued} {
			if row := a.Find(request(id, "").Key); row.Status != status || row.Server != "a" {
				t.Errorf("%s is %+v", id, row)
			}
		}
	})
}
