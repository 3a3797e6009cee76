// Sessions, command by command.

package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func restart(policy string, limit uint32) func(*apiv1.SessionSpec) {
	return func(s *apiv1.SessionSpec) { s.Restart, s.MaxRestarts = policy, limit }
}

func named(n string) func(*apiv1.SessionSpec) { return func(s *apiv1.SessionSpec) { s.Name = n } }

func reserves(cpu, memory int64) func(*apiv1.SessionSpec) {
	return func(s *apiv1.SessionSpec) { s.CpuMilli, s.MemoryBytes = cpu, memory }
}

// running returns a machine with node a and session s running on it.
func running(t *testing.T, change ...func(*apiv1.SessionSpec)) *machine {
	t.Helper()
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("s", "id-a", change...))
	m.ok(m.facts("a", started("s", 1)))
	return m
}

func TestSpawnOnANode(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	s := m.ok(spawn("s", "id-a", reserves(100, 200))).Session
	if s.Phase != session.Starting || s.Epoch != 1 || s.NodeID != "id-a" || s.PlacedIndex != m.Index() || s.CreateIndex != m.Index() ||
		s.CreateTime != m.now || s.Placement != "least sessions" || !strings.Contains(s.Reason, "spawned by ann; placed on a") {
		t.Errorf("spawned %+v", s)
	}
	if s.Spec.Grace != session.DefaultGrace || s.Spec.Restart != session.RestartNever {
		t.Errorf("the spec was not normalized: %+v", s.Spec)
	}
	if n := m.View().Node("id-a"); n.Sessions != 1 || n.ReservedCPUMilli != 100 || n.ReservedMemoryBytes != 200 {
		t.Errorf("node counts %+v", n)
	}
	m.ok(m.facts("a", started("s", 1)))
	if s = m.session("s"); s.Phase != session.Running || s.PID != 42 || s.StartTime != m.now {
		t.Errorf("running %+v", s)
	}
	checkInvariants(t, m.View())
}

func TestSpawnStaysPendingWhereTheNodeNoLongerFits(t *testing.T) {
	capable := func(sessions uint32, cpu, memory int64) func(*machine) {
		return func(m *machine) {
			r := register("a", 1)
			r.Capabilities.MaxConcurrentSessions, r.Capabilities.CpuMilli, r.Capabilities.MemoryBytes = sessions, cpu, memory
			m.ok(r)
		}
	}
	for name, c := range map[string]struct {
		setup func(*machine)
		want  string
	}{
		"no node":      {func(*machine) {}, "there is no node id-a"},
		"cordoned":     {func(m *machine) { m.node("a"); m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a"}) }, "cordoned"},
		"lost":         {func(m *machine) { m.node("a"); m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1}) }, "lost"},
		"too many":     {func(m *machine) { capable(1, 0, 0)(m); m.ok(spawn("other", "id-a")) }, "1 of 1 sessions"},
		"cpu short":    {func(m *machine) { capable(0, 150, 0)(m); m.ok(spawn("other", "id-a", reserves(100, 0))) }, "100 of 150 cpu"},
		"memory short": {func(m *machine) { capable(0, 0, 250)(m); m.ok(spawn("other", "id-a", reserves(0, 200))) }, "200 of 250 memory"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			c.setup(m)
			s := m.ok(spawn("s", "id-a", reserves(100, 100))).Session
			if s.Phase != session.Pending || s.Epoch != 0 || s.NodeID != "" || !strings.Contains(s.Reason, c.want) {
				t.Errorf("got %s %q at epoch %d, want PENDING with %q", s.Phase, s.Reason, s.Epoch, c.want)
			}
			checkInvariants(t, m.View())
		})
	}
}

