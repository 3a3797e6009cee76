// What goes wrong between two servers: commands that are refused, answers that do not come, and a state that is set back.
package dispatch_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

// assign gives the calls of one server to another one.
func assign(c *dispatchtest.Cluster, from, to string) {
	c.Do(&clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: &clusterv1.AssignCalls{FromServerId: from, ToServerIds: []string{to}, Limit: 100}}})
}

func keyed(r *dispatch.Request) { r.OrderKey = "talk" }

// A call that comes from a lost server while one behind it is refused its beginning has its turn at once, not at its deadline.
func TestACallThatCameWhileTheNextWasRefusedBegins(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		b, a := start(t, c.Add("b"), nil), start(t, c.Add("a"), nil)
		s, here := &sink{}, &sink{}
		a.submit(s, "first", "hold", keyed)
		expect(t, s.take(), "first accepted")
		c.SetLatency(100 * time.Millisecond)
		b.submit(here, "second", "echo", keyed)
		time.Sleep(150 * time.Millisecond) // it is taken, and its beginning is under way
		expect(t, here.take(), "second accepted")
		a.crash()
		assign(c, "a", "b")
		close(b.work.gate("first"))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := b.work.order(); !slices.Equal(got, []string{"first", "second"}) {
			t.Errorf("they began as %v", got)
		}
	})
}

// A read that was run ahead, and then had to wait for its turn, is run anew when that comes: what it read before is outdated.
func TestAReadThatHadToWaitIsRunAnew(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s, here := &sink{}, &sink{}
		a.submit(s, "writes", "hold", keyed)
		expect(t, s.take(), "writes accepted")
		b.submit(here, "reads", "echo", func(r *dispatch.Request) { keyed(r); r.ReadOnly = true })
		expect(t, here.take(), "reads accepted")
		close(a.work.gate("writes"))
		time.Sleep(2 * time.Second)
		expect(t, here.take(), "writes done", "reads done")
		if n := b.work.runs["reads"]; n != 2 {
			t.Errorf("it ran %d times", n)
		}
	})
}

// Who asks for a call where the log does not answer is refused, and the call goes on where it was accepted before.
func TestACallThatWasAcceptedElsewhereIsNotTakenBack(t *testing.T) {
	for _, lags := range []bool{false, true} {
		in(t, func(t *testing.T, c *dispatchtest.Cluster) {
			a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
			s, here := &sink{}, &sink{}
			b.server.Hold(lags)
			a.submit(s, "1", "hold", nil)
			expect(t, s.take(), "1 accepted")
			c.Lead("")
			b.submit(here, "1", "hold", nil)
			time.Sleep(12 * time.Second)
			expect(t, here.take(), "1 refused: unavailable")
			c.Lead("a")
			time.Sleep(2 * time.Second)
			b.server.Hold(false)
			b.submit(here, "1", "hold", nil)
			expect(t, here.take(), "1 known")
			close(a.work.gate("1"))
			expect(t, here.take(), "1 done")
			expect(t, s.take(), "1 done")
		})
	}
}

// A call whose client is told that it was not taken is ended where it was, and who asks again has it made anew: the one is not ended for the other.
func TestACallThatWasTakenUnawaresIsTakenBack(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		c.SetLatency(time.Millisecond)
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		c.LoseAnswers(1000)
		a.submit(s, "taken", "hold", func(r *dispatch.Request) { r.Repeatable = false })
		time.Sleep(12 * time.Second)
		c.LoseAnswers(0)
		time.Sleep(2 * time.Second)
		expect(t, s.take(), "taken refused: unavailable", "taken cancelled")
		if row := a.Find(request("taken", "").Key); row == nil || !row.Status.Over() || !row.Anew() {
			t.Errorf("it is %+v", row)
		}
		// The call is not there when it is taken back, and asked for again meanwhile: with the two in one request whose answer is lost, the one would end the other.
		c.Lead("")
		a.submit(s, "again", "hold", nil)
		time.Sleep(10 * time.Second)
		for len(s.take()) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		a.submit(s, "again", "hold", nil)
		expect(t, s.take(), "again refused: unavailable")
		c.LoseAnswers(1)
		c.Lead("a")
		time.Sleep(2 * time.Second)
		a.submit(s, "again", "hold", nil)
		time.Sleep(time.Second)
		expect(t, s.take(), "again accepted")
		if row := a.Find(request("again", "").Key); row.Cancelling || row.Status != queue.Running {
			t.Errorf("it is %+v", row)
		}
		close(a.work.gate("again"))
		time.Sleep(time.Second)
		expect(t, s.take(), "again done")
	})
}

