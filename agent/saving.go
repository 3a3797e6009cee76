// Checkpoints of a run: when they are made, what waits for them, and what the cluster is told.

package agent

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/neolith/orchestrator/agent/checkpoint"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

const (
	// turnPatience is how long the end of a turn is waited for when somebody asked for a checkpoint, or to leave.
	turnPatience = 5 * time.Minute
	// capturePatience bounds the time for which messages are held for an ordinary checkpoint.
	capturePatience = 2 * time.Minute
	// storeAttempts bounds how often what was captured is tried to be stored, with storeRetryFirst, doubling, between.
	storeAttempts   = 3
	storeRetryFirst = 250 * time.Millisecond
	// A checkpoint by policy that could not be made is tried again after saveRetryFirst, doubling up to saveRetryMax.
	saveRetryFirst = time.Second
	saveRetryMax   = 30 * time.Second
	backlogDelay   = time.Millisecond
	// failureRepeat is how often the cluster is told of one outage.
	failureRepeat = time.Minute
)

// work is what is being done for a checkpoint beside the run's goroutine.
type work uint8

const (
	idle      work = iota
	copying        // files are copied, the session works
	capturing      // files are read, messages are held
	storing        // what was captured goes to the store, the session works unless it leaves
)

// outcome is the end of such work.
type outcome struct {
	round   checkpoint.Round
	capture checkpoint.Capture
	stored  checkpoint.Stored
	err     error
}

// moment is what is being captured, or stored.
type moment struct {
	sequence, line uint64
	request, asked uint64 // what it answers
	began          time.Time
	capture        checkpoint.Capture
}

// saving is the part of serving that makes checkpoints. It is owned by the run's goroutine.
//
//	        wanted            quiet: no turn is under way            read                   stored
//	idle ──────────► (copying) ─────────────────────────► capturing ──────► storing ──────────────► idle
//	                            messages are held ......................│   Captured      Checkpointed
type saving struct {
	eachTurn bool          // the policy: after each turn,
	every    time.Duration // or after so much time
	unsaved  bool          // turns have ended that no capture has seen
	overdue  bool          // the policy's time has passed

	doing   work
	ends    chan outcome       // holds the end of the work
	cancel  context.CancelFunc // ends the work under way
	dropped bool               // its outcome is not wanted any more
	copied  bool               // its files were copied for the checkpoint that is wanted
	at      moment
	hold    bool   // messages wait for a capture
	leftOut string // of the last checkpoint
	leaving *leaving
	refused uint64 // the order to leave that could not be carried out

	sequence        uint64 // of the last capture
	turnCount       uint64 // turns that have ended, as far as this node can tell
	answered, heard uint64 // the newest requests that were answered, of the desired state and over the link

	failing  bool
	reported time.Time     // when the cluster was last told of the outage
	delay    time.Duration // before the next attempt
	resting  bool          // until retry fires

	tick      *time.Timer // the policy's
	again     *time.Timer // ends resting
	patience  *time.Timer // for a turn to end
	soon      *time.Timer // to look again
	impatient bool        // it runs
}

func (s *serving) initSaving() {
	s.eachTurn, s.every = s.spec.CheckpointPolicy()
	s.ends = make(chan outcome, 1)
	s.turnCount = s.rec.TurnBase
	s.tick, s.again, s.patience, s.soon = stoppedTimer(), stoppedTimer(), stoppedTimer(), stoppedTimer()
	if s.every > 0 {
		s.tick.Reset(s.every)
	}
}

func (s *saving) stopTimers() {
	s.tick.Stop()
	s.again.Stop()
	s.patience.Stop()
	s.soon.Stop()
}

// save does the next thing for checkpoints that can be done now.
func (s *serving) save(ctx context.Context) {
	p := s.planned()
	if s.obeyed > orderNone || p.left {
		s.drop()
		return
	}
	leave := p.move != 0 && p.move != s.refused
	if s.leaving != nil && (!leave || p.move != s.leaving.move) {
		s.stay()
	}
	if s.leaving == nil && leave {
		s.drop() // an ordinary checkpoint under way: the move brings a newer one
		s.leaving = &leaving{move: p.move, cold: p.cold, tells: newTeller(s.progress, s.id, s.epoch)}
	}
	if s.doing != idle {
		return
	}
	switch {
	case s.leaving != nil:
		s.nextForLeave(ctx, p)
	case !s.wanted(p):
		s.hold = false
		s.calm()
	case !s.copied && !s.keeper.Warm(s.id):
		s.work(ctx, copying, p)
	default:
		s.captureWhenQuiet(ctx, p)
	}
}

// wanted reports whether a checkpoint is to be made: by request, or by policy.
func (s *serving) wanted(p plan) bool {
	if p.request > s.answered || p.asked > s.heard {
		return true
	}
	return !s.resting && (s.eachTurn && s.unsaved || s.overdue && (s.unsaved || !s.hasTurns()))
}

// hasTurns reports whether all that the session does it does in turns.
func (s *serving) hasTurns() bool {
	return s.spec.Protocol == session.ProtocolLines || s.spec.Protocol == session.ProtocolJSON
}

