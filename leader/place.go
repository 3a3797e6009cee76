// Placement of sessions that wait: the most urgent first, each by the router.

package leader

import (
	"errors"
	"fmt"
	"slices"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/session"
)

const (
	// maxPlacedPerRound and maxReasonsPerRound bound the commands of one round.
	maxPlacedPerRound  = 1024
	maxReasonsPerRound = 256
)

// place gives waiting sessions nodes, as far as there are any that fit. Those that start again, after a loss above all, are placed at
// a bounded rate, and no node is given more of them than it may start at once.
func (r *reign) place(now time.Time) {
	queue := r.eligible(now)
	refused := map[string]string{} // shape → why, for this round: what does not fit once does not fit the next alike
	placed, reasons := 0, 0
	for _, s := range queue {
		if placed >= maxPlacedPerRound {
			r.placeDirty = true
			return
		}
		key := shape(s.Spec)
		if startsAgain(s) {
			key = "again " + key
		}
		why, known := refused[key]
		if !known {
			p, err := r.placement(s, now)
			if err == nil {
				placed++
				r.proposePlace(s, p)
				continue
			}
			why = err.Error()
			if errors.Is(err, errItsTurn) {
				why = r.restores.waitText()
			}
			if fault.Is(err, fault.Exhausted) {
				refused[key] = why
			}
		}
		if s.Reason != why && reasons < maxReasonsPerRound && !r.restores.newcomer(s, why, now) {
			reasons++
			r.propose(r.logFailures("why a session waits"), &clusterv1.Command{Kind: &clusterv1.Command_SetPendingReason{
				SetPendingReason: &clusterv1.SetPendingReason{SessionId: s.ID, Epoch: s.Epoch, Reason: why},
			}})
		}
	}
}

// placement chooses a node for a session that waits.
func (r *reign) placement(s *session.Session, now time.Time) (*router.Placement, error) {
	if !startsAgain(s) {
		return r.opts.Router.Place(s.Spec, lastLost(s))
	}
	if !r.restores.turn(now) {
		return nil, errItsTurn
	}
	spared := false
	p, err := r.opts.Router.Restore(s.Spec, lastLost(s), func(nodeID string) bool {
		busy := r.restores.busy(nodeID)
		spared = spared || busy
		return busy
	})
	switch {
	case err != nil && spared:
		return nil, errItsTurn // there is room, and it is to be had in a moment
	case err != nil:
		return nil, err
	}
	r.restores.begin(s.ID, p.NodeID, now)
	return p, nil
}

// eligible returns the sessions that may be placed now, in order.
func (r *reign) eligible(now time.Time) []*session.Session {
	var queue []*session.Session
	for id, s := range r.pending {
		if !r.placing[id] && s.NotBefore <= now.UnixNano() {
			queue = append(queue, s)
		}
	}
	slices.SortFunc(queue, session.ByUrgency)
	return queue
}

func (r *reign) proposePlace(s *session.Session, p *router.Placement) {
	r.placing[s.ID] = true
	r.propose(func(results []state.Result, err error) {
		delete(r.placing, s.ID)
		if err == nil {
			err = results[0].Err
		}
		if err != nil {
			r.restores.done(s.ID)
			r.opts.Router.Release(p) // the next tick tries again: a log that refuses at once would be asked without pause
			r.log.Debug("a placement was not committed", "session", s.ID, "error", err)
			return
		}
		r.opts.Router.Settle(p, results[0].Session.ModifyIndex)
		r.l.count(func(st *Stats) { st.Placed++ })
	}, &clusterv1.Command{Kind: &clusterv1.Command_PlaceSession{PlaceSession: &clusterv1.PlaceSession{
		SessionId: s.ID, Epoch: s.Epoch, NodeId: p.NodeID, Placement: p.Why,
	}}})
}

// lastLost is the node on which the session was lost or failed to start last; another one is tried first.
func lastLost(s *session.Session) string {
	if s.Exit == nil || (s.Exit.Cause != session.CauseLost && s.Exit.Cause != session.CauseStartFailed) {
		return ""
	}
	for _, h := range slices.Backward(s.History) {
		if h.Node != "" {
			return h.Node
		}
	}
	return ""
}

// shape is what decides whether a spec fits a node.
func shape(s *session.Spec) string {
	return fmt.Sprint(s.Type, s.Require, s.NodeSelector, s.CPUMilli, s.MemoryBytes, s.Strategy)
}
