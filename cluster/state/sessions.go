// Sessions: spawn, place, terminate, remove; and the one place where a session's row changes.

package state

import (
	"encoding/binary"
	"strings"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// maxIDBytes bounds ids of sessions, nodes, tokens and the cluster.
const maxIDBytes = 128

// checkID says what is wrong with an id that a proposer made; nil when nothing is.
func checkID(what, id string) error {
	if id == "" || len(id) > maxIDBytes || strings.IndexByte(id, 0) >= 0 {
		return fault.New(fault.Invalid, "%s id %q: is empty, over %d bytes or holds a NUL", what, clip(id, 64), maxIDBytes).WithField(what + "_id")
	}
	return nil
}

func noSession(id string) error {
	return fault.New(fault.NotFound, "session %s: there is none; it may have been collected after its end", clip(id, 64))
}

// spawnSession creates a session, on a node when one is named and still fits.
func (a *applier) spawnSession(c *clusterv1.SpawnSession) Result {
	spec := pbconv.SpecFromProto(c.GetSpec())
	spec.Normalize()
	key := idempotencyKey{keySpawn, spec.Namespace, c.GetIdempotencyKey()}
	if known, err := a.seen(key, c.GetRequestHash()); err != nil {
		return Result{Err: err}
	} else if known != nil {
		s := a.sessions.get(a.base, known.sessionID)
		if s == nil {
			return Result{Err: fault.New(fault.NotFound, "spawn: idempotency key %q made session %s, which was removed; use a new key", c.GetIdempotencyKey(), known.sessionID)}
		}
		return Result{Session: s, Duplicate: true}
	}
	if err := a.checkSpawn(c, spec); err != nil {
		return Result{Err: err}
	}
	first, err := a.firstCheckpoint(c.GetCheckpoint())
	if err != nil {
		return Result{Err: err}
	}
	s := &session.Session{
		ID: c.GetSessionId(), Spec: a.intern.spec(spec), Phase: session.Pending,
		CreateTime: a.meta.time, CreateIndex: a.meta.index, ModifyIndex: a.meta.index,
	}
	by := "spawned"
	if first != nil {
		begin(s, first)
		by = "imported"
	}
	if c.GetActor() != "" {
		by += " by " + c.GetActor()
	}
	var node *Node
	var misfit error
	if c.GetNodeId() != "" {
		node, misfit = a.reservable(c.GetNodeId(), s.Spec)
	}
	switch {
	case node != nil:
		a.place(s, node, c.GetPlacement(), by+"; placed on "+node.Name)
	case misfit != nil:
		a.enter(s, session.Pending, by+"; the chosen node no longer fits: "+misfit.Error())
	default:
		a.enter(s, session.Pending, by+"; waiting for a place")
		if why := c.GetPlacement(); why != "" {
			s.Reason = a.reason(why) // why no node fits, from the first answer on
		}
	}
	a.sessions.put(s.ID, s)
	a.account(nil, s)
	key.owner = s.Spec.Namespace // the one that is shared
	a.remember(key, c.GetRequestHash(), s.ID, 0)
	return Result{Session: s}
}

func (a *applier) checkSpawn(c *clusterv1.SpawnSession, spec *session.Spec) error {
	if err := checkID("session", c.GetSessionId()); err != nil {
		return err
	}
	if err := spec.Validate(); err != nil {
		return err
	}
	if spec.State == session.StateMemory {
		a.flush() // nodes may be among what is pending
		return fault.New(fault.FailedPrecondition, "spawn: %s", NoMemory(func(yield func(*Node) bool) { a.trees.nodes.prefixed("", yield) }))
	}
	if a.sessions.get(a.base, c.GetSessionId()) != nil {
		return fault.New(fault.AlreadyExists, "spawn: session %s exists", c.GetSessionId())
	}
	if a.hasLetters(c.GetSessionId()) {
		return fault.New(fault.AlreadyExists, "spawn: the id %s belonged to a session whose dead letters are still kept; use a new id", c.GetSessionId())
	}
	if id := a.holderOf(spec.Namespace, spec.Name); id != "" {
		phase := session.Phase(0)
		if s := a.sessions.get(a.base, id); s != nil {
			phase = s.Phase
		}
		return fault.New(fault.AlreadyExists, "spawn: the name %q in namespace %q is held by session %s (%s); terminate it, or choose another name", spec.Name, spec.Namespace, id, phase)
	}
	if n := a.meta.stats.Phases.Total(); n >= uint64(a.limits.Sessions) {
		return fault.New(fault.Exhausted, "spawn: the cluster holds %d sessions, its limit; remove ended ones, or wait for their collection", n).WithRetry(a.limits.RetryAfter)
	}
	return a.roomForKey(c.GetIdempotencyKey())
}

// placeSession gives a pending session a node and its next epoch.
func (a *applier) placeSession(c *clusterv1.PlaceSession) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	switch {
	case old == nil:
		return nil, noSession(c.GetSessionId())
	case old.Phase != session.Pending:
		return nil, fault.New(fault.FailedPrecondition, "place: session %s is %s and waits for no place", old.ID, old.Phase)
	case old.Epoch != c.GetEpoch():
		return nil, fault.New(fault.Aborted, "place: session %s is at epoch %d, and the decision was made at epoch %d", old.ID, old.Epoch, c.GetEpoch())
	case old.NotBefore > a.meta.time:
		wait := time.Duration(old.NotBefore - a.meta.time)
		return nil, fault.New(fault.FailedPrecondition, "place: session %s restarts in %s", old.ID, wait).WithRetry(wait)
	}
	node, err := a.reservable(c.GetNodeId(), old.Spec)
	if err != nil {
		return nil, err
	}
	s := *old
	a.place(&s, node, c.GetPlacement(), "placed on "+node.Name)
	a.save(old, &s)
	return &s, nil
}

