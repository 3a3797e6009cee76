// Calls: what each command does, to what it refuses, and what its repetition does.

package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// again applies a command that is known, which must change nothing and answer with the same call.
func (m *machine) again(command any, want *queue.Call) {
	m.t.Helper()
	before := m.content()
	r := m.ok(command)
	if !r.Duplicate || r.Call != want || !bytes.Equal(before, m.content()) {
		m.t.Fatalf("%T again: duplicate %v, call %+v, want %+v, state changed: %v", command, r.Duplicate, r.Call, want, !bytes.Equal(before, m.content()))
	}
}

func (m *machine) is(c *queue.Call, status queue.Status, attempt uint32) {
	m.t.Helper()
	if c == nil || c.Status != status || c.Attempt != attempt {
		m.t.Fatalf("the call is %+v, want %s at attempt %d", c, status, attempt)
	}
	if got := m.View().Call(c.Key); got != c {
		m.t.Fatalf("the view has %+v, want %+v", got, c)
	}
	checkInvariants(m.t, m.View())
}

func TestACallLivesOnce(t *testing.T) {
	m := newMachine(t)
	submit := m.submit("r")
	c := m.ok(submit).Call
	m.is(c, queue.Queued, 0)
	m.again(submit, c)
	m.again(m.submit("r", on("s2"), begun), c) // its client is elsewhere by now

	begin := beginCall(c)
	m.refused(fault.Aborted, &clusterv1.BeginCall{Key: begin.GetKey(), ServerId: "s2"})
	c = m.ok(begin).Call
	m.is(c, queue.Running, 1)
	m.again(begin, c)

	wait := deferCall(c, m.now+second)
	m.refused(fault.Aborted, &clusterv1.DeferCall{Key: begin.GetKey(), ServerId: "s1", Attempt: 2})
	c = m.ok(wait).Call
	m.is(c, queue.Queued, 1)
	m.again(wait, c)
	if c.LastError != "PROVIDER_ERROR: busy" || c.NotBefore != m.now+second {
		t.Errorf("deferred: %+v", c)
	}
	m.refused(fault.Aborted, begin) // said before the attempt that failed

	c = m.ok(beginCall(c)).Call
	m.is(c, queue.Running, 2)
	m.now += 3 * second
	end := endCall(c, "done")
	m.refused(fault.Aborted, &clusterv1.EndCall{Key: end.GetKey(), ServerId: "s2", Attempt: 2, Outcome: end.GetOutcome()})
	m.refused(fault.Aborted, &clusterv1.EndCall{Key: end.GetKey(), ServerId: "s1", Attempt: 1, Outcome: end.GetOutcome()})
	m.refused(fault.Invalid, &clusterv1.EndCall{Key: end.GetKey(), ServerId: "s1", Attempt: 2})
	c = m.ok(end).Call
	m.is(c, queue.Ended, 2)
	m.again(end, c)
	m.again(submit, c)
	m.again(&clusterv1.CancelCall{Key: end.GetKey()}, c)
	m.refused(fault.AlreadyExists, m.submit("r", func(s *clusterv1.SubmitCall) { s.RequestHash++ }))
	m.refused(fault.Aborted, beginCall(c))
	if c.Order != 1 || string(c.Outcome.Outputs.Inline) != "done" || c.EndTime != m.now || c.Arguments.Inline != nil || c.Arguments.Size == 0 {
		t.Errorf("ended: %+v with %+v", c, c.Outcome)
	}
	m.refused(fault.NotFound, beginCall(&queue.Call{Key: annsKey("other")}))
}

func TestWhatMayNotBeRepeatedIsNotPutBack(t *testing.T) {
	m := newMachine(t)
	c := m.ok(m.submit("r", begun, once)).Call
	m.refused(fault.FailedPrecondition, deferCall(c, m.now+second))
	m.is(c, queue.Running, 1)
}