func TestSpawnRefusals(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.Sessions = 3 })
	m.ok(spawn("a", "", named("one")))
	err := m.refusal(fault.AlreadyExists, spawn("b", "", named("one")))
	if !strings.Contains(err.Error(), "held by session a (PENDING)") {
		t.Errorf("the error does not name the holder: %v", err)
	}
	m.refused(fault.AlreadyExists, spawn("a", ""))
	m.refused(fault.Invalid, spawn("", ""))
	m.refused(fault.Invalid, spawn("a\x00b", ""))
	m.refused(fault.Invalid, spawn("b", "", func(s *apiv1.SessionSpec) { s.Command = nil }))
	m.refused(fault.Invalid, spawn("b", "", reserves(-1, 0)))
	m.ok(spawn("b", "", named("one"), func(s *apiv1.SessionSpec) { s.Namespace = "other" }))
	m.ok(&clusterv1.TerminateSession{SessionId: "a", Grace: -1})
	m.ok(spawn("c", "", named("one"))) // the name is free again
	if got := m.View().SessionByName("default", "one"); got == nil || got.ID != "c" {
		t.Errorf("by name: %v", got)
	}
	err = m.refusal(fault.Exhausted, spawn("d", ""))
	if fault.As(err).RetryAfter == 0 {
		t.Errorf("no time to come back in %v", err)
	}
}

// TestNameWithinOneEntry: names that an entry takes and frees hold for its later commands.
func TestNameWithinOneEntry(t *testing.T) {
	m := newMachine(t)
	r := m.do(spawn("a", "", named("x")), spawn("b", "", named("x")), &clusterv1.TerminateSession{SessionId: "a"}, spawn("c", "", named("x")))
	if r[0].Err != nil || !fault.Is(r[1].Err, fault.AlreadyExists) || r[2].Err != nil || r[3].Err != nil {
		t.Fatalf("results %+v", r)
	}
	if r[0].Session.Phase != session.Pending || r[2].Session.Phase != session.Terminated {
		t.Errorf("results share rows: %s, %s", r[0].Session.Phase, r[2].Session.Phase)
	}
	checkInvariants(t, m.View())
}

func TestSpawnIsIdempotentByKey(t *testing.T) {
	m := newMachine(t)
	c := spawn("a", "")
	c.IdempotencyKey, c.RequestHash = "k", 1
	m.ok(c)
	c.SessionId = "b"
	r := m.ok(c)
	if !r.Duplicate || r.Session.ID != "a" || m.View().Session("b") != nil {
		t.Errorf("the retry gave %+v", r)
	}
	c.RequestHash = 2
	m.refused(fault.AlreadyExists, c)
	c.Spec.Namespace = "other" // another scope
	if r = m.ok(c); r.Duplicate || r.Session.ID != "b" {
		t.Errorf("another namespace gave %+v", r)
	}
	c.IdempotencyKey = strings.Repeat("k", session.MaxKeyBytes+1)
	m.refused(fault.Invalid, c)
	m.ok(&clusterv1.TerminateSession{SessionId: "a"})
	m.ok(&clusterv1.RemoveSession{SessionId: "a"})
	again := spawn("c", "")
	again.IdempotencyKey, again.RequestHash = "k", 1
	m.refused(fault.NotFound, again)
}

func TestPlace(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("s", ""))
	m.refused(fault.NotFound, &clusterv1.PlaceSession{SessionId: "none", NodeId: "id-a"})
	m.refused(fault.FailedPrecondition, &clusterv1.PlaceSession{SessionId: "s", NodeId: "id-none"})
	m.refused(fault.Aborted, &clusterv1.PlaceSession{SessionId: "s", NodeId: "id-a", Epoch: 1})
	s := m.ok(&clusterv1.PlaceSession{SessionId: "s", NodeId: "id-a", Placement: "p"}).Session
	if s.Phase != session.Starting || s.Epoch != 1 || s.Placement != "p" || s.PlacedIndex != m.Index() {
		t.Errorf("placed %+v", s)
	}
	m.refused(fault.FailedPrecondition, &clusterv1.PlaceSession{SessionId: "s", NodeId: "id-a", Epoch: 1})
	r := register("b", 1)
	r.Capabilities.MaxConcurrentSessions = 1
	m.ok(r)
	m.ok(spawn("t", "id-b"))
	m.ok(spawn("u", ""))
	m.refused(fault.Exhausted, &clusterv1.PlaceSession{SessionId: "u", NodeId: "id-b"})
	checkInvariants(t, m.View())
}

func TestPlaceWaitsForTheRestartDelay(t *testing.T) {
	m := running(t, restart("always", 3))
	m.ok(m.facts("a", exited("s", 1, 1, 0)))
	m.refused(fault.FailedPrecondition, &clusterv1.PlaceSession{SessionId: "s", NodeId: "id-a", Epoch: 1})
	m.now += second
	if s := m.ok(&clusterv1.PlaceSession{SessionId: "s", NodeId: "id-a", Epoch: 1}).Session; s.Epoch != 2 || s.NotBefore != 0 {
		t.Errorf("placed %+v", s)
	}
}

