// Drains: the plan, the refusal where there is no room, the order, and how a node shows it.
package gateway

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster/state"
)

func TestDrainNode(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.run("s1", "one")
	a.run("s2", "one")
	c := apiv1.NewNodeServiceClient(a.conn)
	ctx := a.as(a.admin)
	drain := func(req *apiv1.DrainNodeRequest) (*apiv1.DrainNodeResponse, error) {
		req.Id = "one"
		return c.DrainNode(ctx, req)
	}
	// Nowhere to go: the plan says so, the order is refused, and nothing has happened.
	plan, err := drain(&apiv1.DrainNodeRequest{DryRun: true})
	if err != nil || plan.GetStay() != 2 || len(plan.GetPlan()) != 2 || plan.GetPlan()[0].GetAction() != apiv1.DrainNodeResponse_Step_STAY || plan.GetNode().GetDrain() != nil {
		t.Fatalf("%v, %v", plan, err)
	}
	_, err = drain(&apiv1.DrainNodeRequest{})
	want := "drain node one: 2 of its 2 sessions have no place elsewhere (s1: there is no other node; start a node-agent and point it at this cluster; s2: there is no other node; start a node-agent and point it at this cluster); make room or add a node, or give --force, which pauses them"
	if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != want {
		t.Errorf("without room: %v", err)
	}
	if n := a.ops.State.View().Node("id-one"); !n.Schedulable || n.Drain != nil {
		t.Errorf("a refused drain has begun: %+v", n)
	}
	if plan, err = drain(&apiv1.DrainNodeRequest{DryRun: true, Force: true}); err != nil || plan.GetPause() != 2 || plan.GetStay() != 0 {
		t.Errorf("with force: %v, %v", plan, err)
	}
	for _, d := range []time.Duration{-1, time.Millisecond, 8 * 24 * time.Hour} {
		if _, err := drain(&apiv1.DrainNodeRequest{Force: true, Deadline: durationpb.New(d)}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a deadline of %s: %v", d, err)
		}
	}
	if _, err := c.DrainNode(ctx, &apiv1.DrainNodeRequest{Id: "nine"}); status.Code(err) != codes.NotFound {
		t.Errorf("no such node: %v", err)
	}
	if _, err := c.DrainNode(a.as(a.token(auth.Client, "default")), &apiv1.DrainNodeRequest{Id: "one"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a client: %v", err)
	}
	a.addNode("two")
	began, err := drain(&apiv1.DrainNodeRequest{Deadline: durationpb.New(time.Hour), IdempotencyKey: "k"})
	if err != nil || began.GetMigrate() != 2 || began.GetPlan()[0].GetTarget() != "two" || began.GetPlan()[0].GetName() != "s1" {
		t.Fatalf("%v, %v", began, err)
	}
	d := began.GetNode().GetDrain()
	if left := d.GetDeadline().AsTime().Sub(d.GetStartTime().AsTime()); d.GetState() != apiv1.Drain_DRAINING || d.GetTotal() != 2 || d.GetRemaining() != 2 || left < 59*time.Minute || left > 61*time.Minute || began.GetNode().GetSchedulable() {
		t.Errorf("begun: %v", began.GetNode())
	}
	number := a.ops.State.View().Node("id-one").Drain.Number
	if _, err := drain(&apiv1.DrainNodeRequest{Deadline: durationpb.New(time.Hour), IdempotencyKey: "k"}); err != nil || a.ops.State.View().Node("id-one").Drain.Number != number {
		t.Errorf("repeated: %v", err)
	}
	// Once it goes on, its terms may change whatever room there is.
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_SetNodeSchedulable{SetNodeSchedulable: &clusterv1.SetNodeSchedulable{NodeId: "id-two"}}})
	a.ops.Router.Reset(a.ops.State.View())
	if again, err := drain(&apiv1.DrainNodeRequest{Force: false}); err != nil || again.GetNode().GetDrain().GetState() != apiv1.Drain_DRAINING {
		t.Errorf("asked again: %v, %v", again, err)
	}
	off, err := c.UncordonNode(ctx, &apiv1.UncordonNodeRequest{Id: "one"})
	if d := off.GetNode().GetDrain(); err != nil || d.GetState() != apiv1.Drain_CANCELLED || !strings.HasPrefix(d.GetReason(), "uncordoned by ") {
		t.Errorf("uncordoned: %v, %v", off, err)
	}
}

func TestHowADrainIsShown(t *testing.T) {
	if drainProto(&state.Node{}) != nil {
		t.Error("a node that is not drained shows a drain")
	}
	d := drainProto(&state.Node{Sessions: 3, Drain: &state.Drain{
		State: state.DrainIncomplete, Total: 9, Moved: 4, Paused: 2, EndTime: 5, Force: true, Reason: "why", LongestBlackout: int64(1500 * time.Microsecond),
	}})
	if d.GetState() != apiv1.Drain_INCOMPLETE || d.GetTotal() != 9 || d.GetMoved() != 4 || d.GetPaused() != 2 || d.GetRemaining() != 3 || d.GetReason() != "why" || d.GetLongestBlackoutMs() != 1.5 || d.GetEndTime().GetNanos() != 5 {
		t.Errorf("%v", d)
	}
}
