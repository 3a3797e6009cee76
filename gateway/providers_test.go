// Asking models through a server.

package gateway

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fakeprovider"
	"github.com/neolith/orchestrator/provider"
)

// asksModels gives a server a provider that answers as the fake does.
func (a *alone) asksModels() *fakeprovider.Server {
	a.t.Helper()
	fake := fakeprovider.New()
	cfg := provider.Defaults()
	cfg.Pools = []provider.PoolConfig{{Name: "local", Dialect: provider.OpenAI, URL: fake.Start(a.t) + "/v1", Models: []provider.ModelConfig{{Name: "fast", InputPrice: 1, OutputPrice: 2}}}}
	a.asks(cfg)
	return fake
}

// chats asks, and returns the pieces and the answer.
func (a *alone) chats(ctx context.Context, req *apiv1.ChatRequest) (pieces []string, answer *apiv1.ChatAnswer, err error) {
	a.t.Helper()
	st, err := apiv1.NewProviderServiceClient(a.conn).Chat(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return pieces, answer, nil
		} else if err != nil {
			return pieces, answer, err
		}
		if p := m.GetPiece(); p != nil {
			pieces = append(pieces, p.GetText())
		}
		if m.GetAnswer() != nil {
			answer = m.GetAnswer()
		}
	}
}

func says(text string) []*apiv1.ChatMessage { return []*apiv1.ChatMessage{{Role: "user", Text: text}} }

// TestChat: whole and in pieces, with what it cost; refusals; and each server tells of the pools of all.
func TestChat(t *testing.T) {
	servers := startServers(t, 3)
	one, none := servers[1], servers[2] // followers, which answer by themselves
	fake := one.asksModels()
	films, viewer := one.as(servers[0].token(auth.Client, "films")), one.as(servers[0].token(auth.Viewer, "films"))
	_, answer, err := one.chats(films, &apiv1.ChatRequest{Messages: says("hello there")})
	if err != nil || answer.GetText() != "echo: hello there" || answer.GetProvider() != "local" || answer.GetModel() != "fast" || answer.GetInputTokens() == 0 || answer.GetCostUsd() == 0 {
		t.Errorf("%v, %v", answer, err)
	}
	pieces, answer, err := one.chats(films, &apiv1.ChatRequest{Stream: true, Messages: says("piece by piece")})
	if err != nil || len(pieces) < 2 || strings.Join(pieces, "") != "echo: piece by piece" || answer.GetText() != "echo: piece by piece" {
		t.Errorf("%q, %v, %v", pieces, answer, err)
	}
	for name, c := range map[string]struct {
		a    *alone
		ctx  context.Context
		req  *apiv1.ChatRequest
		want codes.Code
	}{
		"another namespace": {one, films, &apiv1.ChatRequest{Namespace: "default", Messages: says("x")}, codes.PermissionDenied},
		"only to look":      {one, viewer, &apiv1.ChatRequest{Messages: says("x")}, codes.PermissionDenied},
		"nothing said":      {one, films, &apiv1.ChatRequest{}, codes.InvalidArgument},
		"no such model":     {one, films, &apiv1.ChatRequest{Model: "slow", Messages: says("x")}, codes.NotFound},
		"no provider":       {none, films, &apiv1.ChatRequest{Messages: says("x")}, codes.FailedPrecondition},
	} {
		if _, _, err := c.a.chats(c.ctx, c.req); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if n := fake.Count(); n != 2 {
		t.Errorf("the provider was asked %d times", n)
	}
	// The servers of this test do not know each other's addresses.
	r, err := apiv1.NewProviderServiceClient(one.conn).ListProviders(one.as(one.admin), &apiv1.ListProvidersRequest{})
	if err != nil || len(r.GetProviders()) != 1 || r.GetProviders()[0].GetServer() != one.ops.Node.ID() || r.GetProviders()[0].GetCalls() != 2 || len(r.GetMissing()) != 2 {
		t.Errorf("%v, %v", r, err)
	}
	if p := r.GetProviders()[0]; p.GetMin() != 1 || p.GetMax() != 10 || p.GetMaxInFlight() != 10 {
		t.Errorf("%v", p)
	}
	models, err := apiv1.NewProviderServiceClient(one.conn).ListModels(films, &apiv1.ListModelsRequest{})
	if err != nil || len(models.GetModels()) != 1 || models.GetModels()[0].GetName() != "fast" || !models.GetModels()[0].GetDefault() {
		t.Errorf("%v, %v", models, err)
	}
}

// TestChatLeft: a client that leaves ends the call at the provider.
func TestChatLeft(t *testing.T) {
	a := startServers(t, 1)[0]
	fake := a.asksModels()
	fake.Script(fakeprovider.Step{Hang: true})
	ctx, cancel := context.WithCancel(a.as(a.token(auth.Client, "films")))
	ended := make(chan error, 1)
	go func() {
		_, _, err := a.chats(ctx, &apiv1.ChatRequest{Messages: says("x")})
		ended <- err
	}()
	a.eventually("the provider is asked", func() bool { return fake.Running() == 1 })
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	a.eventually("the provider's call has ended", func() bool { return fake.Running() == 0 })
}
