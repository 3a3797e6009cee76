// What moves sessions: checkpoint, migrate, pause, resume, fork, rewind, and letting a checkpoint go. Each commits a decision; the nodes carry it out.

package gateway

import (
	"context"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/loadbalancer"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/session"
)

// The modes of a migration.
const (
	modeLive = "live"
	modeCold = "cold"
)

// moved is a request about one session.
type moved interface {
	keyed
	GetNamespace() string
	GetId() string
}

// find returns the session of such a request.
func (o *Operations) find(ctx context.Context, req moved) (*session.Session, error) {
	if err := checkKey(req.GetIdempotencyKey()); err != nil {
		return nil, err
	}
	return o.resolve(ctx, o.State.View(), req.GetNamespace(), req.GetId())
}

// again reports whether a request is a repetition of one that had its effect: what stands in its way now did not then.
func (o *Operations) again(ctx context.Context, method string, req keyed) bool {
	return req.GetIdempotencyKey() != "" && o.State.View().Remembers(onceScope(ctx, method), req.GetIdempotencyKey())
}

// joined keeps the key of a request that finds its effect there, or under way. A repetition is the same request then, and has no
// effect of its own, also when what it found is over.
func (o *Operations) joined(ctx context.Context, method string, req keyed, s *session.Session) (*session.Session, error) {
	if _, _, err := o.remember(ctx, method, req, s.ID); err != nil {
		return nil, err
	}
	return s, nil
}

// decide commits a command about a session, once for the request's key. The result's session is as it is after the command; after
// a repetition, as it is now.
func (o *Operations) decide(ctx context.Context, s *session.Session, method string, req keyed, c *clusterv1.Command) (state.Result, error) {
	res, err := o.oneOnce(ctx, method, req, c)
	if err != nil {
		return state.Result{}, err
	}
	if res.Duplicate && res.Session == nil {
		if res.Session = o.State.View().Session(s.ID); res.Session == nil {
			return res, fault.New(fault.NotFound, "session %s: is no longer kept", s.ID)
		}
	}
	return res, nil
}

// waitSession waits until a session is as done wants it; done's error ends it, too.
func (o *Operations) waitSession(ctx context.Context, id string, done func(*session.Session) (bool, error)) (*session.Session, error) {
	for {
		changed := o.waiters.changed(id)
		s := o.State.View().Session(id)
		if s == nil {
			return nil, fault.New(fault.NotFound, "session %s: is no longer kept", id)
		}
		if ok, err := done(s); ok || err != nil {
			return s, err
		}
		if err := o.await(ctx, changed); err != nil {
			return nil, fault.New(fault.KindOf(err), "wait for session %s: %w; it is %s: %s", id, err, s.Phase, s.Reason)
		}
	}
}

// Checkpoint has a checkpoint made.
func (o *Operations) Checkpoint(ctx context.Context, req *apiv1.CheckpointSessionRequest) (*session.Session, error) {
	s, err := o.find(ctx, req)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Phase.Ended():
		return nil, fault.New(fault.FailedPrecondition, "session %s: is %s, and only what runs can be checkpointed; `orchctl sessions restore` has it go on from its last checkpoint", s.ID, s.Phase)
	case s.Phase == session.Terminating:
		return nil, fault.New(fault.FailedPrecondition, "session %s: is being ended; it is too late for a checkpoint", s.ID)
	case s.Phase == session.Paused:
		return o.joined(ctx, apiv1.SessionService_CheckpointSession_FullMethodName, req, s) // it lives in its checkpoint
	}
	res, err := o.decide(ctx, s, apiv1.SessionService_CheckpointSession_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_CheckpointSession{
		CheckpointSession: &clusterv1.CheckpointSession{SessionId: s.ID, Actor: caller(ctx).String()},
	}})
	if err != nil || !req.GetWait() {
		return res.Session, err
	}
	number, before := res.Session.CheckpointRequest, headSequence(res.Session)
	return o.waitSession(ctx, s.ID, func(s *session.Session) (bool, error) {
		switch made := headSequence(s) > before; {
		case made && s.CheckpointAnswered >= number:
			return true, nil
		case res.Duplicate && s.CheckpointAnswered >= number:
			return true, nil // it may have been made before this repetition
		case s.CheckpointAnswered >= number:
			return true, fault.New(fault.FailedPrecondition, "session %s: no checkpoint could be made: %s", s.ID, s.CheckpointError)
		case s.Phase.Ended() && !made:
			return true, fault.New(fault.FailedPrecondition, "session %s: is %s, and no checkpoint was made before", s.ID, s.Phase)
		}
		return s.Phase.Ended() || s.Phase == session.Paused, nil
	})
}

