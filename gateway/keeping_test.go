// What checkpoints keep, as it is told and refused; and the keys of requests that join what is there.

package gateway

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
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

// TestWhoJoinsIsRemembered: a request that found its effect there, or under way, has none when it comes again later.
func TestWhoJoinsIsRemembered(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.addNode("two")
	a.run("s", "one")
	c := apiv1.NewSessionServiceClient(a.conn)
	ctx := a.as(a.admin)
	leave := func() { // s, from where it is
		s := a.until("s", func(s *session.Session) bool { return s.Move != 0 })
		a.checkpointed(strings.TrimPrefix(s.NodeID, "id-"), "s", s.Move)
	}
	is := func(what string, want session.Phase, epoch uint32) {
		t.Helper()
		if s := a.ops.State.View().Session("s"); s.Phase != want || s.Epoch != epoch {
			t.Errorf("%s: %s at epoch %d, want %s at %d", what, s.Phase, s.Epoch, want, epoch)
		}
	}
	migrate := func(key, target string) error {
		_, err := c.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: "s", IdempotencyKey: key, Target: target})
		return err
	}
	pause := func(key string, wait bool) error {
		_, err := c.PauseSession(ctx, &apiv1.PauseSessionRequest{Id: "s", IdempotencyKey: key, Wait: wait})
		return err
	}
	resume := func(key string) error {
		_, err := c.ResumeSession(ctx, &apiv1.ResumeSessionRequest{Id: "s", IdempotencyKey: key})
		return err
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	ok(migrate("first", ""))
	ok(migrate("joins", ""))
	if err := migrate("joins", "two"); status.Code(err) != codes.AlreadyExists {
		t.Errorf("another request under the same key: %v", err)
	}
	leave()
	a.started("s")
	is("moved", session.Running, 2)
	ok(migrate("joins", ""))
	is("moved, and asked again", session.Running, 2)

	ok(resume("runs"))
	ok(pause("first", false))
	ok(pause("joins", false))
	leave()
	is("paused", session.Paused, 2)
	ok(pause("there", true))
	ok(resume("runs"))
	is("paused, and the resume of before asked again", session.Paused, 2)
	ok(resume("now"))
	a.started("s")
	is("resumed", session.Running, 3)
	for _, key := range []string{"first", "joins", "there"} {
		ok(pause(key, key == "there"))
		is("resumed, and paused again by "+key, session.Running, 3)
	}
	_, err := c.TerminateSession(ctx, &apiv1.TerminateSessionRequest{Id: "s"})
	ok(err)
	ok(pause("joins", false))
	ok(resume("now"))
	if err := pause("new", false); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("pause what is being ended: %v", err)
	}
}
