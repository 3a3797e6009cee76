// Drains of the cluster in memory.

package clienttest

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// ChangeNode changes a node, as the cluster would.
func (c *Cluster) ChangeNode(name string, change func(*apiv1.Node)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.GetName() == name {
			change(n)
		}
	}
	c.change()
}

func (s *nodes) DrainNode(_ context.Context, req *apiv1.DrainNodeRequest) (*apiv1.DrainNodeResponse, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := s.find(req.GetId())
	if err != nil {
		return nil, err
	}
	out := c.planDrain(n, req.GetForce())
	switch {
	case req.GetDryRun():
	case out.GetStay() > 0:
		return nil, fault.New(fault.FailedPrecondition, "drain node %s: %d of its %d sessions have no place elsewhere (there is no other node); make room or add a node, or give --force, which pauses them", n.GetName(), out.GetStay(), len(out.GetPlan()))
	default:
		deadline := 10 * time.Minute
		if req.GetDeadline() != nil {
			deadline = req.GetDeadline().AsDuration()
		}
		total := uint32(len(out.GetPlan()))
		n.Schedulable = false
		n.Drain = &apiv1.Drain{
			State: apiv1.Drain_DRAINING, StartTime: c.stamp(), Deadline: timestamppb.New(c.Now().Add(deadline)), Force: req.GetForce(), Total: total, Remaining: total,
		}
		if !c.StepDrains {
			n.Drain.State, n.Drain.EndTime = apiv1.Drain_DRAINED, timestamppb.New(c.Now().Add(1500*time.Millisecond))
			n.Drain.Moved, n.Drain.Paused, n.Drain.Remaining, n.Drain.LongestBlackoutMs = out.GetMigrate(), out.GetPause(), 0, 42.5
		}
		c.change()
	}
	out.Node = proto.CloneOf(n)
	return out, nil
}

// planDrain sends every session to the first other node that takes sessions.
func (c *Cluster) planDrain(n *apiv1.Node, force bool) *apiv1.DrainNodeResponse {
	out := &apiv1.DrainNodeResponse{}
	target := slices.IndexFunc(c.nodes, func(o *apiv1.Node) bool { return o != n && o.GetSchedulable() })
	for _, s := range c.match("", "", "") {
		if s.GetNode() != n.GetName() || ended(s.GetPhase()) {
			continue
		}
		step := &apiv1.DrainNodeResponse_Step{
			SessionId: s.GetId(), Namespace: s.GetNamespace(), Name: s.GetName(), Priority: s.GetPriority(), Action: apiv1.DrainNodeResponse_Step_STAY, Reason: "there is no other node",
		}
		switch {
		case target >= 0:
			step.Action, step.Target, step.Reason = apiv1.DrainNodeResponse_Step_MIGRATE, c.nodes[target].GetName(), "least-connections: fewest sessions"
			out.Migrate++
		case force:
			step.Action = apiv1.DrainNodeResponse_Step_PAUSE
			out.Pause++
		default:
			out.Stay++
		}
		out.Plan = append(out.Plan, step)
	}
	slices.SortStableFunc(out.Plan, func(a, b *apiv1.DrainNodeResponse_Step) int {
		return cmp.Or(cmp.Compare(a.GetPriority(), b.GetPriority()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return out
}
