// Calls that a server forwards for a caller who has shown a certificate and no token.

package gateway

import (
	"context"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/neolith/orchestrator/auth"
)

// across is the metadata of an outgoing call as the other side sees it.
func across(ctx context.Context) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	return metadata.NewIncomingContext(context.Background(), md)
}

func TestOnlyServersSpeakForOthers(t *testing.T) {
	caller := auth.Identity{Role: auth.Client, Name: "ci", Namespace: "team-a"}
	server := auth.Identity{Role: auth.Server, Name: "server-2"}
	ctx := across(outgoing(auth.NewContext(t.Context(), caller)))
	if got := onBehalf(ctx, server); got != caller {
		t.Errorf("a server forwards for %v, taken as %v", caller, got)
	}
	pretender := auth.Identity{Role: auth.Node, Name: "node-1"}
	if got := onBehalf(ctx, pretender); got != pretender {
		t.Errorf("a node that speaks for another is taken as %v", got)
	}
	if got := onBehalf(across(outgoing(t.Context())), server); got != server {
		t.Errorf("a server that speaks for itself is taken as %v", got)
	}
	mighty := across(outgoing(auth.NewContext(t.Context(), auth.Identity{Role: auth.Server, Name: "server-9"})))
	if got := onBehalf(mighty, server); got != server {
		t.Errorf("a server is taken as another one: %v", got)
	}
	token := metadata.NewIncomingContext(auth.NewContext(t.Context(), caller), metadata.Pairs("authorization", "Bearer x"))
	if md, _ := metadata.FromOutgoingContext(outgoing(token)); len(md.Get(identityKey)) != 0 || len(md.Get("authorization")) != 1 {
		t.Errorf("with a token, %v is passed on", md)
	}
}
