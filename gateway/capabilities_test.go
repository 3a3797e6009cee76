// Capabilities that nobody knows are refused; those that nobody has are waited for.
package gateway

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func TestUnknownCapability(t *testing.T) {
	a := startAlone(t)
	spawn := func(keys ...string) error {
		_, err := apiv1.NewSessionServiceClient(a.conn).SpawnSession(a.as(a.admin), &apiv1.SpawnSessionRequest{
			Spec: &apiv1.SessionSpec{Command: []string{"run"}, Require: keys},
		})
		return err
	}
	if err := spawn("tpu"); err != nil {
		t.Errorf("before there is any node: %v", err)
	}
	for name, custom := range map[string]map[string]bool{"one": {"tpu": false, "pty": true}, "two": {"pty": true}} {
		a.do(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{
			NodeId: "id-" + name, Name: name, Incarnation: 1, Capabilities: &apiv1.Capabilities{CustomCapabilities: custom},
		}}})
	}
	for _, keys := range [][]string{nil, {"gpu"}, {"high-memory", "pty"}, {"tpu"}} { // of which nobody has the tpu
		if err := spawn(keys...); err != nil {
			t.Errorf("%v: %v", keys, err)
		}
	}
	before := a.ops.State.View().PhaseCounts().Total()
	err := spawn("pty", "quantum-annealer")
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `no node knows the capability "quantum-annealer"; they know gpu, high-memory, pty, tpu`) {
		t.Errorf("got %v", err)
	}
	if after := a.ops.State.View().PhaseCounts().Total(); after != before {
		t.Errorf("%d sessions, there were %d", after, before)
	}
}
