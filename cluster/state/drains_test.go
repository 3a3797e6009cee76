// Drains: what is counted as sessions leave, how a drain ends, and what outlives a snapshot.

package state

import (
	"bytes"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// draining is a machine with the nodes a and b, the named sessions running on a, and a drain of a under way.
func draining(t *testing.T, ids ...string) *machine {
	m := newMachine(t)
	m.node("a")
	m.node("b")
	for _, id := range ids {
		m.ok(spawn(id, "id-a", func(s *apiv1.SessionSpec) { s.CheckpointEvery = "5m" }))
		m.ok(m.facts("a", started(id, 1)))
	}
	m.ok(&clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + 60*second, Actor: "ann"})
	return m
}

func (m *machine) drain(node string) *Drain {
	m.t.Helper()
	checkInvariants(m.t, m.View())
	return m.View().Node("id-" + node).Drain
}

// leave has a session that was told to leave its node do so.
func (m *machine) leave(node, id string) {
	m.t.Helper()
	s := m.session(id)
	f := checkpointed(id, s.Epoch, 1, s.Move)
	f.GetCheckpointed().HeldTime = pbconv.Time(m.now)
	m.ok(m.facts(node, captured(id, s.Epoch, 1, 0), f, exited(id, s.Epoch, 1, 0)))
}

func TestADrainCountsThoseThatLeave(t *testing.T) {
	m := draining(t, "moves", "pauses", "ends", "stays")
	n := m.View().Node("id-a")
	if d := m.drain("a"); n.Schedulable || !d.Under() || d.Total != 4 || d.Number != m.Index() || d.Deadline != m.now+60*second {
		t.Fatalf("schedulable %v, drain %+v", n.Schedulable, d)
	}
	m.refused(fault.FailedPrecondition, &clusterv1.MigrateSession{SessionId: "moves", Epoch: 1, NodeId: "id-a"})
	m.ok(&clusterv1.MigrateSession{SessionId: "moves", Epoch: 1, NodeId: "id-b"})
	m.ok(&clusterv1.PauseSession{SessionId: "pauses"})
	if d := m.drain("a"); d.Moved != 0 || d.Paused != 0 {
		t.Errorf("counted before they left: %+v", d)
	}
	m.leave("a", "moves")
	m.leave("a", "pauses")
	m.ok(m.facts("a", exited("ends", 1, 0, 0)))
	m.now += 3 * second
	m.ok(m.facts("b", started("moves", 2)))
	d := m.drain("a")
	if d.Total != 4 || d.Moved != 1 || d.Paused != 1 || m.View().Node("id-a").Sessions != 1 || d.LongestBlackout != 3*second {
		t.Errorf("counted %+v", d)
	}
	// It is over when nothing is left, and not before.
	m.refused(fault.Aborted, &clusterv1.EndDrain{NodeId: "id-a", Number: d.Number, State: uint32(Drained)})
	m.refused(fault.Aborted, &clusterv1.EndDrain{NodeId: "id-a", Number: d.Number + 1, State: uint32(Drained)})
	m.refused(fault.Aborted, &clusterv1.EndDrain{NodeId: "id-a", Number: d.Number, State: uint32(DrainIncomplete)})
	m.ok(m.facts("a", exited("stays", 1, 0, 0)))
	m.refused(fault.Invalid, &clusterv1.EndDrain{NodeId: "id-a", Number: d.Number, State: uint32(DrainCancelled)})
	m.ok(&clusterv1.EndDrain{NodeId: "id-a", Number: d.Number, State: uint32(Drained)})
	if d = m.drain("a"); d.State != Drained || d.EndTime != m.now || m.View().Node("id-a").Schedulable {
		t.Errorf("at its end %+v", d)
	}
	if n := m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a", Schedulable: true}).Node; n.Drain != nil || !n.Schedulable {
		t.Errorf("after the uncordon: %+v", n)
	}
	m.refused(fault.NotFound, &clusterv1.DrainNode{NodeId: "none", Deadline: m.now + second})
	m.refused(fault.Invalid, &clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now})
}

func TestAnUncordonCancelsADrain(t *testing.T) {
	m := draining(t, "s")
	n := m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a", Schedulable: true, Actor: "bob"}).Node
	if d := m.drain("a"); d.State != DrainCancelled || d.Reason != "uncordoned by bob" || !n.Schedulable {
		t.Fatalf("%+v", d)
	}
	m.refused(fault.Aborted, &clusterv1.EndDrain{NodeId: "id-a", Number: n.Drain.Number, State: uint32(Drained)})
	m.ok(m.facts("a", exited("s", 1, 0, 0)))
	if n = m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a"}).Node; n.Drain != nil {
		t.Errorf("a later cordon is taken for that drain: %+v", n.Drain)
	}
}

