// Planning: what would become of the sessions of a node that is drained, if all of them were to move now.

package router

import (
	"maps"
	"slices"

	"github.com/neolith/orchestrator/session"
)

// Action is what a drain would do to a session.
type Action uint8

// The actions.
const (
	Migrate Action = iota + 1
	Pause
	Stay // there is no place for it, and nobody asked to have it paused
)

// Step is what a drain would do to one session.
type Step struct {
	Session *session.Session
	Action  Action
	Target  string // the node's id; empty unless it would migrate, and for one that is placed anew at the time
	Why     string
}

// PlanDrain says what would become of the sessions that hold the node from, most urgent first, as if each of them moved now: those
// that come first take the room. With force what has no place is paused. Sessions that are ending are left out. It reserves nothing.
func (r *Router) PlanDrain(sessions []*session.Session, from string, force bool) []Step {
	sim := r.copy()
	sessions = slices.SortedFunc(slices.Values(sessions), session.ByUrgency)
	steps := make([]Step, 0, len(sessions))
	for _, s := range sessions {
		if s.Phase != session.Terminating && s.Phase.HoldsNode() {
			steps = append(steps, sim.step(s, from, force))
		}
	}
	return steps
}

// step says what would become of one session, and takes the room for it.
func (r *Router) step(s *session.Session, from string, force bool) Step {
	switch {
	case s.Phase == session.Migrating:
		return Step{s, Migrate, s.Migration.Target, "is moving already"}
	case s.Phase == session.Pausing && s.RewindTo == 0:
		return Step{s, Pause, "", "is being paused already"}
	}
	p, err := r.Move(s.Spec, from, "")
	switch {
	case err == nil && s.Phase == session.Pausing:
		return Step{s, Migrate, "", "is going back to an earlier checkpoint, and is placed anew"}
	case err == nil && s.Phase != session.Running:
		return Step{s, Migrate, p.NodeID, "once it runs; " + p.Why}
	case err == nil:
		return Step{s, Migrate, p.NodeID, p.Why}
	case force:
		return Step{s, Pause, "", err.Error()}
	default:
		return Step{s, Stay, "", err.Error()}
	}
}

// copy returns a router of its own that knows what this one knows now.
func (r *Router) copy() *Router {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &Router{
		defaultStrategy: r.defaultStrategy, entries: make(map[string]*entry, len(r.entries)), health: maps.Clone(r.health),
		order: slices.Clone(r.order), count: r.count,
	}
	for id, e := range r.entries {
		c.entries[id] = &entry{row: e.row, capabilities: e.capabilities, reserved: e.reserved}
	}
	return c
}
