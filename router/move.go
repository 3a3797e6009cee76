// Moving: a node for a session that has one already.

package router

import (
	"fmt"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/loadbalancer"
	"github.com/neolith/orchestrator/session"
)

// Move chooses a node for a session to move to, never from, the id of the node it runs on, and reserves room there. With a
// target, the id of a node, it is that one or none. The caller must Settle or Release the placement. Where no node fits, the
// error says for each kind of obstacle why not; it is of kind fault.Exhausted when one may fit later without anybody's
// doing, and else fault.FailedPrecondition.
func (r *Router) Move(spec *session.Spec, from, target string) (*Placement, error) {
	if target != "" {
		return r.moveTo(spec, from, target)
	}
	name, strategy, err := r.strategyOf(spec)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	candidates, rejected := r.filterMove(spec, from, "")
	if len(candidates) == 0 {
		return nil, rejected.noMove()
	}
	return r.reserve(spec, name, strategy, candidates, rejected)
}

// MoveAgain is Move to a node of the router's choice for a session whose last move failed: avoid, the target of that one, is chosen
// only where nothing else fits.
func (r *Router) MoveAgain(spec *session.Spec, from, avoid string) (*Placement, error) {
	name, strategy, err := r.strategyOf(spec)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	candidates, rejected := r.filterMove(spec, from, avoid)
	if len(candidates) == 0 {
		candidates, rejected = r.filterMove(spec, from, "")
	}
	if len(candidates) == 0 {
		return nil, rejected.noMove()
	}
	return r.reserve(spec, name, strategy, candidates, rejected)
}

// filterMove is filter for a session that runs on a node.
func (r *Router) filterMove(spec *session.Spec, from, avoid string) ([]loadbalancer.Candidate, *rejections) {
	r.scratch, r.ids = r.scratch[:0], r.ids[:0]
	rejected := &rejections{}
	for _, id := range r.order {
		e, health := r.entries[id], r.health[id]
		why, what := source, ""
		if id != from {
			why, what = e.obstacle(spec, health)
		}
		if why == fits && id == avoid {
			why = avoided
		}
		if why != fits {
			rejected.add(why, e.row.Name, what)
			continue
		}
		r.candidate(spec, e, health)
	}
	return r.scratch, rejected
}

// noMove is the error of a session that can move nowhere.
func (r *rejections) noMove() error {
	later := false
	others := 0
	for o := range obstacles {
		if o != source {
			others += r.count[o]
			later = later || o.passing() && r.count[o] > 0
		}
	}
	r.count[source] = 0 // everybody knows
	switch {
	case others == 0:
		return fault.New(fault.FailedPrecondition, "there is no other node; start a node-agent and point it at this cluster")
	case later:
		return fault.New(fault.Exhausted, "no other node fits: %s", r.explain(others)).WithRetry(retryPlace)
	default:
		return fault.New(fault.FailedPrecondition, "no other node fits: %s; uncordon one, or add a node that fits", r.explain(others))
	}
}

// moveTo reserves room on a node that was named.
func (r *Router) moveTo(spec *session.Spec, from, target string) (*Placement, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[target]
	if e == nil {
		return nil, fault.New(fault.NotFound, "node %q: there is none; see `orchctl nodes list`", target)
	}
	name := e.row.Name
	if target == from {
		return nil, fault.New(fault.FailedPrecondition, "node %s is where the session runs; name another one, or none to have one chosen", name)
	}
	why, what := e.obstacle(spec, r.health[target])
	if why != fits {
		text := obstacleText[why]
		if what != "" {
			text += " " + what
		}
		if why.passing() {
			return nil, fault.New(fault.Exhausted, "node %s cannot take the session: %s; %s", name, text, remedyText[why]).WithRetry(retryPlace)
		}
		return nil, fault.New(fault.FailedPrecondition, "node %s cannot take the session: %s; %s", name, text, remedyText[why])
	}
	p := &Placement{NodeID: target, Why: clip(fmt.Sprintf("%s was asked for", name)), demand: demand{1, spec.CPUMilli, spec.MemoryBytes}, entry: e}
	e.reserved.add(p.demand)
	return p, nil
}
