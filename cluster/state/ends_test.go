// Tests of ends: which restarts count, and what becomes of messages that a checkpoint has not seen.

package state

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// life is a session that is started and ends, again and again.
type life struct {
	*machine
	epoch uint32
}

// fails has the session's process run for a while and fail, and starts it again where it may be.
func (l *life) fails(after time.Duration) *session.Session {
	l.t.Helper()
	l.later(after)
	l.ok(l.facts("a", exited("s", l.epoch, 1, 0)))
	s := l.session("s")
	if s.Phase == session.Pending {
		l.now = max(l.now, s.NotBefore)
		l.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: l.epoch, NodeId: "id-a"})
		l.epoch++
		l.ok(l.facts("a", started("s", l.epoch)))
	}
	checkInvariants(l.t, l.View())
	return s
}

func TestAHealthyRunForgivesRestarts(t *testing.T) {
	begin := func(t *testing.T) *life {
		l := &life{newMachine(t), 1}
		l.node("a")
		l.ok(spawn("s", "id-a", restart("on-failure", 3)))
		l.ok(l.facts("a", started("s", 1)))
		return l
	}
	expect := func(l *life, s *session.Session, total, row uint32, waits time.Duration) {
		l.t.Helper()
		if s.Phase != session.Pending || s.Restarts != total || s.RestartsInRow() != row || time.Duration(s.NotBefore-s.History[len(s.History)-1].Time) != waits {
			l.t.Fatalf("%s with %d restarts, %d in a row, waits %s (%s); want %d, %d, %s", s.Phase, s.Restarts, s.RestartsInRow(), time.Duration(s.NotBefore-s.History[len(s.History)-1].Time), s.Reason, total, row, waits)
		}
	}
	t.Run("a short run does not", func(t *testing.T) {
		l := begin(t)
		for i := range uint32(3) {
			expect(l, l.fails(session.HealthyRun-time.Second), i+1, i+1, time.Second<<i)
		}
		if s := l.fails(session.HealthyRun - time.Second); s.Phase != session.Failed || !strings.Contains(s.Reason, "its 3 restarts are used up") || s.Restarts != 3 {
			t.Errorf("%s after %d restarts: %s", s.Phase, s.Restarts, s.Reason)
		}
	})
	t.Run("a long one does", func(t *testing.T) {
		l := begin(t)
		l.fails(0)
		expect(l, l.fails(0), 2, 2, 2*time.Second)
		expect(l, l.fails(session.HealthyRun), 3, 1, time.Second)
		expect(l, l.fails(0), 4, 2, 2*time.Second)
		expect(l, l.fails(0), 5, 3, 4*time.Second)
		if s := l.fails(0); s.Phase != session.Failed || s.Restarts != 5 {
			t.Errorf("%s after %d restarts: %s", s.Phase, s.Restarts, s.Reason)
		}
	})
	t.Run("waiting and starting are no run", func(t *testing.T) {
		l := begin(t)
		l.fails(0)
		l.later(2 * session.HealthyRun) // it runs
		l.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1, Reason: "test"})
		if s := l.session("s"); s.RestartsInRow() != 0 || s.Restarts != 1 {
			t.Errorf("after a loss %d in a row of %d", s.RestartsInRow(), s.Restarts)
		}
		l.ok(register("a", 2))
		for row := range uint32(2) { // it never gets to run
			l.now = max(l.now, l.session("s").NotBefore)
			l.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: l.epoch, NodeId: "id-a"})
			l.epoch++
			l.later(2 * session.HealthyRun)
			l.ok(l.facts("a", exited("s", l.epoch, 1, 0)))
			expect(l, l.session("s"), row+2, row+1, time.Second<<row)
		}
	})
}

func TestARestoredSessionMayRestartAgain(t *testing.T) {
	m := keeping(t, 0, 0)
	m.save("a", 1, 0)
	l := &life{m, 1}
	for range session.DefaultRestarts {
		l.fails(0)
	}
	if s := l.fails(0); s.Phase != session.Failed {
		t.Fatal(s.Phase)
	}
	m.ok(&clusterv1.RewindSession{SessionId: "s"})
	m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: l.epoch, NodeId: "id-a"})
	l.epoch++
	m.ok(m.facts("a", started("s", l.epoch)))
	if s := l.fails(0); s.Phase != session.Pending || s.Restarts != session.DefaultRestarts+1 || s.RestartsInRow() != 1 {
		t.Errorf("%s after %d restarts, %d in a row", s.Phase, s.Restarts, s.RestartsInRow())
	}
}

