// Facts: what nodes report of their sessions, each with effect once.

package state

import (
	"fmt"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// applyFacts applies what a node reports. Facts that were applied already, and those about a session that this node does
// not hold at that epoch, have no effect; all of them count as applied. Facts that leave a gap behind those before are
// refused. It returns how many had an effect.
func (a *applier) applyFacts(c *clusterv1.ApplyFacts) (*Node, uint32, error) {
	n := a.nodes.get(a.base, c.GetNodeId())
	switch {
	case n == nil:
		return nil, 0, fault.New(fault.FailedPrecondition, "facts: there is no node %s; it must register again", clip(c.GetNodeId(), 64))
	case n.Incarnation != c.GetIncarnation():
		return nil, 0, fault.New(fault.FailedPrecondition, "facts: node %s is at incarnation %d, and the facts are of %d", n.Name, n.Incarnation, c.GetIncarnation())
	case len(c.GetFacts()) > 0 && c.GetFacts()[0].GetIndex() > n.FactIndex+1:
		// Those between were sent, and were not committed: to go on would lose them for good.
		return nil, 0, fault.New(fault.FailedPrecondition, "facts: node %s reports from %d on, and %d is the last one known; it must send again what is missing", n.Name, c.GetFacts()[0].GetIndex(), n.FactIndex)
	}
	done, effects := n.FactIndex, uint32(0)
	for _, f := range c.GetFacts() {
		if f.GetIndex() <= done {
			continue
		}
		if f.GetIndex() != done+1 {
			// One before it was lost on the way, as when a leader was replaced. It counts as not said until that one comes.
			break
		}
		done = f.GetIndex()
		s := a.sessions.get(a.base, f.GetSessionId())
		if s != nil && f.GetPrepared() != nil {
			a.prepared(s, n.ID, f.GetEpoch(), f.GetPrepared())
			effects++
			continue
		}
		if s == nil || s.NodeID != n.ID || s.Epoch != f.GetEpoch() || !s.Phase.HoldsNode() {
			continue
		}
		a.applyFact(s, f)
		effects++
	}
	if n = a.nodes.get(a.base, n.ID); n.FactIndex != done {
		m := *n
		m.FactIndex, m.ModifyIndex = done, a.meta.index
		a.nodes.put(m.ID, &m)
		n = &m
	}
	return n, effects, nil
}

func (a *applier) applyFact(s *session.Session, f *nodev1.Fact) {
	switch k := f.GetKind().(type) {
	case *nodev1.Fact_Started:
		a.started(s, k.Started.GetPid())
	case *nodev1.Fact_Exited:
		a.exited(s, k.Exited)
	case *nodev1.Fact_MessageDelivered:
		a.delivered(s, k.MessageDelivered.GetSequence())
	case *nodev1.Fact_TurnEnded:
		a.turnEnded(s, k.TurnEnded)
	case *nodev1.Fact_Copied:
		a.copiedOnce(s, k.Copied)
	case *nodev1.Fact_Captured:
		a.captured(s, k.Captured)
	case *nodev1.Fact_Checkpointed:
		a.checkpointed(s, k.Checkpointed)
	case *nodev1.Fact_CheckpointFailed:
		a.checkpointFailed(s, k.CheckpointFailed)
	case *nodev1.Fact_MessageRefused:
		cause := k.MessageRefused.GetCause()
		if cause == "" {
			cause = "refused by its node"
		}
		if m := a.message(s.ID, k.MessageRefused.GetSequence()); m != nil {
			a.bury(s, []*session.Message{m}, cause)
		}
	}
}

// started is told that the process runs. It may be told so again, by an agent that came back.
func (a *applier) started(old *session.Session, pid int32) {
	to, ok := session.Next(old.Phase, session.Started)
	if !ok && old.PID == pid {
		return
	}
	s := *old
	s.PID = pid
	if ok {
		s.StartTime = a.meta.time
		s.RestoreFailures = 0
		why := "process started"
		if old.Phase == session.Restoring {
			why = fmt.Sprintf("restored from checkpoint %d", s.Head().Sequence)
		}
		if s.Migration.Under() {
			a.migrated(&s, session.MigrationDone, "")
			a.arrived(s.Migration)
		}
		a.enter(&s, to, why)
	}
	a.save(old, &s)
}
