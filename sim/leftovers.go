// What must not be left behind once all is quiet: directories, processes, reservations, and moves without an end.

package sim

import (
	"os"
	"path/filepath"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/session"
)

// checkLeftovers looks at all that is at rest.
func (w *World) checkLeftovers(v *state.View) {
	reserved := map[string]uint32{}
	for s := range v.Sessions("") {
		w.checkMove(v, s)
		if s.Phase.Ended() && (s.Exit == nil || s.Exit.Cause == "") {
			w.fail("an end without a cause: session %s is %s", s.ID, s.Phase)
		}
		if h := s.History; s.Phase == session.Paused && s.Head() == nil && len(h) > 1 && h[len(h)-2].Phase != session.Pending {
			w.fail("a pause without a checkpoint: session %s", s.ID)
		}
		if m := unheard(v, s); m != nil {
			w.fail("a message that nobody hears: %d of session %s came when it was to be paused, and it sleeps", m.Sequence, s.ID)
		}
		if s.Phase.HoldsNode() {
			reserved[s.NodeID]++
		}
	}
	for n := range v.Nodes() {
		if n.Sessions != reserved[n.ID] {
			w.fail("a reservation held: %s counts %d sessions, and %d are there", n.Name, n.Sessions, reserved[n.ID])
		}
	}
	// What waits for the chunk store is placed again and again.
	if l := w.leading(); l != nil && v.PhaseCounts()[session.Pending] == 0 {
		if n := l.router.Reservations(); n != 0 {
			w.fail("a reservation held: the router of %s holds %d places that nobody takes", l.id, n)
		}
	}
	for _, n := range w.nodes {
		if row := v.NodeByName(n.id); row != nil && n.alive() {
			w.checkDirectories(v, n, row.ID)
		}
	}
}

// unheard is a message that came after somebody wanted a pause, and waits.
func unheard(v *state.View, s *session.Session) *session.Message {
	if s.Phase != session.Paused {
		return nil
	}
	began := s.History[len(s.History)-1].Time
	for _, h := range s.History {
		if h.Phase == session.Pausing {
			began = h.Time
		}
	}
	for m := range v.Messages(s.ID) {
		if m.CreateTime > began {
			return m
		}
	}
	return nil
}

// checkMove: the record of a move says how it ended.
func (w *World) checkMove(v *state.View, s *session.Session) {
	m := s.Migration
	switch {
	case m == nil:
	case m.Under():
		w.fail("a move without an end: session %s is %s, and its move to %s is in state %d", s.ID, s.Phase, m.Target, m.State)
	case m.State != session.MigrationDone && m.Error == "":
		w.fail("a move that failed without a reason: session %s", s.ID)
	case m.EndTime < m.StartTime:
		w.fail("a move that ended before it began: session %s", s.ID)
	case m.State == session.MigrationDone && m.Epoch > s.Epoch:
		w.fail("a move to a future epoch: session %s is at %d, and moved at %d", s.ID, s.Epoch, m.Epoch)
	}
}

// checkDirectories: nothing but what belongs to sessions whose last place this is.
func (w *World) checkDirectories(v *state.View, n *node, id string) {
	for _, dir := range []string{"restoring", "damaged", "trash"} {
		for _, name := range entries(filepath.Join(n.dir, dir)) {
			w.fail("left over: %s/%s on %s; %s", dir, name, n.id, describe(v.Session(name)))
		}
	}
	for _, name := range entries(filepath.Join(n.dir, "sessions")) {
		s := v.Session(name)
		if s != nil && s.Phase == session.Pending {
			continue // one that waits to be restored still needs its source
		}
		if s == nil || s.NodeID != id {
			w.fail("left over: sessions/%s on %s (%s); %s", name, n.id, id, describe(s))
		}
	}
}

// unclean says what nodes have ready for sessions that do not come: they let go of it when they are told, or in time.
func (w *World) unclean() string {
	for _, n := range w.nodes {
		if left := entries(filepath.Join(n.dir, "staged")); n.alive() && len(left) > 0 {
			return n.id + " has ready " + left[0]
		}
	}
	return ""
}

func entries(dir string) []string {
	list, _ := os.ReadDir(dir)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}
