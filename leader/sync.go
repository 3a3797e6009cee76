// Sync: a node says hello and is registered, shows its inventory, and is told the difference to what it should run; then
// it reports facts, and is told of changes.

package leader

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

// maxSessionsPerFrame and maxFrameBytes keep desired and deliver frames well below nodelink.MaxFrameBytes.
const (
	maxSessionsPerFrame = 256
	maxDownFrameBytes   = 1 << 20
)

// LinkUp implements nodelink.Handler.
func (r *reign) LinkUp(l nodelink.Link) { r.post(func() { r.register(l) }) }

// LinkFrame implements nodelink.Handler.
func (r *reign) LinkFrame(l nodelink.Link, f *nodev1.Frame) {
	if r.queued() >= maxQueuedEvents {
		r.l.count(func(s *Stats) { s.LinkEventsDropped++ })
		l.Close(nodelink.CloseLimit, fmt.Sprintf("the leader is %d frames behind; come back", maxQueuedEvents))
		return
	}
	r.post(func() { r.frame(l, f) })
}

// LinkDown implements nodelink.Handler.
func (r *reign) LinkDown(l nodelink.Link, reason string) {
	r.post(func() {
		n := r.nodes[l.Hello().GetNodeId()]
		if n == nil || n.link != l {
			return
		}
		r.log.Info("a node's link is down", "node", l.Hello().GetName(), "server", l.Server(), "reason", reason)
		r.dropLink(n, 0, "")
	})
}

// register commits what the hello says; the link is the node's from then on.
func (r *reign) register(l nodelink.Link) {
	h := l.Hello()
	if why := session.CheckName(h.GetName()); why != "" {
		refuse(l, fault.New(fault.Invalid, "node name %s", why))
		return
	}
	if id := r.opts.State.View().ClusterID(); h.GetClusterId() != "" && h.GetClusterId() != id {
		refuse(l, fault.New(fault.FailedPrecondition, "the node's data belongs to cluster %s, and this is %s; point the node at its own cluster, or give it an empty data_dir", h.GetClusterId(), id))
		return
	}
	r.propose(func(results []state.Result, err error) {
		if err == nil {
			err = results[0].Err
		}
		if err != nil {
			r.log.Warn("a node was not registered", "node", h.GetName(), "id", h.GetNodeId(), "error", err)
			refuse(l, err)
			return
		}
		r.registered(l, results[0].Node)
	}, &clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{
		NodeId: h.GetNodeId(), Name: h.GetName(), Address: h.GetAddress(), Capabilities: h.GetCapabilities(),
		Labels: h.GetLabels(), Version: h.GetVersion(), Pid: h.GetPid(), Incarnation: h.GetIncarnation(),
	}}})
}

func (r *reign) registered(l nodelink.Link, row *state.Node) {
	n := r.node(row.ID)
	if n.losing {
		// The node was being called lost when it said hello. It comes back, and finds that settled.
		l.Close(nodelink.CloseNormal, "the lease has ended; register again")
		return
	}
	r.dropLink(n, nodelink.CloseSuperseded, "the node has a newer link")
	n.link, n.registered, n.silentSince = l, true, r.opts.Now()
	n.nextFact, n.factGap = row.FactIndex+1, time.Time{}
	n.links++
	n.streams = nodelink.NewStreams(nodelink.StreamsOptions{Send: l.Send, FirstID: r.term<<32 | n.links<<20, Logger: r.log})
	if n.expiry.IsZero() || r.opts.Now().After(n.expiry) {
		r.extend(n, r.opts.Now())
	}
	live, _ := r.l.Live(n.id)
	live.Linked, live.Server = true, l.Server()
	r.l.setLive(n.id, live)
	r.log.Info("a node is linked", "node", row.Name, "id", row.ID, "server", l.Server(), "incarnation", row.Incarnation, "version", row.Version)
	_ = l.Send(&nodev1.Frame{Payload: &nodev1.Frame_HelloAck{HelloAck: &nodev1.HelloAck{
		Protocol: nodelink.ProtocolMax, ClusterId: r.opts.State.View().ClusterID(),
		Lease: durationpb.New(r.opts.Lease.Duration), RenewInterval: durationpb.New(r.opts.Lease.Renew),
		HeartbeatInterval: durationpb.New(r.opts.Lease.Heartbeat),
		Servers:           r.opts.LinkAddresses(), Server: l.Server(), FactIndex: row.FactIndex,
	}}})
	_ = l.Send(&nodev1.Frame{Payload: &nodev1.Frame_GetSessions{GetSessions: &nodev1.GetSessions{}}})
}