// TestADrainThatIsAskedForAgain goes on with the new deadline; its number and its counts stay.
func TestADrainThatIsAskedForAgain(t *testing.T) {
	m := draining(t, "s")
	before := *m.drain("a")
	m.now += second
	m.ok(&clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + 5*second, Force: true})
	before.Deadline, before.Force = m.now+5*second, true
	if d := m.drain("a"); *d != before {
		t.Errorf("%+v, want %+v", *d, before)
	}
	m.now += 5 * second
	m.ok(&clusterv1.EndDrain{NodeId: "id-a", Number: before.Number, State: uint32(DrainIncomplete), Reason: "no room"})
	// A move that had begun may end behind the deadline, and counts.
	m.ok(&clusterv1.MigrateSession{SessionId: "s", Epoch: 1, NodeId: "id-b"})
	m.leave("a", "s")
	if d := m.drain("a"); d.State != DrainIncomplete || d.Reason != "no room" || d.Moved != 1 {
		t.Errorf("after its deadline %+v", d)
	}
	m.ok(&clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + second})
	if d := m.drain("a"); !d.Under() || d.Total != 0 || d.Number != m.Index() {
		t.Errorf("a new drain: %+v", d)
	}
}

// TestADrainTurnsAwayWhatMovesThere: a session that is on its way to the node stays where it is.
func TestADrainTurnsAwayWhatMovesThere(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.node("b")
	m.ok(spawn("s", "id-b", func(s *apiv1.SessionSpec) { s.CheckpointEvery = "5m" }))
	m.ok(m.facts("b", started("s", 1)))
	m.ok(&clusterv1.MigrateSession{SessionId: "s", Epoch: 1, NodeId: "id-a"})
	m.ok(&clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + second})
	if s, d := m.session("s"), m.drain("a"); s.Phase != session.Running || s.NodeID != "id-b" || s.Migration.State != session.MigrationCancelled || d.Total != 0 {
		t.Errorf("%s on %s, migration %+v, drain %+v", s.Phase, s.NodeID, s.Migration, d)
	}
}

func TestALostNodeIsDrained(t *testing.T) {
	m := draining(t, "s")
	m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1, Reason: "test"})
	m.ok(&clusterv1.EndDrain{NodeId: "id-a", Number: m.drain("a").Number, State: uint32(Drained)})
	m.ok(register("a", 2))
	if n := m.View().Node("id-a"); n.Schedulable || n.Drain == nil || n.Drain.State != Drained {
		t.Errorf("back from its loss: %+v, drain %+v", n, n.Drain)
	}
}

// TestTheNextAgentEndsADrainOfTheOneBefore: but a person's cordon or drain, from before or from meanwhile, stays.
func TestTheNextAgentEndsADrainOfTheOneBefore(t *testing.T) {
	byAgent := func(m *machine) *clusterv1.DrainNode {
		return &clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + 60*second, Force: true, Incarnation: 1, Actor: "its agent"}
	}
	cordon := &clusterv1.SetNodeSchedulable{NodeId: "id-a", Actor: "ann"}
	end := func(m *machine, s DrainState) {
		if s == DrainIncomplete {
			m.now += 60 * second
		}
		m.ok(&clusterv1.EndDrain{NodeId: "id-a", Number: m.drain("a").Number, State: uint32(s)})
	}
	for name, c := range map[string]struct {
		before      func(m *machine) // sessions "s" runs on a
		schedulable bool
		drain       DrainState // of the record that is left; 0 for none
	}{
		"under way":  {func(m *machine) { m.ok(byAgent(m)) }, true, DrainCancelled},
		"incomplete": {func(m *machine) { m.ok(byAgent(m)); end(m, DrainIncomplete) }, true, 0},
		"done": {func(m *machine) {
			m.ok(byAgent(m))
			m.ok(m.facts("a", exited("s", 1, 0, 0)))
			end(m, Drained)
		}, true, 0},
		"asked for twice":          {func(m *machine) { m.ok(byAgent(m)); m.ok(byAgent(m)) }, true, DrainCancelled},
		"again after it was over":  {func(m *machine) { m.ok(byAgent(m)); end(m, DrainIncomplete); m.ok(byAgent(m)) }, true, DrainCancelled},
		"cordoned before":          {func(m *machine) { m.ok(cordon); m.ok(byAgent(m)) }, false, DrainCancelled},
		"cordoned meanwhile":       {func(m *machine) { m.ok(byAgent(m)); m.ok(cordon); m.ok(cordon) }, false, DrainCancelled},
		"cordoned, and it is over": {func(m *machine) { m.ok(cordon); m.ok(byAgent(m)); end(m, DrainIncomplete) }, false, 0},
		"a person uncordons it": {func(m *machine) {
			m.ok(byAgent(m))
			m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a", Schedulable: true})
		}, true, DrainCancelled},
		"a person drains it too": {func(m *machine) {
			m.ok(byAgent(m))
			m.ok(&clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + second})
		}, false, Draining},
		"a person drained it before": {func(m *machine) {
			m.ok(&clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + second})
			m.ok(byAgent(m))
		}, false, Draining},
		"a person had drained it": {func(m *machine) {
			m.ok(&clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + 60*second})
			end(m, DrainIncomplete)
			m.ok(byAgent(m))
		}, false, DrainCancelled},
		"lost before it came to much": {func(m *machine) { m.ok(byAgent(m)); m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1}) }, true, DrainCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.node("a")
			m.node("b")
			m.ok(spawn("s", "id-a", func(s *apiv1.SessionSpec) { s.CheckpointEvery = "5m" }))
			m.ok(m.facts("a", started("s", 1)))
			c.before(m)
			was := m.View().Node("id-a")
			m.ok(register("a", 1)) // the same agent, over another link
			if n := m.View().Node("id-a"); n.Schedulable != was.Schedulable || *n.Drain != *was.Drain {
				t.Errorf("after another link of the same agent: schedulable %v, drain %+v", n.Schedulable, n.Drain)
			}
			m.ok(register("a", 2))
			n := m.View().Node("id-a")
			if d := m.drain("a"); n.Schedulable != c.schedulable || (d == nil) != (c.drain == 0) || d != nil && (d.State != c.drain || d.ByAgent()) {
				t.Errorf("schedulable %v, drain %+v", n.Schedulable, d)
			}
			m.ok(register("a", 3))
			if later := m.View().Node("id-a"); later.Schedulable != n.Schedulable {
				t.Errorf("after one more start: schedulable %v", later.Schedulable)
			}
		})
	}
}

