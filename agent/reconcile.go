// Closing the difference between what the node should run and what it runs.

package agent

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// desired applies a desired frame. A frame older than what was applied is overtaken and has no effect.
func (s *supervisor) desired(index uint64, d *nodev1.Desired) {
	if index < s.resumeIndex.Load() {
		s.log.Debug("an overtaken desired frame", "index", index, "applied", s.resumeIndex.Load())
		return
	}
	named := make(map[string]bool, len(d.GetSessions()))
	for _, ds := range d.GetSessions() {
		named[ds.GetSessionId()] = true
		if err := s.want(ds); err != nil {
			s.log.Error("a desired session was refused", "session", clip(ds.GetSessionId()), "epoch", ds.GetEpoch(), "error", err)
		}
	}
	if d.GetFull() {
		for id, e := range s.entries {
			if !named[id] {
				s.unwanted(e)
			}
		}
		for id, st := range s.staging {
			if !named[id] {
				s.unprepare(id, st.epoch)
			}
		}
	}
	s.resumeIndex.Store(index)
}

// unwanted ends a session that the control plane does not know here.
func (s *supervisor) unwanted(e *entry) {
	s.recall(e, 0)
	e.next = nil
	if e.live() {
		s.log.Warn("killing a session that is not desired here", "session", e.id, "epoch", e.run.epoch)
		e.run.supersede(session.Exit{Cause: session.CauseLost, Message: "the control plane does not want it on this node"})
	}
	e.forget = true
	s.advance(e)
}

// want applies one desired session.
func (s *supervisor) want(d *nodev1.DesiredSession) error {
	if err := checkSessionID(d.GetSessionId()); err != nil {
		return err
	}
	if d.GetEpoch() == 0 {
		return fault.New(fault.Invalid, "epoch 0 is none")
	}
	switch d.GetAction() {
	case nodev1.DesiredSession_RUN:
		s.wantRun(d)
	case nodev1.DesiredSession_STOP:
		s.wantStop(d)
	case nodev1.DesiredSession_KILL:
		s.wantKill(d)
	case nodev1.DesiredSession_FORGET:
		s.wantForget(d)
	case nodev1.DesiredSession_LEAVE:
		return s.wantLeave(d)
	case nodev1.DesiredSession_PREPARE:
		return s.wantPrepared(d)
	default:
		return fault.New(fault.Invalid, "action %s is not known to this node-agent", d.GetAction())
	}
	return nil
}

// wantRun starts an epoch, unless this one was started, or waits, here: then it goes on as is said. One that is over here, or that a
// later one took the place of, starts no more; whoever wants it, as after a restore of an older state, is told.
func (s *supervisor) wantRun(d *nodev1.DesiredSession) {
	id, epoch := d.GetSessionId(), d.GetEpoch()
	e := s.entries[id]
	if s.tombs.buried(id, epoch) || e != nil && e.epoch() > epoch {
		s.neverRan(id, epoch, outputBase(d), session.Exit{Cause: session.CauseLost, Message: "this epoch is over on the node"})
		return
	}
	if e != nil && e.epoch() == epoch {
		s.recall(e, 0) // it stays
		e.steer(d)
		return
	}
	if d.GetStarted() {
		s.neverRan(id, epoch, d.GetOutputBase(), session.Exit{Cause: session.CauseLost, Message: "the node does not have it any more"})
		return
	}
	spec := pbconv.SpecFromProto(d.GetSpec())
	spec.Normalize()
	raw, err := protojson.Marshal(d.GetSpec())
	if err == nil {
		err = s.canRun(spec)
	}
	if err != nil {
		s.neverRan(id, epoch, outputBase(d), session.Exit{Cause: session.CauseStartFailed, Message: oneLine(err)})
		return
	}
	if e == nil {
		e = &entry{id: id}
		s.entries[id] = e
	}
	e.forget = false
	e.next = &nextRun{spec: spec, inbox: newInbox(), since: s.host.lease.now(), restore: d.GetRestore(), peer: peerOf(d), rec: &record{Version: recordVersion,
		SessionID: id, Epoch: epoch, Spec: json.RawMessage(raw), OutputBase: outputBase(d), CreateTime: time.Now()}}
	e.next.plan.follow(d)
	if d.GetRestore() == nil {
		s.unprepare(id, epoch)
	}
	s.advance(e)
}

// outputBase is the number of the last output line before the epoch.
func outputBase(d *nodev1.DesiredSession) uint64 {
	if d.GetRestore() != nil {
		return d.GetRestore().GetOutputLine()
	}
	return d.GetOutputBase()
}

// steer tells the epoch that runs, or waits to, what is wanted of it beside running.
func (e *entry) steer(d *nodev1.DesiredSession) {
	if e.next != nil {
		e.next.plan.follow(d)
		return
	}
	e.run.steer(func(p *plan) { p.follow(d) })
}

// wantLeave has an epoch make its last checkpoint and end. One that is not here cannot; somebody waits to hear that.
func (s *supervisor) wantLeave(d *nodev1.DesiredSession) error {
	id, epoch := d.GetSessionId(), d.GetEpoch()
	if d.GetMove() == 0 {
		return fault.New(fault.Invalid, "an order to leave without a number")
	}
	e := s.entries[id]
	switch {
	case s.tombs.buried(id, epoch) || e != nil && e.epoch() > epoch:
	case e != nil && e.epoch() == epoch:
		s.lend(e, d.GetPeer())
		e.steer(d)
	default:
		s.neverRan(id, epoch, outputBase(d), session.Exit{Cause: session.CauseLost, Message: "the node does not have it any more"})
	}
	return nil
}