// Where the state is set back to a snapshot, calls made since are lost, and their clients know it; those that were there go on.
func TestTheStateIsSetBack(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		a.submit(s, "before", "hold", nil)
		a.submit(s, "ended since", "hold", nil)
		expect(t, s.take(), "before accepted", "ended since accepted")
		snapshot, err := a.server.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		close(a.work.gate("ended since"))
		expect(t, s.take(), "ended since done")
		a.submit(s, "since", "hold", keyed)
		a.submit(s, "behind", "hold", keyed)
		expect(t, s.take(), "since accepted", "behind accepted")
		if err := c.Restore(snapshot); err != nil {
			t.Fatal(err)
		}
		said := s.take()
		slices.Sort(said)
		expect(t, said, "behind SERVICE_UNAVAILABLE", "ended since done", "since SERVICE_UNAVAILABLE")
		// The key is free.
		a.submit(s, "next", "echo", keyed)
		time.Sleep(time.Second)
		expect(t, s.take(), "next accepted", "next done")
		close(a.work.gate("before"))
		time.Sleep(time.Second)
		expect(t, s.take(), "before done")
		if st := a.Stats(); st.Running != 0 || st.Waiting != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Clients at other servers than those that had the lost calls are told, too, and those whose calls are there are not.
func TestTheStateIsSetBackAndClientsAreElsewhere(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s, here := &sink{}, &sink{}
		a.submit(s, "before", "hold", nil)
		expect(t, s.take(), "before accepted")
		snapshot, err := a.server.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		a.submit(s, "since", "hold", nil)
		expect(t, s.take(), "since accepted")
		opened, err := b.Open(t.Context(), alice, here)
		if err != nil || len(opened.Unfinished) != 2 {
			t.Fatalf("%+v, %v", opened, err)
		}
		for _, row := range opened.Unfinished {
			here.wait(row)
		}
		b.Resume(alice, opened.Delivered)
		a.Forget(alice, s)
		c.Lead("") // it takes a moment until somebody leads
		if err := c.Restore(snapshot); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		expect(t, here.take())
		c.Lead("b")
		time.Sleep(2 * time.Second)
		expect(t, here.take(), "since SERVICE_UNAVAILABLE")
		b.submit(here, "since", "echo", nil)
		time.Sleep(time.Second)
		expect(t, here.take(), "since accepted", "since done")
		close(a.work.gate("before"))
		time.Sleep(time.Second)
		expect(t, here.take(), "before done")
	})
}

// An Open of which nothing came holds nothing back, and has nothing told twice or left out.
func TestAnOpenIsTakenBack(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		open := func() dispatch.Opened {
			t.Helper()
			opened, err := a.Open(t.Context(), alice, s)
			if err != nil {
				t.Fatal(err)
			}
			return opened
		}
		a.submit(s, "1", "echo", nil)
		synctest.Wait()
		a.submit(s, "2", "hold", nil)
		expect(t, s.take(), "1 accepted", "1 done", "2 accepted")
		first := open()
		open()
		close(a.work.gate("2"))
		synctest.Wait()
		a.Resume(alice, first.Order)
		expect(t, s.take())
		a.Release(alice)
		expect(t, s.take(), "2 done")
		// One that is not waited for any more, while a result is held back that another one left.
		c.SetLatency(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := a.Open(ctx, alice, s); err == nil {
			t.Error("it was opened in no time")
		}
		a.submit(s, "3", "echo", nil)
		time.Sleep(time.Second)
		expect(t, s.take(), "3 accepted", "3 done")
	})
}

// slowState is a state whose changes are told late.
type slowState struct {
	dispatch.State
	slow chan struct{} // holds one while none are told
}

type slowFeed struct {
	dispatch.Feed
	slow chan struct{}
}

func (s slowState) Subscribe() dispatch.Feed { return slowFeed{s.State.Subscribe(), s.slow} }

func (f slowFeed) Next(ctx context.Context) (*dispatch.Change, error) {
	c, err := f.Feed.Next(ctx)
	f.slow <- struct{}{}
	<-f.slow
	return c, err
}

// A result that comes just while its client does is given in its order: the state had it already when its change was not told yet.
func TestAResultComesWhileItsClientDoes(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		slow := make(chan struct{}, 1)
		a := start(t, c.Add("a"), nil)
		b := start(t, c.Add("b"), func(o *dispatch.Options) { o.State = slowState{o.State, slow} })
		s, here := &sink{}, &sink{}
		a.submit(s, "1", "hold", nil)
		synctest.Wait()
		slow <- struct{}{}
		opened := make(chan dispatch.Opened, 1)
		go func() {
			o, err := b.Open(t.Context(), alice, here)
			if err != nil {
				t.Error(err)
			}
			opened <- o
		}()
		time.Sleep(time.Millisecond)
		close(a.work.gate("1"))
		time.Sleep(time.Millisecond)
		<-slow
		o := <-opened
		synctest.Wait() // told after the Resume, it is said again as kept, for who waits for it
		b.Resume(alice, o.Delivered)
		expect(t, here.take(), "1 done")
	})
}
