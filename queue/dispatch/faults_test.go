// What goes wrong between two servers: commands that are refused, answers that do not come, and a state that is set back.
package dispatch_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
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