func TestCancelling(t *testing.T) {
	m := newMachine(t)
	waits := m.ok(m.submit("waits")).Call
	cancel := &clusterv1.CancelCall{Key: pbconv.CallKeyToProto(waits.Key)}
	waits = m.ok(cancel).Call
	m.is(waits, queue.Ended, 0)
	m.again(cancel, waits)
	if !waits.Outcome.Cancelled || !waits.Outcome.Passing || waits.Order != 1 {
		t.Errorf("%+v", waits)
	}
	runs := m.ok(m.submit("runs", begun)).Call
	cancel = &clusterv1.CancelCall{Key: pbconv.CallKeyToProto(runs.Key)}
	runs = m.ok(cancel).Call
	m.is(runs, queue.Running, 1)
	m.again(cancel, runs)
	// Its server fails just then: it is not tried again.
	runs = m.ok(deferCall(runs, m.now+1)).Call
	m.is(runs, queue.Ended, 1)
	if !runs.Outcome.Cancelled || runs.Cancelling {
		t.Errorf("%+v", runs)
	}
}

func TestAnOutcomeThatPassesIsNotKept(t *testing.T) {
	m := newMachine(t)
	c := m.ok(m.submit("r", begun)).Call
	end := endCall(c, "")
	end.Outcome = &clusterv1.Outcome{Code: "OVER_CAPACITY", RetryAfterMs: 200, Passing: true}
	ended := m.ok(end).Call
	m.is(ended, queue.Ended, 1)
	// Asked again, with whatever: another call. What is said about the first has no effect on it.
	c = m.ok(m.submit("r", func(s *clusterv1.SubmitCall) { s.RequestHash++ })).Call
	m.is(c, queue.Queued, 2)
	if c.Number == ended.Number || c.Order != 0 || c.Outcome != nil {
		t.Errorf("anew: %+v", c)
	}
	m.refused(fault.Aborted, end)
	c = m.ok(endCall(m.ok(beginCall(c)).Call, "done")).Call
	if m.is(c, queue.Ended, 3); c.Order != 2 {
		t.Errorf("its result is number %d", c.Order)
	}
}

func TestALostServersCalls(t *testing.T) {
	m := newMachine(t)
	var calls []*queue.Call
	for i, change := range [][]func(*clusterv1.SubmitCall){
		{}, {begun}, {once}, {once, begun}, {on("s2"), begun}, {ordered("a"), begun}, {ordered("a")}, {ordered("b")}, {begun},
	} {
		calls = append(calls, m.ok(m.submit(fmt.Sprint("r", i), change...)).Call)
	}
	m.ok(&clusterv1.CancelCall{Key: pbconv.CallKeyToProto(calls[8].Key)})
	m.refused(fault.Invalid, &clusterv1.AssignCalls{FromServerId: "s1"})
	m.refused(fault.Invalid, &clusterv1.AssignCalls{FromServerId: "s1", ToServerIds: []string{"s2", "s1"}})
	assign := &clusterv1.AssignCalls{FromServerId: "s1", ToServerIds: []string{"s2", "s3"}, Reason: "server s1 was lost", Limit: 5}
	if a, b, none := m.ok(assign).Count, m.ok(assign).Count, m.ok(assign).Count; a != 5 || b != 3 || none != 0 {
		t.Errorf("%d, %d and %d were given away", a, b, none)
	}
	want := []queue.Status{queue.Queued, queue.Queued, queue.Queued, queue.Dead, queue.Running, queue.Queued, queue.Queued, queue.Queued, queue.Ended}
	servers := map[string]int{}
	for i, c := range calls {
		now := m.View().Call(c.Key)
		if now.Status != want[i] || !now.Status.Over() && now.Server == "s1" {
			t.Errorf("call %d is %s on %s, want %s elsewhere", i, now.Status, now.Server, want[i])
		}
		if now.Status == queue.Queued {
			servers[now.Server]++
			if now.Attempt != c.Attempt+1 {
				t.Errorf("call %d is at attempt %d, and was at %d", i, now.Attempt, c.Attempt)
			}
		}
	}
	if len(servers) != 2 {
		t.Errorf("the calls went to %v", servers)
	}
	if a, b := m.View().Call(annsKey("r5")), m.View().Call(annsKey("r6")); a.Server != b.Server {
		t.Errorf("calls of one order key went to %s and %s", a.Server, b.Server)
	}
	// The server was not dead: what it says has no effect, as the call is with another one.
	m.refused(fault.Aborted, endCall(calls[1], "late"))
	dead := m.View().Call(annsKey("r3"))
	if dead.Outcome.Code != queue.CodeUnavailable || !strings.Contains(dead.Outcome.Message, "server s1 was lost while it ran") {
		t.Errorf("given up with %+v", dead.Outcome)
	}
	if last := m.View().Events(0, 1000); !slices.ContainsFunc(last, func(e *Event) bool {
		return e.Type == "call.dead" && e.Namespace == "default" && strings.Contains(e.Message, dead.ID())
	}) {
		t.Error("no event tells of the dead call")
	}
	checkInvariants(t, m.View())
}

