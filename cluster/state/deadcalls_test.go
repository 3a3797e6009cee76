// Dead calls: retried, purged, and bounded, for each owner and in all.

package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

func TestDeadCalls(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.DeadCalls = 3 })
	die := func(request, namespace string) *queue.Call {
		m.now += second
		return m.ok(giveUp(m.ok(m.submit(request, begun, func(s *clusterv1.SubmitCall) { s.Caller.Namespace = namespace })).Call, "PROVIDER_ERROR")).Call
	}
	a, b, c := die("a", "default"), die("b", "other"), die("c", "default")
	m.is(a, queue.Dead, 1)
	if string(a.Arguments.Inline) == "" {
		t.Error("a dead call has lost what a retry needs")
	}
	if got := slices.Collect(m.View().DeadCalls("default", "")); !slices.Equal(got, []*queue.Call{a, c}) {
		t.Errorf("dead: %v", got)
	}
	at, err := ParseDeadToken(DeadTokenOf(a).String())
	if got := slices.Collect(m.View().DeadCalls("", at)); err != nil || !slices.Equal(got, []*queue.Call{b, c}) {
		t.Errorf("dead behind the first: %v, %v", got, err)
	}
	m.again(m.submit("a"), a) // its client gets the outcome

	retry := &clusterv1.RetryCall{Key: pbconv.CallKeyToProto(a.Key), ServerId: "s2", Deadline: m.now + second}
	again := m.ok(retry).Call
	m.is(again, queue.Queued, 2)
	if again.Number <= c.Number || again.Server != "s2" || again.Order != 0 || again.EndTime != 0 {
		t.Errorf("retried: %+v", again)
	}
	m.refused(fault.FailedPrecondition, retry)
	m.refused(fault.Aborted, giveUp(a, "PROVIDER_ERROR")) // of the attempt before
	again = m.ok(endCall(m.ok(beginCall(again)).Call, "done")).Call
	if m.is(again, queue.Ended, 3); again.Order != 4 {
		t.Errorf("its result is number %d", again.Order)
	}

	m.refused(fault.NotFound, &clusterv1.PurgeCalls{Key: retry.Key})
	m.refused(fault.NotFound, &clusterv1.PurgeCalls{Key: pbconv.CallKeyToProto(b.Key), Namespace: "default"})
	if n := m.ok(&clusterv1.PurgeCalls{Namespace: "other"}).Count; n != 1 || m.View().Call(b.Key) != nil {
		t.Errorf("%d were purged", n)
	}
	for i := range 4 {
		die(fmt.Sprint("d", i), "default")
	}
	if st := m.View().Stats(); st.Calls.Of(queue.Dead) != 3 || st.DeadCallsDropped != 2 || m.View().Call(c.Key) != nil || m.View().Call(annsKey("d0")) != nil {
		t.Errorf("%+v", st)
	}
	if n := m.ok(&clusterv1.PurgeCalls{}).Count; n != 3 {
		t.Errorf("%d were purged", n)
	}
	checkInvariants(t, m.View())
}

// Who has many dead calls loses its own oldest ones, and nobody else's.
func TestDeadCallsOfOneOwner(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.DeadCalls, l.DeadCallsPerOwner, l.DeadCallBytesPerOwner = 6, 3, 500 })
	die := func(owner, session, request string, bytes int) *queue.Call {
		m.now += second
		return m.ok(giveUp(m.ok(m.submit(request, begun, func(c *clusterv1.SubmitCall) {
			c.Key.Owner, c.Key.Session, c.Arguments = owner, session, inline(strings.Repeat("x", bytes))
		})).Call, "X")).Call
	}
	kept := func(calls ...*queue.Call) {
		t.Helper()
		if got := slices.Collect(m.View().DeadCalls("", "")); !slices.Equal(got, calls) {
			t.Errorf("kept %v, want %v", got, calls)
		}
		checkInvariants(t, m.View())
	}
	his := die("bob", "b", "oldest", 1)
	var hers []*queue.Call
	for i := range 5 { // whatever session they are of
		hers = append(hers, die("ann", fmt.Sprint("s", i%2), fmt.Sprint(i), 1))
	}
	kept(his, hers[2], hers[3], hers[4])
	large := die("ann", "s1", "large", 470)
	kept(his, large)
	if n := m.View().Stats().DeadCallsDropped; n != 5 {
		t.Errorf("%d were dropped", n)
	}
	// What goes to another owner counts there.
	theirs := []*queue.Call{die("carl", "c", "1", 1), die("carl", "c", "2", 1)}
	kept(append([]*queue.Call{his, large}, theirs...)...)
	m.ok(&clusterv1.RekeyClient{Owner: "bob", Session: "b", NewOwner: "carl"})
	if r := die("carl", "c", "3", 1); m.View().Call(r.Key) != r || m.View().Call(queue.Key{Owner: "carl", Session: "b", RequestID: "oldest"}) != nil {
		t.Error("the oldest of three and one is there, or the newest is not")
	}
	checkInvariants(t, m.View())
}
