// Drains: a node gets rid of its sessions, the most urgent first. What is to be done follows from the state and from what was
// tried before; a new leader tries again, and goes on.

package leader

import (
	"fmt"
	"slices"
	"strings"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/session"
)

const (
	// drainPatience is for how long there must have been no room for a session before a drain with force pauses it: after a
	// change of leaders, nodes take a few seconds to link.
	drainPatience = 5 * time.Second
	// drainGrace is how long a drain with force goes on behind its deadline, for the pauses that it began there.
	drainGrace = time.Minute
	// drainRetryMin and drainRetryMax bound when a session is tried again: each failed move of it doubles the wait.
	drainRetryMin, drainRetryMax = time.Second, 30 * time.Second
	// maxPausesPerRound bounds the commands of one tick for one node.
	maxPausesPerRound = 64
	// drainNamed is how many sessions are named in why a drain does not go on.
	drainNamed = 3
)

// try is what came of trying to move a session.
type try struct {
	failures int
	move     uint64 // the last one that failed
	avoid    string // its target
	after    time.Time
	noRoom   time.Time // since when there has been none; zero when there was
	why      string
}

// drainInput is all that a drain depends on.
type drainInput struct {
	node     *state.Node
	now      time.Time
	sessions []*session.Session // that hold the node
	arriving int                // that have left it and do not run on their targets yet
	tries    map[string]try     // by session
}

// drainDecision is what is to be done next.
type drainDecision struct {
	move   []*session.Session // in this order, as far as the limits of moves let
	pause  []*session.Session
	end    state.DrainState // 0 while it goes on
	reason string           // why those that wait do; empty when none does
}

// decideDrain decides it.
func decideDrain(in drainInput) (d drainDecision) {
	row := in.node.Drain
	late := in.now.UnixNano() >= row.Deadline
	var waits []string
	wait := func(s *session.Session, why string) { waits = append(waits, nameOf(s)+": "+why) }
	for _, s := range slices.SortedFunc(slices.Values(in.sessions), session.ByUrgency) {
		t := in.tries[s.ID]
		switch {
		case s.Phase == session.Starting, s.Phase == session.Restoring:
			wait(s, "it is "+s.Phase.String()+", and moves once it runs")
		case s.Phase != session.Running: // it is leaving
			if late {
				wait(s, "it is "+s.Phase.String())
			}
		case unsaved(s, in.now):
			wait(s, "it could not be saved: "+s.CheckpointError)
		case late && row.Force, row.Force && !t.noRoom.IsZero() && in.now.Sub(t.noRoom) >= drainPatience:
			d.pause = append(d.pause, s)
			if late && t.why != "" {
				wait(s, t.why)
			}
		case late:
			wait(s, textOr(t.why, "its turn did not come"))
		case in.now.Before(t.after):
			wait(s, t.why)
		default:
			d.move = append(d.move, s)
			if t.why != "" {
				wait(s, t.why)
			}
		}
	}
	d.reason = waitText(waits)
	switch {
	case in.node.Sessions == 0 && len(in.sessions) == 0 && in.arriving == 0:
		d.end, d.reason = state.Drained, ""
	case late && !row.Force, late && in.now.UnixNano() >= row.Deadline+int64(drainGrace):
		d.end = state.DrainIncomplete
	}
	return d
}

// unsaved reports whether a session went on a moment ago because no checkpoint of it could be made.
func unsaved(s *session.Session, now time.Time) bool {
	return s.CheckpointError != "" && now.UnixNano() < s.History[len(s.History)-1].Time+int64(drainPatience)
}