func TestCallsOfOneOrderKeyRunOneAfterTheOther(t *testing.T) {
	m := newMachine(t)
	first := m.ok(m.submit("1", ordered("k"), begun)).Call
	second := m.ok(m.submit("2", ordered("k"), begun, on("s2"))).Call
	third := m.ok(m.submit("3", ordered("k"))).Call
	m.is(second, queue.Queued, 0)
	m.refused(fault.FailedPrecondition, beginCall(second))
	first = m.ok(deferCall(first, m.now+1)).Call
	m.refused(fault.FailedPrecondition, beginCall(second)) // the first comes again, and first
	// In one entry, too: the end of one, and the next one's begin, but not that of the one behind it.
	first = m.ok(beginCall(first)).Call
	r := m.do(endCall(first, ""), beginCall(third), beginCall(second), m.submit("4", ordered("k"), begun), m.submit("5", ordered("other"), begun))
	for i, want := range []fault.Kind{0, fault.FailedPrecondition, 0, 0, 0} {
		if got := r[i].Err; (got == nil) != (want == 0) || got != nil && !fault.Is(got, want) {
			t.Errorf("command %d: %v", i, got)
		}
	}
	if r[3].Call.Status != queue.Queued || r[4].Call.Status != queue.Running {
		t.Errorf("%s and %s", r[3].Call.Status, r[4].Call.Status)
	}
	checkInvariants(t, m.View())
}

func TestDeadlines(t *testing.T) {
	m := newMachine(t)
	m.refused(fault.Timeout, m.submit("late", func(s *clusterv1.SubmitCall) { s.Deadline = m.now }))
	m.refused(fault.Invalid, m.submit("none", func(s *clusterv1.SubmitCall) { s.Deadline = 0 }))
	by := func(s int64) func(*clusterv1.SubmitCall) {
		return func(c *clusterv1.SubmitCall) { c.Deadline = m.now + s*second }
	}
	runs, waits := m.ok(m.submit("runs", by(10), begun)).Call, m.ok(m.submit("waits", by(11))).Call
	later := m.ok(m.submit("later", by(20))).Call
	if due := slices.Collect(m.View().CallsDue()); !slices.Equal(due, []*queue.Call{runs, waits, later}) {
		t.Errorf("due: %v", due)
	}
	expire := &clusterv1.ExpireCalls{Before: m.now + 12*second}
	m.now += 17 * second
	if n := m.ok(expire).Count; n != 2 {
		t.Fatalf("%d calls have expired", n)
	}
	for _, c := range []*queue.Call{runs, waits} {
		if now := m.View().Call(c.Key); now.Status != queue.Ended || now.Outcome.Code != queue.CodeTimeout || !now.Outcome.Passing {
			t.Errorf("%+v", now)
		}
	}
	m.again(endCall(runs, "late"), m.View().Call(runs.Key)) // its server learns that it came too late
	m.is(later, queue.Queued, 0)
}

