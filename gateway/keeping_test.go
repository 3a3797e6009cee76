// What clients ask for of checkpoints: what they keep, as it is told and as it is refused.

package gateway

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func TestProcessMemoryIsRefused(t *testing.T) {
	a := startAlone(t)
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{
		NodeId: "node-id-1", Name: "node-1", Incarnation: 1, Capabilities: &apiv1.Capabilities{
			CanSpawnSessions: true, SupportedSessionTypes: []string{"process"}, CustomCapabilities: map[string]bool{"criu": false},
			Absent: map[string]string{"criu": "criu is at version 3.17"},
		},
	}}})
	c := apiv1.NewSessionServiceClient(a.conn)
	spawn := func(state, protocol string) (*apiv1.Session, error) {
		r, err := c.SpawnSession(a.as(a.admin), &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Command: []string{"cat"}, State: state, Protocol: protocol}})
		return r.GetSession(), err
	}
	_, err := spawn("memory", "")
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "no node has the capability criu (node-1: criu is at version 3.17); leave --state away") {
		t.Errorf("%v", err)
	}
	if _, err := spawn("soul", ""); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v", err)
	}
	for protocol, want := range map[string][]string{"": {"messages", "workspace"}, "none": {"workspace"}} {
		if s, err := spawn("files", protocol); err != nil || !slices.Equal(s.GetKeeps(), want) {
			t.Errorf("protocol %q keeps %v, want %v (%v)", protocol, s.GetKeeps(), want, err)
		}
	}
	n, err := apiv1.NewNodeServiceClient(a.conn).GetNode(a.as(a.admin), &apiv1.GetNodeRequest{Id: "node-1"})
	if err != nil || n.GetNode().GetCapabilities().GetAbsent()["criu"] != "criu is at version 3.17" {
		t.Errorf("%v: %v", n.GetNode().GetCapabilities(), err)
	}
}