func headSequence(s *session.Session) uint64 {
	if h := s.Head(); h != nil {
		return h.Sequence
	}
	return 0
}

// Migrate has a session move to another node.
func (o *Operations) Migrate(ctx context.Context, req *apiv1.MigrateSessionRequest) (*session.Session, error) {
	if m := req.GetMode(); m != "" && m != modeLive && m != modeCold {
		return nil, fault.New(fault.Invalid, "mode: %q is not a way to migrate; use %s or %s", clip(m), modeLive, modeCold).WithField("mode")
	}
	s, err := o.find(ctx, req)
	if err != nil {
		return nil, err
	}
	v := o.State.View()
	var target string
	if req.GetTarget() != "" {
		n, err := resolveNode(v, req.GetTarget())
		if err != nil {
			return nil, err
		}
		target = n.ID
	}
	if m := s.Migration; !m.Under() {
		now, err := o.migrate(ctx, s, target, req)
		if err != nil && !o.again(ctx, apiv1.SessionService_MigrateSession_FullMethodName, req) {
			return nil, err
		}
		if err == nil {
			s = now
		}
	} else if target != "" && target != m.Target { // whoever asks for what is under way has it
		return nil, fault.New(fault.FailedPrecondition, "session %s: is moving to %s; wait for that, or cancel it with `orchctl sessions migrate %s --cancel`", s.ID, nodeName(v, m.Target), s.ID)
	} else if _, err := o.joined(ctx, apiv1.SessionService_MigrateSession_FullMethodName, req, s); err != nil {
		return nil, err
	}
	if !req.GetWait() || !s.Migration.Under() {
		return s, nil
	}
	number := s.Migration.Number
	return o.waitSession(ctx, s.ID, func(s *session.Session) (bool, error) {
		return s.Migration == nil || s.Migration.Number != number || !s.Migration.Under(), nil
	})
}

// migrate chooses where to and commits the move.
func (o *Operations) migrate(ctx context.Context, s *session.Session, target string, req *apiv1.MigrateSessionRequest) (*session.Session, error) {
	if err := mayMove(s); err != nil {
		return nil, err
	}
	p, err := o.Router.Move(s.Spec, s.NodeID, target)
	if err != nil {
		return nil, inSession(s, err)
	}
	res, err := o.decide(ctx, s, apiv1.SessionService_MigrateSession_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_MigrateSession{
		MigrateSession: &clusterv1.MigrateSession{
			SessionId: s.ID, Epoch: s.Epoch, NodeId: p.NodeID, Placement: p.Why, Cold: req.GetMode() == modeCold, Actor: caller(ctx).String(),
		},
	}})
	o.settle(p, res, err)
	return res.Session, err
}

// settle ends a reservation for a move: the state holds it now, or it is not needed.
func (o *Operations) settle(p *router.Placement, res state.Result, err error) {
	if err != nil || res.Duplicate || res.Session == nil || res.Session.Migration == nil || res.Session.Migration.Target != p.NodeID {
		o.Router.Release(p)
		return
	}
	o.Router.Settle(p, res.Session.ModifyIndex)
}

// mayMove says why a session cannot move as it is.
func mayMove(s *session.Session) error {
	switch {
	case s.Phase == session.Running:
		return nil
	case s.Phase.Ended():
		return fault.New(fault.FailedPrecondition, "session %s: is %s, and only what runs can move; `orchctl sessions restore` has it go on from its last checkpoint", s.ID, s.Phase)
	case s.Phase == session.Paused:
		return fault.New(fault.FailedPrecondition, "session %s: is paused and on no node; `orchctl sessions resume` places it anew", s.ID)
	case s.Phase == session.Pending:
		return fault.New(fault.FailedPrecondition, "session %s: is on no node yet (%s); it is placed as soon as one fits", s.ID, s.Reason)
	case s.Phase == session.Terminating:
		return fault.New(fault.FailedPrecondition, "session %s: is being ended; there is nothing to move", s.ID)
	case s.Phase == session.Pausing:
		return fault.New(fault.FailedPrecondition, "session %s: is being paused; `orchctl sessions resume` places it anew once it is", s.ID)
	default:
		return fault.New(fault.FailedPrecondition, "session %s: is %s; move it once it runs", s.ID, s.Phase)
	}
}

