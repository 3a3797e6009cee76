// What runs in the servers beside the calls.

package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// daemonsWait is how long another server may take to describe its daemons.
const daemonsWait = 3 * time.Second

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

// ListDaemons asks all servers at once. One that does not answer is told of, for the daemons of the others are of no less interest then.
func (s *clusterService) ListDaemons(ctx context.Context, _ *apiv1.ListDaemonsRequest) (*apiv1.ListDaemonsResponse, error) {
	members, _, err := memberProtos(s.ops.Node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, daemonsWait)
	defer cancel()
	out := &apiv1.ListDaemonsResponse{Daemons: s.ops.ownDaemons()}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, m := range members {
		if m.GetId() == s.ops.Node.ID() {
			continue
		}
		wait.Go(func() {
			theirs, err := s.ops.Peers.Daemons(ctx, m.GetAddress())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if out.Missing == nil {
					out.Missing = map[string]string{}
				}
				out.Missing[m.GetId()] = err.Error()
			}
			out.Daemons = append(out.Daemons, theirs...)
		})
	}
	wait.Wait()
	slices.SortStableFunc(out.Daemons, func(a, b *apiv1.Daemon) int { return strings.Compare(a.GetServer(), b.GetServer()) })
	return out, nil
}

// Daemons asks a server for its daemons.
func (p *Peers) Daemons(ctx context.Context, address string) ([]*apiv1.Daemon, error) {
	if address == "" {
		return nil, fault.New(fault.Unavailable, "the server's address is not known")
	}
	c, err := p.Conn(address)
	if err != nil {
		return nil, err
	}
	r, err := clusterv1.NewRelayServiceClient(c).GetServerDaemons(p.asPeer(ctx), &clusterv1.GetServerDaemonsRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask server %s for its daemons: %w", address, err)
	}
	return r.GetDaemons(), nil
}

func (s *relayService) GetServerDaemons(context.Context, *clusterv1.GetServerDaemonsRequest) (*clusterv1.GetServerDaemonsResponse, error) {
	return &clusterv1.GetServerDaemonsResponse{Daemons: s.ops.ownDaemons()}, nil
}
