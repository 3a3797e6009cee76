// Moves: migration, pause and resume, fork, rewind. Each is a decision about which checkpoint the next epoch begins with,
// and where.

package state

import (
	"bytes"
	"fmt"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// restoreAttempts is how often in a row a session's restore may fail before the session does.
const restoreAttempts = 5

// migrateSession begins a move. The target's place is reserved from now on.
func (a *applier) migrateSession(c *clusterv1.MigrateSession) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	switch {
	case old == nil:
		return nil, noSession(c.GetSessionId())
	case old.Phase == session.Migrating:
		return nil, fault.New(fault.FailedPrecondition, "migrate: session %s is moving already", old.ID).WithRetry(a.limits.RetryAfter)
	case old.Phase != session.Running:
		return nil, fault.New(fault.FailedPrecondition, "migrate: session %s is %s; only one that runs can be moved", old.ID, old.Phase)
	case old.Epoch != c.GetEpoch():
		return nil, fault.New(fault.Aborted, "migrate: session %s is at epoch %d, and the decision was made at epoch %d", old.ID, old.Epoch, c.GetEpoch())
	case old.NodeID == c.GetNodeId():
		return nil, fault.New(fault.FailedPrecondition, "migrate: session %s is on that node already", old.ID)
	}
	target, err := a.reservable(c.GetNodeId(), old.Spec)
	if err != nil {
		return nil, err
	}
	s := *old
	s.Move, s.Left = a.meta.index, false
	s.Migration = &session.Migration{
		Number: s.Move, State: session.MigrationCopying, Source: s.NodeID, Target: target.ID, Cold: c.GetCold(), StartTime: a.meta.time,
	}
	s.Placement = a.intern.str(clip(c.GetPlacement(), a.limits.PlacementBytes))
	a.enterBy(&s, session.Migrate, c.GetActor(), "moving to "+target.Name)
	a.save(old, &s)
	return &s, nil
}

// cancelMigration ends a move that has not stopped the session yet.
func (a *applier) cancelMigration(c *clusterv1.CancelMigration) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	switch {
	case old == nil:
		return nil, noSession(c.GetSessionId())
	case !old.Migration.Under():
		return nil, fault.New(fault.FailedPrecondition, "cancel: session %s is not moving", old.ID)
	case old.Phase != session.Migrating || old.Left:
		return nil, fault.New(fault.FailedPrecondition, "cancel: session %s has stopped on its source already, and goes on on its target", old.ID)
	}
	s := *old
	why := "the move was cancelled"
	if c.GetActor() != "" {
		why += " by " + c.GetActor()
	}
	if c.GetReason() != "" {
		why += ": " + c.GetReason()
	}
	a.stay(&s, session.MigrationCancelled, why)
	a.save(old, &s)
	return &s, nil
}

// stay has a session that was to leave go on where it is.
func (a *applier) stay(s *session.Session, state session.MigrationState, why string) {
	to, ok := session.Next(s.Phase, session.Stay)
	if !ok || s.Left {
		return
	}
	if s.Phase == session.Migrating {
		a.migrated(s, state, why)
	}
	s.Move, s.RewindTo = 0, 0
	a.enter(s, to, why)
}

// migrated ends the record of a move.
func (a *applier) migrated(s *session.Session, state session.MigrationState, why string) {
	if !s.Migration.Under() {
		return
	}
	m := *s.Migration
	m.State, m.Error, m.EndTime, m.Epoch = state, a.reason(why), a.meta.time, s.Epoch
	s.Migration = &m
}

// copiedOnce is told that a session that moves was copied once more while it works.
func (a *applier) copiedOnce(old *session.Session, c *nodev1.Copied) {
	if old.Phase != session.Migrating || c.GetMove() != old.Move || len(c.GetManifest()) != len(session.ManifestID{}) {
		return
	}
	s, m := *old, *old.Migration
	m.Copied, m.Rounds, m.Prepared = session.ManifestID(c.GetManifest()), c.GetRound(), false
	m.BytesSent += c.GetBytesSent()
	m.BytesReused = c.GetBytesReused()
	s.Migration = &m
	a.save(old, &s)
}

// prepared is told by the target of a move that it has the newest copy ready, or that it cannot have it ready: then the session stays where
// it works. It is the only fact about an epoch that has not begun.
func (a *applier) prepared(old *session.Session, nodeID string, epoch uint32, p *nodev1.Prepared) {
	if old.Phase != session.Migrating || old.Left || old.Migration.Target != nodeID || epoch != old.Epoch+1 || old.Migration.Prepared ||
		!bytes.Equal(p.GetManifest(), old.Migration.Copied[:]) {
		return
	}
	s, m := *old, *old.Migration
	if p.GetError() != "" {
		a.stay(&s, session.MigrationFailed, "its target could not make it ready: "+a.reason(p.GetError()))
		a.save(old, &s)
		return
	}
	m.Prepared = true
	s.Migration = &m
	a.save(old, &s)
}

