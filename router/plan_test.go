// Plans of drains: who comes first takes the room, what has none stays or is paused, and nothing is reserved.

package router

import (
	"strings"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/session"
)

// running is a session of the node a.
func running(id string, p session.Priority, change func(*session.Session)) *session.Session {
	s := &session.Session{ID: id, NodeID: "id-a", Phase: session.Running, Spec: spec(func(s *session.Spec) { s.Priority = p })}
	if change != nil {
		change(s)
	}
	return s
}

func TestPlanDrain(t *testing.T) {
	w := newWorld(t)
	w.node("a", nil)
	w.node("b", func(n *clusterv1.RegisterNode) { n.Capabilities.MaxConcurrentSessions = 2 })
	sessions := []*session.Session{
		running("normal-2", session.Normal, func(s *session.Session) { s.CreateIndex = 2 }),
		running("normal-1", session.Normal, func(s *session.Session) { s.CreateIndex = 1 }),
		running("critical", session.Critical, func(s *session.Session) { s.CreateIndex = 9 }),
		running("starting", session.High, func(s *session.Session) { s.Phase = session.Starting }),
		running("pausing", session.High, func(s *session.Session) { s.Phase = session.Pausing }),
		running("moving", session.High, func(s *session.Session) {
			s.Phase, s.Migration = session.Migrating, &session.Migration{Target: "id-b", State: session.MigrationCopying}
		}),
		running("ending", session.Critical, func(s *session.Session) { s.Phase = session.Terminating }),
		running("paused", session.Critical, func(s *session.Session) { s.Phase = session.Paused }),
	}
	for _, force := range []bool{false, true} {
		short := Stay
		if force {
			short = Pause
		}
		want := []Step{
			{sessions[2], Migrate, "id-b", "least-connections"}, {sessions[5], Migrate, "id-b", "is moving already"},
			{sessions[4], Pause, "", "is being paused already"}, {sessions[3], Migrate, "id-b", "once it runs"},
			{sessions[1], short, "", "b full"}, {sessions[0], short, "", "b full"},
		}
		got := w.r.PlanDrain(sessions, "id-a", force)
		if len(got) != len(want) {
			t.Fatalf("%d steps, want %d", len(got), len(want))
		}
		for i, step := range got {
			if step.Session != want[i].Session || step.Action != want[i].Action || step.Target != want[i].Target || !strings.Contains(step.Why, want[i].Why) {
				t.Errorf("force %v, step %d: %s: %+v, want %+v", force, i, step.Session.ID, step, want[i])
			}
		}
	}
	if p, err := w.r.Move(spec(nil), "id-a", ""); err != nil || p.NodeID != "id-b" {
		t.Errorf("the plan has taken the room: %v, %v", p, err)
	}
}

func TestMoveAgainAvoidsTheLastTarget(t *testing.T) {
	w := newWorld(t)
	w.node("a", nil)
	w.node("b", nil)
	w.node("c", nil)
	for range 3 {
		if p, err := w.r.MoveAgain(spec(nil), "id-a", "id-b"); err != nil || p.NodeID != "id-c" {
			t.Fatalf("%v, %v", p, err)
		}
	}
	w.cordon("c")
	if p, err := w.r.MoveAgain(spec(nil), "id-a", "id-b"); err != nil || p.NodeID != "id-b" {
		t.Errorf("nothing else fits: %v, %v", p, err)
	}
}

func TestRestoreSparesBusyNodes(t *testing.T) {
	w := newWorld(t)
	w.node("a", nil)
	w.node("b", nil)
	isBusy := func(id string) bool { return id == "id-a" }
	for range 3 {
		if p, err := w.r.Restore(spec(nil), "", isBusy); err != nil || p.NodeID != "id-b" {
			t.Fatalf("%v, %v", p, err)
		}
	}
	if _, err := w.r.Restore(spec(nil), "", func(string) bool { return true }); err == nil || err.Error() != "no node fits: 2 restores as many as it may at once" {
		t.Errorf("all are busy: %v", err)
	}
}