func TestTerminate(t *testing.T) {
	t.Run("pending", func(t *testing.T) {
		m := newMachine(t)
		m.ok(spawn("s", "", named("x")))
		s := m.ok(&clusterv1.TerminateSession{SessionId: "s", Grace: -1, Cause: "evicted", Reason: "no room", Actor: "bob"}).Session
		if s.Phase != session.Terminated || s.Exit.Cause != "evicted" || s.Exit.Message != "evicted by bob: no room" || s.EndTime != m.now {
			t.Errorf("terminated %+v %+v", s, s.Exit)
		}
		if m.View().SessionByName("default", "x") != nil {
			t.Error("its name is still held")
		}
		if last := m.View().LastSessionByName("default", "x"); last == nil || last.ID != "s" {
			t.Errorf("the last that had its name: %v", last)
		}
		if again := m.ok(&clusterv1.TerminateSession{SessionId: "s"}).Session; again != s && again.ModifyIndex != s.ModifyIndex {
			t.Error("a second time changed it")
		}
	})
	t.Run("running", func(t *testing.T) {
		m := running(t)
		s := m.ok(&clusterv1.TerminateSession{SessionId: "s", Grace: -1, Cause: "expired"}).Session
		if s.Phase != session.Terminating || s.StopGrace != session.DefaultGrace || s.StopCause != "expired" || s.EndTime != 0 {
			t.Errorf("terminating %+v", s)
		}
		if s = m.ok(&clusterv1.TerminateSession{SessionId: "s", Grace: int64(time.Minute)}).Session; s.StopGrace != session.DefaultGrace {
			t.Errorf("the grace grew to %s", s.StopGrace)
		}
		if s = m.ok(&clusterv1.TerminateSession{SessionId: "s", Grace: 0}).Session; s.StopGrace != 0 || s.StopCause != "expired" {
			t.Errorf("the grace was not shortened: %+v", s)
		}
		m.refused(fault.FailedPrecondition, send("s", "hello"))
		x := exited("s", 1, 0, 0)
		x.GetExited().Exit.Signal = "SIGTERM"
		m.ok(m.facts("a", x))
		if s = m.session("s"); s.Phase != session.Terminated || s.Exit.Cause != "expired" || s.Exit.Signal != "SIGTERM" || s.OutputLine != 9 {
			t.Errorf("ended %+v %+v", s, s.Exit)
		}
		if n := m.View().Node("id-a"); n.Sessions != 0 {
			t.Errorf("the node still counts %d", n.Sessions)
		}
		checkInvariants(t, m.View())
	})
	t.Run("refused", func(t *testing.T) {
		m := running(t)
		m.refused(fault.NotFound, &clusterv1.TerminateSession{SessionId: "none"})
		m.refused(fault.Invalid, &clusterv1.TerminateSession{SessionId: "s", Cause: "whim"})
		m.refused(fault.Invalid, &clusterv1.TerminateSession{SessionId: "s", Grace: -2})
		m.refused(fault.Invalid, &clusterv1.TerminateSession{SessionId: "s", Grace: int64(2 * time.Hour)})
	})
}

