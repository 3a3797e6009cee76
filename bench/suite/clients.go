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
func (b *Bench) Clients(ctx context.Context) ([]*measure.Figure, error) {
	var out []*measure.Figure
	for _, plain := range []bool{true, false} {
		name := measure.Amount(float64(b.o.Clients), "") + " clients, TLS"
		if plain {
			name = measure.Amount(float64(b.o.Clients), "") + " clients, plain text"
		}
		if !b.wanted(name) {
			continue
		}
		memory := &measure.Figure{Part: "clients", Name: name + ": server memory each", Unit: "KB"}
		accept := &measure.Figure{Part: "clients", Name: name + ": accepted", Unit: "/s"}
		for run := range b.o.Runs {
			b.logf("clients: run %d of %d, plain text: %v", run+1, b.o.Runs, plain)
			if err := b.clientsRun(ctx, plain, memory, accept); err != nil {
				return nil, err
			}
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
			server := c.Servers()[0]
			before, err := settledRSS(ctx, server)
			if err != nil {
				return err
			}
			access, err := c.Access(ctx)
			if err != nil {
				return err
			}
			var s measure.Summary
			if err := h.Ask(ctx, "idle", clientload.IdleArgs{Access: access, Count: b.o.Clients, Dialers: clientDialers}, &s); err != nil {
				return err
			}
			after, err := settledRSS(ctx, server)
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
			if err := b.heapProfile(ctx, server, memory.Name); err != nil {
				return err
			}
			each := float64(after-before) / float64(b.o.Clients) / bytesInAKB
			memory.Runs = append(memory.Runs, each)
			accept.AddRun(s.PerSecond, s.P99)
			memory.Note = fmt.Sprintf("resident memory %d MB before, %d MB with all clients connected, each after a collection, in the last run", before/1e6, after/1e6)
			accept.Note = fmt.Sprintf("from the dial to the hello_ack, %d at once, dialled by one process", clientDialers)
			b.logf("  %.1f KB each; accepted %s", each, brief(s))
			return nil
		})
	})
}
