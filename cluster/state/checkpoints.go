// Checkpoints: a session's chain, what is kept until a checkpoint has seen it, and what the next epoch goes on from.

package state

import (
	"fmt"
	"slices"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// keepsMax bounds the words that say what a checkpoint keeps.
const keepsMax = 8

// checkpointSession asks the session's node for a checkpoint; the result's sequence is the request's number.
func (a *applier) checkpointSession(c *clusterv1.CheckpointSession) Result {
	old := a.sessions.get(a.base, c.GetSessionId())
	switch {
	case old == nil:
		return Result{Err: noSession(c.GetSessionId())}
	case old.Phase == session.Starting || old.Phase == session.Restoring || old.Phase == session.Pending:
		return Result{Err: fault.New(fault.FailedPrecondition, "checkpoint: session %s is %s; wait until it runs", old.ID, old.Phase).WithRetry(a.limits.RetryAfter)}
	case old.Phase != session.Running:
		return Result{Err: fault.New(fault.FailedPrecondition, "checkpoint: session %s is %s; only one that runs can be checkpointed", old.ID, old.Phase)}
	}
	s := *old
	s.CheckpointRequest++
	a.save(old, &s)
	return Result{Session: &s, Sequence: s.CheckpointRequest}
}

// keepAcked keeps a message whose turn has ended until a checkpoint has seen it.
func (a *applier) keepAcked(s *session.Session, mb *mailboxRow, m *session.Message) {
	k := *m
	k.Delivered, k.DeliveredEpoch, k.Turn = false, 0, s.Turns
	mb.keep(&k)
	mb.Kept++
	mb.Bytes += uint64(len(k.Text))
	a.meta.stats.MessageBytes += uint64(len(k.Text))
	if s.UnsavedSince == 0 {
		s.UnsavedSince = a.meta.time
	}
	// Half full of what only a checkpoint lets go: time for one.
	if int(mb.Kept) >= a.limits.MailboxMessages/2 && s.CheckpointRequest == s.CheckpointAnswered {
		s.CheckpointRequest++
	}
}

// release lets go of the messages that were kept and whose turns are not after turn.
func (a *applier) release(id string, turn uint64) {
	if mb := a.mailboxes.get(a.base, id); mb == nil || mb.Kept == 0 {
		return
	}
	mb := a.openMailbox(id)
	for _, m := range mb.mail.cutKept(turn) {
		mb.Kept--
		mb.Bytes -= uint64(len(m.Text))
		a.meta.stats.MessageBytes -= uint64(len(m.Text))
	}
	mb.tidy()
	a.mailboxes.put(id, mb)
}

// giveBack queues again every message whose turn is undone with the epoch: those that were kept.
func (a *applier) giveBack(id string) {
	mb := a.mailboxes.get(a.base, id)
	if mb == nil || mb.Kept == 0 {
		return
	}
	mb = a.openMailbox(id)
	a.undone = true
	again := map[uint64]bool{}
	for _, m := range mb.mail.cutKept(^uint64(0)) {
		q := *m
		q.Turn = 0
		again[q.Sequence] = true
		mb.Kept--
		mb.Acked--
		mb.Queued++
		a.meta.stats.Messages++
		mb.put(&q)
		a.queued = append(a.queued, &q)
	}
	// What their turns gave is undone with them.
	mb.resultBytes = 0
	mb.results = slices.DeleteFunc(slices.Clone(mb.results), func(r *session.Result) bool { return again[r.Sequence] })
	for _, r := range mb.results {
		mb.resultBytes += len(r.Text)
	}
	a.mailboxes.put(id, mb)
}

// captured is told that a checkpoint is taken of this moment: what has ended by now is what it will have seen.
func (a *applier) captured(old *session.Session, c *nodev1.Captured) {
	if head := old.Head(); head != nil && c.GetSequence() <= head.Sequence {
		return
	}
	s := *old
	s.Captured = &session.Captured{Sequence: c.GetSequence(), Turn: s.Turns, OutputLine: c.GetOutputLine(), Time: a.meta.time}
	s.OutputLine = max(s.OutputLine, c.GetOutputLine())
	a.save(old, &s)
}

// checkpointed is told that what was captured is stored: it becomes the head of the chain.
func (a *applier) checkpointed(old *session.Session, c *nodev1.Checkpointed) {
	at := old.Captured
	if at == nil || at.Sequence != c.GetSequence() || len(c.GetManifest()) != len(session.ManifestID{}) {
		return // of a capture that was given up
	}
	s := *old
	head := &session.Checkpoint{
		Sequence: c.GetSequence(), Manifest: session.ManifestID(c.GetManifest()), Epoch: s.Epoch, Turn: at.Turn, OutputLine: at.OutputLine,
		CreateTime: at.Time, Chunks: c.GetChunks(), Bytes: c.GetBytes(), BytesSent: c.GetBytesSent(), BytesReused: c.GetBytesReused(),
		Keeps: a.keeps(c.GetKeeps()),
	}
	s.Checkpoints = chain(s.Checkpoints, head)
	s.Captured, s.CheckpointError = nil, ""
	what := fmt.Sprintf("checkpoint %d: %d bytes in %d chunks, %d of them sent", head.Sequence, head.Bytes, head.Chunks, head.BytesSent)
	if c.GetLeftOut() != "" {
		s.CheckpointError = a.reason(fmt.Sprintf("checkpoint %d leaves out %s", head.Sequence, c.GetLeftOut()))
		what = a.reason(what + "; it leaves out " + c.GetLeftOut())
	}
	s.CheckpointAnswered = max(s.CheckpointAnswered, min(c.GetRequest(), s.CheckpointRequest))
	if s.UnsavedSince != 0 {
		if s.UnsavedSince = 0; s.Turns > at.Turn {
			s.UnsavedSince = at.Time // no turn that it has not seen ended before
		}
	}
	a.release(s.ID, at.Turn)
	if c.GetMove() != 0 && c.GetMove() == s.Move && s.RewindTo == 0 && s.Phase != session.Terminating {
		s.Left = true
		a.copied(&s, c)
	}
	a.save(old, &s)
	a.sessionEvent("session.checkpointed", &s, what)
}

func (a *applier) keeps(words []string) []string {
	kept := make([]string, 0, min(len(words), keepsMax))
	for _, w := range words[:min(len(words), keepsMax)] {
		kept = append(kept, a.intern.str(clip(w, 32)))
	}
	return kept
}

// chain appends a head and lets the oldest go.
func chain(all []*session.Checkpoint, head *session.Checkpoint) []*session.Checkpoint {
	keep := all[max(0, len(all)+1-session.CheckpointsMax):]
	return append(slices.Clip(slices.Clone(keep)), head)
}

// checkpointFailed is told that no checkpoint could be made. What was under way for its sake goes on where it is.
func (a *applier) checkpointFailed(old *session.Session, c *nodev1.CheckpointFailed) {
	s := *old
	s.Captured = nil
	s.CheckpointAnswered = max(s.CheckpointAnswered, min(c.GetRequest(), s.CheckpointRequest))
	why := a.reason(c.GetCause())
	s.CheckpointError = why
	if c.GetMove() != 0 && c.GetMove() == s.Move {
		a.stay(&s, session.MigrationFailed, "no checkpoint could be made: "+why)
	}
	a.save(old, &s)
	a.sessionEvent("session.checkpoint-failed", &s, why)
}

func (a *applier) sessionEvent(kind string, s *session.Session, message string) {
	node := s.NodeID
	if n := a.nodes.get(a.base, s.NodeID); n != nil {
		node = n.Name
	}
	a.event(Event{Type: kind, Namespace: s.Spec.Namespace, SessionID: s.ID, Node: node, Epoch: s.Epoch, Message: message})
}

// goBack brings a session whose epoch is over to what its next one goes on from: the head, or nothing. Turns after it
// are undone, and their messages come again.
func (a *applier) goBack(s *session.Session) {
	s.Captured, s.Left, s.Move = nil, false, 0
	s.CheckpointAnswered = s.CheckpointRequest
	s.LostLine, s.LostEpoch = 0, 0
	head := s.Head()
	switch {
	case head != nil:
		if s.OutputLine > head.OutputLine {
			s.LostLine, s.LostEpoch = s.OutputLine, s.Epoch
		}
		s.OutputLine, s.Turns = head.OutputLine, head.Turn
	case s.Saves():
		s.Turns = 0
	default:
		return // it keeps what its directory holds, and counts on
	}
	s.UnsavedSince = 0
	a.giveBack(s.ID)
}