// inSession names the session in an error about it.
func inSession(s *session.Session, err error) error {
	f := fault.New(fault.KindOf(err), "session %s: %w", s.ID, err)
	if orig := fault.As(err); orig != nil {
		f.RetryAfter, f.Field = orig.RetryAfter, orig.Field
	}
	return f
}

// CancelMigration has a session stay where it is.
func (o *Operations) CancelMigration(ctx context.Context, req *apiv1.CancelMigrationRequest) (*session.Session, error) {
	s, err := o.find(ctx, req)
	if err != nil {
		return nil, err
	}
	m := s.Migration
	switch {
	case m != nil && m.State == session.MigrationCancelled:
		return o.joined(ctx, apiv1.SessionService_CancelMigration_FullMethodName, req, s)
	case !m.Under():
		return nil, fault.New(fault.FailedPrecondition, "session %s: is not moving; there is nothing to cancel", s.ID)
	case m.State == session.MigrationMoving:
		return nil, fault.New(fault.FailedPrecondition, "session %s: has stopped on its source already and is being restored on its target; move it back once it runs", s.ID)
	}
	res, err := o.decide(ctx, s, apiv1.SessionService_CancelMigration_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_CancelMigration{CancelMigration: &clusterv1.CancelMigration{
		SessionId: s.ID, Actor: caller(ctx).String(),
	}}})
	return res.Session, err
}

// Pause has a session checkpointed and stopped.
func (o *Operations) Pause(ctx context.Context, req *apiv1.PauseSessionRequest) (*session.Session, error) {
	const method = apiv1.SessionService_PauseSession_FullMethodName
	s, err := o.find(ctx, req)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Phase.Ended(), s.Phase == session.Terminating:
		if o.again(ctx, method, req) {
			return s, nil
		}
		return nil, fault.New(fault.FailedPrecondition, "session %s: is %s; there is nothing to pause", s.ID, s.Phase)
	case s.Phase == session.Paused, s.Phase == session.Pausing && s.RewindTo == 0:
		s, err = o.joined(ctx, method, req, s)
	default:
		var res state.Result
		res, err = o.decide(ctx, s, method, req, &clusterv1.Command{Kind: &clusterv1.Command_PauseSession{PauseSession: &clusterv1.PauseSession{
			SessionId: s.ID, Reason: clip(req.GetReason()), Actor: caller(ctx).String(),
		}}})
		if s = res.Session; err == nil && res.Duplicate && s.Phase != session.Pausing {
			return s, nil // it was paused, and goes on since
		}
	}
	if err != nil || !req.GetWait() {
		return s, err
	}
	return o.waitSession(ctx, s.ID, func(s *session.Session) (bool, error) {
		if s.Phase == session.Running {
			return true, fault.New(fault.FailedPrecondition, "session %s: was not paused and goes on: %s; see `orchctl sessions history`", s.ID, s.Reason)
		}
		return s.Phase == session.Paused || s.Phase.Ended(), nil
	})
}

// Resume has a paused session go on.
func (o *Operations) Resume(ctx context.Context, req *apiv1.ResumeSessionRequest) (*session.Session, error) {
	const method = apiv1.SessionService_ResumeSession_FullMethodName
	s, err := o.find(ctx, req)
	if err != nil {
		return nil, err
	}
	switch s.Phase {
	case session.Completed, session.Failed, session.Terminated, session.Terminating:
		switch {
		case o.again(ctx, method, req):
			return s, nil
		case s.Phase == session.Terminating:
			return nil, fault.New(fault.FailedPrecondition, "session %s: is being ended; there is nothing to resume", s.ID)
		}
		return nil, fault.New(fault.FailedPrecondition, "session %s: is %s, not paused; `orchctl sessions restore` has it go on from its last checkpoint", s.ID, s.Phase)
	case session.Paused, session.Pausing:
		var res state.Result
		res, err = o.decide(ctx, s, method, req, &clusterv1.Command{Kind: &clusterv1.Command_ResumeSession{ResumeSession: &clusterv1.ResumeSession{
			SessionId: s.ID, Actor: caller(ctx).String(),
		}}})
		if s = res.Session; err == nil && res.Duplicate && (s.Phase == session.Paused || s.Phase == session.Pausing) {
			return s, nil // it was resumed, and paused since
		}
	default: // it is on its way, or runs
		s, err = o.joined(ctx, method, req, s)
	}
	if err != nil || !req.GetWait() {
		return s, err
	}
	return o.waitSession(ctx, s.ID, func(s *session.Session) (bool, error) {
		return s.Phase == session.Running || s.Phase.Ended(), nil
	})
}

