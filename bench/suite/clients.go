// What idle clients cost a server: ten thousand WebSockets that said hello and are quiet.

package suite

import (
	"context"
	"fmt"

	"github.com/neolith/orchestrator/bench/clientload"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	maxKBPerClient     = 20
	acceptPerSecond    = 1000
	clientDialers      = 32
	clientCapacity     = 100_000 // of connections, and what else would refuse a crowd from one machine
	callTool           = "list_models"
	maxUndurableMillis = 0.3
	durableExtra       = 0.5 // milliseconds beyond a raft commit
	echoShare          = 0.6
	callClients        = 64
)

// crowdSettings let a whole crowd in from one machine, as fast as it comes.
func crowdSettings() map[string]any {
	return map[string]any{"gateway": map[string]any{
		"max_connections": clientCapacity, "max_connections_per_ip": clientCapacity, "max_clients": clientCapacity,
		"rate": map[string]int{"global_per_second": 0, "ip_per_second": 0, "user_per_second": 0},
	}}
}

// Clients measures idle clients.
func (b *Bench) Clients(ctx context.Context) (out []*measure.Figure, err error) {
	for name, plain := range b.crowds("clients", b.o.Clients) {
		memory := &measure.Figure{Part: "clients", Name: name + ": server memory each", Unit: "KB"}
		accept := &measure.Figure{Part: "clients", Name: name + ": accepted", Unit: "/s"}
		if err := b.crowd("clients", plain, func() error { return b.clientsRun(ctx, plain, memory, accept) }); err != nil {
			return nil, err
		}
		memory.WantAtMost(maxKBPerClient)
		accept.WantAtLeast(acceptPerSecond)
		out = append(out, memory, accept)
	}
	return out, nil
}

func (b *Bench) clientsRun(ctx context.Context, plain bool, memory, accept *measure.Figure) error {
	o := testbed.ClusterOptions{Servers: 1, Plain: plain, Settings: crowdSettings(), Env: instrumented}
	return b.withCluster(ctx, o, func(c *testbed.Cluster) error {
		return helper(clientload.Role, func(h *testbed.Helper) error {
			var s measure.Summary
			each, err := b.memoryEach(ctx, c.Servers()[0], b.o.Clients, "clients connected", memory, func() error {
				access, err := c.Access(ctx)
				if err != nil {
					return err
				}
				return h.Ask(ctx, "idle", clientload.IdleArgs{Access: access, Count: b.o.Clients, Dialers: clientDialers}, &s)
			})
			if err != nil {
				return err
			}
			var lost int64
			if err := h.Ask(ctx, "lost", nil, &lost); err != nil {
				return err
			}
			if lost > 0 {
				return fmt.Errorf("%d clients were disconnected", lost)
			}
			accept.AddRun(s.PerSecond, s.P99)
			accept.Note = fmt.Sprintf("from the dial to the hello_ack, %d at once, dialled by one process", clientDialers)
			b.logf("  %.1f KB each; accepted %s", each, brief(s))
			return nil
		})
	})
}