// TestADrainByTheAgentHasItsTerms: an agent that has gone is not heard, and one that joins a person's drain makes it no longer.
func TestADrainByTheAgentHasItsTerms(t *testing.T) {
	m := draining(t, "s")
	began := *m.drain("a")
	ask := &clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + 90*second, Force: true, Incarnation: 1}
	m.ok(ask)
	if d := m.drain("a"); d.Deadline != began.Deadline || !d.Force || d.ByAgent() || d.Number != began.Number {
		t.Errorf("a person's drain that the agent joins: %+v", d)
	}
	ask.Deadline = m.now + 10*second
	m.ok(ask)
	if d := m.drain("a"); d.Deadline != m.now+10*second {
		t.Errorf("the agent stays for 10 s, and the drain is %+v", d)
	}
	m.ok(register("a", 2))
	m.refused(fault.Aborted, ask)
}

func TestADrainOutlivesASnapshot(t *testing.T) {
	m := draining(t, "s")
	m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a", Schedulable: true})
	m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a"})
	m.ok(&clusterv1.DrainNode{NodeId: "id-a", Deadline: m.now + 60*second, Incarnation: 1})
	m.ok(&clusterv1.PauseSession{SessionId: "s"})
	m.leave("a", "s")
	m.now += 60 * second
	m.ok(&clusterv1.EndDrain{NodeId: "id-a", Number: m.drain("a").Number, State: uint32(DrainIncomplete), Reason: "why"})
	bytesOf := persisted(t, m.View())
	back := New(DefaultLimits())
	if err := back.Restore(bytes.NewReader(bytesOf)); err != nil {
		t.Fatal(err)
	}
	if got, want := *back.View().Node("id-a").Drain, *m.drain("a"); got != want || want.Paused != 1 || !want.ByAgent() || !want.Cordoned {
		t.Errorf("restored %+v, want %+v", got, want)
	}
}

func TestAnIdlePauseIsRefusedOnceSomethingHappened(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("s", "id-a"))
	m.ok(m.facts("a", started("s", 1)))
	seq := m.ok(send("s", "x")).Sequence
	idle := &clusterv1.PauseSession{SessionId: "s", Reason: "idle for 5m0s", Idle: &clusterv1.Idle{Epoch: 1}}
	m.refused(fault.Aborted, idle) // a message waits
	m.ok(m.facts("a", handed("s", 1, seq)))
	m.refused(fault.Aborted, idle) // its turn is under way
	m.ok(m.facts("a", turn("s", 1, seq, "r")))
	m.refused(fault.Aborted, idle) // a turn has ended since
	idle.Idle.Turns, idle.Idle.Epoch = 1, 2
	m.refused(fault.Aborted, idle)
	idle.Idle.Epoch = 1
	if s := m.ok(idle).Session; s.Phase != session.Pausing || s.Reason != "being checkpointed for a pause: idle for 5m0s" {
		t.Errorf("%s: %s", s.Phase, s.Reason)
	}
	checkInvariants(t, m.View())
}