func TestWhatIsFullIsRefused(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.Calls, l.CallsPerClient, l.CallBytes = 4, 6, 400 })
	full := func(c *clusterv1.SubmitCall, want string) {
		t.Helper()
		err := m.refusal(fault.Exhausted, c)
		if !strings.Contains(err.Error(), want) || fault.As(err).RetryAfter <= 0 {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for i := range 4 {
		m.ok(m.submit(fmt.Sprint("w", i)))
	}
	full(m.submit("x"), "4 calls wait or run, the limit")
	for c := range m.View().CallsOf(ann) {
		m.ok(endCall(m.ok(beginCall(c)).Call, ""))
	}
	m.run("e4")
	m.run("e5")
	full(m.submit("x"), "6 calls that wait, run, or have results that it was not given")
	// Given ones give way, the oldest first, and no others.
	m.ok(take(ann, 2))
	m.ok(m.submit("x"))
	if v := m.View(); v.Call(annsKey("w0")) != nil || v.Call(annsKey("w1")) == nil || v.Call(annsKey("w2")) == nil {
		t.Error("another call than the oldest given gave way")
	}
	m.ok(m.submit("y"))
	full(m.submit("z"), "the limit")

	bob := func(c *clusterv1.SubmitCall) { c.Key.Session = "bob" }
	much := func(n int) func(*clusterv1.SubmitCall) {
		return func(c *clusterv1.SubmitCall) { c.Arguments = inline(strings.Repeat("x", n)) }
	}
	full(m.submit("much", bob, much(400)), "bytes of arguments and results")
	// A result of 300 bytes finds room beyond the limit, and gives it back once it was given.
	big := m.ok(m.submit("big", bob, begun)).Call
	big = m.ok(endCall(big, strings.Repeat("r", 390))).Call
	full(m.submit("more", bob), "bytes of arguments and results")
	m.ok(take(big.Client(), big.Order))
	m.ok(m.submit("more", bob))
	if m.View().Call(big.Key) != nil {
		t.Error("what was given is still there")
	}
	checkInvariants(t, m.View())
}

func TestResultsAreKeptForTheirTime(t *testing.T) {
	m := newMachine(t)
	given, kept := m.run("given"), m.run("kept")
	m.ok(take(ann, 1))
	dead := m.ok(giveUp(m.ok(m.submit("dead", begun)).Call, "X")).Call
	waits := m.ok(m.submit("waits", func(c *clusterv1.SubmitCall) { c.Deadline = m.now + 48*3600*second })).Call
	there := func(calls ...*queue.Call) {
		t.Helper()
		m.ok(&clusterv1.CollectGarbage{})
		if got := slices.Collect(m.View().CallsOf(ann)); !slices.Equal(got, calls) {
			t.Errorf("kept %v, want %v", got, calls)
		}
		checkInvariants(t, m.View())
	}
	m.now += int64(m.limits.ResultKeep) - 1
	there(given, kept, dead, waits)
	m.now++
	there(dead, waits)
	m.now += int64(m.limits.DeadKeep) - int64(m.limits.ResultKeep)
	there(waits)
	if m.View().Client(ann) == nil {
		t.Error("a client with a call is gone")
	}
	m.ok(&clusterv1.CancelCall{Key: pbconv.CallKeyToProto(waits.Key)})
	m.now += int64(m.limits.ResultKeep)
	there()
	m.ok(&clusterv1.CollectGarbage{})
	if m.View().Client(ann) != nil || m.View().Stats().Clients != 0 {
		t.Error("a client without calls is kept for ever")
	}
}

func TestDelivery(t *testing.T) {
	m := newMachine(t)
	m.refused(fault.NotFound, take(ann, 1))
	for i := range 3 {
		m.run(fmt.Sprint(i))
	}
	m.ok(take(ann, 2))
	for _, known := range []uint64{0, 1, 2} {
		if !m.ok(take(ann, known)).Duplicate {
			t.Errorf("%d was not known", known)
		}
	}
	m.ok(take(ann, 99)) // more than there is
	if c := m.View().Client(ann); c.Delivered != 3 || c.Order != 3 {
		t.Errorf("%+v", c)
	}
	m.ok(&clusterv1.OpenClient{Owner: ann.Owner, Session: ann.Session, ServerId: "s3"})
	if c := m.View().Client(ann); c.Server != "s3" || c.Delivered != 3 {
		t.Errorf("%+v", c)
	}
	m.refused(fault.Invalid, &clusterv1.OpenClient{Owner: ann.Owner, ServerId: "s3"})
	checkInvariants(t, m.View())
}

func TestClientsAreBounded(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.Clients = 2 })
	open := func(session string) *clusterv1.OpenClient {
		return &clusterv1.OpenClient{Owner: "o", Session: session, ServerId: "s1"}
	}
	m.ok(open("a"))
	m.now += second
	m.ok(open("b"))
	m.refused(fault.Exhausted, open("c"))
	m.refused(fault.Exhausted, m.submit("r"))
	m.now += int64(m.limits.ResultKeep)
	m.ok(open("a")) // is here again
	m.ok(open("c"))
	v := m.View()
	if v.Client(queue.ClientKey{Owner: "o", Session: "a"}) == nil || v.Client(queue.ClientKey{Owner: "o", Session: "b"}) != nil {
		t.Error("another client than the one that was away longest gave way")
	}
	checkInvariants(t, v)
}

