// Tests of ends: which restarts count, and what becomes of messages that a checkpoint has not seen.

package state

import (
	"strings"
	"testing"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
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