// captureWhenQuiet holds messages, and captures once no turn is under way and every turn that ended was reported.
func (s *serving) captureWhenQuiet(ctx context.Context, p plan) {
	s.hold = true
	if s.current == 0 && s.sending == nil && s.room.open() {
		if s.proc.Backlog() == 0 {
			s.calm()
			s.work(ctx, capturing, p)
			return
		}
		s.soon.Reset(backlogDelay) // the last one may be counted for a moment after it was taken
	}
	if !s.impatient {
		s.impatient = true
		s.patience.Reset(turnPatience)
	}
}

func (s *saving) calm() {
	s.impatient = false
	s.patience.Stop()
}

// tooLong is told that a turn did not end in time. A policy waits on; who asked is told.
func (s *serving) tooLong() {
	s.impatient = false
	err := fault.New(fault.Timeout, "the turn of message %d has not ended within %s; a checkpoint is taken between turns", s.current, turnPatience)
	if s.current == 0 {
		err = fault.New(fault.Timeout, "facts of the session could not be reported within %s", turnPatience)
	}
	if s.leaving != nil {
		s.failLeave(err)
		return
	}
	p := s.planned()
	s.at = moment{request: p.request, asked: p.asked}
	if p.request > s.answered || p.asked > s.heard {
		s.tellFailure(err, 0)
	}
}

// work starts work beside this goroutine.
func (s *serving) work(ctx context.Context, what work, p plan) {
	now := time.Now()
	switch what {
	case capturing:
		s.sequence = max(p.sequence, s.sequence) + 1
		s.at = moment{sequence: s.sequence, line: s.proc.OutputLine(), request: p.request, asked: p.asked, began: now}
		s.unsaved, s.overdue = false, false
	case copying:
		s.at = moment{request: p.request, asked: p.asked, began: now}
	}
	cs, err := s.subject()
	var cancel context.CancelFunc
	if what == copying {
		ctx, cancel = context.WithCancel(ctx)
	} else {
		ctx, cancel = context.WithTimeout(ctx, s.worksFor(what))
	}
	s.doing, s.cancel, s.dropped = what, cancel, false
	capture, leaves := s.at.capture, s.leaving != nil
	go func() {
		var o outcome
		switch {
		case err != nil:
			o.err = err
		case what == copying:
			o.round, o.err = s.keeper.Copy(ctx, cs, leaves)
		case what == capturing:
			o.capture, o.err = s.keeper.Capture(ctx, cs)
		default:
			o.stored, o.err = storeCapture(ctx, capture)
		}
		s.ends <- o
	}()
}

// worksFor bounds work by time: nothing that hangs may hold a session for ever.
func (s *serving) worksFor(what work) time.Duration {
	switch {
	case s.leaving != nil && s.leaving.cold:
		return coldPatience
	case s.leaving != nil:
		return leavePatience
	case what == capturing:
		return capturePatience
	}
	return storePatience
}

// storePatience bounds how long one checkpoint may be on its way to the store, messages being answered meanwhile.
const storePatience = time.Hour

// storeCapture stores what was captured; a hiccup of the store is waited out.
func storeCapture(ctx context.Context, c checkpoint.Capture) (stored checkpoint.Stored, err error) {
	delay := storeRetryFirst
	var sent checkpoint.Sent
	for range storeAttempts {
		stored, err = c.Store(ctx)
		sent.Sent, sent.Content = sent.Sent+stored.Sent.Sent, sent.Content+stored.Content
		if err == nil || !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Exhausted) {
			break
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return stored, errors.Join(ctx.Err(), err)
		}
		delay *= 2
	}
	stored.Sent = sent
	return stored, err
}

// subject is the session as it is captured now.
func (s *serving) subject() (checkpoint.Session, error) {
	var spec apiv1.SessionSpec
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(s.rec.Spec, &spec); err != nil {
		return checkpoint.Session{}, fault.New(fault.Internal, "read the session's spec: %w", err)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&spec)
	if err != nil {
		return checkpoint.Session{}, fault.New(fault.Internal, "write the session's spec: %w", err)
	}
	cs := checkpoint.Session{Dir: s.dir(), ID: s.id, Namespace: s.spec.Namespace, Name: s.spec.Name, Spec: raw, NodeID: s.nodeID, Epoch: s.epoch,
		Sequence: s.at.sequence, Turn: s.turnCount, OutputLine: s.at.line, Keeps: s.spec.Keeps()}
	if s.leaving != nil {
		cs.Progress, cs.Whole = s.leaving.tells.bytes, true
	}
	return cs, nil
}

func (s *serving) dir() string { return s.store.dir(s.id) }

// drop gives up the work under way. Its end is still waited for, but not messages for it.
func (s *serving) drop() {
	s.hold = false
	s.calm()
	if s.doing != idle && !s.dropped {
		s.dropped = true
		s.cancel()
	}
}

