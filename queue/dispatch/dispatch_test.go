// What a dispatcher does with calls: order, bounds, retries, cancelling and deadlines. Time is simulated.
package dispatch_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
	"github.com/neolith/orchestrator/session"
)

func TestACallIsTakenRunAndAnswered(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		for _, lead := range []string{"here", "there"} {
			a := start(t, c.Add(lead+"-1"), nil)
			s := &sink{}
			id := "r-" + lead
			a.submit(s, id, "echo", nil)
			expect(t, s.take(), id+" accepted", id+" done")
			row := a.Find(request(id, "").Key)
			if row == nil || row.Status != queue.Ended || row.Attempt != 1 || row.Server != a.server.ID || s.outputs[id] != `{"a":1}` {
				t.Errorf("row %+v, outputs %q", row, s.outputs[id])
			}
			// Asked again it is the same call, here and with other arguments a mistake.
			a.submit(s, id, "echo", nil)
			expect(t, s.take(), id+" known", id+" done (kept)")
			a.submit(s, id, "echo", func(r *dispatch.Request) { r.Hash = 8 })
			expect(t, s.take(), id+" refused: already exists")
			if n := a.work.runs[id]; n != 1 {
				t.Errorf("it ran %d times", n)
			}
		}
	})
}

func TestReadsTakeOneCommit(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		c.SetLatency(3 * time.Millisecond)
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		reads := func(r *dispatch.Request) { r.ReadOnly = true }
		began, before := time.Now(), c.Commits()
		a.submit(s, "quick", "echo", reads)
		time.Sleep(3 * time.Millisecond)
		expect(t, s.take(), "quick accepted", "quick done")
		if n := c.Commits() - before; n != 1 || time.Since(began) != 3*time.Millisecond {
			t.Errorf("%d commits in %s", n, time.Since(began))
		}
		// One that takes longer than the head start is taken meanwhile.
		a.submit(s, "slow", "hold", reads)
		time.Sleep(4 * time.Millisecond)
		expect(t, s.take(), "slow accepted")
		close(a.work.gate("slow"))
		time.Sleep(5 * time.Millisecond)
		expect(t, s.take(), "slow done")
		if n := a.Stats().Fast; n != 1 {
			t.Errorf("%d were fast", n)
		}
	})
}

func TestCallsBeyondTheRoomWaitByPriority(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), func(o *dispatch.Options) { o.MaxInFlight = 2; o.MaxWaiting = 5 })
		s := &sink{}
		for i, p := range []session.Priority{session.Normal, session.Normal, session.Low, session.Normal, session.Critical, session.High, session.Normal} {
			a.submit(s, fmt.Sprint(i), "hold", func(r *dispatch.Request) { r.Priority = p })
			synctest.Wait()
		}
		if st := a.Stats(); st.Running != 2 || st.Waiting != 5 {
			t.Errorf("%+v", st)
		}
		a.submit(s, "over", "hold", nil)
		if said := s.take(); said[len(said)-1] != "over refused: exhausted" {
			t.Errorf("beyond the bound: %v", said)
		}
		for _, id := range []string{"0", "1", "4", "5", "3", "6", "2"} {
			close(a.work.gate(id))
			synctest.Wait()
		}
		if got := a.work.order(); !slices.Equal(got, []string{"0", "1", "4", "5", "3", "6", "2"}) {
			t.Errorf("they began as %v", got)
		}
		if got := s.orders; !slices.Equal(got, []uint64{1, 2, 3, 4, 5, 6, 7}) {
			t.Errorf("results came as %v", got)
		}
	})
}

func TestCallsOfOneKeyRunInTurn(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		keyed := func(r *dispatch.Request) { r.OrderKey = "talk" }
		for i := range 3 {
			a.submit(s, fmt.Sprint(i), "hold", keyed)
			synctest.Wait()
		}
		b.submit(s, "elsewhere", "hold", keyed)
		synctest.Wait()
		a.submit(s, "4", "hold", func(r *dispatch.Request) { keyed(r); r.Priority = session.Critical })
		a.submit(s, "free", "echo", nil)
		synctest.Wait()
		if got := append(a.work.order(), b.work.order()...); !slices.Equal(got, []string{"0", "free"}) {
			t.Errorf("they began as %v", got)
		}
		for _, id := range []string{"0", "1", "2"} {
			close(a.work.gate(id))
			time.Sleep(time.Second)
		}
		if got := b.work.order(); !slices.Equal(got, []string{"elsewhere"}) || len(a.work.order()) != 4 {
			t.Errorf("they began as %v, and elsewhere as %v", a.work.order(), got)
		}
		close(b.work.gate("elsewhere"))
		time.Sleep(time.Second)
		if got := a.work.order(); got[len(got)-1] != "4" {
			t.Errorf("they began as %v", got)
		}
		close(a.work.gate("4"))
	})
}

func TestFailuresAreTriedAgainAndGivenUp(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		a.work.fails["twice"], a.work.fails["always"], a.work.fails["once"], a.work.fails["late"] = 2, 100, 100, 100
		a.submit(s, "twice", "echo", nil)
		expect(t, s.take(), "twice accepted")
		time.Sleep(2900 * time.Millisecond)
		expect(t, s.take())
		time.Sleep(200 * time.Millisecond)
		expect(t, s.take(), "twice done")
		a.submit(s, "always", "echo", nil)
		time.Sleep(8 * time.Second)
		expect(t, s.take(), "always accepted", "always OVER_CAPACITY (dead)")
		if n := a.work.runs["always"]; n != 4 {
			t.Errorf("it was tried %d times", n)
		}
		// What may not be repeated is not, and nothing is tried beyond its deadline.
		a.submit(s, "once", "echo", func(r *dispatch.Request) { r.Repeatable = false })
		expect(t, s.take(), "once accepted", "once OVER_CAPACITY")
		a.submit(s, "late", "echo", func(r *dispatch.Request) { r.Deadline = time.Now().Add(2500 * time.Millisecond) })
		time.Sleep(1500 * time.Millisecond)
		expect(t, s.take(), "late accepted", "late OVER_CAPACITY (dead)")
	})
}

func TestDeadlinesAndCancelling(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), func(o *dispatch.Options) { o.MaxInFlight = 2 }), start(t, c.Add("b"), nil)
		s := &sink{}
		a.submit(s, "runs", "hold", nil)
		a.submit(s, "elsewhere", "hold", nil)
		synctest.Wait()
		a.submit(s, "waits", "hold", nil)
		a.submit(s, "late", "hold", func(r *dispatch.Request) { r.Deadline = time.Now().Add(time.Second) })
		expect(t, s.take(), "runs accepted", "elsewhere accepted", "waits accepted", "late accepted")
		time.Sleep(time.Second)
		expect(t, s.take(), "late TIMEOUT")
		cancel := func(n *node, id string) error { return n.Cancel(t.Context(), request(id, "").Key) }
		for _, x := range []struct {
			at *node
			id string
		}{{a, "waits"}, {a, "runs"}, {b, "elsewhere"}} {
			if err := cancel(x.at, x.id); err != nil {
				t.Errorf("cancel %s: %v", x.id, err)
			}
			expect(t, s.take(), x.id+" cancelled")
		}
		for _, id := range []string{"runs", "never made"} {
			if err := cancel(b, id); !fault.Is(err, fault.NotFound) {
				t.Errorf("cancel %s: %v", id, err)
			}
		}
		a.submit(s, "short", "hold", func(r *dispatch.Request) { r.Deadline = time.Now().Add(time.Second) })
		time.Sleep(time.Second)
		expect(t, s.take(), "short accepted", "short TIMEOUT")
	})
}