// failed is a session that has ended: two of its four turns are in its checkpoint, and a message was never answered.
func failed(t *testing.T, limits ...func(*Limits)) *machine {
	m := newMachine(t, limits...)
	m.node("a")
	m.ok(spawn("s", "id-a", func(s *apiv1.SessionSpec) { s.CheckpointEvery = "5m" }))
	m.ok(m.facts("a", started("s", 1)))
	m.turns("a", 1, 2)
	m.save("a", 1, 0)
	m.turns("a", 1, 2)
	m.ok(send("s", "never answered"))
	m.ok(m.facts("a", exited("s", 1, 3, 0)))
	checkInvariants(t, m.View())
	return m
}

// restored rewinds the session, and compares the turn that it goes on from and the messages that come again.
func (m *machine) restored(sequence, turns uint64, want ...uint64) {
	m.t.Helper()
	m.ok(&clusterv1.RewindSession{SessionId: "s", Sequence: sequence})
	s := m.phase(session.Pending, "", m.session("s").Epoch)
	if got := m.queued("s"); !slices.Equal(got, want) || s.Turns != turns || s.LagTurns() != 0 {
		m.t.Errorf("messages %v come again at turn %d, lag %d; want %v at %d", got, s.Turns, s.LagTurns(), want, turns)
	}
}

func TestAnEndedSessionIsRestoredWithWhatItsCheckpointHasNotSeen(t *testing.T) {
	t.Run("from its head", func(t *testing.T) {
		m := failed(t)
		s, mb := m.session("s"), m.View().Mailbox("s")
		if s.Phase != session.Failed || s.LagTurns() != 2 || mb.Kept != 2 || mb.Acked != 4 || mb.Dead != 1 {
			t.Fatalf("%s with a lag of %d turns, %+v", s.Phase, s.LagTurns(), mb)
		}
		if err := m.Restore(bytes.NewReader(persisted(t, m.View()))); err != nil {
			t.Fatal(err)
		}
		m.restored(0, 2, 3, 4)
		if mb := m.View().Mailbox("s"); mb.Acked != 2 || mb.Kept != 0 || m.View().Result("s", 3) != nil {
			t.Errorf("%+v", mb)
		}
		if s := m.session("s"); len(s.Checkpoints) != 1 || s.LostLine != 9 || s.LostEpoch != 1 {
			t.Errorf("goes on from %+v", s.Saved)
		}
		m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: 1, NodeId: "id-a"})
		m.ok(m.facts("a", started("s", 2), turn("s", 2, 3, "again")))
		m.save("a", 2, 0)
		m.ok(m.facts("a", exited("s", 2, 3, 0))) // the fourth was not answered this time
		m.restored(0, 3)
	})
	t.Run("from an earlier one", func(t *testing.T) {
		m := failed(t)
		m.ok(&clusterv1.RewindSession{SessionId: "s"})
		m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: 1, NodeId: "id-a"})
		m.ok(m.facts("a", started("s", 2), turn("s", 2, 3, "")))
		m.save("a", 2, 0)
		m.ok(m.facts("a", turn("s", 2, 4, ""), exited("s", 2, 3, 0)))
		m.ok(&clusterv1.RewindSession{SessionId: "s", Sequence: 1})
		if got := m.queued("s"); len(got) != 0 || m.View().Stats().MessageBytes != 0 {
			t.Errorf("messages %v come again, %d bytes are kept", got, m.View().Stats().MessageBytes)
		}
		m.phase(session.Pending, "", 2)
	})
	t.Run("collected", func(t *testing.T) {
		m := failed(t)
		if got := m.View().Stats().MessageBytes; got != 2 {
			t.Fatalf("%d bytes are kept", got)
		}
		m.later(time.Hour)
		m.ok(&clusterv1.CollectGarbage{Before: m.now})
		if got := m.View().Stats().MessageBytes; got != 0 || m.View().Session("s") != nil {
			t.Errorf("%d bytes are kept of a session that is gone", got)
		}
		checkInvariants(t, m.View())
	})
	t.Run("without a checkpoint", func(t *testing.T) {
		m := newMachine(t)
		m.node("a")
		m.ok(spawn("s", "id-a", func(s *apiv1.SessionSpec) { s.CheckpointEvery = "5m" }))
		m.ok(m.facts("a", started("s", 1)))
		m.turns("a", 1, 2)
		m.ok(m.facts("a", exited("s", 1, 3, 0)))
		if got := m.View().Stats().MessageBytes; got != 0 || m.session("s").LagTurns() != 2 {
			t.Errorf("%d bytes are kept, and there is nothing to restore it from", got)
		}
	})
	t.Run("no room", func(t *testing.T) {
		m := failed(t, func(l *Limits) { l.MessageBytes = 20 }) // what waited is counted when it ends
		if mb := m.View().Mailbox("s"); mb.Kept != 0 {
			t.Errorf("%+v", mb)
		}
		m.restored(0, 2)
	})
}