func TestRekeying(t *testing.T) {
	m := newMachine(t)
	given := m.run("given")
	m.ok(take(ann, 1))
	runs := m.ok(m.submit("runs", begun, ordered("k"))).Call
	sub, _ := m.Subscribe()
	defer sub.Close()
	rekey := &clusterv1.RekeyClient{Owner: ann.Owner, Session: ann.Session, NewOwner: "token 2", Caller: &clusterv1.Caller{TokenId: "2", Role: "client"}}
	if r := m.ok(rekey); r.Count != 2 || r.Duplicate {
		t.Errorf("%+v", r)
	}
	if r := m.ok(rekey); !r.Duplicate {
		t.Errorf("again: %+v", r)
	}
	to := queue.ClientKey{Owner: "token 2", Session: ann.Session}
	change, err := sub.Next(t.Context())
	if err != nil || len(change.Calls) != 2 || !slices.Equal(change.Rekeyed, []Rekeyed{{ann, to}}) {
		t.Errorf("told %+v, %v", change, err)
	}
	v := m.View()
	if v.Client(ann) != nil || v.Client(to).Delivered != 1 || v.Call(given.Key) != nil {
		t.Error("the old owner has it still")
	}
	k := queue.Key{Owner: "token 2", Session: ann.Session, RequestID: "runs"}
	now := v.Call(k)
	m.is(now, queue.Running, 1)
	if now.Number != runs.Number || now.Caller.TokenID != "2" {
		t.Errorf("%+v", now)
	}
	m.refused(fault.NotFound, endCall(runs, "to the old name"))
	m.ok(endCall(now, "done"))
	m.run("mine")
	back := &clusterv1.RekeyClient{Owner: "token 2", Session: ann.Session, NewOwner: ann.Owner}
	m.refused(fault.AlreadyExists, back)
	m.refused(fault.NotFound, &clusterv1.RekeyClient{Owner: "nobody", Session: "x", NewOwner: "token 3"})
	checkInvariants(t, m.View())
}

// TestRekeyingInOneEntry: with calls that the same entry has taken, and to the name of a client that it has emptied.
func TestRekeyingInOneEntry(t *testing.T) {
	m := newMachine(t)
	m.ok(giveUp(m.ok(m.submit("dead", begun, func(c *clusterv1.SubmitCall) { c.Key.Owner = "token 2" })).Call, "X"))
	r := m.do(&clusterv1.PurgeCalls{}, m.submit("dead"), m.submit("new"),
		&clusterv1.RekeyClient{Owner: ann.Owner, Session: ann.Session, NewOwner: "token 2", Caller: &clusterv1.Caller{TokenId: "2"}})
	for i := range r {
		if r[i].Err != nil {
			t.Fatalf("command %d: %v", i, r[i].Err)
		}
	}
	to := queue.ClientKey{Owner: "token 2", Session: ann.Session}
	if got := slices.Collect(m.View().CallsOf(to)); r[3].Count != 2 || len(got) != 2 || got[0].RequestID != "dead" || got[0].Status != queue.Queued {
		t.Errorf("%d calls moved: %v", r[3].Count, got)
	}
	checkInvariants(t, m.View())
}

