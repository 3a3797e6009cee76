// TokenService and EventService in gRPC.

package gateway

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

type tokenService struct {
	apiv1.UnimplementedTokenServiceServer
	ops *Operations
}

// TokenStore looks tokens up for the authenticator. What it found in a state it knows until that changes in anything.
type TokenStore struct {
	State *state.Store
	found atomic.Pointer[foundTokens]
}

// foundTokens are the tokens that were looked up in one state. There are as many as that has: what is not in it is not kept.
type foundTokens struct {
	view    *state.View
	records sync.Map // of auth.TokenRecord, by id
}

// Token implements auth.Tokens.
func (s *TokenStore) Token(id string) (auth.TokenRecord, bool) {
	view, found := s.State.View(), s.found.Load()
	if found == nil || found.view != view {
		found = &foundTokens{view: view}
		s.found.Store(found)
	}
	if r, ok := found.records.Load(id); ok {
		return r.(auth.TokenRecord), true
	}
	t := view.Token(id)
	if t == nil {
		return auth.TokenRecord{}, false
	}
	r := auth.TokenRecord{ID: t.ID, Name: t.Name, Role: auth.Role(t.Role), Namespace: t.Namespace, Hash: t.Hash, ExpireTime: t.ExpireTime}
	found.records.Store(id, r)
	return r, true
}

func (s *tokenService) CreateToken(ctx context.Context, req *apiv1.CreateTokenRequest) (*apiv1.CreateTokenResponse, error) {
	role, err := auth.ParseRole(req.GetRole())
	if err != nil {
		return nil, err
	}
	if why := session.CheckName(req.GetNamespace()); req.GetNamespace() != "" && why != "" {
		return nil, fault.New(fault.Invalid, "namespace: %s", why).WithField("namespace")
	}
	if why := session.CheckName(req.GetName()); req.GetName() != "" && why != "" {
		return nil, fault.New(fault.Invalid, "name: %s", why).WithField("name")
	}
	t := auth.Generate()
	cmd := &clusterv1.CreateToken{Id: t.ID, Name: req.GetName(), Role: string(role), Namespace: req.GetNamespace(), Hash: t.Hash()}
	if req.GetTtl() != nil {
		d := req.GetTtl().AsDuration()
		if d <= 0 {
			return nil, fault.New(fault.Invalid, "ttl: %s is not positive; leave it out for a token that does not expire", d).WithField("ttl")
		}
		cmd.ExpireTime = s.ops.Now().Add(d).UnixNano()
	}
	res, err := s.ops.oneOnce(ctx, apiv1.TokenService_CreateToken_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_CreateToken{CreateToken: cmd}})
	if err != nil {
		return nil, err
	}
	t.ID = res.Token.ID // a retry gives the token of the first time this secret
	return &apiv1.CreateTokenResponse{Token: tokenProto(res.Token), Secret: t.Reveal()}, nil
}

func (s *tokenService) ListTokens(ctx context.Context, _ *apiv1.ListTokensRequest) (*apiv1.ListTokensResponse, error) {
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListTokensResponse{}
	for t := range v.Tokens() {
		out.Tokens = append(out.Tokens, tokenProto(t))
	}
	return out, nil
}

func (s *tokenService) RevokeToken(ctx context.Context, req *apiv1.RevokeTokenRequest) (*apiv1.RevokeTokenResponse, error) {
	_, err := s.ops.oneOnce(ctx, apiv1.TokenService_RevokeToken_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_RevokeToken{RevokeToken: &clusterv1.RevokeToken{Id: req.GetId()}}})
	return &apiv1.RevokeTokenResponse{}, err
}

type eventService struct {
	apiv1.UnimplementedEventServiceServer
	ops *Operations
}

const (
	defaultEvents = 100
	maxEvents     = 10_000
)

func (s *eventService) ListEvents(ctx context.Context, req *apiv1.ListEventsRequest) (*apiv1.ListEventsResponse, error) {
	match, err := newEventFilter(caller(ctx), req.GetNamespace(), req.GetFilter())
	if err != nil {
		return nil, err
	}
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit <= 0 {
		limit = defaultEvents
	}
	limit = min(limit, maxEvents)
	out := &apiv1.ListEventsResponse{}
	for _, e := range v.Events(0, maxEvents) {
		if match.event(e) {
			out.Events = append(out.Events, eventProto(e))
		}
	}
	if extra := len(out.GetEvents()) - limit; extra > 0 {
		out.Events = out.Events[extra:]
	}
	return out, nil
}

// WatchEvents sends the events that are kept after an index, then those that come.
func (s *eventService) WatchEvents(req *apiv1.WatchEventsRequest, stream grpc.ServerStreamingServer[apiv1.WatchEventsResponse]) error {
	ctx := stream.Context()
	match, err := newEventFilter(caller(ctx), req.GetNamespace(), req.GetFilter())
	if err != nil {
		return err
	}
	if _, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE); err != nil {
		return err
	}
	sub, v := s.ops.State.Subscribe()
	defer sub.Close()
	send := func(e *state.Event) error {
		if !match.event(e) {
			return nil
		}
		return stream.Send(&apiv1.WatchEventsResponse{Event: eventProto(e)})
	}
	if req.GetAfterIndex() > 0 {
		for _, e := range v.Events(0, maxEvents) {
			if e.Index > req.GetAfterIndex() {
				if err := send(e); err != nil {
					return err
				}
			}
		}
	}
	for {
		c, err := sub.Next(ctx)
		if errors.Is(err, state.ErrLagged) {
			return fault.New(fault.Aborted, "watch events: the client reads more slowly than events come; watch again after the last index")
		}
		if err != nil {
			return err
		}
		for _, e := range c.Events {
			if err := send(e); err != nil {
				return err
			}
		}
	}
}