// copied notes what the last checkpoint of a move cost.
func (a *applier) copied(s *session.Session, c *nodev1.Checkpointed) {
	if s.Phase != session.Migrating {
		return
	}
	m := *s.Migration
	m.State, m.Rounds, m.BytesSent, m.BytesReused = session.MigrationMoving, c.GetRounds(), c.GetBytesSent(), c.GetBytesReused()
	m.HeldTime = pbconv.Nanos(c.GetHeldTime())
	s.Migration = &m
}

// arrive brings a session on whose last checkpoint is committed and of which nothing runs any more: to the target, into its
// pause, or, where its target is gone, to wherever there is a place. old is its row.
func (a *applier) arrive(old, s *session.Session) {
	a.goBack(s)
	s.PID = 0
	if s.Phase == session.Pausing {
		to, _ := session.Next(s.Phase, session.Left)
		began := s.History[len(s.History)-1].Time
		a.enter(s, to, "paused at checkpoint "+fmt.Sprint(s.Head().Sequence))
		// One that came a moment before would have been waited for by nobody.
		for m := range a.mailboxes.get(a.base, s.ID).all() {
			if m.CreateTime >= began {
				a.wake(s, fmt.Sprintf("woken by message %d", m.Sequence), "")
				break
			}
		}
		a.save(old, s)
		return
	}
	target := a.nodes.get(a.base, s.Migration.Target)
	if target == nil || target.Lost {
		s.NotBefore = a.meta.time
		a.retry(old, s, "its target was lost during the move; restored where there is a place")
		return
	}
	to, _ := session.Next(s.Phase, session.Restore)
	s.NodeID, s.Epoch, s.PlacedIndex, s.NotBefore = target.ID, s.Epoch+1, a.meta.index, 0
	m := *s.Migration
	m.Epoch = s.Epoch
	s.Migration = &m
	a.enter(s, to, "restoring on "+target.Name)
	a.save(old, s)
}

// pauseSession has a session checkpointed and stopped.
func (a *applier) pauseSession(c *clusterv1.PauseSession) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	switch {
	case old == nil:
		return nil, noSession(c.GetSessionId())
	case old.Phase == session.Paused || old.Phase == session.Pausing && old.RewindTo == 0:
		return old, nil
	case c.GetIdle() != nil && !a.idle(old, c.GetIdle()):
		return nil, fault.New(fault.Aborted, "pause: session %s is not idle any more", old.ID)
	}
	s := *old
	to, ok := session.Next(s.Phase, session.Pause)
	if !ok {
		return nil, fault.New(fault.FailedPrecondition, "pause: session %s is %s; only one that runs or waits for a place can be paused", s.ID, s.Phase).WithRetry(a.limits.RetryAfter)
	}
	why := "paused"
	if to == session.Pausing {
		s.Move, s.Left, why = a.meta.index, false, "being checkpointed for a pause"
	}
	if c.GetReason() != "" {
		why += ": " + c.GetReason()
	}
	a.enterBy(&s, session.Pause, c.GetActor(), why)
	a.save(old, &s)
	return &s, nil
}

// idle reports whether nothing has happened to a session since it was found idle.
func (a *applier) idle(s *session.Session, since *clusterv1.Idle) bool {
	mb := a.mailboxes.get(a.base, s.ID)
	return s.Phase == session.Running && s.Epoch == since.GetEpoch() && s.Turns == since.GetTurns() && (mb == nil || mb.Queued+mb.Delivered == 0)
}

// resumeSession has a paused session wait for a place.
func (a *applier) resumeSession(c *clusterv1.ResumeSession) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	if old == nil {
		return nil, noSession(c.GetSessionId())
	}
	if old.Phase != session.Paused {
		return nil, fault.New(fault.FailedPrecondition, "resume: session %s is %s, not paused", old.ID, old.Phase)
	}
	s := *old
	a.wake(&s, "resumed", c.GetActor())
	a.save(old, &s)
	return &s, nil
}

// wake has a paused session wait for a place.
func (a *applier) wake(s *session.Session, why, actor string) {
	s.NotBefore = a.meta.time
	a.enterBy(s, session.Resume, actor, why)
}