func waitText(waits []string) string {
	if len(waits) == 0 {
		return ""
	}
	text := strings.Join(waits[:min(len(waits), drainNamed)], "; ")
	if more := len(waits) - drainNamed; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

func textOr(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// nameOf is how a session is named to people.
func nameOf(s *session.Session) string { return textOr(s.Spec.Name, s.ID) }

// drain is what the leader knows of a drain beside the state.
type drain struct {
	number uint64
	queue  []*session.Session // to be moved, as the last decision has it
	tries  map[string]try
	asked  map[string]bool // sessions of which a move or a pause is being committed
	ending bool            // its end is being committed
	room   bool            // a move from the node is over, so another one may begin
}

// watchDrain takes in what a node's row says of its drain.
func (r *reign) watchDrain(row *state.Node) {
	d := r.drains[row.ID]
	switch {
	case !row.Drain.Under():
		if d != nil {
			delete(r.drains, row.ID)
			r.l.setDrainReason(row.ID, "")
		}
	case d == nil || d.number != row.Drain.Number:
		r.drains[row.ID] = &drain{number: row.Drain.Number, tries: map[string]try{}, asked: map[string]bool{}}
	}
}

// drainNodes brings every drain on.
func (r *reign) drainNodes(now time.Time) {
	for id, d := range r.drains {
		r.drainNode(id, d, now)
	}
}

func (r *reign) drainNode(id string, d *drain, now time.Time) {
	view := r.opts.State.View()
	row := view.Node(id)
	if row == nil || !row.Drain.Under() || row.Drain.Number != d.number {
		return // the change is on its way
	}
	in := drainInput{node: row, now: now, sessions: slices.Collect(view.SessionsOnNode(id)), tries: map[string]try{}}
	for _, s := range in.sessions {
		if t := tried(d.tries[s.ID], s, d.number); t != (try{}) {
			in.tries[s.ID] = t
		}
	}
	d.tries = in.tries
	for _, s := range r.moves {
		if s.Migration.Source == id && s.NodeID != id {
			in.arriving++
		}
	}
	decided := decideDrain(in)
	if decided.reason != r.l.DrainReason(id) {
		r.l.setDrainReason(id, decided.reason)
		r.tellDrain(r.node(id))
	}
	for _, s := range decided.pause[:min(len(decided.pause), maxPausesPerRound)] {
		r.pauseDrained(d, row, s)
	}
	d.queue = decided.move
	r.moveDrained(id, d, now)
	if decided.end != 0 && !d.ending {
		d.ending = true
		fail := r.logFailures("the end of a drain")
		r.propose(func(results []state.Result, err error) {
			d.ending = false
			fail(results, err)
		}, &clusterv1.Command{Kind: &clusterv1.Command_EndDrain{EndDrain: &clusterv1.EndDrain{
			NodeId: id, Number: d.number, State: uint32(decided.end), Reason: decided.reason,
		}}})
	}
}

// tried is what came of trying to move a session, with its last move, if that failed since the drain began.
func tried(t try, s *session.Session, since uint64) try {
	m := s.Migration
	if m == nil || m.Under() || m.State == session.MigrationDone || m.Number <= max(since, t.move) {
		return t
	}
	t.failures++
	t.move, t.avoid, t.noRoom = m.Number, m.Target, time.Time{}
	wait := drainRetryMax
	if t.failures <= 5 {
		wait = min(drainRetryMin<<(t.failures-1), drainRetryMax)
	}
	t.after, t.why = time.Unix(0, m.EndTime).Add(wait), "its last move failed: "+m.Error
	return t
}

// drainMoves begins moves where others are over, without waiting for the next tick.
func (r *reign) drainMoves() {
	r.drainRoom = false
	now := r.opts.Now()
	for id, d := range r.drains {
		if d.room {
			r.moveDrained(id, d, now)
		}
	}
}

// moveDrained begins as many moves as the limits let.
func (r *reign) moveDrained(id string, d *drain, now time.Time) {
	d.room = false
	view := r.opts.State.View()
	refused := map[string]error{} // by shape: what does not fit once does not fit the next alike
	free := r.opts.Moves.PerNode - r.movesAt(id) - len(d.asked)
	for free > 0 && len(d.queue) > 0 {
		s := view.Session(d.queue[0].ID)
		d.queue = d.queue[1:]
		if s == nil || s.Phase != session.Running || s.NodeID != id || d.asked[s.ID] {
			continue
		}
		t := d.tries[s.ID]
		key := shape(s.Spec)
		err := refused[key]
		var p *router.Placement
		if err == nil {
			p, err = r.opts.Router.MoveAgain(s.Spec, id, t.avoid)
		}
		if err != nil {
			if t.avoid == "" || fault.Is(err, fault.Exhausted) {
				refused[key] = err
			}
			if t.noRoom.IsZero() {
				t.noRoom = now
			}
			t.after, t.why = now.Add(drainRetryMin), err.Error()
			d.tries[s.ID] = t
			continue
		}
		t.noRoom = time.Time{}
		d.tries[s.ID] = t
		free--
		r.proposeDrained(d, s, p)
	}
}

func (r *reign) proposeDrained(d *drain, s *session.Session, p *router.Placement) {
	d.asked[s.ID] = true
	r.propose(func(results []state.Result, err error) {
		delete(d.asked, s.ID)
		if err == nil {
			err = results[0].Err
		}
		if err != nil {
			r.opts.Router.Release(p) // the next tick sees how the session is
			r.log.Debug("a move of a drain was not committed", "session", s.ID, "error", err)
			return
		}
		r.opts.Router.Settle(p, results[0].Session.ModifyIndex)
	}, &clusterv1.Command{Kind: &clusterv1.Command_MigrateSession{MigrateSession: &clusterv1.MigrateSession{
		SessionId: s.ID, Epoch: s.Epoch, NodeId: p.NodeID, Placement: p.Why, Actor: "the drain of its node",
	}}})
}

// pauseDrained pauses a session that has no place elsewhere, or no time to get there.
func (r *reign) pauseDrained(d *drain, row *state.Node, s *session.Session) {
	if d.asked[s.ID] {
		return
	}
	d.asked[s.ID] = true
	fail := r.logFailures("a pause of a drain")
	r.propose(func(results []state.Result, err error) {
		delete(d.asked, s.ID)
		fail(results, err)
	}, &clusterv1.Command{Kind: &clusterv1.Command_PauseSession{PauseSession: &clusterv1.PauseSession{
		SessionId: s.ID, Reason: row.Name + " is drained: " + textOr(d.tries[s.ID].why, "its deadline has passed"),
	}}})
}

func (l *Leader) setDrainReason(nodeID, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drainReasons[nodeID] = why; why == "" {
		delete(l.drainReasons, nodeID)
	}
}

// DrainReason returns why a drain that is under way waits; empty when it does not.
func (l *Leader) DrainReason(nodeID string) string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.drainReasons[nodeID]
}
