// Starting again: how many sessions at once, after a node was lost above all. Without a bound the sessions of a lost node would all
// be restored in the same second, by nodes and a chunk store that have other sessions to serve.

package leader

import (
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// RestoreLimits bound how sessions are started again: after the loss of their node, after a pause, from a checkpoint of another
// one, or anew by their restart policy. First starts and the targets of moves are not bounded by them.
type RestoreLimits struct {
	// PerSecond is how many there are in the cluster; after a quiet second as many may begin at once.
	PerSecond int
	// PerNode is how many a node has in hand at once.
	PerNode int
}

// DefaultRestoreLimits are 200 a second and 32 at once on each node.
func DefaultRestoreLimits() RestoreLimits { return RestoreLimits{PerSecond: 200, PerNode: 32} }

// sayTurnAfter is when a session that waits for its turn says so: most have had it by then, and each reason is an entry of the log.
const sayTurnAfter = 2 * time.Second

// errItsTurn: the session could be placed, and others come first.
var errItsTurn = fault.New(fault.Exhausted, "it is not its turn")

// startsAgain reports whether a session that waits for a place does not begin from nothing.
func startsAgain(s *session.Session) bool { return s.Epoch > 0 || s.Head() != nil }

// restores counts them. It belongs to the reign's goroutine.
type restores struct {
	limits RestoreLimits
	rate   *rate.Limiter
	on     map[string]string // session → the node that starts it
	count  map[string]int    // by node
}

func newRestores(l RestoreLimits) restores {
	return restores{limits: l, rate: rate.NewLimiter(rate.Limit(l.PerSecond), l.PerSecond), on: map[string]string{}, count: map[string]int{}}
}

// reset forgets who starts what, not how many there were lately.
func (r *restores) reset() { r.on, r.count = map[string]string{}, map[string]int{} }

// turn reports whether one more may begin now.
func (r *restores) turn(now time.Time) bool { return r.rate.TokensAt(now) >= 1 }

// busy reports whether a node has as many in hand as it may.
func (r *restores) busy(nodeID string) bool { return r.count[nodeID] >= r.limits.PerNode }

// begin counts one.
func (r *restores) begin(id, nodeID string, now time.Time) {
	r.rate.AllowN(now, 1)
	r.note(id, nodeID)
}

func (r *restores) note(id, nodeID string) {
	if r.on[id] != nodeID {
		r.done(id)
		r.on[id] = nodeID
		r.count[nodeID]++
	}
}

// done is told that a session starts no more, and reports whether it did.
func (r *restores) done(id string) bool {
	nodeID, was := r.on[id]
	if was {
		delete(r.on, id)
		if r.count[nodeID]--; r.count[nodeID] == 0 {
			delete(r.count, nodeID)
		}
	}
	return was
}

// watch takes in how a session is, and reports whether there is room on its node that was not there before.
func (r *restores) watch(s *session.Session) bool {
	starts := s.Phase == session.Starting || s.Phase == session.Restoring
	if starts && (s.Epoch > 1 || s.Head() != nil) && !arriving(s) {
		r.note(s.ID, s.NodeID)
		return false
	}
	return r.done(s.ID)
}

// waitText says what a session waits for.
func (r *restores) waitText() string {
	return fmt.Sprintf("waits for its turn: at most %d sessions start again in a second, and %d at once on a node; the most urgent come first", r.limits.PerSecond, r.limits.PerNode)
}

// newcomer reports whether a session waits for its turn only since a moment ago, so that it need not say so.
func (r *restores) newcomer(s *session.Session, why string, now time.Time) bool {
	return why == r.waitText() && now.UnixNano() < s.History[len(s.History)-1].Time+int64(sayTurnAfter)
}
