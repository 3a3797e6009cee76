// Drains: a node that is to get rid of its sessions, and how far that is. What is moved and what is paused is the leader's
// to decide; here it is counted, as the sessions leave.

package state

import (
	"fmt"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// DrainState is how far a drain is. The numbers are those of the public API and of snapshots.
type DrainState uint8

// The states of a drain.
const (
	Draining        DrainState = 1
	Drained         DrainState = 2 // nothing is left
	DrainIncomplete DrainState = 3 // its deadline has passed, and something is left
	DrainCancelled  DrainState = 4 // the node was uncordoned
)

var drainNames = [...]string{Draining: "DRAINING", Drained: "DRAINED", DrainIncomplete: "INCOMPLETE", DrainCancelled: "CANCELLED"}

// String returns the state as users see it.
func (s DrainState) String() string {
	if int(s) < len(drainNames) && drainNames[s] != "" {
		return drainNames[s]
	}
	return fmt.Sprintf("DRAIN(%d)", uint8(s))
}

// Drain is how a node gets rid of its sessions. Treat it as immutable. Times are Unix nanoseconds, 0 for not yet.
type Drain struct {
	Number    uint64 // the raft index at which it began
	State     DrainState
	StartTime int64
	Deadline  int64
	EndTime   int64
	Force     bool // what cannot be moved is paused
	// Total is how many sessions there were. Of those that have left since, Moved went elsewhere and Paused were paused; the others
	// have ended.
	Total, Moved, Paused uint32
	// LongestBlackout is the longest time, in nanoseconds, for which one that was moved answered nothing.
	LongestBlackout int64
	Reason          string // why what is left is
	// Agent is the incarnation of the node's agent that asked for it, because it is about to end; 0 when a person did. The next agent ends
	// such a drain, and the node takes sessions again unless it is Cordoned by a person beside.
	Agent    uint64
	Cordoned bool
}

// Under reports whether the drain goes on.
func (d *Drain) Under() bool { return d != nil && d.State == Draining }

// ByAgent reports whether the node's own agent asked for it.
func (d *Drain) ByAgent() bool { return d != nil && d.Agent != 0 }

// counts reports whether sessions that leave are counted: those whose moves had begun may leave behind the end of the drain.
func (d *Drain) counts() bool { return d.Under() || d != nil && d.State == DrainIncomplete }

// drainNode cordons a node and notes that its sessions are to go. A drain that is under way is given the deadline and the force
// of the new order; it becomes a person's when one asks, and stays a person's when the agent does.
func (a *applier) drainNode(c *clusterv1.DrainNode) (*Node, error) {
	old := a.nodes.get(a.base, c.GetNodeId())
	switch {
	case old == nil:
		return nil, noNode(c.GetNodeId())
	case c.GetDeadline() <= a.meta.time:
		return nil, fault.New(fault.Invalid, "drain: the deadline is not after now; give the drain some time").WithField("deadline")
	case c.GetIncarnation() != 0 && c.GetIncarnation() != old.Incarnation:
		return nil, fault.New(fault.Aborted, "drain: node %s was started again since (incarnation %d, this is %d)", old.Name, old.Incarnation, c.GetIncarnation())
	}
	a.turnAway(old.ID, session.MigrationCancelled, "the target "+old.Name+" is being drained")
	n := *a.nodes.get(a.base, old.ID)
	d := Drain{Number: a.meta.index, State: Draining, StartTime: a.meta.time, Total: n.Sessions}
	again := n.Drain.Under()
	if again {
		d = *n.Drain
	}
	d.Deadline, d.Force = c.GetDeadline(), c.GetForce()
	switch {
	case c.GetIncarnation() == 0:
		d.Agent, d.Cordoned = 0, false
	case !again:
		d.Agent, d.Cordoned = c.GetIncarnation(), n.cordoned()
	case !d.ByAgent(): // a person's, and the agent does not stay for longer
		d.Deadline, d.Force = min(d.Deadline, n.Drain.Deadline), d.Force || n.Drain.Force
	}
	n.Drain, n.Schedulable, n.ModifyIndex = &d, false, a.meta.index
	a.nodes.put(n.ID, &n)
	if !again {
		a.nodeEvent("node.draining", &n, a.by(c.GetActor(), fmt.Sprintf("%d sessions are to go", d.Total)))
	}
	return &n, nil
}

// cordoned reports whether a person keeps sessions away from the node.
func (n *Node) cordoned() bool { return !n.Schedulable && (!n.Drain.ByAgent() || n.Drain.Cordoned) }

// agentBack is told that the next agent of a node, not shared yet, has registered: it ends the drain that the one before asked for.
func (a *applier) agentBack(n *Node) {
	if !n.Drain.ByAgent() || n.Drain.Agent >= n.Incarnation {
		return
	}
	const why = "its agent is back"
	n.Schedulable = !n.cordoned()
	if n.Drain.Under() {
		a.drainOver(n, DrainCancelled, why)
	} else {
		n.Drain = nil
	}
	if n.Schedulable {
		a.nodeEvent("node.uncordoned", n, why)
	}
}

// endDrain notes that a drain is over.
func (a *applier) endDrain(c *clusterv1.EndDrain) (*Node, error) {
	old := a.nodes.get(a.base, c.GetNodeId())
	switch state := DrainState(min(c.GetState(), 255)); {
	case old == nil:
		return nil, noNode(c.GetNodeId())
	case !old.Drain.Under() || old.Drain.Number != c.GetNumber():
		return nil, fault.New(fault.Aborted, "end drain: node %s is not in the drain that began at %d", old.Name, c.GetNumber())
	case state != Drained && state != DrainIncomplete:
		return nil, fault.New(fault.Invalid, "end drain: %s is no end of a drain", state).WithField("state")
	case state == Drained && old.Sessions > 0:
		return nil, fault.New(fault.Aborted, "end drain: node %s still holds %d sessions", old.Name, old.Sessions)
	case state == DrainIncomplete && old.Drain.Deadline > a.meta.time:
		return nil, fault.New(fault.Aborted, "end drain: the drain of node %s was given more time", old.Name)
	}
	n := *old
	a.drainOver(&n, DrainState(c.GetState()), c.GetReason())
	n.ModifyIndex = a.meta.index
	a.nodes.put(n.ID, &n)
	return &n, nil
}

var drainEvents = [...]string{Drained: "node.drained", DrainIncomplete: "node.drain-incomplete", DrainCancelled: "node.drain-cancelled"}

// drainOver ends the drain of a node that is not shared yet.
func (a *applier) drainOver(n *Node, state DrainState, why string) {
	d := *n.Drain
	d.State, d.EndTime, d.Reason = state, a.meta.time, a.reason(why)
	if state == DrainCancelled {
		d.Agent, d.Cordoned = 0, false // nothing is left for the next agent to end
	}
	n.Drain = &d
	message := fmt.Sprintf("%d of %d moved, %d paused, %d left", d.Moved, d.Total, d.Paused, n.Sessions)
	if why != "" {
		message += ": " + d.Reason
	}
	a.nodeEvent(drainEvents[state], n, message)
}

// drainUndone is told that a node, not shared yet, was uncordoned: that cancels its drain, or takes the record of one that is over.
func (a *applier) drainUndone(n *Node, by string) {
	if !n.Drain.Under() {
		n.Drain = nil
		return
	}
	why := "uncordoned"
	if by != "" {
		why += " " + by
	}
	a.drainOver(n, DrainCancelled, why)
}

// departed is told that a session has left a node, and where it stands now; nil when it was removed.
func (a *applier) departed(nodeID string, s *session.Session) {
	old := a.nodes.get(a.base, nodeID)
	if old == nil || !old.Drain.counts() {
		return
	}
	n, d := *old, *old.Drain
	switch {
	case s == nil || s.Phase.Ended():
		return
	case s.Phase == session.Paused:
		d.Paused++
	default: // on another node, or about to be placed on one
		d.Moved++
	}
	n.Drain, n.ModifyIndex = &d, a.meta.index
	a.nodes.put(n.ID, &n)
}

// arrived is told that a session runs on the target of its move.
func (a *applier) arrived(m *session.Migration) {
	old := a.nodes.get(a.base, m.Source)
	if old == nil || old.Drain == nil || m.HeldTime == 0 || m.EndTime-m.HeldTime <= old.Drain.LongestBlackout {
		return
	}
	n, d := *old, *old.Drain
	d.LongestBlackout = m.EndTime - m.HeldTime
	n.Drain, n.ModifyIndex = &d, a.meta.index
	a.nodes.put(n.ID, &n)
}

// by adds who did it to a message.
func (a *applier) by(actor, message string) string {
	if actor == "" {
		return message
	}
	return message + ", by " + a.reason(actor)
}
