// Leases: a node may run its sessions as long as the leader answers its heartbeats.
//
// The safety rests on three orders of events. (1) The leader confirms that it leads after the heartbeat came and before
// it answers; a successor is thus elected later than the node sent it. (2) The node counts from when it sent, the leader
// from when it answers, plus a margin. (3) One goroutine both answers heartbeats and calls nodes lost, so that a node that
// is being called lost gets no answer any more.

package leader

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/nodelink"
)

// beat is a heartbeat that waits for the leadership to be confirmed.
type beat struct {
	link   nodelink.Link
	sentAt int64
}

func (r *reign) heartbeat(n *node, l nodelink.Link, h *nodev1.Heartbeat) {
	now := r.opts.Now()
	n.silentSince = now
	r.beats = append(r.beats, beat{l, h.GetSentAt()})
	live := Live{Linked: true, Server: l.Server(), LastHeartbeat: now}
	if old, ok := r.l.Live(n.id); ok {
		live = old
		live.Linked, live.Server, live.LastHeartbeat = true, l.Server(), now
	}
	if v := h.GetHealth(); v != nil {
		live.CPUUsage, live.MemoryUsage, live.Active = v.GetCpuUsage(), v.GetMemoryUsage(), v.GetActiveSessions()
		live.ResponseMS, live.UptimeSeconds = v.GetResponseTimeMs(), v.GetUptimeSeconds()
	}
	r.l.setLive(n.id, live)
	r.noteStatus(n, state.NodeStatus(h.GetStatus()), h.GetStatusReason())
}

// gatherBeats is how far apart the leadership is confirmed for heartbeats at least: with ten thousand nodes one round to
// the followers would follow the other. A heartbeat that comes after a pause is answered at once.
const gatherBeats = 20 * time.Millisecond

// verifyBeats confirms the leadership once for all heartbeats that came since the last time, and answers them.
func (r *reign) verifyBeats() {
	if r.verifying || len(r.beats) == 0 {
		return
	}
	r.verifying = true
	wait := gatherBeats - r.opts.Now().Sub(r.verified)
	if wait <= 0 {
		r.verifyGathered()
		return
	}
	r.wait.Go(func() {
		select {
		case <-time.After(min(wait, gatherBeats)): // a clock may step back
		case <-r.ctx.Done():
		}
		r.post(r.verifyGathered)
	})
}

func (r *reign) verifyGathered() {
	beats := r.beats
	r.beats, r.verified = nil, r.opts.Now()
	r.wait.Go(func() {
		err := r.opts.Log.VerifyLeader(r.ctx)
		r.post(func() {
			r.verifying = false
			if err != nil {
				r.log.Debug("heartbeats stay unanswered: the leadership is not confirmed", "error", err)
				return
			}
			r.answer(beats)
		})
	})
}

func (r *reign) answer(beats []beat) {
	now := r.opts.Now()
	answered := uint64(0)
	for _, b := range beats {
		n := r.nodes[b.link.Hello().GetNodeId()]
		if n == nil || n.link != b.link || n.losing {
			continue
		}
		r.extend(n, now)
		answered++
		_ = b.link.Send(&nodev1.Frame{Payload: &nodev1.Frame_HeartbeatAck{HeartbeatAck: &nodev1.HeartbeatAck{
			SentAt: b.sentAt, Lease: durationpb.New(r.opts.Lease.Duration), Term: r.term,
		}}}) // a link whose queue is full or closed gets no lease: that is what leases are for
	}
	r.l.count(func(s *Stats) { s.Heartbeats += answered })
}

// due says that a node may need attention at a time. Most ticks come before anything is due, and look at no node.
func (r *reign) due(at time.Time) {
	if at.Before(r.nodesDue) {
		r.nodesDue = at
	}
}

// extend gives a node a whole lease from now on.
func (r *reign) extend(n *node, now time.Time) {
	n.expiry = now.Add(r.opts.Lease.Duration + r.opts.Lease.Margin)
	r.due(n.expiry)
}