func TestExits(t *testing.T) {
	for _, c := range []struct {
		policy string
		limit  uint32
		before uint32 // restarts so far
		code   int32
		want   session.Phase
		delay  time.Duration
	}{
		{"never", 0, 0, 0, session.Completed, 0},
		{"never", 0, 0, 3, session.Failed, 0},
		{"on-failure", 2, 0, 0, session.Completed, 0},
		{"on-failure", 2, 0, 3, session.Pending, time.Second},
		{"on-failure", 2, 1, 3, session.Pending, 2 * time.Second},
		{"on-failure", 2, 2, 3, session.Failed, 0},
		{"always", 2, 0, 0, session.Pending, time.Second},
		{"always", 2, 1, 3, session.Pending, 2 * time.Second},
		{"always", 2, 2, 3, session.Failed, 0},
		{"always", 2, 2, 0, session.Completed, 0},
	} {
		t.Run(fmt.Sprintf("%s/%d of %d/exit %d", c.policy, c.before, c.limit, c.code), func(t *testing.T) {
			m := running(t, restart(c.policy, c.limit), named("x"))
			epoch := uint32(1)
			for range c.before {
				m.ok(m.facts("a", exited("s", epoch, 1, 0)))
				m.now += 3600 * second
				m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: epoch, NodeId: "id-a"})
				epoch++
				m.ok(m.facts("a", started("s", epoch)))
			}
			m.ok(m.facts("a", exited("s", epoch, c.code, 0)))
			s := m.session("s")
			if s.Phase != c.want || s.Exit.Code != c.code || s.OutputLine != 9 || s.PID != 0 {
				t.Fatalf("got %s, want %s: %+v", s.Phase, c.want, s)
			}
			if c.want == session.Pending {
				if s.Restarts != c.before+1 || s.NotBefore != m.now+int64(c.delay) || s.EndTime != 0 {
					t.Errorf("waits from %d until %d after %d restarts", m.now, s.NotBefore, s.Restarts)
				}
			} else if s.EndTime != m.now || s.Restarts != c.before || m.View().SessionByName("default", "x") != nil {
				t.Errorf("ended at %d with %d restarts", s.EndTime, s.Restarts)
			}
			if m.View().Node("id-a").Sessions != 0 {
				t.Error("the node still counts it")
			}
			checkInvariants(t, m.View())
		})
	}
}

func TestExitCauses(t *testing.T) {
	for _, c := range []struct {
		exit *apiv1.Session_Exit
		want session.Exit
	}{
		{&apiv1.Session_Exit{}, session.Exit{Cause: session.CauseCompleted}},
		{&apiv1.Session_Exit{Code: 2, Cause: "odd"}, session.Exit{Code: 2, Cause: session.CauseFailed}},
		{&apiv1.Session_Exit{Signal: "SIGSEGV"}, session.Exit{Signal: "SIGSEGV", Cause: session.CauseFailed}},
		{&apiv1.Session_Exit{Code: 1, Cause: session.CauseOOMKilled, Message: "m"}, session.Exit{Code: 1, Cause: session.CauseOOMKilled, Message: "m"}},
		{nil, session.Exit{Code: -1, Cause: session.CauseFailed, Message: "the node did not say how it ended"}},
	} {
		m := running(t)
		x := exited("s", 1, 0, 0)
		x.GetExited().Exit = c.exit
		m.ok(m.facts("a", x))
		if got := *m.session("s").Exit; got != c.want {
			t.Errorf("%v: got %+v, want %+v", c.exit, got, c.want)
		}
	}
}

func TestFacts(t *testing.T) {
	m := running(t)
	m.refused(fault.FailedPrecondition, &clusterv1.ApplyFacts{NodeId: "id-none", Incarnation: 1})
	m.refused(fault.FailedPrecondition, &clusterv1.ApplyFacts{NodeId: "id-a", Incarnation: 2})
	stale := m.facts("a", exited("s", 0, 0, 0), exited("none", 1, 0, 0), exited("s", 2, 0, 0))
	if r := m.ok(stale); r.Count != 0 || r.Node.FactIndex != 4 || m.session("s").Phase != session.Running {
		t.Errorf("stale facts had effect: %+v", r)
	}
	m.node("b")
	other := m.facts("b", exited("s", 1, 0, 0)) // of a node that does not hold it
	if r := m.ok(other); r.Count != 0 || m.session("s").Phase != session.Running {
		t.Errorf("another node's fact had effect: %+v", r)
	}
	end := m.facts("a", exited("s", 1, 0, 0))
	m.ok(end)
	m.ok(spawn("t", "id-a"))
	before := m.View().Node("id-a").FactIndex
	if r := m.ok(end); r.Count != 0 || r.Node.FactIndex != before { // sent again
		t.Errorf("a repeated fact had effect: %+v", r)
	}
	m.ok(m.facts("a", started("t", 1)))
	again := started("t", 1)
	again.GetStarted().Pid = 43 // adopted by an agent that came back
	m.ok(m.facts("a", again))
	late := m.facts("a", started("t", 1)) // sent before, told again after
	late.Facts[0].Index -= 2
	if r := m.ok(late); r.Count != 0 || r.Node.FactIndex != late.Facts[0].Index+1 {
		t.Errorf("a repeated fact had effect: %+v", r)
	}
	if s := m.session("t"); s.PID != 43 || len(s.History) != 2 {
		t.Errorf("after the second start: %+v", s)
	}
	checkInvariants(t, m.View())
}

