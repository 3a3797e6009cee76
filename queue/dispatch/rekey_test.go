// Sessions that go to another owner while answers of the log are lost: no call is made twice, and none is left to its deadline.
package dispatch_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

var alice2 = queue.ClientKey{Owner: "token b", Session: alice.Session}

func once(r *dispatch.Request) { r.Repeatable = false }

// rekey gives alice's session to her other token, and returns what becomes of that.
func (n *node) rekey(t *testing.T) chan error {
	done := make(chan error, 1)
	go func() { done <- n.Rekey(t.Context(), alice, alice2, queue.Caller{Name: "alice-2", Role: "client"}) }()
	return done
}

func TestASessionGoesToAnotherOwnerWhileASubmissionIsNotAnswered(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		c.LoseAnswers(2)
		a.submit(s, "1", "hold", once)
		synctest.Wait()
		done := a.rekey(t)
		synctest.Wait()
		a.submit(s, "2", "echo", once) // comes meanwhile, as the former owner's
		cancelled := make(chan error, 1)
		go func() { cancelled <- a.Cancel(t.Context(), request("1", "").Key) }()
		if err := <-done; err != nil {
			t.Errorf("rekey: %v", err)
		}
		if err := <-cancelled; err != nil {
			t.Errorf("cancel: %v", err)
		}
		time.Sleep(time.Second)
		said := s.take()
		slices.Sort(said)
		expect(t, said, "1 accepted", "1 cancelled", "2 accepted", "2 done")
		if row := a.Find(queue.Key{Owner: alice2.Owner, Session: alice2.Session, RequestID: "2"}); row == nil || row.Caller.Name != "alice-2" {
			t.Errorf("what came meanwhile is %+v", row)
		}
		if row := a.Client(alice); row != nil {
			t.Errorf("the former owner has a session again: %+v", row)
		}
		if st := a.Stats(); st.Orphans != 0 || st.Running != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// The log does not answer at all: who rotates is told so in time, and what came meanwhile is answered as the former owner's.
func TestASessionStaysWhereTheLogDoesNotAnswer(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		a.submit(s, "0", "echo", nil)
		expect(t, s.take(), "0 accepted", "0 done")
		c.Lead("")
		a.submit(s, "1", "hold", nil)
		synctest.Wait()
		began, done := time.Now(), a.rekey(t)
		synctest.Wait()
		again := a.rekey(t)
		if err := <-again; err == nil || time.Since(began) > 0 {
			t.Errorf("twice at a time: %v", err)
		}
		a.submit(s, "2", "echo", nil)
		if err := <-done; err == nil || time.Since(began) > 5*time.Second {
			t.Errorf("rekey: %v in %s", err, time.Since(began))
		}
		c.Lead("a")
		time.Sleep(time.Second)
		expect(t, s.take(), "1 accepted", "2 accepted", "2 done")
		if a.Client(alice) == nil || a.Client(alice2) != nil {
			t.Error("the session has another owner")
		}
		if err := <-a.rekey(t); err != nil {
			t.Errorf("rekey again: %v", err)
		}
		close(a.work.gate("1"))
		expect(t, s.take(), "1 done")
	})
}

// Another server rekeys the session while this one says again what it has submitted: the call that is made twice runs once, and both have their end.
func TestASessionIsRekeyedElsewhereWhileASubmissionIsNotAnswered(t *testing.T) {
	for _, together := range []bool{false, true} { // the first submission and the rekeying are one entry of the log
		in(t, func(t *testing.T, c *dispatchtest.Cluster) {
			a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
			s := &sink{}
			if together {
				c.Lead("")
				a.submit(s, "1", "hold", once)
				synctest.Wait()
				r := request("1", "hold")
				submit := pbconv.SubmitOf(&queue.Call{
					Key: r.Key, Caller: r.Caller, Tool: r.Tool, Arguments: queue.Blob{Inline: r.Arguments, Size: uint64(len(r.Arguments))}, Priority: r.Priority,
					RequestHash: r.Hash, Deadline: r.Deadline.UnixNano(), Server: "a",
				}, true)
				c.Do(
					&clusterv1.Command{Kind: &clusterv1.Command_SubmitCall{SubmitCall: submit}},
					&clusterv1.Command{Kind: &clusterv1.Command_RekeyClient{RekeyClient: &clusterv1.RekeyClient{Owner: alice.Owner, Session: alice.Session, NewOwner: alice2.Owner}}},
				)
				synctest.Wait()
				c.Lead("a")
			} else {
				c.LoseAnswers(1)
				a.submit(s, "1", "hold", once)
				synctest.Wait()
				if err := <-b.rekey(t); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(2 * time.Second)
			expect(t, s.take(), "1 accepted")
			close(a.work.gate("1"))
			time.Sleep(time.Second)
			expect(t, s.take(), "1 done")
			if n := a.work.runs["1"]; n != 1 {
				t.Errorf("it ran %d times", n)
			}
			key := request("1", "").Key
			if row := b.Find(key); row == nil || !row.Status.Over() {
				t.Errorf("the second one is %+v", row)
			}
			key.Owner = alice2.Owner
			if row := b.Find(key); row == nil || row.Status != queue.Ended || row.Attempt != 1 || string(row.Outcome.Outputs.Inline) != `{"a":1}` {
				t.Errorf("the first one is %+v", row)
			}
		})
	}
}

// A beginning that is committed under the former key, and whose answer is lost, is no reason to give a call up: it begins.
func TestACallBeginsWhileItsSessionGoesToAnotherOwner(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), func(o *dispatch.Options) { o.MaxInFlight = 1 })
		s := &sink{}
		a.submit(s, "1", "hold", nil)
		synctest.Wait()
		a.submit(s, "2", "echo", once)
		expect(t, s.take(), "1 accepted", "2 accepted")
		c.LoseAnswers(2)
		close(a.work.gate("1"))
		synctest.Wait()
		if err := <-a.rekey(t); err != nil {
			t.Errorf("rekey: %v", err)
		}
		time.Sleep(2 * time.Second)
		expect(t, s.take(), "1 done", "2 done")
		if got := a.work.order(); !slices.Equal(got, []string{"1", "2"}) {
			t.Errorf("they began as %v", got)
		}
	})
}

func TestASessionGoesToAnotherOwner(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		c.Lead("b")
		a.submit(s, "1", "hold", nil)
		b.submit(&sink{}, "2", "hold", nil)
		expect(t, s.take(), "1 accepted")
		to := queue.ClientKey{Owner: "token b", Session: alice.Session}
		if err := a.Rekey(t.Context(), alice, to, queue.Caller{Name: "alice-2", Role: "client"}); err != nil {
			t.Fatal(err)
		}
		close(a.work.gate("1"))
		expect(t, s.take(), "1 done")
		close(b.work.gate("2"))
		expect(t, s.take(), "2 done")
		key := request("1", "").Key
		if a.Find(key) != nil {
			t.Error("the former owner has the call still")
		}
		key.Owner = to.Owner
		if row := b.Find(key); row == nil || row.Caller.Name != "alice-2" || row.Status != queue.Ended || row.Attempt != 1 {
			t.Errorf("%+v", row)
		}
		if got := s.orders; !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("results came as %v", got)
		}
	})
}