// reservable returns the node if a session of the spec may be placed on it now.
func (a *applier) reservable(id string, spec *session.Spec) (*Node, error) {
	n := a.nodes.get(a.base, id)
	if n == nil {
		return nil, fault.New(fault.FailedPrecondition, "place: there is no node %s", clip(id, 64))
	}
	c := &n.Capabilities
	full := func(what string, used, want, limit int64) error {
		return fault.New(fault.Exhausted, "place: node %s has %d of %d %s reserved, and %d more are wanted", n.Name, used, limit, what, want).WithRetry(a.limits.RetryAfter)
	}
	switch {
	case n.Lost:
		return nil, fault.New(fault.FailedPrecondition, "place: node %s is lost", n.Name)
	case !n.Schedulable:
		return nil, fault.New(fault.FailedPrecondition, "place: node %s is cordoned", n.Name)
	case c.MaxConcurrentSessions > 0 && n.Sessions >= c.MaxConcurrentSessions:
		return nil, full("sessions", int64(n.Sessions), 1, int64(c.MaxConcurrentSessions))
	case c.CPUMilli > 0 && spec.CPUMilli > c.CPUMilli-n.ReservedCPUMilli && spec.CPUMilli > 0:
		return nil, full("cpu milli", n.ReservedCPUMilli, spec.CPUMilli, c.CPUMilli)
	case c.MemoryBytes > 0 && spec.MemoryBytes > c.MemoryBytes-n.ReservedMemoryBytes && spec.MemoryBytes > 0:
		return nil, full("memory bytes", n.ReservedMemoryBytes, spec.MemoryBytes, c.MemoryBytes)
	}
	return n, nil
}

// place gives a pending session, not shared yet, its node and epoch.
func (a *applier) place(s *session.Session, n *Node, placement, reason string) {
	on := session.Place
	if s.Head() != nil {
		on = session.Restore
	}
	to, ok := session.Next(s.Phase, on)
	if !ok {
		panic("state: only pending sessions are placed") // a defect: callers checked the phase
	}
	s.NodeID, s.Epoch, s.PlacedIndex = n.ID, s.Epoch+1, a.meta.index
	s.Placement = a.intern.str(clip(placement, a.limits.PlacementBytes))
	s.NotBefore, s.PID = 0, 0
	a.enter(s, to, reason)
}