// forkSession makes a new session that begins with a checkpoint of another one.
func (a *applier) forkSession(c *clusterv1.ForkSession) Result {
	of := a.sessions.get(a.base, c.GetSessionId())
	if of == nil {
		return Result{Err: noSession(c.GetSessionId())}
	}
	key := idempotencyKey{keySpawn, of.Spec.Namespace, c.GetIdempotencyKey()}
	if known, err := a.seen(key, c.GetRequestHash()); err != nil {
		return Result{Err: err}
	} else if known != nil {
		return Result{Session: a.sessions.get(a.base, known.sessionID), Duplicate: true}
	}
	from := of.Checkpoint(c.GetSequence())
	if from == nil {
		return Result{Err: noCheckpoint("fork", of, c.GetSequence())}
	}
	spec := *of.Spec
	spec.Name = c.GetName()
	if c.GetStrategy() != "" {
		spec.Strategy = c.GetStrategy()
	}
	spawn := &clusterv1.SpawnSession{SessionId: c.GetNewSessionId(), IdempotencyKey: c.GetIdempotencyKey()}
	if err := a.checkSpawn(spawn, &spec); err != nil {
		return Result{Err: err}
	}
	s := &session.Session{
		ID: c.GetNewSessionId(), Spec: a.intern.spec(&spec), Phase: session.Pending, CreateTime: a.meta.time, CreateIndex: a.meta.index,
	}
	begin(s, from)
	why := fmt.Sprintf("forked from checkpoint %d of session %s", from.Sequence, of.ID)
	if c.GetActor() != "" {
		why += " by " + c.GetActor()
	}
	a.enter(s, session.Pending, why)
	a.sessions.put(s.ID, s)
	a.account(nil, s)
	key.owner = s.Spec.Namespace
	a.remember(key, c.GetRequestHash(), s.ID, 0)
	return Result{Session: s}
}

// begin makes a checkpoint from elsewhere the first of a new session's chain: its turns and its output go on from it.
func begin(s *session.Session, from *session.Checkpoint) {
	first := *from
	first.Epoch = 0 // not one of this session's
	s.Checkpoints, s.Turns, s.OutputLine = []*session.Checkpoint{&first}, from.Turn, from.OutputLine
}

func noCheckpoint(verb string, s *session.Session, sequence uint64) error {
	if len(s.Checkpoints) == 0 {
		return fault.New(fault.FailedPrecondition, "%s: session %s has no checkpoint; make one with: orchctl sessions checkpoint %s", verb, s.ID, s.ID)
	}
	return fault.New(fault.NotFound, "%s: session %s keeps no checkpoint %d; it keeps %s", verb, s.ID, sequence, sequences(s.Checkpoints))
}

// rewindSession has a session go on from an earlier checkpoint, under a new epoch. What has ended goes on, too. Messages whose
// turns have ended stay acked: to go back is to undo them. But an ended session that goes on from its head is restored, as after
// the loss of a node: nobody wanted its last turns undone, and their messages come again.
func (a *applier) rewindSession(c *clusterv1.RewindSession) (*session.Session, error) {
	old := a.sessions.get(a.base, c.GetSessionId())
	if old == nil {
		return nil, noSession(c.GetSessionId())
	}
	from := old.Checkpoint(c.GetSequence())
	if from == nil {
		return nil, noCheckpoint("rewind", old, c.GetSequence())
	}
	s := *old
	why := fmt.Sprintf("going back to checkpoint %d", from.Sequence)
	if s.Phase == session.Running {
		s.RewindTo, s.Move, s.Left = from.Sequence, a.meta.index, false
		a.enterBy(&s, session.Pause, c.GetActor(), why)
		a.save(old, &s)
		return &s, nil
	}
	if _, ok := session.Next(s.Phase, session.Rewind); !ok {
		return nil, fault.New(fault.FailedPrecondition, "rewind: session %s is %s; wait until it runs or has ended", s.ID, s.Phase).WithRetry(a.limits.RetryAfter)
	}
	if id := a.holderOf(s.Spec.Namespace, s.Spec.Name); s.Phase.Ended() && id != "" && id != s.ID {
		return nil, fault.New(fault.AlreadyExists, "rewind: the name %q is held by session %s by now; terminate it, or fork the checkpoint", s.Spec.Name, id)
	}
	s.EndTime, s.Exit, s.RestartsForgiven = 0, nil, s.Restarts // somebody wants it to try again
	if s.Phase.Ended() && from == s.Head() {
		a.goBack(&s)
	} else {
		a.rewound(&s, from)
	}
	s.NotBefore = a.meta.time
	a.enterBy(&s, session.Rewind, c.GetActor(), why)
	a.save(old, &s)
	return &s, nil
}

// rewound makes an earlier checkpoint the head.
func (a *applier) rewound(s *session.Session, from *session.Checkpoint) {
	head := *from
	head.Sequence, head.Turn = s.Head().Sequence+1, s.Turns
	a.release(s.ID, s.Turns)
	s.RewindTo = 0
	a.extend(s, &head)
	a.goBack(s)
}

// enterBy is enter for an event that the phase allows, which the caller has checked.
func (a *applier) enterBy(s *session.Session, on session.Event, actor, reason string) {
	to, ok := session.Next(s.Phase, on)
	if !ok {
		panic(fmt.Sprintf("state: %s on %s", on, s.Phase)) // a defect
	}
	if actor != "" {
		reason += " by " + actor
	}
	a.enter(s, to, reason)
}
