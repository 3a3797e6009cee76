// A node whose agent was told to end asks to be drained first, and is told how that goes. The drain itself is like any other; nothing is
// paused by it, for what is left goes on with the next agent, or elsewhere, without anybody's doing.

package leader

import (
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
)

// minFarewell and maxFarewell bound the time that a node may ask for.
const minFarewell, maxFarewell = time.Second, 7 * 24 * time.Hour

// farewellActor is who drains a node that asks for it, in events.
const farewellActor = "its agent, which is about to end"

// drainAsked takes in that a node is to be drained because its agent is about to end. A node asks until it is answered.
func (r *reign) drainAsked(n *node, ask *nodev1.DrainNode) {
	if n.drainAsked {
		r.tellDrain(n)
		return
	}
	n.drainAsked = true
	h := n.link.Hello()
	if row := r.opts.State.View().Node(n.id); row != nil && row.Drain.ByAgent() && row.Drain.Agent == h.GetIncarnation() {
		n.drainBegun = true // it asked another leader, or over another link
		r.tellDrain(n)
		return
	}
	in := min(max(ask.GetDeadline().AsDuration(), minFarewell), maxFarewell)
	r.log.Info("a node asks to be drained, for its agent is about to end", "node", h.GetName(), "deadline", in)
	link := n.link
	r.propose(func(results []state.Result, err error) {
		if n.link != link {
			return // over the next one it asks again
		}
		if err == nil {
			err = results[0].Err
		}
		if err != nil {
			n.drainAsked = false // it asks again
			r.log.Warn("a drain that a node asked for was not begun", "node", h.GetName(), "error", err)
			return
		}
		n.drainBegun = true
		r.tellDrain(n)
	}, &clusterv1.Command{Kind: &clusterv1.Command_DrainNode{DrainNode: &clusterv1.DrainNode{
		NodeId: n.id, Deadline: r.opts.Now().Add(in).UnixNano(), Actor: farewellActor, Incarnation: h.GetIncarnation(),
	}}})
}

// tellDrain has a node that asked for its drain told how it goes, with the next flush. Before it has begun, the record is that of an
// earlier one.
func (r *reign) tellDrain(n *node) {
	if n.drainBegun {
		n.drainUntold = true
		r.mark(n)
	}
}

// sendDrain tells it.
func (r *reign) sendDrain(n *node) {
	n.drainUntold = false
	row := r.opts.State.View().Node(n.id)
	if row == nil || row.Drain == nil {
		return
	}
	d := row.Drain
	s := &nodev1.DrainState{State: apiv1.Drain_State(d.State), Total: d.Total, Moved: d.Moved, Paused: d.Paused, Remaining: row.Sessions, Reason: d.Reason}
	if d.Under() {
		s.Reason = r.l.DrainReason(n.id)
	}
	r.send(n, &nodev1.Frame{Payload: &nodev1.Frame_DrainState{DrainState: s}})
}
