// What linked nodes cost a server at rest: one server, ten thousand real WebSockets with a heartbeat every ten seconds,
// nothing else to do.

package suite

import (
	"context"
	"fmt"
	"time"

	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/simnode"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	restHeartbeat = 10 * time.Second
	restLease     = 40 * time.Second
	// restTime is how long processor time is measured, after all heartbeats have found their rhythm.
	restTime   = 30 * time.Second
	settleTime = restHeartbeat + 5*time.Second

	maxRestCores    = 10 // percent
	maxKBPerNode    = 20
	linkTimeout     = 5 * time.Minute
	linkPerSecond   = 1000
	percentOfACores = 100
)

// Nodes measures linked nodes.
func (b *Bench) Nodes(ctx context.Context) (out []*measure.Figure, err error) {
	for name, plain := range b.crowds("nodes", b.o.Nodes) {
		cpu := &measure.Figure{Part: "nodes", Name: name + ": processor at rest", Unit: "% core"}
		memory := &measure.Figure{Part: "nodes", Name: name + ": server memory each", Unit: "KB"}
		if err := b.crowd("nodes", plain, func() error { return b.nodesRun(ctx, plain, cpu, memory) }); err != nil {
			return nil, err
		}
		cpu.WantBelow(maxRestCores)
		memory.WantAtMost(maxKBPerNode)
		out = append(out, cpu, memory)
	}
	return out, nil
}

func restSettings() map[string]any {
	return map[string]any{"link": map[string]string{
		"lease": restLease.String(), "renew": restHeartbeat.String(), "heartbeat": restHeartbeat.String(), "margin": (restLease / 10).String(),
	}}
}

func (b *Bench) nodesRun(ctx context.Context, plain bool, cpu, memory *measure.Figure) error {
	o := testbed.ClusterOptions{Servers: 1, Plain: plain, Settings: restSettings(), Env: instrumented}
	return b.withCluster(ctx, o, func(c *testbed.Cluster) error {
		return helper(simnode.Role, func(h *testbed.Helper) error {
			var rest float64
			var beats int64
			each, err := b.memoryEach(ctx, c.Servers()[0], b.o.Nodes, "nodes linked", memory, func() (err error) {
				if err := b.link(ctx, c, h); err != nil {
					return err
				}
				rest, beats, err = b.rest(ctx, c, h, cpu.Name)
				return err
			})
			if err != nil {
				return err
			}
			cpu.Runs = append(cpu.Runs, rest)
			cpu.Note = fmt.Sprintf("%d heartbeats were answered in %s of the last run", beats, restTime)
			b.logf("  at rest %.1f %% of a core, %d heartbeats answered; %.1f KB a node", rest, beats, each)
			return nil
		})
	})
}

// link has all nodes link, and waits until they are at rest.
func (b *Bench) link(ctx context.Context, c *testbed.Cluster, h *testbed.Helper) error {
	access, err := c.Access(ctx)
	if err != nil {
		return err
	}
	var linked simnode.Counts
	start := time.Now()
	err = h.Ask(ctx, "start", simnode.StartArgs{
		Access: access, Count: b.o.Nodes, Prefix: "sim", Within: time.Duration(b.o.Nodes) * time.Second / linkPerSecond, Timeout: linkTimeout, Spread: restHeartbeat,
	}, &linked)
	if err != nil {
		return err
	}
	b.logf("  %d nodes linked after %.1f s", linked.Linked, time.Since(start).Seconds())
	return pause(ctx, settleTime)
}

// rest is the server's use of a processor at rest, in percent of one, and the heartbeats that it answered meanwhile.
func (b *Bench) rest(ctx context.Context, c *testbed.Cluster, h *testbed.Helper, name string) (percent float64, beats int64, err error) {
	var first, last simnode.Counts
	if err := h.Ask(ctx, "counts", nil, &first); err != nil {
		return 0, 0, err
	}
	m := meter(serverPIDs(c))
	err = b.profiled(ctx, c, "nodes-"+slug(name), restTime, func() error { return pause(ctx, restTime) })
	if err != nil {
		return 0, 0, err
	}
	percent = m.cores() * percentOfACores
	if err := h.Ask(ctx, "counts", nil, &last); err != nil {
		return 0, 0, err
	}
	if last.LinksLost > 0 {
		return 0, 0, fmt.Errorf("%d links were lost", last.LinksLost)
	}
	return percent, last.Acked - first.Acked, nil
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