func TestLoseNode(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("never", "id-a"))
	m.ok(spawn("always", "id-a", restart("always", 1)))
	m.ok(spawn("onfail", "id-a", restart("on-failure", 1)))
	m.ok(spawn("ending", "id-a"))
	m.ok(&clusterv1.TerminateSession{SessionId: "ending", Grace: -1})
	m.refused(fault.FailedPrecondition, &clusterv1.LoseNode{NodeId: "id-a", Incarnation: 9})
	m.refused(fault.NotFound, &clusterv1.LoseNode{NodeId: "id-none"})
	r := m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1, Reason: "lease ended"})
	if n := r.Node; r.Count != 4 || !n.Lost || n.Status != Unhealthy || n.Sessions != 0 || n.Reason != "lease ended" {
		t.Errorf("lost %+v", r)
	}
	for id, want := range map[string]struct {
		phase session.Phase
		cause string
	}{
		"never": {session.Failed, "lost"}, "always": {session.Pending, "lost"},
		"onfail": {session.Pending, "lost"}, "ending": {session.Terminated, "terminated"},
	} {
		if s := m.session(id); s.Phase != want.phase || s.Exit.Cause != want.cause || s.Restarts != 0 || s.NotBefore > m.now {
			t.Errorf("%s: %+v %+v, want %+v", id, s, s.Exit, want)
		}
	}
	if r = m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1}); r.Count != 0 {
		t.Errorf("lost twice: %+v", r)
	}
	m.refused(fault.FailedPrecondition, &clusterv1.SetNodeStatus{NodeId: "id-a", Status: apiv1.Node_HEALTHY})
	m.refused(fault.FailedPrecondition, &clusterv1.PlaceSession{SessionId: "always", NodeId: "id-a", Epoch: 1})
	m.ok(register("a", 1)) // it comes back
	if s := m.ok(&clusterv1.PlaceSession{SessionId: "always", NodeId: "id-a", Epoch: 1}).Session; s.Epoch != 2 {
		t.Errorf("placed again %+v", s)
	}
	m.ok(m.facts("a", exited("always", 1, 0, 0))) // of the epoch before
	if s := m.session("always"); s.Phase != session.Starting {
		t.Errorf("a fact of an old epoch had effect: %+v", s)
	}
	checkInvariants(t, m.View())
}

func TestHistoryIsBounded(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("s", "id-a", restart("always", 1000)))
	for epoch := uint32(1); epoch <= 20; epoch++ {
		m.ok(m.facts("a", started("s", epoch), exited("s", epoch, 1, 0)))
		m.now += 100 * second
		m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: epoch, NodeId: "id-a"})
	}
	h := m.session("s").History
	if len(h) != session.HistoryMax || h[len(h)-1].Epoch != 21 || h[0].Epoch < 15 {
		t.Errorf("history %+v", h)
	}
}

func TestPendingReasonAndOrder(t *testing.T) {
	m := newMachine(t)
	m.ok(spawn("z", ""))
	m.ok(spawn("y", "", func(s *apiv1.SessionSpec) { s.Priority = apiv1.Priority_CRITICAL }))
	m.ok(spawn("x", ""))
	var got []string
	for s := range m.View().Pending() {
		got = append(got, s.ID)
	}
	if !slices.Equal(got, []string{"y", "z", "x"}) {
		t.Errorf("pending in the order %v", got)
	}
	m.refused(fault.Aborted, &clusterv1.SetPendingReason{SessionId: "x", Epoch: 1, Reason: "r"})
	m.refused(fault.NotFound, &clusterv1.SetPendingReason{SessionId: "none", Reason: "r"})
	s := m.ok(&clusterv1.SetPendingReason{SessionId: "x", Reason: "r"}).Session
	if s.Reason != "r" || s.ModifyIndex != m.Index() || len(s.History) != 1 {
		t.Errorf("reason %+v", s)
	}
	at := s.ModifyIndex
	if s = m.ok(&clusterv1.SetPendingReason{SessionId: "x", Reason: "r"}).Session; s.ModifyIndex != at {
		t.Error("the same reason changed the row")
	}
}