// dropLink forgets a node's link; with a reason it also closes it, with a close code.
func (r *reign) dropLink(n *node, code int, reason string) {
	if n.link == nil {
		return
	}
	if reason != "" {
		n.link.Close(code, reason)
	}
	n.streams.Close(nodelink.ErrClosed)
	n.link, n.streams, n.registered, n.synced = nil, nil, false, false
	n.drainAsked, n.drainBegun, n.drainUntold = false, false, false
	n.dirty, n.deliver = map[string]*nodev1.DesiredSession{}, nil
	live, _ := r.l.Live(n.id)
	live.Linked, live.Server = false, ""
	r.l.setLive(n.id, live)
}

// refuse tells a node why its hello was not taken, and closes the link.
func refuse(l nodelink.Link, why error) {
	e := nodelink.ToError("hello", why)
	_ = l.Send(&nodev1.Frame{Payload: &nodev1.Frame_Error{Error: e}})
	l.Close(nodelink.RefusalCode(why), e.GetError())
}

// frame handles a frame of a registered node; one that overtakes the registration is dropped, for a node speaks again
// after hello_ack.
func (r *reign) frame(l nodelink.Link, f *nodev1.Frame) {
	n := r.nodes[l.Hello().GetNodeId()]
	if n == nil || n.link != l {
		return
	}
	switch p := f.GetPayload().(type) {
	case *nodev1.Frame_Heartbeat:
		r.heartbeat(n, l, p.Heartbeat)
	case *nodev1.Frame_SessionsResponse:
		r.inventory(n, p.SessionsResponse)
	case *nodev1.Frame_Facts:
		r.facts(n, l, p.Facts)
	case *nodev1.Frame_Delivered:
		r.delivered(p.Delivered)
	case *nodev1.Frame_StreamData, *nodev1.Frame_StreamWindow, *nodev1.Frame_StreamClose:
		n.streams.Handle(f)
	case *nodev1.Frame_MoveProgress:
		r.moveProgress(n, f.GetEpoch(), p.MoveProgress)
	case *nodev1.Frame_DrainNode:
		r.drainAsked(n, p.DrainNode)
	case *nodev1.Frame_Goodbye:
		r.log.Info("a node says goodbye", "node", l.Hello().GetName(), "reason", p.Goodbye.GetReason())
	case *nodev1.Frame_Error:
		r.log.Warn("a node reports an error", "node", l.Hello().GetName(), "error", p.Error.GetError(), "on", p.Error.GetRequestType())
	}
}

// inventory compares what a node has with what it should run, and makes the difference its desired set.
func (r *reign) inventory(n *node, inv *nodev1.SessionsResponse) {
	view := r.opts.State.View()
	n.synced = true
	has := make(map[string]*nodev1.SessionState, len(inv.GetSessions()))
	for _, s := range inv.GetSessions() {
		has[s.GetSessionId()] = s
		if d := stray(view, n.id, s); d != nil {
			r.tell(n, d)
		}
	}
	running := 0
	for s := range view.SessionsOnNode(n.id) {
		if !s.Phase.HoldsNode() {
			continue
		}
		running++
		h := has[s.ID]
		if h == nil || h.GetEpoch() != s.Epoch || s.Phase == session.Terminating || r.tellOf(s) != (told{epoch: s.Epoch}) {
			r.told[s.ID] = r.tellOf(s)
			r.tell(n, r.desired(s))
		}
		delete(r.deliveries, s.ID)
		if h != nil && h.GetEpoch() == s.Epoch && len(h.GetInbox()) > 0 {
			d := r.delivery(s)
			for _, seq := range h.GetInbox() {
				// The node may hold turns whose end is committed already; they must not take up the window.
				if m := view.Message(s.ID, seq); m != nil {
					d.add(m, true)
				}
			}
		}
		r.toDeliver[s.ID] = true
	}
	for s := range view.SessionsMovingTo(n.id) {
		r.prepare(s)
	}
	r.placeDirty = true
	r.log.Info("a node showed its inventory", "node", n.link.Hello().GetName(), "has", len(has), "should", running, "corrections", len(n.dirty))
}

