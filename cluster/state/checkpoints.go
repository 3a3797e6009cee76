// Checkpoints: a session's chain, what is kept until a checkpoint has seen it, and what the next epoch goes on from.

package state

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
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
func (a *applier) keepAcked(s *session.Session, mb *mailboxRow, m *session.Message, attempts uint32) {
	k := *m
	k.Attempts, k.Delivered, k.DeliveredEpoch, k.Turn = attempts, false, 0, s.Turns
	mb.keep(&k)
	mb.Kept++
	mb.Bytes += uint64(len(k.Text))
	a.meta.stats.MessageBytes += uint64(len(k.Text))
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

// keepNone lets go of what was kept for a first checkpoint that did not come.
func (a *applier) keepNone(s *session.Session) {
	a.release(s.ID, ^uint64(0))
	s.UnsavedSince = 0
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
		q.Turn, q.Attempts = 0, 0 // its turn came to its end: no process failed at it
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
	a.extend(&s, head)
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

// extend appends a head to the chain of a session, not shared yet, and lets those go that it is not to keep.
func (a *applier) extend(s *session.Session, head *session.Checkpoint) {
	all := make([]*session.Checkpoint, len(s.Checkpoints), len(s.Checkpoints)+1)
	copy(all, s.Checkpoints)
	s.Checkpoints = append(all, head)
	s.Checkpoints = s.Kept(a.meta.time)
}

// collectCheckpoints lets checkpoints go that are too old, of at most so many sessions, and returns how many went. Sessions
// of which one will be are in a set, by when: the others cost nothing.
func (a *applier) collectCheckpoints(limit int) (gone int) {
	for due, id := range (setID{kind: setAging}).all(a.base) {
		if gone >= limit || due > timeKey(a.meta.time)+"\xff" {
			break
		}
		old := a.sessions.get(a.base, id)
		if old == nil {
			continue // it was removed a moment ago
		}
		s := *old
		if s.Checkpoints = old.Kept(a.meta.time); len(s.Checkpoints) == len(old.Checkpoints) {
			continue
		}
		gone += len(old.Checkpoints) - len(s.Checkpoints)
		a.save(old, &s)
	}
	return gone
}

// firstCheckpoint reads what a spawned session begins with; nil for nothing.
func (a *applier) firstCheckpoint(p *apiv1.Session_Checkpoint) (*session.Checkpoint, error) {
	if p == nil {
		return nil, nil
	}
	id, err := hex.DecodeString(p.GetManifest())
	switch {
	case err != nil || len(id) != len(session.ManifestID{}):
		return nil, fault.New(fault.Invalid, "spawn: the checkpoint's manifest %q is not the id of a chunk", clip(p.GetManifest(), 80)).WithField("checkpoint.manifest")
	case p.GetSequence() == 0:
		return nil, fault.New(fault.Invalid, "spawn: the checkpoint has no sequence").WithField("checkpoint.sequence")
	case p.GetSequence() > session.CountMax || p.GetTurn() > session.CountMax || p.GetOutputLine() > session.CountMax:
		return nil, fault.New(fault.Invalid, "spawn: checkpoint %d with turn %d and output line %d counts further than %d", p.GetSequence(), p.GetTurn(), p.GetOutputLine(), uint64(session.CountMax)).WithField("checkpoint")
	case p.GetBytes() < 0:
		return nil, fault.New(fault.Invalid, "spawn: the checkpoint has %d bytes", p.GetBytes()).WithField("checkpoint.bytes")
	}
	at := pbconv.Nanos(p.GetCreateTime())
	if at == 0 { // made for this
		at = a.meta.time
	}
	return &session.Checkpoint{
		Sequence: p.GetSequence(), Manifest: session.ManifestID(id), Turn: p.GetTurn(), OutputLine: p.GetOutputLine(),
		CreateTime: at, Chunks: p.GetChunks(), Bytes: p.GetBytes(), Keeps: a.keeps(p.GetKeeps()),
	}, nil
}

// deleteCheckpoint lets one checkpoint of a chain go. Its chunks are collected once no other one names them.
func (a *applier) deleteCheckpoint(c *clusterv1.DeleteCheckpoint) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	if old == nil {
		return nil, noSession(c.GetSessionId())
	}
	i := slices.IndexFunc(old.Checkpoints, func(k *session.Checkpoint) bool { return k.Sequence == c.GetSequence() })
	switch {
	case i < 0:
		return nil, fault.New(fault.NotFound, "delete: session %s keeps no checkpoint %d; it keeps %s", old.ID, c.GetSequence(), sequences(old.Checkpoints))
	case i == len(old.Checkpoints)-1:
		return nil, fault.New(fault.FailedPrecondition, "delete: checkpoint %d is the newest of session %s, which goes on from it; make another one first", c.GetSequence(), old.ID)
	case old.RewindTo == c.GetSequence():
		return nil, fault.New(fault.FailedPrecondition, "delete: session %s is going back to checkpoint %d", old.ID, c.GetSequence()).WithRetry(a.limits.RetryAfter)
	}
	s := *old
	s.Checkpoints = slices.Delete(slices.Clone(old.Checkpoints), i, i+1)
	a.save(old, &s)
	why := fmt.Sprintf("checkpoint %d was deleted", c.GetSequence())
	if c.GetActor() != "" {
		why += " by " + c.GetActor()
	}
	a.sessionEvent("session.checkpoint-deleted", &s, why)
	return &s, nil
}

// sequences lists a chain for people.
func sequences(all []*session.Checkpoint) string {
	if len(all) == 0 {
		return "none"
	}
	var b []byte
	for i, c := range all {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendUint(b, c.Sequence, 10)
	}
	return string(b)
}

// checkpointFailed is told that no checkpoint could be made. What was under way for its sake goes on where it is.
func (a *applier) checkpointFailed(old *session.Session, c *nodev1.CheckpointFailed) {
	s := *old
	s.Captured = nil
	if !s.Saves() {
		a.keepNone(&s)
	}
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
	default: // it keeps what its directory holds, and counts on
		a.keepNone(s)
		return
	}
	s.UnsavedSince = 0
	a.giveBack(s.ID)
}