// finished deals with the end of work.
func (s *serving) finished(ctx context.Context, o outcome) {
	what := s.doing
	s.doing = idle
	s.cancel()
	switch {
	case s.dropped:
		s.giveUp(what, o)
	case o.err != nil:
		s.giveUp(what, o)
		s.failed(o.err)
	case what == copying && s.leaving != nil:
		s.leaving.copied(o.round)
		s.metrics.checkpointBytes.Add(float64(o.round.Sent.Sent))
		s.report(s.leaving.fact(o.round))
	case what == copying:
		s.copied = true
		s.metrics.checkpointBytes.Add(float64(o.round.Sent.Sent))
	case what == capturing:
		s.metrics.checkpointHold.Observe(time.Since(s.at.began).Seconds())
		s.report(&nodev1.Fact{Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: s.at.sequence, OutputLine: s.at.line}}})
		s.at.capture = o.capture
		if s.hold = s.leaving != nil; s.hold {
			s.leaving.tells.begin(stepSaving, s.leaving.move, s.leaving.rounds)
		}
		s.work(ctx, storing, plan{})
	default:
		s.stored(o.stored)
	}
}

// giveUp frees what came of work that counts for nothing: what it was to see is still unsaved.
func (s *serving) giveUp(what work, o outcome) {
	s.copied = false
	switch what {
	case capturing:
		if o.capture != nil {
			o.capture.Discard()
		}
	case storing:
		if o.err != nil {
			s.at.capture.Discard()
		}
		s.at.capture = nil
	default:
		return
	}
	s.unsaved, s.overdue = true, s.every > 0
}

// stored reports a checkpoint.
func (s *serving) stored(st checkpoint.Stored) {
	s.copied, s.failing, s.delay, s.at.capture = false, false, 0, nil
	if s.every > 0 {
		s.tick.Reset(s.every)
	}
	c := &nodev1.Checkpointed{Sequence: s.at.sequence, Manifest: st.Manifest[:], Bytes: st.Bytes, BytesSent: st.Sent.Sent,
		BytesReused: max(0, st.Bytes-st.Content), Chunks: st.Chunks, Keeps: st.Keeps, Request: s.at.request, LeftOut: st.LeftOut}
	s.tellLeftOut(st.LeftOut)
	s.answered = max(s.answered, s.at.request)
	s.heard = max(s.heard, s.at.asked)
	s.metrics.checkpoints.Inc()
	s.metrics.checkpointBytes.Add(float64(st.Sent.Sent))
	s.metrics.checkpointSeconds.Observe(time.Since(s.at.began).Seconds())
	kill := s.leaving != nil && s.leave(s.leaving.move)
	if s.leaving != nil {
		s.leaving.finish(c, st, kill)
		s.leaving, s.hold = nil, false
	}
	s.emit(event{run: s.run, fact: s.fact(&nodev1.Fact{Kind: &nodev1.Fact_Checkpointed{Checkpointed: c}}), asked: s.at.asked, checkpoint: c})
	if kill {
		s.order(order{strength: orderKill, exit: session.Exit{Cause: session.CauseEvicted, Message: movedMessage}})
	}
}

// tellLeftOut notes in this node's log what a checkpoint leaves out, when that is news; the cluster is told with each.
func (s *serving) tellLeftOut(what string) {
	if what != "" && what != s.leftOut {
		s.log.Warn("something of a session is not in its checkpoints", "session", s.id, "epoch", s.epoch, "what", what)
	}
	s.leftOut = what
}

// failed deals with a checkpoint that could not be made. The session works on; a policy tries again after a while.
func (s *serving) failed(err error) {
	s.hold = false
	s.metrics.checkpointFailures.Inc()
	if s.leaving != nil {
		s.failLeave(err)
		return
	}
	s.delay = min(max(2*s.delay, saveRetryFirst), saveRetryMax)
	s.resting = true
	s.again.Reset(s.delay)
	s.log.Warn("no checkpoint could be made; the session runs on", "session", s.id, "epoch", s.epoch, "error", err, "retry_in", s.delay)
	asked := s.at.request > s.answered || s.at.asked > s.heard
	if asked || !s.failing || time.Since(s.reported) >= failureRepeat {
		s.tellFailure(err, 0)
		s.failing, s.reported = true, time.Now()
	}
}

// tellFailure reports that no checkpoint was made, and answers who asked for it.
func (s *serving) tellFailure(err error, move uint64) {
	f := &nodev1.CheckpointFailed{Cause: oneLine(err), Move: move}
	if s.at.request > s.answered {
		s.answered, f.Request = s.at.request, s.at.request
	}
	s.heard = max(s.heard, s.at.asked)
	s.emit(event{run: s.run, fact: s.fact(&nodev1.Fact{Kind: &nodev1.Fact_CheckpointFailed{CheckpointFailed: f}}), asked: s.at.asked, failed: err})
}

// endSaving ends the work under way and waits for it.
func (s *serving) endSaving() {
	if s.doing == idle {
		return
	}
	s.cancel()
	s.giveUp(s.doing, <-s.ends)
	s.doing = idle
}
