// Moves under way: how many there may be at once, and who is next of those that wait.

package leader

import (
	"cmp"
	"slices"

	"github.com/neolith/orchestrator/session"
)

// MoveLimits bound how many migrations are under way at once. A session beyond them is MIGRATING and works on; its node is told
// to let it go when its turn comes. Restores after a loss, and pauses, are not bounded by them.
type MoveLimits struct {
	// PerNode counts those that have a node as their source or as their target.
	PerNode int
	// PerCluster counts all of them.
	PerCluster int
}

// DefaultMoveLimits are 4 moves for each node and 32 in the cluster: more at once make each of them longer, for they share the
// disks and the network of their nodes.
func DefaultMoveLimits() MoveLimits { return MoveLimits{PerNode: 4, PerCluster: 32} }

// move is a migration under way, as far as its turn depends on it.
type move struct {
	id             string
	number         uint64
	priority       session.Priority
	source, target string
	begun          bool // its source works at it, or it is being restored already
}

// admit returns which moves may go on, the number of each by its session. Those that have begun do; of the others the more urgent one
// comes first, of two alike the older one. One that waits for its nodes keeps none back that could go.
func admit(moves []move, limits MoveLimits) map[string]uint64 {
	admitted, busy := make(map[string]uint64, min(len(moves), limits.PerCluster)), map[string]int{}
	take := func(m *move) {
		admitted[m.id] = m.number
		busy[m.source]++
		busy[m.target]++
	}
	var waiting []*move
	for i := range moves {
		if m := &moves[i]; m.begun {
			take(m)
		} else {
			waiting = append(waiting, m)
		}
	}
	slices.SortFunc(waiting, func(a, b *move) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.number, b.number), cmp.Compare(a.id, b.id))
	})
	for _, m := range waiting {
		if len(admitted) >= limits.PerCluster {
			break
		}
		if busy[m.source] < limits.PerNode && busy[m.target] < limits.PerNode {
			take(m)
		}
	}
	return admitted
}

// arriving reports whether a session is being restored on the target of its move.
func arriving(s *session.Session) bool {
	return s.Phase == session.Restoring && s.Migration.Under() && s.Migration.Epoch == s.Epoch
}

// watchMove takes in what a session says of its move.
func (r *reign) watchMove(s *session.Session) {
	was := r.moves[s.ID]
	switch {
	case s.Phase == session.Migrating, arriving(s):
		r.moves[s.ID] = s
		r.movesDirty = r.movesDirty || was == nil || was.Migration.Number != s.Migration.Number
	case was != nil:
		r.forgetMove(was)
	}
}

// forgetMove is told that a move is over: there is room for another one.
func (r *reign) forgetMove(s *session.Session) {
	delete(r.moves, s.ID)
	r.movesDirty = true
	if d := r.drains[s.Migration.Source]; d != nil {
		d.room, r.drainRoom = true, true
	}
}

// admitMoves has those go on whose turn has come.
func (r *reign) admitMoves() {
	r.movesDirty = false
	all := make([]move, 0, len(r.moves))
	for id, s := range r.moves {
		m := s.Migration
		begun := s.Left || s.Phase == session.Restoring || m.State == session.MigrationMoving || m.Rounds > 0 || r.admitted[id] == m.Number
		all = append(all, move{id, m.Number, s.Spec.Priority, m.Source, m.Target, begun})
	}
	before := r.admitted
	r.admitted = admit(all, r.opts.Moves)
	waiting := map[string]bool{}
	for id, s := range r.moves {
		switch {
		case !r.mayLeave(s):
			waiting[id] = true
		case before[id] != s.Migration.Number && s.Phase == session.Migrating:
			if n := r.nodes[s.NodeID]; n != nil && n.synced {
				r.desire(n, s)
			}
		}
	}
	r.l.setWaiting(waiting)
}

// mayLeave reports whether the turn of a move has come.
func (r *reign) mayLeave(s *session.Session) bool {
	return s.Left || r.admitted[s.ID] == s.Migration.Number
}

// movesAt counts the moves from a node and to it.
func (r *reign) movesAt(nodeID string) (count int) {
	for _, s := range r.moves {
		if s.Migration.Source == nodeID || s.Migration.Target == nodeID {
			count++
		}
	}
	return count
}

func (l *Leader) setWaiting(sessions map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = sessions
}

// StepWaiting is what a move does that waits for its turn.
const StepWaiting = "waiting"
