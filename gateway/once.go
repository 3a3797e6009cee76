// Idempotency keys of everything but spawn and send, which have theirs in their commands.

package gateway

import (
	"context"
	"path"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
)

// keyed is a request that takes an idempotency key.
type keyed interface {
	proto.Message
	GetIdempotencyKey() string
}

// onceScope is what a key is unique in: the method, and who calls it.
func onceScope(ctx context.Context, method string) string {
	return path.Base(method) + " " + caller(ctx).String()
}

// once names a request for the state, so that its retry has no second effect; nil without a key.
func once(ctx context.Context, method string, req keyed) (*clusterv1.Once, error) {
	if req.GetIdempotencyKey() == "" {
		return nil, nil
	}
	if err := checkKey(req.GetIdempotencyKey()); err != nil {
		return nil, err
	}
	bare := proto.Clone(req).ProtoReflect()
	bare.Clear(bare.Descriptor().Fields().ByName("idempotency_key"))
	return &clusterv1.Once{Scope: onceScope(ctx, method), Key: req.GetIdempotencyKey(), RequestHash: hashRequest(bare.Interface())}, nil
}

// oneOnce commits one command; the key of the request makes a retry the same command.
func (o *Operations) oneOnce(ctx context.Context, method string, req keyed, c *clusterv1.Command) (_ state.Result, err error) {
	if c.Once, err = once(ctx, method, req); err != nil {
		return state.Result{}, err
	}
	return o.one(ctx, c)
}

// remember keeps the key of a request whose effect is not in the state, with a subject. A retry gets the first subject and
// again; without a key every request is the first.
func (o *Operations) remember(ctx context.Context, method string, req keyed, subject string) (first string, again bool, err error) {
	if req.GetIdempotencyKey() == "" {
		return subject, false, nil
	}
	r, err := o.oneOnce(ctx, method, req, &clusterv1.Command{Kind: &clusterv1.Command_Remember{Remember: &clusterv1.Remember{Subject: subject}}})
	if err != nil {
		return "", false, err
	}
	return r.Subject, r.Duplicate, nil
}