func TestRemoveAndCollect(t *testing.T) {
	m := running(t)
	m.refused(fault.FailedPrecondition, &clusterv1.RemoveSession{SessionId: "s"})
	m.refused(fault.NotFound, &clusterv1.RemoveSession{SessionId: "none"})
	m.ok(send("s", "one"))
	m.ok(send("s", "two"))
	m.ok(m.facts("a", handed("s", 1, 1), turn("s", 1, 1, "r"), exited("s", 1, 0, 0)))
	early := m.now
	for i := range 5 {
		m.now += second
		m.ok(spawn(fmt.Sprint("p", i), ""))
		m.ok(&clusterv1.TerminateSession{SessionId: fmt.Sprint("p", i)})
	}
	if r := m.ok(&clusterv1.CollectGarbage{Before: early}); r.Count != 0 {
		t.Errorf("collected %d that ended at the time or after", r.Count)
	}
	if r := m.ok(&clusterv1.CollectGarbage{Before: early + 3*second, Limit: 2}); r.Count != 2 || m.View().Session("s") != nil || m.View().Session("p0") != nil {
		t.Errorf("collected %d", r.Count)
	}
	if r := m.ok(&clusterv1.CollectGarbage{Before: early + 3*second}); r.Count != 1 || m.View().Session("p1") != nil || m.View().Session("p2") == nil {
		t.Errorf("collected %d", r.Count)
	}
	v := m.View()
	if v.Mailbox("s").NextSequence != 1 || v.Result("s", 1) != nil {
		t.Error("the mailbox or results of a removed session are there")
	}
	if v.DeadLetter(LetterKey{"s", 2}) == nil {
		t.Error("the dead letter went with its session")
	}
	m.refused(fault.AlreadyExists, spawn("s", "")) // letters of the old one would mix with the new one's
	m.refused(fault.NotFound, &clusterv1.RetryDeadLetters{SessionId: "s"})
	if r := m.ok(&clusterv1.PurgeDeadLetters{Namespace: "default"}); r.Count != 1 {
		t.Errorf("purged %d", r.Count)
	}
	m.ok(spawn("s", ""))
	checkInvariants(t, m.View())
}

func TestTimeNeverGoesBackAndEntriesNeverRepeat(t *testing.T) {
	m := newMachine(t)
	m.ok(spawn("a", ""))
	first := m.now
	m.now -= 50 * second
	if s := m.ok(spawn("b", "")).Session; s.CreateTime != first || m.View().Time() != first {
		t.Errorf("created at %d, before %d", s.CreateTime, first)
	}
	for _, index := range []uint64{1, 2} {
		r := m.Apply(index, &clusterv1.Batch{Time: m.now, Commands: []*clusterv1.Command{cmd(spawn("c", ""))}})
		if !fault.Is(r[0].Err, fault.Internal) || m.View().Session("c") != nil || m.Index() != 2 {
			t.Errorf("entry %d was applied again: %+v", index, r)
		}
	}
	if r := m.Apply(9, &clusterv1.Batch{Commands: []*clusterv1.Command{{}}}); !fault.Is(r[0].Err, fault.Unimplemented) || m.Index() != 9 {
		t.Errorf("an unknown command gave %+v", r)
	}
}

func TestUnknownFactIsPassedOver(t *testing.T) {
	m := running(t)
	if r := m.ok(m.facts("a", &nodev1.Fact{SessionId: "s", Epoch: 1})); r.Node.FactIndex != 2 || m.session("s").Phase != session.Running {
		t.Errorf("got %+v", r)
	}
}

// TestViewsAreImmutable: a view shows what it showed, whatever is applied after it.
func TestViewsAreImmutable(t *testing.T) {
	h, s := newHistory(3), New(smallLimits())
	for range 100 {
		s.Apply(s.Index()+1, h.batch(s.View()))
	}
	v := s.View()
	before := persisted(t, v)
	for range 200 {
		s.Apply(s.Index()+1, h.batch(s.View()))
	}
	if string(before) != string(persisted(t, v)) {
		t.Error("a view changed under its reader")
	}
}
