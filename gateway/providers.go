// Models: what the servers can ask, and asking it. Each server has pools of its own, so any of them answers by itself.

package gateway

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/provider"
)

type providerService struct {
	apiv1.UnimplementedProviderServiceServer
	ops *Operations
}

// ownProviders describes the pools of this server.
func (o *Operations) ownProviders() (out []*apiv1.Provider) {
	if o.Providers == nil {
		return nil
	}
	for _, s := range o.Providers.List() {
		p := &apiv1.Provider{
			Server: o.Node.ID(), Name: s.Name, Dialect: s.Dialect, Models: s.Models, Healthy: s.Healthy,
			Min: uint32(s.Min), Max: uint32(s.Max), MaxInFlight: uint32(s.MaxInFlight), Open: uint32(s.Open), Idle: uint32(s.Idle), InUse: uint32(s.InUse), Waiting: uint32(s.Waiting), Breaker: s.Breaker,
			Calls: uint64(s.Sent), Failed: uint64(s.Failed), Limited: uint64(s.Limited), InputTokens: uint64(s.InputTokens), OutputTokens: uint64(s.OutputTokens),
			CostUsd: s.CostUSD, LastError: s.LastError, RequestsLeft: -1, TokensLeft: -1,
		}
		if !s.LastErrorTime.IsZero() {
			p.LastErrorTime = timestamppb.New(s.LastErrorTime)
		}
		for _, e := range s.Endpoints { // all keys together
			p.RequestsLeft, p.TokensLeft = added(p.RequestsLeft, e.RequestsLeft), added(p.TokensLeft, e.TokensLeft)
		}
		out = append(out, p)
	}
	return out
}

// added adds what is left of two keys, where -1 is not known.
func added(a, b int64) int64 {
	if b < 0 {
		return a
	}
	return max(a, 0) + b
}

// ListProviders asks all servers.
func (s *providerService) ListProviders(ctx context.Context, _ *apiv1.ListProvidersRequest) (*apiv1.ListProvidersResponse, error) {
	all, missing, err := fromAll(ctx, s.ops, s.ops.ownProviders(), func(ctx context.Context, c clusterv1.RelayServiceClient) ([]*apiv1.Provider, error) {
		r, err := c.GetServerProviders(ctx, &clusterv1.GetServerProvidersRequest{})
		return r.GetProviders(), err
	})
	return &apiv1.ListProvidersResponse{Providers: all, Missing: missing}, err
}

func (s *relayService) GetServerProviders(context.Context, *clusterv1.GetServerProvidersRequest) (*clusterv1.GetServerProvidersResponse, error) {
	return &clusterv1.GetServerProvidersResponse{Providers: s.ops.ownProviders()}, nil
}

func (s *providerService) ListModels(context.Context, *apiv1.ListModelsRequest) (*apiv1.ListModelsResponse, error) {
	out := &apiv1.ListModelsResponse{}
	if s.ops.Providers == nil {
		return out, nil
	}
	for _, m := range s.ops.Providers.Models() {
		out.Models = append(out.Models, &apiv1.Model{Name: m.Name, Provider: m.Provider, Default: m.Default, InputPrice: m.InputPrice, OutputPrice: m.OutputPrice})
	}
	return out, nil
}

// Chat asks a model on behalf of the caller's namespace.
func (s *providerService) Chat(req *apiv1.ChatRequest, stream grpc.ServerStreamingServer[apiv1.ChatResponse]) error {
	ctx := stream.Context()
	who := caller(ctx)
	ns := namespaceOr(req.GetNamespace(), who)
	if err := who.CheckNamespace(ns); err != nil {
		return err
	}
	if s.ops.Providers == nil {
		return fault.New(fault.FailedPrecondition, "chat: this server asks no models; name one under providers.pools in its configuration")
	}
	r := provider.Request{
		Tenant: ns, Provider: req.GetProvider(), Model: req.GetModel(), MaxTokens: int(req.GetMaxTokens()), Temperature: req.Temperature, TopP: req.TopP,
		Stop: req.GetStop(), RepeatUnsure: req.GetRepeatUnsure(),
	}
	for _, m := range req.GetMessages() {
		r.Messages = append(r.Messages, provider.Message{Role: provider.Role(m.GetRole()), Text: m.GetText()})
	}
	if err := s.ops.room(ctx); err != nil {
		return err
	}
	talk, err := s.ops.beginTalk(ctx, who, ns, req, &r)
	if err != nil {
		return err
	}
	defer talk.end()
	if answer := talk.repeated(); answer != nil {
		return sendWhole(stream, req.GetStream(), answer)
	}
	var got *provider.Response
	began := time.Now()
	if req.GetStream() {
		got, err = s.ops.Providers.Stream(ctx, r, func(d provider.Delta) error {
			return stream.Send(&apiv1.ChatResponse{Part: &apiv1.ChatResponse_Piece{Piece: &apiv1.ChatPiece{Text: d.Text, Reasoning: d.Reasoning}}})
		})
	} else {
		got, err = s.ops.Providers.Chat(ctx, r)
	}
	s.ops.recordModel(ctx, who, began, &r, got, err)
	if err != nil {
		return err
	}
	answer := &apiv1.ChatAnswer{
		Provider: got.Provider, Model: got.Model, Text: got.Text, Reasoning: got.Reasoning, Stop: got.Stop,
		InputTokens: uint64(got.Usage.InputTokens), OutputTokens: uint64(got.Usage.OutputTokens), CachedTokens: uint64(got.Usage.CachedTokens), Estimated: got.Usage.Estimated,
		CostUsd: got.CostUSD, Attempts: uint32(got.Attempts), TookMs: float64(got.Took) / float64(time.Millisecond),
	}
	if err := talk.keep(ctx, got, answer); err != nil {
		return err
	}
	return stream.Send(&apiv1.ChatResponse{Part: &apiv1.ChatResponse_Answer{Answer: answer}})
}

// sendWhole sends an answer that is there already, as one piece before where pieces are awaited.
func sendWhole(stream grpc.ServerStreamingServer[apiv1.ChatResponse], pieces bool, answer *apiv1.ChatAnswer) error {
	if pieces {
		if err := stream.Send(&apiv1.ChatResponse{Part: &apiv1.ChatResponse_Piece{Piece: &apiv1.ChatPiece{Text: answer.GetText()}}}); err != nil {
			return err
		}
	}
	return stream.Send(&apiv1.ChatResponse{Part: &apiv1.ChatResponse_Answer{Answer: answer}})
}
