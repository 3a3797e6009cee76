// Calls from within: authenticated, authorized and forwarded like those from outside.
package gateway

import (
	"context"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestCallsFromWithin(t *testing.T) {
	servers := startServers(t, 3)
	viewer, bound := servers[0].token(auth.Viewer, ""), servers[0].token(auth.Client, "blue")
	for i, a := range servers { // the first leads; the others forward
		sessions := apiv1.NewSessionServiceClient(a.api.Local())
		as := func(token string) func(namespace string) error {
			return func(namespace string) error {
				_, err := sessions.SpawnSession(a.api.As(a.as(""), auth.Credential{Token: token}), &apiv1.SpawnSessionRequest{
					Spec: &apiv1.SessionSpec{Command: []string{"true"}, Namespace: namespace},
				})
				return err
			}
		}
		for name, c := range map[string]struct {
			token, namespace string
			want             codes.Code
		}{
			"nobody": {"", "", codes.Unauthenticated}, "a stranger": {auth.Generate().Reveal(), "", codes.Unauthenticated},
			"a viewer": {viewer, "", codes.PermissionDenied}, "another namespace": {bound, "red", codes.PermissionDenied},
			"its own namespace": {bound, "blue", codes.OK}, "an admin": {a.admin, "red", codes.OK},
		} {
			giveUp := time.Now().Add(20 * time.Second)
			for status.Code(as(c.token)(c.namespace)) != c.want { // a follower may not know the tokens yet
				if time.Now().After(giveUp) {
					t.Fatalf("server %d, %s: %v, want %s", i, name, as(c.token)(c.namespace), c.want)
				}
				runtime.Gosched()
			}
		}
		r, err := sessions.ListSessions(a.api.As(a.as(""), auth.Credential{Token: bound}), &apiv1.ListSessionsRequest{})
		if err != nil || len(r.GetSessions()) == 0 || r.GetSessions()[0].GetNamespace() != "blue" {
			t.Errorf("server %d: %v %v", i, r, err)
		}
	}
}

// What servers tell each other cannot be said from within.
func TestNobodyIsAServerFromWithin(t *testing.T) {
	a := startAlone(t)
	ctx := metadata.NewOutgoingContext(a.as(""), metadata.Pairs(peerKey, "secret", identityKey, "admin", identityKey, "x", identityKey, "", forwardedKey, "1"))
	_, err := apiv1.NewTokenServiceClient(a.api.Local()).ListTokens(ctx, &apiv1.ListTokensRequest{})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("a forged server may: %v", err)
	}
	if _, err := a.api.Identify(auth.Credential{Token: a.admin + "\n"}); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a token with a newline: %v", err)
	}
	if who, err := a.api.Identify(auth.Credential{Token: a.admin}); err != nil || who.Role != auth.Admin {
		t.Errorf("the admin is %v, %v", who, err)
	}
	if err := a.api.Local().Invoke(a.as(""), "/orchestrator.v1.Nobody/Nothing", nil, nil); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	if _, err := a.api.Local().NewStream(a.as(""), &grpc.StreamDesc{}, apiv1.SessionService_AttachSession_FullMethodName); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}

// A stream comes whole, at a follower too, and ends with its reader.
func TestStreamsFromWithin(t *testing.T) {
	for i, a := range startServers(t, 3) {
		if i == 0 {
			a.spawn("s1", "default", "one")
		}
		sessions := apiv1.NewSessionServiceClient(a.api.Local())
		ctx, cancel := context.WithCancel(a.api.As(a.as(""), auth.Credential{Token: a.admin}))
		stream, err := sessions.WatchSessions(ctx, &apiv1.WatchSessionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		seen := false
		for {
			r, err := stream.Recv()
			if err != nil {
				t.Fatalf("server %d: %v", i, err)
			}
			seen = seen || r.GetSession().GetId() == "s1"
			if r.GetSynced() {
				break
			}
		}
		cancel()
		for err == nil {
			_, err = stream.Recv()
		}
		if !seen || status.Code(err) != codes.Canceled {
			t.Errorf("server %d: seen %v, ended with %v", i, seen, err)
		}
		stranger, err := sessions.WatchSessions(a.as(""), &apiv1.WatchSessionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stranger.Recv(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("server %d, nobody: %v", i, err)
		}
	}
}

// A call that was taken earlier, or at another server, is made as its caller while the caller's token is there, at the leader and at those who forward.
func TestCallsOnBehalf(t *testing.T) {
	servers := startServers(t, 3)
	text := servers[0].token(auth.Client, "blue")
	id, err := servers[0].api.Identify(auth.Credential{Token: text})
	if err != nil {
		t.Fatal(err)
	}
	spawn := func(a *alone, who auth.Identity, namespace string) error {
		_, err := apiv1.NewSessionServiceClient(a.api.Local()).SpawnSession(a.api.AsCaller(a.as(""), who), &apiv1.SpawnSessionRequest{
			Spec: &apiv1.SessionSpec{Command: []string{"true"}, Namespace: namespace},
		})
		return err
	}
	for i, a := range servers {
		if err := spawn(a, id, "blue"); err != nil {
			t.Errorf("server %d: %v", i, err)
		}
		if err := spawn(a, id, "red"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("server %d, another namespace: %v", i, err)
		}
		forged := id
		forged.Role, forged.Namespace = auth.Admin, ""
		if err := spawn(a, forged, "red"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("server %d, with a role that the token has not: %v", i, err)
		}
		for _, who := range []auth.Identity{{Name: "x", Role: auth.Server}, {Name: "x", Role: auth.Admin}, {}} {
			if err := spawn(a, who, "blue"); status.Code(err) != codes.Unauthenticated {
				t.Errorf("server %d, as %+v: %v", i, who, err)
			}
		}
	}
	if _, err := apiv1.NewTokenServiceClient(servers[0].conn).RevokeToken(servers[0].as(servers[0].admin), &apiv1.RevokeTokenRequest{Id: id.TokenID}); err != nil {
		t.Fatal(err)
	}
	for i, a := range servers {
		a.eventually("it knows that the token was revoked", func() bool { return a.ops.State.View().Index() >= servers[0].ops.State.View().Index() })
		if err := spawn(a, id, "blue"); status.Code(err) != codes.Unauthenticated {
			t.Errorf("server %d, after it was revoked: %v", i, err)
		}
	}
}