// terminateSession ends a session: at once where nothing of it runs, else by telling its node.
func (a *applier) terminateSession(c *clusterv1.TerminateSession) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	if old == nil {
		return nil, noSession(c.GetSessionId())
	}
	cause := c.GetCause()
	switch cause {
	case "":
		cause = session.CauseTerminated
	case session.CauseTerminated, session.CauseExpired, session.CauseEvicted:
	default:
		return nil, fault.New(fault.Invalid, "terminate: %q is not a cause; use terminated, expired or evicted", clip(cause, 64)).WithField("cause")
	}
	grace := time.Duration(c.GetGrace())
	if grace < -1 || grace > session.MaxGrace {
		return nil, fault.New(fault.Invalid, "terminate: a grace of %s is outside 0s–%s", grace, session.MaxGrace).WithField("grace")
	}
	if grace == -1 {
		grace = old.Spec.Grace
	}
	if old.Phase.Ended() {
		return old, nil
	}
	s := *old
	if s.Phase == session.Terminating {
		if grace >= s.StopGrace {
			return old, nil
		}
		s.StopGrace = grace
		a.save(old, &s)
		return &s, nil
	}
	to, ok := session.Next(s.Phase, session.Terminate)
	if !ok {
		return nil, fault.New(fault.FailedPrecondition, "terminate: session %s is %s and cannot be ended now", s.ID, s.Phase).WithRetry(a.limits.RetryAfter)
	}
	reason := stopReason(cause, c.GetActor(), c.GetReason())
	if to == session.Terminating {
		s.StopGrace, s.StopCause = grace, a.intern.str(cause)
		a.enter(&s, to, reason)
		a.save(old, &s)
		return &s, nil
	}
	s.Exit = &session.Exit{Cause: a.intern.str(cause), Message: a.reason(reason)}
	a.end(old, &s, to, reason)
	return &s, nil
}

func stopReason(cause, actor, reason string) string {
	if actor != "" {
		cause += " by " + actor
	}
	if reason != "" {
		cause += ": " + reason
	}
	return cause
}

// setPendingReason says why a session still waits.
func (a *applier) setPendingReason(c *clusterv1.SetPendingReason) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	switch {
	case old == nil:
		return nil, noSession(c.GetSessionId())
	case old.Phase != session.Pending || old.Epoch != c.GetEpoch():
		return nil, fault.New(fault.Aborted, "pending reason: session %s is %s at epoch %d by now", old.ID, old.Phase, old.Epoch)
	}
	reason := a.reason(c.GetReason())
	if old.Reason == reason {
		return old, nil
	}
	s := *old
	s.Reason = reason
	a.save(old, &s)
	return &s, nil
}

// removeSession forgets an ended session.
func (a *applier) removeSession(c *clusterv1.RemoveSession) error {
	s := a.sessions.get(a.base, c.GetSessionId())
	if s == nil {
		return noSession(c.GetSessionId())
	}
	if !s.Phase.Ended() {
		return fault.New(fault.FailedPrecondition, "remove: session %s is %s; terminate it first", s.ID, s.Phase)
	}
	a.forget(s)
	return nil
}

// forget removes an ended session with its mailbox and results. Its dead letters stay until somebody purges them.
func (a *applier) forget(s *session.Session) {
	a.release(s.ID, ^uint64(0))
	a.sessions.put(s.ID, nil)
	a.account(s, nil)
	if a.mailboxes.get(a.base, s.ID) != nil {
		a.mailboxes.put(s.ID, nil)
	}
	a.event(Event{Type: "session.removed", Namespace: s.Spec.Namespace, SessionID: s.ID, Epoch: s.Epoch, Message: "removed from the state"})
}

// holderOf returns the id of the session that has the name and has not ended; empty when there is none.
func (a *applier) holderOf(namespace, name string) string {
	if name == "" {
		return ""
	}
	if id, ok := a.names[nameKey{namespace, name}]; ok {
		return id
	}
	id, _ := setID{setNames, namespace}.get(a.base, name)
	return id
}

// enter moves a session, not shared yet, into a phase, with its history and event. Its other fields must be as they
// will be.
func (a *applier) enter(s *session.Session, phase session.Phase, reason string) {
	s.Phase, s.Reason = phase, a.reason(reason)
	s.ModifyIndex = a.meta.index
	node := s.NodeID
	if n := a.nodes.get(a.base, s.NodeID); n != nil {
		node = n.Name
	}
	keep := s.History[max(0, len(s.History)+1-session.HistoryMax):]
	h := make([]session.HistoryEntry, len(keep), len(keep)+1)
	copy(h, keep)
	h = append(h, session.HistoryEntry{
		Time: a.meta.time, Index: a.meta.index, Phase: phase, Epoch: s.Epoch, Node: node, Reason: s.Reason,
	})
	s.History = h
	a.event(Event{
		Type: phaseEvents[phase], Namespace: s.Spec.Namespace, SessionID: s.ID, Node: node, Epoch: s.Epoch, Message: s.Reason,
	})
}