// stray says what to do with something a node has and should not run; nil when it should.
func stray(view *state.View, nodeID string, has *nodev1.SessionState) *nodev1.DesiredSession {
	d := &nodev1.DesiredSession{SessionId: has.GetSessionId(), Epoch: has.GetEpoch()}
	s := view.Session(has.GetSessionId())
	switch {
	case s == nil:
		d.Action, d.Reason = nodev1.DesiredSession_FORGET, "the cluster does not know the session"
	case s.Epoch != has.GetEpoch() || s.NodeID != nodeID:
		d.Action, d.Reason = nodev1.DesiredSession_FORGET, fmt.Sprintf("the session is at epoch %d now", s.Epoch)
		if s.NodeID == nodeID && s.Phase.HoldsNode() {
			return nil // the newer epoch belongs here too, and replaces this one
		}
	case !s.Phase.HoldsNode() && has.GetExit() == nil:
		// Given up while the node was away. Its directory stays, with its output.
		d.Action, d.Reason = nodev1.DesiredSession_KILL, fmt.Sprintf("the session is %s: %s", s.Phase, s.Reason)
	default:
		return nil
	}
	return d
}

// told is what a node was last told of a session that runs on it: to leave, and for which checkpoint it was asked.
type told struct {
	epoch         uint32
	move, request uint64
	holdOff       bool               // the target of the move can make it ready
	ready         session.ManifestID // what it has ready
	token         string             // what its target may fetch chunks with
}

// tellOf is what a session's node has to know beyond that the session is to run.
func (r *reign) tellOf(s *session.Session) told {
	t := told{epoch: s.Epoch}
	if s.Phase == session.Migrating && r.mayLeave(s) || s.Phase == session.Pausing {
		t.move = s.Move
	}
	if s.Phase == session.Migrating && t.move != 0 && !s.Migration.Cold {
		target := r.nodes[s.Migration.Target]
		if t.holdOff = target != nil && target.synced; s.Migration.Prepared {
			t.ready = s.Migration.Copied
		}
	}
	if s.Phase == session.Migrating {
		t.token = r.peerOf(s).GetToken()
	}
	if s.CheckpointRequest > s.CheckpointAnswered {
		t.request = s.CheckpointRequest
	}
	return t
}

// desire tells a node of a change to a session that is placed on it, unless the node itself reported it: that a session
// runs, or has ended. The directory of one that has ended stays on the node, with its output, until the state forgets it.
func (r *reign) desire(n *node, s *session.Session) {
	switch s.Phase {
	case session.Starting, session.Restoring, session.Terminating:
		delete(r.told, s.ID)
		r.tell(n, r.desired(s))
	case session.Running, session.Migrating, session.Pausing:
		is, was := r.tellOf(s), r.told[s.ID]
		if was.epoch != is.epoch {
			was = told{epoch: is.epoch}
		}
		if is == was {
			return
		}
		if r.told[s.ID] = is; is.move != was.move || is.request > was.request || is.holdOff != was.holdOff || is.ready != was.ready || is.token != was.token {
			r.tell(n, r.desired(s))
		}
	default:
		delete(r.told, s.ID)
	}
}