func TestBlobsThatAreNone(t *testing.T) {
	m := newMachine(t)
	for name, b := range map[string]*clusterv1.Blob{
		"too long inline": inline(strings.Repeat("x", queue.InlineBytes+1)),
		"a short hash":    {Chunks: [][]byte{{1, 2}}, SizeBytes: 9},
		"both":            {Inline: []byte("x"), Chunks: [][]byte{bytes.Repeat([]byte{1}, 32)}, SizeBytes: 9},
		"another size":    {Inline: []byte("x"), SizeBytes: 9},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.refused(fault.Invalid, m.submit("r", func(s *clusterv1.SubmitCall) { s.Arguments = b }))
		})
	}
	m.t = t
	c := m.ok(m.submit("r", begun, func(s *clusterv1.SubmitCall) {
		s.Arguments = &clusterv1.Blob{Chunks: [][]byte{bytes.Repeat([]byte{7}, 32)}, SizeBytes: 70_000}
	})).Call
	if m.is(c, queue.Running, 1); c.Arguments.Chunks[0][31] != 7 {
		t.Errorf("%+v", c.Arguments)
	}
}

func TestOneEntryTellsACallOnce(t *testing.T) {
	m := newMachine(t)
	sub, _ := m.Subscribe()
	defer sub.Close()
	c := &queue.Call{Key: annsKey("r"), Server: "s1", Attempt: 1}
	m.do(m.submit("r", begun), endCall(c, "done"), m.submit("s"), take(ann, 1))
	change, err := sub.Next(t.Context())
	if err != nil || len(change.Calls) != 2 || change.Calls[0].Status != queue.Ended || change.Calls[1].Status != queue.Queued {
		t.Errorf("told %+v, %v", change.Calls, err)
	}
	if m.View().Client(ann).Delivered != 1 {
		t.Error("the delivery in the same entry was lost")
	}
}

func TestViewsOfCalls(t *testing.T) {
	m := newMachine(t)
	low := m.ok(m.submit("low", func(s *clusterv1.SubmitCall) { s.Priority = 4 })).Call
	a := m.ok(m.submit("a", begun)).Call
	other := m.ok(m.submit("other", on("s10"))).Call
	b := m.ok(m.submit("b")).Call
	urgent := m.ok(m.submit("urgent", func(s *clusterv1.SubmitCall) { s.Priority = 1 })).Call
	gone := m.run("gone")
	v := m.View()
	if got := slices.Collect(v.CallsOn("s1")); !slices.Equal(got, []*queue.Call{urgent, a, b, low}) {
		t.Errorf("on s1: %v", got)
	}
	if got := slices.Collect(v.CallsOf(ann)); !slices.Equal(got, []*queue.Call{low, a, other, b, urgent, gone}) {
		t.Errorf("of ann: %v", got)
	}
	if got := slices.Collect(v.Calls(other.Number)); !slices.Equal(got, []*queue.Call{b, urgent, gone}) {
		t.Errorf("behind %d: %v", other.Number, got)
	}
	if v.Stats().Calls.Live() != 5 || v.Stats().Calls.Of(queue.Running) != 1 || v.Stats().Calls[queue.Queued][1] != 1 {
		t.Errorf("%+v", v.Stats().Calls)
	}
	// An older view goes on showing what it showed.
	m.now += int64(time.Hour)
	m.ok(&clusterv1.CollectGarbage{})
	if m.View().Call(gone.Key) != nil || v.Call(gone.Key) != gone {
		t.Error("the call is not gone, or gone from the view before")
	}
}

