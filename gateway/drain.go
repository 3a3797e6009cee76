// Draining a node: its plan first, then the order; the leader carries it out.

package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/router"
)

const (
	// drainDeadline is the deadline of a drain that names none.
	drainDeadline = 10 * time.Minute
	// minDrainDeadline and maxDrainDeadline bound those that are named.
	minDrainDeadline, maxDrainDeadline = time.Second, 7 * 24 * time.Hour
	// maxPlanSteps is how many steps of a plan are told.
	maxPlanSteps = 1000
	// maxShortNamed is how many of the sessions without a place a refusal names.
	maxShortNamed = 3
)

// DrainNode has a node get rid of its sessions, or only says what would become of them.
func (s *nodeService) DrainNode(ctx context.Context, req *apiv1.DrainNodeRequest) (*apiv1.DrainNodeResponse, error) {
	deadline := drainDeadline
	if req.GetDeadline() != nil {
		deadline = req.GetDeadline().AsDuration()
	}
	if deadline < minDrainDeadline || deadline > maxDrainDeadline {
		return nil, fault.New(fault.Invalid, "deadline: %s is outside %s–%s", deadline, minDrainDeadline, maxDrainDeadline).WithField("deadline")
	}
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	n, err := resolveNode(v, req.GetId())
	if err != nil {
		return nil, err
	}
	steps := s.ops.Router.PlanDrain(slices.Collect(v.SessionsOnNode(n.ID)), n.ID, req.GetForce())
	out := planProto(v, steps)
	if req.GetDryRun() {
		out.Node = s.proto(n)
		return out, nil
	}
	method := apiv1.NodeService_DrainNode_FullMethodName
	// Who asks again for a drain that goes on changes its terms; what has no place waits already.
	if out.GetStay() > 0 && !n.Drain.Under() && !s.ops.again(ctx, method, req) {
		return nil, shortOfRoom(n, steps, out)
	}
	res, err := s.ops.oneOnce(ctx, method, req, &clusterv1.Command{Kind: &clusterv1.Command_DrainNode{DrainNode: &clusterv1.DrainNode{
		NodeId: n.ID, Deadline: s.ops.Now().Add(deadline).UnixNano(), Force: req.GetForce(), Actor: caller(ctx).String(),
	}}})
	if err != nil {
		return nil, err
	}
	if res.Node == nil { // a repetition
		if res.Node = s.ops.State.View().Node(n.ID); res.Node == nil {
			return nil, fault.New(fault.NotFound, "node %s: was removed", n.Name)
		}
	}
	out.Node = s.proto(res.Node)
	return out, nil
}

// shortOfRoom refuses a drain that would leave sessions behind.
func shortOfRoom(n *state.Node, steps []router.Step, plan *apiv1.DrainNodeResponse) error {
	var named []string
	for _, step := range steps {
		if step.Action != router.Stay {
			continue
		}
		if len(named) == maxShortNamed {
			named = append(named, fmt.Sprintf("and %d more", int(plan.GetStay())-maxShortNamed))
			break
		}
		name := step.Session.Spec.Name
		if name == "" {
			name = step.Session.ID
		}
		named = append(named, name+": "+step.Why)
	}
	return fault.New(fault.FailedPrecondition, "drain node %s: %d of its %d sessions have no place elsewhere (%s); make room or add a node, or give --force, which pauses them",
		n.Name, plan.GetStay(), len(steps), strings.Join(named, "; "))
}

var stepActions = [...]apiv1.DrainNodeResponse_Step_Action{
	router.Migrate: apiv1.DrainNodeResponse_Step_MIGRATE, router.Pause: apiv1.DrainNodeResponse_Step_PAUSE, router.Stay: apiv1.DrainNodeResponse_Step_STAY,
}

func planProto(v *state.View, steps []router.Step) *apiv1.DrainNodeResponse {
	out := &apiv1.DrainNodeResponse{}
	for i, step := range steps {
		switch step.Action {
		case router.Migrate:
			out.Migrate++
		case router.Pause:
			out.Pause++
		default:
			out.Stay++
		}
		if i < maxPlanSteps {
			spec := step.Session.Spec
			out.Plan = append(out.Plan, &apiv1.DrainNodeResponse_Step{
				SessionId: step.Session.ID, Namespace: spec.Namespace, Name: spec.Name, Priority: apiv1.Priority_Level(spec.Priority),
				Action: stepActions[step.Action], Target: nodeName(v, step.Target), Reason: step.Why,
			})
		}
	}
	return out
}

// drainProto describes a drain; nil gives nil.
func drainProto(n *state.Node) *apiv1.Drain {
	d := n.Drain
	if d == nil {
		return nil
	}
	return &apiv1.Drain{
		State: apiv1.Drain_State(d.State), StartTime: pbconv.Time(d.StartTime), Deadline: pbconv.Time(d.Deadline), EndTime: pbconv.Time(d.EndTime),
		Force: d.Force, Total: d.Total, Moved: d.Moved, Paused: d.Paused, Remaining: n.Sessions, Reason: d.Reason,
		LongestBlackoutMs: milliseconds(time.Duration(d.LongestBlackout)), ByAgent: d.ByAgent(),
	}
}
