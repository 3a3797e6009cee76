// Parts of the servers that each describes by itself: what runs in it beside the calls, and its pools of connections to providers.

package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// partsWait is how long another server may take to describe its parts.
const partsWait = 3 * time.Second

// fromAll has all servers describe something at once, this one in its own words, and returns it in the order of their ids. One that does
// not answer is in missing with why, for what the others say is of no less interest then.
func fromAll[T any](ctx context.Context, o *Operations, own []T, ask func(context.Context, clusterv1.RelayServiceClient) ([]T, error)) (all []T, missing map[string]string, err error) {
	members, _, err := memberProtos(o.Node)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, partsWait)
	defer cancel()
	answers, errs := make([][]T, len(members)), make([]error, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		if m.GetId() == o.Node.ID() {
			answers[i] = own
			continue
		}
		wait.Go(func() { answers[i], errs[i] = askServer(ctx, o.Peers, m.GetAddress(), ask) })
	}
	wait.Wait()
	for i, err := range errs {
		if err != nil {
			if missing == nil {
				missing = map[string]string{}
			}
			missing[members[i].GetId()] = err.Error()
		}
	}
	return slices.Concat(answers...), missing, nil
}

func askServer[T any](ctx context.Context, p *Peers, address string, ask func(context.Context, clusterv1.RelayServiceClient) ([]T, error)) ([]T, error) {
	if address == "" {
		return nil, fault.New(fault.Unavailable, "the server's address is not known")
	}
	c, err := p.Conn(address)
	if err != nil {
		return nil, err
	}
	got, err := ask(p.asPeer(ctx), clusterv1.NewRelayServiceClient(c))
	if err != nil {
		return nil, fmt.Errorf("ask server %s: %w", address, err)
	}
	return got, nil
}

// ownDaemons describes those of this server.
func (o *Operations) ownDaemons() []*apiv1.Daemon {
	if o.Daemons == nil {
		return nil
	}
	all := o.Daemons()
	for _, d := range all {
		d.Server = o.Node.ID()
	}
	return all
}

// ListDaemons asks all servers.
func (s *clusterService) ListDaemons(ctx context.Context, _ *apiv1.ListDaemonsRequest) (*apiv1.ListDaemonsResponse, error) {
	all, missing, err := fromAll(ctx, s.ops, s.ops.ownDaemons(), func(ctx context.Context, c clusterv1.RelayServiceClient) ([]*apiv1.Daemon, error) {
		r, err := c.GetServerDaemons(ctx, &clusterv1.GetServerDaemonsRequest{})
		return r.GetDaemons(), err
	})
	return &apiv1.ListDaemonsResponse{Daemons: all, Missing: missing}, err
}

func (s *relayService) GetServerDaemons(context.Context, *clusterv1.GetServerDaemonsRequest) (*clusterv1.GetServerDaemonsResponse, error) {
	return &clusterv1.GetServerDaemonsResponse{Daemons: s.ops.ownDaemons()}, nil
}