// checkNodes looks at every node when one may need it: leases end, facts are missing.
func (r *reign) checkNodes(now time.Time) {
	if now.Before(r.nodesDue) {
		return
	}
	r.nodesDue = now.Add(r.opts.Lease.Duration) // whatever is sooner says so
	view := r.opts.State.View()
	for _, n := range r.nodes {
		r.expireLease(n, view, now)
		r.expectFacts(n, now)
	}
}

// expireLease calls a node lost whose lease has ended, and offline when it stays silent.
func (r *reign) expireLease(n *node, view *state.View, now time.Time) {
	if !n.losing && now.Before(n.expiry) {
		r.due(n.expiry)
		return
	}
	row := view.Node(n.id)
	switch {
	case row == nil:
		return
	case n.proposed:
	case !row.Lost:
		r.lose(n, row)
	case n.losing: // the log took it although it said that it could not
		r.lost(n)
	case n.link != nil || row.Status == state.Offline:
		return
	case now.Sub(n.silentSince) < r.opts.Lease.Offline:
		r.due(n.silentSince.Add(r.opts.Lease.Offline))
		return
	default:
		r.noteStatus(n, state.Offline, "silent for "+r.opts.Lease.Offline.String())
	}
	r.due(now) // the next tick sees what became of it
}

// lose has it committed that a node is lost. From here on the node gets no lease until that is settled: an error says
// only that the command may not take effect.
func (r *reign) lose(n *node, row *state.Node) {
	n.losing, n.proposed = true, true
	silent := r.opts.Now().Sub(n.silentSince).Round(100 * time.Millisecond)
	r.log.Warn("a node's lease has ended", "node", row.Name, "silent", silent, "sessions", row.Sessions)
	r.propose(func(results []state.Result, err error) {
		n.proposed = false
		switch {
		case err != nil:
			r.log.Warn("could not commit that a node is lost; trying again", "node", row.Name, "error", err)
		case results[0].Err != nil:
			// Its agent was started again meanwhile; that one is asked to register again, or is lost in its turn.
			r.log.Info("a node that was to be called lost is back", "node", row.Name, "refusal", results[0].Err)
			r.lost(n)
		default:
			r.l.count(func(s *Stats) { s.NodesLost++ })
			r.lost(n)
		}
	}, &clusterv1.Command{Kind: &clusterv1.Command_LoseNode{LoseNode: &clusterv1.LoseNode{
		NodeId: n.id, Incarnation: row.Incarnation, Reason: "lease ended after " + silent.String() + " of silence",
	}}})
}

// lost: it is settled. If the node is linked still, it must register again and show what it runs before it gets a new lease.
func (r *reign) lost(n *node) {
	n.losing = false
	r.dropLink(n, nodelink.CloseNormal, "the lease has ended; register again")
}

// noteStatus commits a change of status; heartbeats that change nothing stay out of the log.
func (r *reign) noteStatus(n *node, status state.NodeStatus, reason string) {
	if status == 0 || status == n.settled {
		return
	}
	row := r.opts.State.View().Node(n.id)
	if row != nil && row.Status == status {
		n.settled = status
		return
	}
	if row == nil || n.settingTo == status || (row.Lost && status != state.Offline) {
		return
	}
	n.settingTo = status
	r.log.Info("a node's status changes", "node", row.Name, "from", row.Status.String(), "to", status.String(), "reason", reason)
	fail := r.logFailures("a node's status")
	r.propose(func(results []state.Result, err error) {
		n.settingTo = 0
		fail(results, err)
	}, &clusterv1.Command{Kind: &clusterv1.Command_SetNodeStatus{SetNodeStatus: &clusterv1.SetNodeStatus{
		NodeId: n.id, Status: apiv1.Node_Status(status), Reason: reason,
	}}})
}
