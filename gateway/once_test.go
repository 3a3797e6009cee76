// The same request again is the same thing: for everything but spawn and send, whose tests are elsewhere.
package gateway

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
)

func TestATokenIsMadeOnce(t *testing.T) {
	a := startAlone(t)
	tokens := apiv1.NewTokenServiceClient(a.conn)
	req := &apiv1.CreateTokenRequest{Name: "ci", Role: "client", IdempotencyKey: "k"}
	first, err := tokens.CreateToken(a.as(a.admin), req)
	if err != nil {
		t.Fatal(err)
	}
	second, err := tokens.CreateToken(a.as(a.admin), req)
	if err != nil || second.GetToken().GetId() != first.GetToken().GetId() || a.ops.State.View().Stats().Tokens != 2 {
		t.Fatalf("%v, %v; %d tokens", second, err, a.ops.State.View().Stats().Tokens)
	}
	// The answer that came last holds the secret that is good.
	list := func(secret string) codes.Code {
		_, err := apiv1.NewSessionServiceClient(a.conn).ListSessions(a.as(secret), &apiv1.ListSessionsRequest{})
		return status.Code(err)
	}
	if old, now := list(first.GetSecret()), list(second.GetSecret()); old != codes.Unauthenticated || now != codes.OK {
		t.Errorf("the first secret: %s, the second: %s", old, now)
	}
	// The key of another request, and of another caller.
	if _, err := tokens.CreateToken(a.as(a.admin), &apiv1.CreateTokenRequest{Name: "ci", Role: "viewer", IdempotencyKey: "k"}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("another request with the key: %v", err)
	}
	other := auth.Generate()
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_CreateToken{CreateToken: &clusterv1.CreateToken{Id: other.ID, Name: "other", Role: "admin", Hash: other.Hash()}}})
	third, err := tokens.CreateToken(a.as(other.Reveal()), req)
	if err != nil || third.GetToken().GetId() == first.GetToken().GetId() {
		t.Errorf("another caller with the key: %v, %v", third, err)
	}
	// Revoked: twice with a key, and then the key makes nothing any more.
	revoke := &apiv1.RevokeTokenRequest{Id: first.GetToken().GetId(), IdempotencyKey: "r"}
	for range 2 {
		if _, err := tokens.RevokeToken(a.as(a.admin), revoke); err != nil {
			t.Error(err)
		}
	}
	if _, err := tokens.RevokeToken(a.as(a.admin), &apiv1.RevokeTokenRequest{Id: first.GetToken().GetId()}); status.Code(err) != codes.NotFound {
		t.Errorf("revoked without the key: %v", err)
	}
	if _, err := tokens.CreateToken(a.as(a.admin), req); status.Code(err) != codes.NotFound {
		t.Errorf("made again after it was revoked: %v", err)
	}
}

func TestNodesChangeOnce(t *testing.T) {
	a := startAlone(t)
	register := &clusterv1.RegisterNode{NodeId: "id-1", Name: "node-1", Incarnation: 1}
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: register}})
	nodes := apiv1.NewNodeServiceClient(a.conn)
	cordon := &apiv1.CordonNodeRequest{Id: "node-1", IdempotencyKey: "k"}
	if r, err := nodes.CordonNode(a.as(a.admin), cordon); err != nil || r.GetNode().GetSchedulable() {
		t.Fatal(r, err)
	}
	if r, err := nodes.UncordonNode(a.as(a.admin), &apiv1.UncordonNodeRequest{Id: "node-1", IdempotencyKey: "k"}); err != nil || !r.GetNode().GetSchedulable() {
		t.Fatal(r, err)
	}
	// A retry that comes late does not cordon it again.
	if r, err := nodes.CordonNode(a.as(a.admin), cordon); err != nil || !r.GetNode().GetSchedulable() {
		t.Error(r, err)
	}
	remove := &apiv1.RemoveNodeRequest{Id: "node-1", IdempotencyKey: "k"}
	if _, err := nodes.RemoveNode(a.as(a.admin), remove); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("a node that is there was removed: %v", err)
	}
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_LoseNode{LoseNode: &clusterv1.LoseNode{NodeId: "id-1", Incarnation: 1}}})
	for range 2 {
		if _, err := nodes.RemoveNode(a.as(a.admin), remove); err != nil {
			t.Error(err)
		}
	}
	if _, err := nodes.RemoveNode(a.as(a.admin), &apiv1.RemoveNodeRequest{Id: "node-1"}); status.Code(err) != codes.NotFound {
		t.Errorf("removed without the key: %v", err)
	}
}

func TestTerminationsMeanTheSessionTheyMeant(t *testing.T) {
	a := startAlone(t)
	sessions := apiv1.NewSessionServiceClient(a.conn)
	spawn := func() string {
		r, err := sessions.SpawnSession(a.as(a.admin), &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Name: "x", Command: []string{"run"}}})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetSession().GetId()
	}
	terminate := func() string {
		r, err := sessions.TerminateSession(a.as(a.admin), &apiv1.TerminateSessionRequest{Id: "x", IdempotencyKey: "k"})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetSession().GetId()
	}
	first := spawn()
	if got := terminate(); got != first {
		t.Fatalf("terminated %s, want %s", got, first)
	}
	second := spawn() // takes the name
	if got := terminate(); got != first {
		t.Errorf("the retry terminated %s, and meant %s", got, first)
	}
	if s := a.ops.State.View().Session(second); s.Phase.Ended() {
		t.Errorf("the second session is %s", s.Phase)
	}
}

// TestOnceWithinBounds: a key has a length, and what was refused stays refused.
func TestOnceWithinBounds(t *testing.T) {
	a := startAlone(t)
	_, err := apiv1.NewTokenServiceClient(a.conn).RevokeToken(a.as(a.admin), &apiv1.RevokeTokenRequest{Id: "x", IdempotencyKey: string(make([]byte, 129))})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a key of 129 bytes: %v", err)
	}
	cluster := apiv1.NewClusterServiceClient(a.conn)
	for range 2 { // what was not there the first time is not there the second time either
		if _, err := cluster.RemoveMember(a.as(a.admin), &apiv1.RemoveMemberRequest{Id: "nobody", IdempotencyKey: "k"}); status.Code(err) != codes.NotFound {
			t.Errorf("removed a member that is not there: %v", err)
		}
	}
	v := a.ops.State.View()
	if !v.Remembers("RemoveMember admin:admin", "k") || v.Remembers("RemoveMember admin:admin", "other") {
		t.Error("the state does not remember what it was asked")
	}
}