// A client that was forgotten, while it was connected, goes on behind what it was given.
func TestOrdersNeverBeginAgain(t *testing.T) {
	for name, forget := range map[string]func(m *machine){
		"it was away for long": func(m *machine) {
			m.now += int64(m.limits.ClientKeep)
			m.ok(&clusterv1.CollectGarbage{})
			m.ok(&clusterv1.CollectGarbage{})
		},
		"there was no room": func(m *machine) {
			m.now += int64(m.limits.ResultKeep)
			m.ok(&clusterv1.CollectGarbage{})
			for i := range 2 {
				m.ok(&clusterv1.OpenClient{Owner: ann.Owner, Session: fmt.Sprint("other", i), ServerId: "s1"})
			}
			m.now += int64(m.limits.ResultKeep) // until another one gives way to it
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, func(l *Limits) { l.Clients = 2 })
			m.run("0")
			dead := m.ok(giveUp(m.ok(m.submit("1", begun)).Call, "X")).Call
			dead = m.ok(&clusterv1.RetryCall{Key: pbconv.CallKeyToProto(dead.Key), ServerId: "s1", Deadline: m.now + second}).Call
			last := m.ok(endCall(m.ok(beginCall(dead)).Call, "done")).Call.Order // a retry gives out an order more
			m.ok(take(ann, last))
			if forget(m); m.View().Client(ann) != nil {
				t.Fatal("the client was not forgotten")
			}
			if m.ok(&clusterv1.OpenClient{Owner: ann.Owner, Session: ann.Session, ServerId: "s1"}).Duplicate {
				t.Error("it was known")
			}
			if !m.ok(&clusterv1.OpenClient{Owner: ann.Owner, Session: ann.Session, ServerId: "s1"}).Duplicate {
				t.Error("it was not known")
			}
			begin := m.View().Client(ann)
			if begin.Order < last || begin.Delivered != begin.Order {
				t.Errorf("it was given %d, and goes on as %+v", last, begin)
			}
			for i := range uint64(3) {
				if c := m.run(fmt.Sprint("then", i)); c.Order != begin.Order+1+i {
					t.Errorf("result %d has order %d, behind %d", i, c.Order, begin.Order)
				}
			}
			checkInvariants(t, m.View())
		})
	}
}

// Dead calls have room of their own: however many a client makes, others' calls are taken.
func TestDeadCallsTakeNoRoomFromOthers(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.CallBytes, l.DeadCallBytes = 1000, 700 })
	die := func(request string) *queue.Call {
		m.now += second
		c := m.submit(request, begun, func(c *clusterv1.SubmitCall) { c.Arguments = inline(strings.Repeat("x", 200)) })
		return m.ok(giveUp(m.ok(c).Call, "X")).Call
	}
	var dead []*queue.Call
	for i := range 20 {
		dead = append(dead, die(fmt.Sprint(i)))
		checkInvariants(t, m.View())
		checkBounds(t, m.View(), &m.limits)
	}
	each := dead[0].StateBytes()
	kept := int(m.limits.DeadCallBytes / each)
	if got := slices.Collect(m.View().DeadCalls("", "")); !slices.Equal(got, dead[20-kept:]) {
		t.Errorf("kept %v", got)
	}
	if st := m.View().Stats(); st.DeadCallsDropped != uint64(20-kept) || st.CallBytes != 0 || st.DeadCallBytes != uint64(kept)*each {
		t.Errorf("%+v", st)
	}
	if !slices.ContainsFunc(m.View().Events(0, 1000), func(e *Event) bool { return e.Type == "call.dropped" }) {
		t.Error("no event tells of it")
	}
	full := m.ok(m.submit("large", func(c *clusterv1.SubmitCall) { c.Arguments = inline(strings.Repeat("x", 990)) })).Call
	// One that is tried again needs room among those that live.
	retry := &clusterv1.RetryCall{Key: pbconv.CallKeyToProto(dead[19].Key), ServerId: "s1", Deadline: m.now + second}
	m.refused(fault.Exhausted, retry)
	m.ok(&clusterv1.CancelCall{Key: pbconv.CallKeyToProto(full.Key)})
	m.ok(retry)
	if st := m.View().Stats(); st.DeadCallBytes != uint64(kept-1)*each {
		t.Errorf("%+v", st)
	}
	checkInvariants(t, m.View())
}