// kept returns a checkpoint of a session, its head for 0.
func kept(s *session.Session, sequence uint64) (*session.Checkpoint, error) {
	if c := s.Checkpoint(sequence); c != nil {
		return c, nil
	}
	return nil, notKept(s.ID, s.Phase.Ended(), len(s.Checkpoints), sequence)
}

// notKept says why a session has no such checkpoint.
func notKept(id string, ended bool, has int, sequence uint64) error {
	switch {
	case has == 0 && ended:
		return fault.New(fault.FailedPrecondition, "session %s: has no checkpoint to go on from; spawn it again, with --checkpoint-every", id)
	case has == 0:
		return fault.New(fault.FailedPrecondition, "session %s: has no checkpoint yet; make one with `orchctl sessions checkpoint --wait %s`", id, id)
	default:
		return fault.New(fault.NotFound, "session %s: keeps no checkpoint %d; see `orchctl sessions checkpoints %s`", id, sequence, id)
	}
}

// Fork makes a new session that begins with a checkpoint of another one.
func (o *Operations) Fork(ctx context.Context, req *apiv1.ForkSessionRequest) (*session.Session, error) {
	s, err := o.find(ctx, req)
	if err != nil {
		return nil, err
	}
	c, err := kept(s, req.GetSequence())
	if err != nil {
		return nil, err
	}
	spec := *s.Spec
	spec.Name = req.GetName()
	if req.GetStrategy() != "" {
		if _, err := loadbalancer.Named(req.GetStrategy()); err != nil {
			return nil, err
		}
	}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	cmd := &clusterv1.ForkSession{
		SessionId: s.ID, NewSessionId: newID(), Sequence: c.Sequence, Name: req.GetName(), IdempotencyKey: req.GetIdempotencyKey(), Actor: caller(ctx).String(),
		Strategy: req.GetStrategy(),
	}
	// The head may be another one when the request is repeated, and it is the same request.
	cmd.RequestHash = hashRequest(&apiv1.ForkSessionRequest{Id: s.ID, Sequence: req.GetSequence(), Name: req.GetName(), Strategy: req.GetStrategy()})
	res, err := o.one(ctx, &clusterv1.Command{Kind: &clusterv1.Command_ForkSession{ForkSession: cmd}})
	if err != nil {
		return nil, err
	}
	if req.GetWait() {
		return o.waitStarted(ctx, res.Session.ID)
	}
	return res.Session, nil
}

// Rewind takes a session back to one of its checkpoints.
func (o *Operations) Rewind(ctx context.Context, req *apiv1.RewindSessionRequest) (*session.Session, error) {
	s, err := o.find(ctx, req)
	if err != nil {
		return nil, err
	}
	c, err := kept(s, req.GetSequence())
	if err != nil {
		if o.again(ctx, apiv1.SessionService_RewindSession_FullMethodName, req) {
			return s, nil
		}
		return nil, err
	}
	before := s.Epoch
	res, err := o.decide(ctx, s, apiv1.SessionService_RewindSession_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_RewindSession{
		RewindSession: &clusterv1.RewindSession{SessionId: s.ID, Sequence: c.Sequence, Actor: caller(ctx).String()},
	}})
	if err != nil || !req.GetWait() {
		return res.Session, err
	}
	return o.waitSession(ctx, s.ID, func(s *session.Session) (bool, error) {
		if s.Phase.Ended() {
			return true, nil
		}
		// A repetition may come when the new epoch runs already.
		return s.Phase == session.Running && (s.Epoch > before || res.Duplicate && s.RewindTo == 0), nil
	})
}

// DeleteCheckpoint lets a checkpoint of a session go.
func (o *Operations) DeleteCheckpoint(ctx context.Context, req *apiv1.DeleteCheckpointRequest) (*session.Session, error) {
	s, err := o.find(ctx, req)
	if err != nil {
		return nil, err
	}
	if req.GetSequence() == 0 {
		return nil, fault.New(fault.Invalid, "sequence: name the checkpoint to delete; see `orchctl sessions checkpoints %s`", s.ID).WithField("sequence")
	}
	res, err := o.decide(ctx, s, apiv1.SessionService_DeleteCheckpoint_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_DeleteCheckpoint{
		DeleteCheckpoint: &clusterv1.DeleteCheckpoint{SessionId: s.ID, Sequence: req.GetSequence(), Actor: caller(ctx).String()},
	}})
	return res.Session, err
}