// canRun refuses what this node can never run, or not now.
func (s *supervisor) canRun(spec *session.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if s.host.drivers[spec.Type] == nil {
		return fault.New(fault.FailedPrecondition, "this node runs no sessions of type %s", spec.Type)
	}
	if most := s.caps.GetMaxConcurrentSessions(); most > 0 && len(s.entries) >= int(most) && s.liveSessions() >= int(most) {
		return fault.New(fault.Exhausted, "this node runs %d sessions already, as many as its max_concurrent_sessions allows", most)
	}
	return nil
}

func (s *supervisor) liveSessions() int {
	n := 0
	for _, e := range s.entries {
		if e.live() || e.next != nil {
			n++
		}
	}
	return n
}

// wantStop ends an epoch gently. One that never ran here is reported as ended: somebody waits for that.
func (s *supervisor) wantStop(d *nodev1.DesiredSession) {
	id, epoch := d.GetSessionId(), d.GetEpoch()
	exit := session.Exit{Cause: session.CauseTerminated, Message: cmp.Or(d.GetReason(), "the control plane ended it")}
	e := s.entries[id]
	switch {
	case e != nil && epoch < e.epoch():
	case e != nil && e.next != nil && e.next.rec.Epoch == epoch:
		base := e.next.rec.OutputBase
		e.next = nil
		s.neverRan(id, epoch, base, exit)
	case e != nil && e.run != nil && e.run.epoch == epoch:
		grace := e.run.spec.Grace
		if d.GetGrace() != nil {
			grace = d.GetGrace().AsDuration()
		}
		e.run.order(order{strength: orderStop, grace: max(grace, 0), exit: exit}) // of no effect after the end
	default:
		if e != nil && e.live() {
			e.run.supersede(session.Exit{Cause: session.CauseLost, Message: fmt.Sprintf("epoch %d took its place", epoch)})
		}
		if e != nil {
			e.next = nil
		}
		if !s.tombs.buried(id, epoch) {
			s.neverRan(id, epoch, d.GetOutputBase(), exit)
		}
	}
}

// wantKill ends the epoch, and older ones, at once.
func (s *supervisor) wantKill(d *nodev1.DesiredSession) {
	e := s.entries[d.GetSessionId()]
	if e == nil {
		return
	}
	if e.next != nil && e.next.rec.Epoch <= d.GetEpoch() {
		e.next = nil
	}
	if e.run != nil && e.run.epoch <= d.GetEpoch() {
		e.run.order(order{strength: orderKill, exit: session.Exit{Cause: session.CauseLost, Message: cmp.Or(d.GetReason(), "the control plane does not want it on this node")}})
	}
	s.advance(e)
}

// wantForget lets go of what an epoch left behind; if it should live, it is a ghost and killed first.
func (s *supervisor) wantForget(d *nodev1.DesiredSession) {
	id, epoch := d.GetSessionId(), d.GetEpoch()
	expected := s.staging[id] != nil
	s.unprepare(id, epoch)
	e := s.entries[id]
	if e == nil {
		if !expected { // an epoch that was to begin here may be so again
			s.tombs.add(id, epoch)
		}
		return
	}
	if e.epoch() > epoch {
		return
	}
	s.recall(e, 0)
	e.next = nil
	if e.live() {
		e.run.supersede(session.Exit{Cause: session.CauseLost, Message: "the control plane holds it for ended"})
	}
	e.forget = true
	s.advance(e)
}

// neverRan reports the end of an epoch that was not started here, and never will be.
func (s *supervisor) neverRan(id string, epoch uint32, base uint64, exit session.Exit) {
	s.tombs.add(id, epoch)
	f := exitedFact(&ending{Exit: exit, OutputLine: base})
	f.SessionId, f.Epoch, f.Time = id, epoch, timestamppb.Now()
	s.tell(f)
	s.log.Warn("a session was not started", "session", id, "epoch", epoch, "cause", exit.Cause, "message", exit.Message)
	if e := s.entries[id]; e != nil {
		s.failWaiters(e, epoch, fault.New(fault.FailedPrecondition, "%s", exit.Message))
		s.dropIfEmpty(e)
	}
}

func (s *supervisor) dropIfEmpty(e *entry) {
	if e.run == nil && e.next == nil && !e.removing {
		delete(s.entries, e.id)
	}
}

// advance does the next thing for a session, if it can be done now.
func (s *supervisor) advance(e *entry) {
	switch {
	case e.removing: // until the janitor is done
	case e.live():
		if e.next != nil && e.run.epoch < e.next.rec.Epoch {
			e.run.supersede(session.Exit{Cause: session.CauseLost, Message: fmt.Sprintf("epoch %d takes its place", e.next.rec.Epoch)})
		}
	case e.next != nil:
		if !s.host.lease.held() || s.stopping {
			return // started when there is a lease, by this agent or the next
		}
		n := e.next
		e.next, e.forget = nil, false
		r := newRun(s.host, n.rec, n.spec, false)
		r.inbox, r.plan, r.restore, r.peer = n.inbox, n.plan, n.restore, n.peer
		e.run = r
		if r.restore != nil {
			s.arrived(e.id)
		}
		s.launch(r)
	case e.forget && e.run != nil:
		s.tombs.add(e.id, e.run.epoch)
		e.removing = true
		s.janitor.forget(e.id)
	default:
		s.dropIfEmpty(e)
	}
}

// dropNext gives up what waits to be started. The control plane is asked for everything anew.
func (s *supervisor) dropNext(why string) {
	for _, e := range s.entries {
		if e.next != nil {
			s.log.Warn("a session that waited for the lease was given up", "session", e.id, "epoch", e.next.rec.Epoch, "why", why)
			e.next = nil
			s.dropIfEmpty(e)
		}
	}
	s.resumeIndex.Store(0)
}
