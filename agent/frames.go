// What the control plane says and asks, frame by frame.

package agent

import (
	"cmp"
	"slices"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

const (
	// maxWaitersPerSession bounds requests that wait for one session's start or end.
	maxWaitersPerSession = 16
	// maxInventoryInboxes bounds the inboxes in one inventory, in sequences over all sessions: the frame must stay below
	// the link's limit, and a message that is not named is handed over again, which does no harm.
	maxInventoryInboxes = 200_000
)

// waiter is a request that is answered when a session has started or ended.
type waiter struct {
	request *nodev1.Frame
	epoch   uint32
	end     bool   // answered at the end, else at the start
	restore bool   // at the start, as restored
	asked   uint64 // when not 0: answered when the checkpoint of that number is made, by the run's count
}

// frame deals with one frame. Requests get one answer each, or an error; facts tell the rest.
func (s *supervisor) frame(f *nodev1.Frame) {
	switch p := f.GetPayload().(type) {
	case *nodev1.Frame_Desired:
		s.desired(f.GetIndex(), p.Desired)
	case *nodev1.Frame_Deliver:
		s.deliver(p.Deliver)
	case *nodev1.Frame_FactsAck:
		s.factsAck(p.FactsAck)
	case *nodev1.Frame_HeartbeatAck:
		s.heartbeatAck(p.HeartbeatAck)
	case *nodev1.Frame_GetSessions:
		s.oweInventory(f.GetRequestId())
	case *nodev1.Frame_GetHealth:
		s.answer(f, &nodev1.Frame{Payload: &nodev1.Frame_HealthResponse{HealthResponse: s.healthResponse()}})
	case *nodev1.Frame_GetSession:
		s.getSession(f, p.GetSession.GetSessionId())
	case *nodev1.Frame_SpawnSession:
		s.spawnSession(f, p.SpawnSession.GetSession())
	case *nodev1.Frame_TerminateSession:
		s.terminateSession(f, p.TerminateSession)
	case *nodev1.Frame_RestoreSession:
		s.restoreSession(f, p.RestoreSession.GetSession())
	case *nodev1.Frame_CheckpointSession:
		s.checkpointSession(f, p.CheckpointSession.GetSessionId())
	case *nodev1.Frame_DrainState:
		s.drainState(p.DrainState)
	case *nodev1.Frame_Error:
		s.log.Warn("the server reports an error", "request_type", p.Error.GetRequestType(), "code", p.Error.GetCode(), "error", p.Error.GetError())
	case *nodev1.Frame_Goodbye:
		s.log.Info("the server is about to close the link", "reason", p.Goodbye.GetReason())
	default:
		s.refuse(f, fault.New(fault.Invalid, "%s: is not a frame for a node", nodelink.FrameType(f)))
	}
}

// answer sends the answer to a request.
func (s *supervisor) answer(request, f *nodev1.Frame) {
	f.RequestId, f.Index = request.GetRequestId(), s.facts.last()
	s.send(f)
}

func (s *supervisor) refuse(request *nodev1.Frame, err error) {
	s.send(nodelink.ErrorFrame(request, err))
}

// factsAck lets go of committed facts.
func (s *supervisor) factsAck(ack *nodev1.FactsAck) {
	if ack.GetIncarnation() != s.Incarnation() {
		return // of an earlier agent
	}
	if !s.commit(ack.GetIndex()) {
		s.log.Error("facts were acknowledged that were never reported", "acked", ack.GetIndex(), "last", s.facts.last())
	}
}

// deliver puts messages into inboxes, and says which were taken.
func (s *supervisor) deliver(d *nodev1.Deliver) {
	reply := &nodev1.Delivered{}
	for _, sm := range d.GetSessions() {
		b := s.inboxFor(sm.GetSessionId(), sm.GetEpoch())
		if b == nil {
			continue // not taken: the epoch is not here, or has ended
		}
		if got := b.offer(sm.GetMessages()); len(got) > 0 {
			reply.Sessions = append(reply.Sessions, &nodev1.SessionSequences{SessionId: sm.GetSessionId(), Epoch: sm.GetEpoch(), Sequences: got})
		}
		if e := s.entries[sm.GetSessionId()]; e.run != nil && e.run.inbox == b {
			signal(e.run.wake)
		}
	}
	if len(reply.Sessions) > 0 {
		s.send(&nodev1.Frame{Payload: &nodev1.Frame_Delivered{Delivered: reply}})
	}
}

func (s *supervisor) inboxFor(id string, epoch uint32) *inbox {
	e := s.entries[id]
	switch {
	case e == nil:
		return nil
	case e.next != nil && e.next.rec.Epoch == epoch:
		return e.next.inbox
	case e.run != nil && e.run.epoch == epoch && e.run.live():
		return e.run.inbox
	}
	return nil
}

// state describes one session; nil when there is nothing to say.
func (s *supervisor) state(e *entry) *nodev1.SessionState {
	if e.run == nil {
		if e.next == nil {
			return nil
		}
		return &nodev1.SessionState{SessionId: e.id, Epoch: e.next.rec.Epoch, Phase: apiv1.Session_STARTING,
			OutputLine: e.next.rec.OutputBase, Inbox: e.next.inbox.sequences()}
	}
	st := e.run.status()
	out := &nodev1.SessionState{SessionId: e.id, Epoch: e.run.epoch, Phase: st.phase(), OutputLine: e.run.rec.OutputBase, Inbox: e.run.inbox.sequences()}
	if e.run.adopted && st.proc == nil && st.ended == nil {
		out.Phase = apiv1.Session_RUNNING // presumed so until it is found gone
	}
	if st.proc != nil {
		out.Pid, out.OutputLine = int32(st.proc.PID()), st.proc.OutputLine()
	}
	if st.ended != nil {
		out.Exit, out.OutputLine = pbconv.ExitToProto(&st.ended.Exit), st.ended.OutputLine
	}
	return out
}

// sendInventory answers get_sessions with all that is here; false when the link has no room for it.
func (s *supervisor) sendInventory(requestID string) bool {
	type key struct {
		id    string
		epoch uint32
	}
	done := map[key][]uint64{} // finished here, and not committed as such
	s.facts.uncommitted(func(f *nodev1.Fact) {
		k := key{f.GetSessionId(), f.GetEpoch()}
		switch kind := f.GetKind().(type) {
		case *nodev1.Fact_TurnEnded:
			done[k] = append(done[k], kind.TurnEnded.GetSequence())
		case *nodev1.Fact_MessageRefused:
			done[k] = append(done[k], kind.MessageRefused.GetSequence())
		}
	})
	resp := &nodev1.SessionsResponse{Incarnation: s.Incarnation(), ResumeIndex: s.resumeIndex.Load()}
	room := maxInventoryInboxes
	for _, e := range s.entries {
		st := s.state(e)
		if st == nil || e.removing {
			continue
		}
		st.Inbox = append(st.Inbox, done[key{st.SessionId, st.Epoch}]...)
		st.Inbox = st.Inbox[:min(len(st.Inbox), room)]
		room -= len(st.Inbox)
		resp.Sessions = append(resp.Sessions, st)
	}
	slices.SortFunc(resp.Sessions, func(a, b *nodev1.SessionState) int { return cmp.Compare(a.GetSessionId(), b.GetSessionId()) })
	return s.send(&nodev1.Frame{RequestId: requestID, Index: s.facts.last(), Payload: &nodev1.Frame_SessionsResponse{SessionsResponse: resp}})
}

// oweInventory has get_sessions answered once it can be: when what an earlier agent left is known, and the link has room.
func (s *supervisor) oweInventory(requestID string) {
	if len(s.inventoryOwed) < maxWaitersPerSession && !slices.Contains(s.inventoryOwed, requestID) {
		s.inventoryOwed = append(s.inventoryOwed, requestID)
	}
}

func (s *supervisor) getSession(f *nodev1.Frame, id string) {
	e := s.entries[id]
	if e == nil || e.removing || s.state(e) == nil {
		s.refuse(f, fault.New(fault.NotFound, "session %s is not on this node", clip(id)))
		return
	}
	st := s.state(e)
	s.answer(f, &nodev1.Frame{Epoch: st.Epoch, Payload: &nodev1.Frame_SessionState{SessionState: st}})
}

// spawnSession is RUN as a request: answered once the session runs, or cannot.
func (s *supervisor) spawnSession(f *nodev1.Frame, d *nodev1.DesiredSession) {
	s.startByRequest(f, d, nil)
}

// restoreSession is RUN with a checkpoint as a request.
func (s *supervisor) restoreSession(f *nodev1.Frame, d *nodev1.DesiredSession) {
	if d.GetRestore() == nil {
		s.refuse(f, fault.New(fault.Invalid, "restore_session: session %s: no checkpoint is named; set restore, or use spawn_session", clip(d.GetSessionId())))
		return
	}
	s.startByRequest(f, d, d.GetRestore())
}

func (s *supervisor) startByRequest(f *nodev1.Frame, d *nodev1.DesiredSession, restore *nodev1.Restore) {
	if err := s.checkSpawn(f, d); err != nil {
		s.refuse(f, err)
		return
	}
	run := &nodev1.DesiredSession{SessionId: d.GetSessionId(), Epoch: d.GetEpoch(), Action: nodev1.DesiredSession_RUN, Spec: d.GetSpec(),
		OutputBase: d.GetOutputBase(), Reason: d.GetReason(), Restore: restore, CheckpointRequest: d.GetCheckpointRequest(),
		CheckpointSequence: d.GetCheckpointSequence()}
	s.wantRun(run)
	e := s.entries[d.GetSessionId()]
	if e == nil || e.epoch() != d.GetEpoch() {
		s.refuse(f, fault.New(fault.FailedPrecondition, "session %s: epoch %d could not be started; its end is reported as a fact", d.GetSessionId(), d.GetEpoch()))
		return
	}
	s.await(e, waiter{request: f, epoch: d.GetEpoch(), restore: restore != nil})
}

// checkpointSession asks a run for a checkpoint, and is answered when it is stored, or when it failed.
func (s *supervisor) checkpointSession(f *nodev1.Frame, id string) {
	e := s.entries[id]
	if e == nil || e.removing || e.epoch() == 0 {
		s.refuse(f, fault.New(fault.NotFound, "session %s is not on this node", clip(id)))
		return
	}
	epoch := e.epoch()
	switch {
	case f.GetEpoch() != 0 && f.GetEpoch() != epoch:
		s.refuse(f, fault.New(fault.FailedPrecondition, "session %s: epoch %d is stale; epoch %d is here", e.id, f.GetEpoch(), epoch))
		return
	case e.run == nil || e.run.epoch != epoch || e.run.status().proc == nil || !e.live():
		s.refuse(f, fault.New(fault.FailedPrecondition, "session %s does not run; only one that runs can be checkpointed", e.id))
		return
	}
	var asked uint64
	e.run.steer(func(p *plan) { asked = p.asked + 1 })
	if s.await(e, waiter{request: f, epoch: epoch, asked: asked}) {
		e.run.steer(func(p *plan) { p.asked = asked })
	}
}

// answerAskers answers those who asked over the link for a checkpoint.
func (s *supervisor) answerAskers(e *entry, ev event) {
	e.waiters = slices.DeleteFunc(e.waiters, func(w waiter) bool {
		if w.asked == 0 || w.asked > ev.asked || w.epoch != e.run.epoch {
			return false
		}
		if ev.failed != nil {
			s.refuse(w.request, ev.failed)
		} else {
			s.answer(w.request, &nodev1.Frame{Epoch: w.epoch, Payload: &nodev1.Frame_SessionCheckpointed{SessionCheckpointed: &nodev1.SessionCheckpointed{Checkpoint: ev.checkpoint}}})
		}
		return true
	})
}

func (s *supervisor) checkSpawn(f *nodev1.Frame, d *nodev1.DesiredSession) error {
	if err := checkSessionID(d.GetSessionId()); err != nil {
		return err
	}
	e := s.entries[d.GetSessionId()]
	switch {
	case d.GetEpoch() == 0:
		return fault.New(fault.Invalid, "session %s: epoch 0 is none", d.GetSessionId())
	case f.GetEpoch() != 0 && f.GetEpoch() != d.GetEpoch():
		return fault.New(fault.Invalid, "session %s: the frame is about epoch %d and its payload about %d", d.GetSessionId(), f.GetEpoch(), d.GetEpoch())
	case e != nil && e.epoch() > d.GetEpoch(), s.tombs.buried(d.GetSessionId(), d.GetEpoch()):
		return fault.New(fault.FailedPrecondition, "session %s: epoch %d is stale", d.GetSessionId(), d.GetEpoch())
	case !s.host.lease.held():
		return fault.New(fault.Unavailable, "session %s: %w; answer its heartbeats first", d.GetSessionId(), errNoLease)
	}
	return nil
}

// terminateSession is STOP as a request: answered once nothing of the session lives.
func (s *supervisor) terminateSession(f *nodev1.Frame, t *nodev1.TerminateSession) {
	e := s.entries[t.GetSessionId()]
	if e == nil || e.removing || e.epoch() == 0 {
		s.refuse(f, fault.New(fault.NotFound, "session %s is not on this node", clip(t.GetSessionId())))
		return
	}
	epoch := e.epoch()
	if f.GetEpoch() != 0 && f.GetEpoch() != epoch {
		s.refuse(f, fault.New(fault.FailedPrecondition, "session %s: epoch %d is stale; epoch %d is here", e.id, f.GetEpoch(), epoch))
		return
	}
	if s.await(e, waiter{request: f, epoch: epoch, end: true}) {
		s.wantStop(&nodev1.DesiredSession{SessionId: e.id, Epoch: epoch, Grace: t.GetGrace(), Reason: t.GetReason()})
	}
}

// await keeps a request until its session has come so far; it may be so far already. It reports whether it was kept or answered well.
func (s *supervisor) await(e *entry, w waiter) bool {
	if len(e.waiters) >= maxWaitersPerSession {
		s.refuse(w.request, fault.New(fault.Exhausted, "session %s: %d requests wait for it already; ask again when one is answered", e.id, maxWaitersPerSession))
		return false
	}
	e.waiters = append(e.waiters, w)
	s.answerWaiters(e)
	return true
}

// answerWaiters answers those requests whose session has come so far.
func (s *supervisor) answerWaiters(e *entry) {
	if len(e.waiters) == 0 || e.run == nil {
		return
	}
	st := e.run.status()
	e.waiters = slices.DeleteFunc(e.waiters, func(w waiter) bool {
		switch {
		case w.epoch != e.run.epoch:
			return false
		case w.asked != 0 && st.ended != nil:
			s.refuse(w.request, exitFault(e.id, st.ended.Exit))
		case w.asked != 0:
			return false
		case w.end && st.ended != nil:
			s.answer(w.request, &nodev1.Frame{Epoch: w.epoch, Payload: &nodev1.Frame_SessionTerminated{SessionTerminated: &nodev1.SessionTerminated{Session: s.state(e)}}})
		case !w.end && st.ended != nil && st.proc == nil:
			s.refuse(w.request, exitFault(e.id, st.ended.Exit))
		case w.restore && (st.proc != nil || st.ended != nil):
			s.answer(w.request, &nodev1.Frame{Epoch: w.epoch, Payload: &nodev1.Frame_SessionRestored{SessionRestored: &nodev1.SessionRestored{Session: s.state(e)}}})
		case !w.end && (st.proc != nil || st.ended != nil):
			s.answer(w.request, &nodev1.Frame{Epoch: w.epoch, Payload: &nodev1.Frame_SessionSpawned{SessionSpawned: &nodev1.SessionSpawned{Session: s.state(e)}}})
		default:
			return false
		}
		return true
	})
}

func exitFault(id string, exit session.Exit) error {
	return fault.New(fault.FailedPrecondition, "session %s: %s: %s", id, exit.Cause, exit.Message)
}

// failWaiters refuses the requests that wait for an epoch that will not run.
func (s *supervisor) failWaiters(e *entry, epoch uint32, err error) {
	e.waiters = slices.DeleteFunc(e.waiters, func(w waiter) bool {
		if w.epoch <= epoch {
			s.refuse(w.request, err)
		}
		return w.epoch <= epoch
	})
}

// dropWaiters forgets requests whose link is gone.
func (s *supervisor) dropWaiters() {
	s.inventoryOwed = nil
	for _, e := range s.entries {
		e.waiters = nil
	}
}
