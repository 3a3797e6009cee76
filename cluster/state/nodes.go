// Nodes: registration, status transitions, loss, cordon, removal.

package state

import (
	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

func noNode(id string) error {
	return fault.New(fault.NotFound, "node %s: there is none", clip(id, 64))
}

// registerNode adds a node, or takes note of a new start of its agent. Its sessions stay as they are: what runs there is
// said by the inventory that follows.
func (a *applier) registerNode(c *clusterv1.RegisterNode) (*Node, error) {
	if err := checkID("node", c.GetNodeId()); err != nil {
		return nil, err
	}
	if wrong := session.CheckName(c.GetName()); wrong != "" {
		return nil, fault.New(fault.Invalid, "node name: %s", wrong).WithField("name")
	}
	old := a.nodes.get(a.base, c.GetNodeId())
	if old != nil && c.GetIncarnation() < old.Incarnation {
		return nil, fault.New(fault.FailedPrecondition, "register: node %s was started again since (incarnation %d, this is %d); two agents must not share a data directory", old.Name, old.Incarnation, c.GetIncarnation())
	}
	if old == nil && a.meta.stats.Nodes >= uint64(a.limits.Nodes) {
		return nil, fault.New(fault.Exhausted, "register: the cluster has %d nodes, its limit; remove those that are gone", a.meta.stats.Nodes).WithRetry(a.limits.RetryAfter)
	}
	if err := a.claimName(c); err != nil {
		return nil, err
	}
	n := Node{ID: c.GetNodeId(), Schedulable: true, CreateTime: a.meta.time}
	if old != nil {
		n = *old
	}
	if n.Incarnation != c.GetIncarnation() {
		n.FactIndex = 0
	}
	n.Name, n.Address, n.Version, n.PID = c.GetName(), clip(c.GetAddress(), session.MaxNameBytes), a.intern.str(clip(c.GetVersion(), session.MaxNameBytes)), c.GetPid()
	n.Capabilities = CapabilitiesFromProto(c.GetCapabilities())
	n.Labels = a.intern.pairs(pbconv.PairsFromMap(c.GetLabels()))
	n.Incarnation = c.GetIncarnation()
	n.Lost, n.Status, n.Reason = false, Healthy, ""
	n.ModifyIndex = a.meta.index
	a.agentBack(&n)
	if old == nil || old.Name != n.Name {
		if old != nil {
			a.unset(setNodeNames, "", old.Name)
		}
		a.set(setNodeNames, "", n.Name, n.ID)
	}
	if old == nil {
		a.meta.stats.Nodes++
		a.nodes.put(n.ID, &n)
	} else {
		a.nodes.put(n.ID, &n)
	}
	if old == nil || old.Incarnation != n.Incarnation || old.Status != n.Status || old.Name != n.Name {
		a.nodeEvent("node.registered", &n, "agent "+n.Version+" registered")
	}
	return &n, nil
}

// claimName makes sure that the node may have its name. A lost node that holds nothing gives way to its successor.
func (a *applier) claimName(c *clusterv1.RegisterNode) error {
	if len(a.ops) > 0 {
		a.flush() // names may be among them
	}
	id, ok := setID{kind: setNodeNames}.get(a.base, c.GetName())
	if !ok || id == c.GetNodeId() {
		return nil
	}
	holder := a.nodes.get(a.base, id)
	if !holder.Lost || holder.Sessions > 0 {
		return fault.New(fault.AlreadyExists, "register: the name %q belongs to node %s (%s); give this one another name, or remove that one once it is offline and holds no session", holder.Name, holder.ID, holder.Status)
	}
	a.dropNode(holder, "replaced by node "+c.GetNodeId()+" of the same name")
	return nil
}

func (a *applier) dropNode(n *Node, why string) {
	a.nodes.put(n.ID, nil)
	a.unset(setNodeNames, "", n.Name)
	a.meta.stats.Nodes--
	a.nodeEvent("node.removed", n, why)
}

func (a *applier) nodeEvent(kind string, n *Node, message string) {
	a.event(Event{Type: kind, Node: n.Name, Message: message})
}

// setNodeStatus records a transition of what the cluster thinks of a node.
func (a *applier) setNodeStatus(c *clusterv1.SetNodeStatus) (*Node, error) {
	old := a.nodes.get(a.base, c.GetNodeId())
	if old == nil {
		return nil, noNode(c.GetNodeId())
	}
	if c.GetStatus() < apiv1.Node_HEALTHY || c.GetStatus() > apiv1.Node_OFFLINE {
		return nil, fault.New(fault.Invalid, "node status: %d is none", c.GetStatus()).WithField("status")
	}
	status, reason := NodeStatus(c.GetStatus()), a.reason(c.GetReason())
	if old.Lost && status < Unhealthy {
		return nil, fault.New(fault.FailedPrecondition, "node status: node %s is lost; only its registration makes it %s", old.Name, status)
	}
	if old.Status == status && old.Reason == reason {
		return old, nil
	}
	n := *old
	n.Status, n.Reason, n.ModifyIndex = status, reason, a.meta.index
	a.nodes.put(n.ID, &n)
	if old.Status != status {
		a.nodeEvent(statusEvents[status], &n, reason)
	}
	return &n, nil
}

var statusEvents = [...]string{Healthy: "node.healthy", Degraded: "node.degraded", Unhealthy: "node.unhealthy", Offline: "node.offline"}

// loseNode ends what ran on a node whose lease has ended. It returns how many sessions that were.
func (a *applier) loseNode(c *clusterv1.LoseNode) (*Node, uint32, error) {
	n := a.nodes.get(a.base, c.GetNodeId())
	switch {
	case n == nil:
		return nil, 0, noNode(c.GetNodeId())
	case n.Incarnation != c.GetIncarnation():
		return nil, 0, fault.New(fault.FailedPrecondition, "lose node: node %s is back (incarnation %d, not %d)", n.Name, n.Incarnation, c.GetIncarnation())
	case n.Lost:
		return n, 0, nil
	}
	reason := a.reason(c.GetReason())
	if len(a.ops) > 0 {
		a.flush() // the set of its sessions must be up to date
	}
	var ids []string
	for id := range (setID{setOnNode, n.ID}).all(a.base) {
		ids = append(ids, id)
	}
	for _, id := range ids {
		a.lost(a.sessions.get(a.base, id), n.Name, reason)
	}
	a.turnAway(n.ID, session.MigrationFailed, "the target "+n.Name+" was lost: "+reason)
	m := *a.nodes.get(a.base, n.ID)
	m.Lost, m.Status, m.Reason, m.ModifyIndex = true, Unhealthy, reason, a.meta.index
	a.nodes.put(m.ID, &m)
	a.nodeEvent("node.lost", &m, reason)
	return &m, uint32(len(ids)), nil
}

// turnAway ends the moves to a node, as far as they have not stopped their sessions yet.
func (a *applier) turnAway(nodeID string, state session.MigrationState, why string) {
	if len(a.ops) > 0 {
		a.flush()
	}
	var ids []string
	for id := range (setID{setMovingTo, nodeID}).all(a.base) {
		ids = append(ids, id)
	}
	for _, id := range ids {
		old := a.sessions.get(a.base, id)
		if old.Left {
			continue // it is restored elsewhere, once its process has ended
		}
		s := *old
		a.stay(&s, state, why)
		a.save(old, &s)
	}
}

// setNodeSchedulable cordons a node or undoes it, and with it a drain.
func (a *applier) setNodeSchedulable(c *clusterv1.SetNodeSchedulable) (*Node, error) {
	old := a.nodes.get(a.base, c.GetNodeId())
	if old == nil {
		return nil, noNode(c.GetNodeId())
	}
	over := !c.GetSchedulable() && old.Drain.ByAgent() && !old.Drain.Cordoned // a cordon that outlives the agent's drain
	if old.Schedulable == c.GetSchedulable() && !over {
		return old, nil
	}
	n := *old
	n.Schedulable, n.ModifyIndex = c.GetSchedulable(), a.meta.index
	kind := "node.cordoned"
	if n.Schedulable {
		kind = "node.uncordoned"
	}
	by := ""
	if c.GetActor() != "" {
		by = "by " + a.reason(c.GetActor())
	}
	switch {
	case n.Schedulable:
		a.drainUndone(&n, by)
	case over:
		d := *n.Drain
		d.Cordoned, n.Drain = true, &d
	default:
		n.Drain = nil // one that was cancelled
	}
	a.nodes.put(n.ID, &n)
	a.nodeEvent(kind, &n, by)
	return &n, nil
}

// removeNode forgets a node that is gone and holds nothing.
func (a *applier) removeNode(c *clusterv1.RemoveNode) (*Node, error) {
	n := a.nodes.get(a.base, c.GetNodeId())
	switch {
	case n == nil:
		return nil, noNode(c.GetNodeId())
	case n.Sessions > 0:
		return nil, fault.New(fault.FailedPrecondition, "remove: node %s holds %d sessions; drain it first", n.Name, n.Sessions)
	case !n.Lost && n.Status != Offline:
		return nil, fault.New(fault.FailedPrecondition, "remove: node %s is %s; stop its agent first", n.Name, n.Status)
	}
	a.dropNode(n, "removed")
	return n, nil
}