// desired is what a node is told of a session that holds it.
func (r *reign) desired(s *session.Session) *nodev1.DesiredSession {
	d := &nodev1.DesiredSession{SessionId: s.ID, Epoch: s.Epoch, Action: nodev1.DesiredSession_RUN, Reason: s.Reason}
	switch {
	case s.Phase == session.Terminating:
		d.Action, d.Grace, d.Reason = nodev1.DesiredSession_STOP, durationpb.New(s.StopGrace), s.StopCause
		return d
	case s.Phase == session.Pausing && s.RewindTo != 0:
		d.Action, d.Grace, d.Reason = nodev1.DesiredSession_STOP, durationpb.New(s.Spec.Grace), session.CauseEvicted
		return d
	case s.Phase == session.Migrating && !r.mayLeave(s): // it works on until its turn comes
	case s.Phase == session.Migrating, s.Phase == session.Pausing:
		d.Action, d.Move = nodev1.DesiredSession_LEAVE, s.Move
		d.Cold = s.Phase == session.Migrating && s.Migration.Cold
		t := r.tellOf(s)
		if d.HoldOff = t.holdOff; t.ready != (session.ManifestID{}) {
			d.ReadyManifest = t.ready[:]
		}
	}
	d.Peer = r.peerOf(s)
	d.Spec, d.OutputBase = pbconv.SpecToProto(s.Spec), s.OutputLine
	d.Started = s.Phase == session.Running || s.Phase == session.Migrating || s.Phase == session.Pausing
	if s.CheckpointRequest > s.CheckpointAnswered {
		d.CheckpointRequest = s.CheckpointRequest
	}
	if head := s.Head(); head != nil {
		d.CheckpointSequence = head.Sequence
		if head.Epoch < s.Epoch {
			d.Restore = &nodev1.Restore{
				Manifest: head.Manifest[:], Sequence: head.Sequence, OutputLine: head.OutputLine, LostLine: s.LostLine, LostEpoch: s.LostEpoch,
			}
		}
	}
	return d
}

// prepare has the target of a move have ready what was copied of the session so far.
func (r *reign) prepare(s *session.Session) {
	m := s.Migration
	if s.Phase != session.Migrating || s.Left || m.Copied == (session.ManifestID{}) || m.Copied == r.preparing[s.ID] {
		return
	}
	target := r.nodes[m.Target]
	if target == nil || !target.synced {
		return
	}
	r.preparing[s.ID] = m.Copied
	r.tell(target, &nodev1.DesiredSession{
		SessionId: s.ID, Epoch: s.Epoch + 1, Action: nodev1.DesiredSession_PREPARE, Reason: s.Reason, Spec: pbconv.SpecToProto(s.Spec),
		Restore: &nodev1.Restore{Manifest: m.Copied[:]}, Peer: r.peerOf(s),
	})
}

// unprepare has the target of a move that came to nothing let go of what it has ready.
func (r *reign) unprepare(s *session.Session) {
	if _, told := r.preparing[s.ID]; !told {
		return
	}
	delete(r.preparing, s.ID)
	m := s.Migration
	if m == nil || m.Target == s.NodeID && s.Phase.HoldsNode() {
		return // it is being restored from that, or began there without
	}
	if target := r.nodes[m.Target]; target != nil && target.synced {
		r.tell(target, &nodev1.DesiredSession{
			SessionId: s.ID, Epoch: s.Epoch + 1, Action: nodev1.DesiredSession_PREPARE, Reason: "the session does not move here",
		})
	}
}

// forgetElsewhere tells the node of an earlier epoch that it may drop the session's directory.
func (r *reign) forgetElsewhere(s *session.Session) {
	view := r.opts.State.View()
	for _, h := range s.History {
		if h.Node == "" || h.Epoch >= s.Epoch {
			continue
		}
		row := view.NodeByName(h.Node) // a history names nodes as people do
		if row == nil || row.ID == s.NodeID {
			continue
		}
		if n := r.nodes[row.ID]; n != nil && n.synced {
			r.tell(n, &nodev1.DesiredSession{SessionId: s.ID, Epoch: h.Epoch, Action: nodev1.DesiredSession_FORGET, Reason: "the session is elsewhere now"})
		}
	}
}