var phaseEvents = [...]string{
	session.Pending: "session.pending", session.Starting: "session.starting", session.Running: "session.running",
	session.Pausing: "session.pausing", session.Paused: "session.paused", session.Migrating: "session.migrating",
	session.Restoring: "session.restoring", session.Terminating: "session.terminating",
	session.Completed: "session.completed", session.Failed: "session.failed", session.Terminated: "session.terminated",
}

// save replaces a session's row. From here on s is shared.
func (a *applier) save(old, s *session.Session) {
	s.ModifyIndex = a.meta.index
	a.sessions.put(s.ID, s)
	a.account(old, s)
}

// standing is where a session appears besides its row.
type standing struct {
	name, node, pending, ended, endedName string
	target                                string // of a move: a place is reserved there
	aging                                 string // when a checkpoint goes for its age
	phase                                 session.Phase
}

// timeKey writes a time so that keys are in its order.
func timeKey(t int64) string { return string(binary.BigEndian.AppendUint64(nil, uint64(t))) }

func standingOf(s *session.Session) standing {
	st := standing{phase: s.Phase}
	if !s.Phase.Ended() {
		st.name = s.Spec.Name
	} else {
		st.ended = timeKey(s.EndTime) + s.ID
		if s.Spec.Name != "" {
			st.endedName = s.Spec.Name + "\x00" + st.ended
		}
	}
	if due := s.KeptUntil(); due != 0 {
		st.aging = timeKey(due) + s.ID
	}
	if s.Phase.HoldsNode() {
		st.node = s.NodeID
	}
	if s.Phase == session.Migrating {
		st.target = s.Migration.Target
	}
	if s.Phase == session.Pending {
		b := append(make([]byte, 0, 9), byte(s.Spec.Priority))
		st.pending = string(binary.BigEndian.AppendUint64(b, s.CreateIndex)) + s.ID
	}
	return st
}

// account brings the sets and the counts from what old (nil: not there) stood for to what s (nil: removed) stands for.
func (a *applier) account(old, s *session.Session) {
	var was, is standing
	if old != nil {
		was = standingOf(old)
		a.meta.stats.Phases[was.phase]--
	}
	if s != nil {
		is = standingOf(s)
		a.meta.stats.Phases[is.phase]++
	}
	some := s
	if some == nil {
		some = old
	}
	id, spec := some.ID, some.Spec
	if was.name != is.name {
		if is.name != "" {
			a.set(setNames, spec.Namespace, is.name, id)
		} else {
			a.unset(setNames, spec.Namespace, was.name)
		}
		if a.names == nil {
			a.names = make(map[nameKey]string)
		}
		holder := id
		if is.name == "" {
			holder = ""
		}
		a.names[nameKey{spec.Namespace, spec.Name}] = holder
	}
	if was.node != is.node {
		a.reserve(setOnNode, was.node, id, spec, false)
		a.departed(was.node, s)
		a.reserve(setOnNode, is.node, id, spec, true)
	}
	if was.target != is.target {
		a.reserve(setMovingTo, was.target, id, spec, false)
		a.reserve(setMovingTo, is.target, id, spec, true)
	}
	a.moveKey(setPending, "", was.pending, is.pending, id)
	a.moveKey(setEnded, "", was.ended, is.ended, id)
	a.moveKey(setAging, "", was.aging, is.aging, id)
	a.moveKey(setEndedNames, spec.Namespace, was.endedName, is.endedName, id)
}

func (a *applier) moveKey(kind setKind, owner, was, is, id string) {
	if was == is {
		return
	}
	if was != "" {
		a.unset(kind, owner, was)
	}
	if is != "" {
		a.set(kind, owner, is, id)
	}
}

// reserve takes or gives back what a session holds of a node, or will hold.
func (a *applier) reserve(kind setKind, nodeID, id string, spec *session.Spec, take bool) {
	if nodeID == "" {
		return
	}
	if take {
		a.set(kind, nodeID, id, "")
	} else {
		a.unset(kind, nodeID, id)
	}
	old := a.nodes.get(a.base, nodeID)
	if old == nil {
		return // only a node without sessions can be removed
	}
	n := *old
	if take {
		n.Sessions++
		n.ReservedCPUMilli += spec.CPUMilli
		n.ReservedMemoryBytes += spec.MemoryBytes
	} else {
		n.Sessions--
		n.ReservedCPUMilli -= spec.CPUMilli
		n.ReservedMemoryBytes -= spec.MemoryBytes
	}
	n.ModifyIndex = a.meta.index
	a.nodes.put(nodeID, &n)
}