// flushNode sends a node its changes, in frames of a bounded size.
func (r *reign) flushNode(n *node, index uint64) {
	if n.drainUntold {
		r.sendDrain(n)
	}
	if n.link == nil || !n.synced {
		n.dirty, n.deliver = map[string]*nodev1.DesiredSession{}, nil
		return
	}
	var batch []*nodev1.DesiredSession
	bytes := 0
	send := func() {
		if len(batch) > 0 {
			r.send(n, &nodev1.Frame{Index: index, Payload: &nodev1.Frame_Desired{Desired: &nodev1.Desired{Sessions: batch}}})
		}
		batch, bytes = nil, 0
	}
	for id, d := range n.dirty {
		batch = append(batch, d)
		bytes += specBytes(d)
		delete(n.dirty, id)
		if len(batch) >= maxSessionsPerFrame || bytes >= maxDownFrameBytes {
			send()
		}
	}
	send()
	r.flushMessages(n, index)
}

func specBytes(d *nodev1.DesiredSession) int {
	size := 64
	for _, c := range d.GetSpec().GetCommand() {
		size += len(c)
	}
	for k, v := range d.GetSpec().GetEnv() {
		size += len(k) + len(v)
	}
	return size
}

// send sends a frame that must arrive: a link that cannot take it is closed, and the node syncs again.
func (r *reign) send(n *node, f *nodev1.Frame) {
	if n.link == nil {
		return
	}
	if err := n.link.Send(f); err != nil {
		r.dropLink(n, nodelink.CloseLimit, "could not be sent what it needs: "+err.Error())
	}
}

// facts commits what happened on a node, in the order of its frames, and acks it.
func (r *reign) facts(n *node, l nodelink.Link, f *nodev1.Facts) {
	if len(f.GetFacts()) == 0 {
		return
	}
	if f.GetFacts()[0].GetIndex() > n.nextFact {
		// Sent before the node read our hello_ack, behind facts that went to the leader before and were lost with it. The
		// node sends all of them again as soon as it has; expectFacts sees to it that it does.
		if n.factGap.IsZero() {
			n.factGap = r.opts.Now()
			r.due(n.factGap.Add(resendAfter))
		}
		return
	}
	n.nextFact = max(n.nextFact, f.GetFacts()[len(f.GetFacts())-1].GetIndex()+1)
	n.factGap = time.Time{}
	count := uint64(len(f.GetFacts()))
	r.propose(func(results []state.Result, err error) {
		if err == nil {
			err = results[0].Err
		}
		if n.link != l {
			return
		}
		if err != nil {
			// The node keeps its facts and sends them again over a new link.
			r.log.Warn("facts were not committed", "node", l.Hello().GetName(), "error", err)
			r.dropLink(n, nodelink.CloseNormal, "facts were not committed: "+err.Error())
			return
		}
		r.l.count(func(s *Stats) { s.Facts += count })
		_ = l.Send(&nodev1.Frame{Payload: &nodev1.Frame_FactsAck{FactsAck: &nodev1.FactsAck{
			Incarnation: f.GetIncarnation(), Index: results[0].Node.FactIndex,
		}}}) // when it is lost, the facts come again and are known
	}, &clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{
		NodeId: n.id, Incarnation: f.GetIncarnation(), Facts: f.GetFacts(),
	}}})
}

// expectFacts gives up a link on which facts have been missing for long: the node sends them over the next one.
func (r *reign) expectFacts(n *node, now time.Time) {
	switch {
	case n.link == nil || n.factGap.IsZero():
	case now.Sub(n.factGap) >= resendAfter:
		r.dropLink(n, nodelink.CloseNormal, fmt.Sprintf("the facts from %d on are missing", n.nextFact))
	default:
		r.due(n.factGap.Add(resendAfter))
	}
}
