// What linked nodes cost a server at rest: one server, ten thousand real WebSockets with a heartbeat every ten seconds,
// nothing else to do.

package suite

import (
	"context"
	"fmt"
	"path/filepath"
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
	bytesInAKB      = 1000
	percentOfACores = 100
)

// Nodes measures linked nodes.
func (b *Bench) Nodes(ctx context.Context) ([]*measure.Figure, error) {
	var out []*measure.Figure
	for _, plain := range []bool{true, false} {
		name := fmt.Sprintf("%s nodes", measure.Amount(float64(b.o.Nodes), ""))
		if plain {
			name += ", plain text"
		} else {
			name += ", TLS"
		}
		if !b.wanted(name) {
			continue
		}
		cpu := &measure.Figure{Part: "nodes", Name: name + ": processor at rest", Unit: "% core"}
		memory := &measure.Figure{Part: "nodes", Name: name + ": server memory each", Unit: "KB"}
		for run := range b.o.Runs {
			b.logf("nodes: run %d of %d, plain text: %v", run+1, b.o.Runs, plain)
			if err := b.nodesRun(ctx, plain, cpu, memory); err != nil {
				return nil, err
			}
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
			server := c.Servers()[0]
			before, err := settledRSS(ctx, server)
			if err != nil {
				return err
			}
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
			if err := pause(ctx, settleTime); err != nil {
				return err
			}
			rest, beats, err := b.rest(ctx, c, h, cpu.Name)
			if err != nil {
				return err
			}
			after, err := settledRSS(ctx, server)
			if err != nil {
				return err
			}
			if err := b.heapProfile(ctx, server, memory.Name); err != nil {
				return err
			}
			each := float64(after-before) / float64(b.o.Nodes) / bytesInAKB
			cpu.Runs, memory.Runs = append(cpu.Runs, rest), append(memory.Runs, each)
			cpu.Note = fmt.Sprintf("%d heartbeats were answered in %s of the last run", beats, restTime)
			memory.Note = fmt.Sprintf("resident memory %d MB before, %d MB with all nodes linked, each after a collection, in the last run", before/1e6, after/1e6)
			b.logf("  at rest %.1f %% of a core, %d heartbeats answered; %.1f KB a node", rest, beats, each)
			return nil
		})
	})
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

// settledRSS is a server's resident memory once it has given back what it can.
func settledRSS(ctx context.Context, s *testbed.Server) (int64, error) {
	for range 2 { // what finalizers held is free after the second time
		if err := s.FreeMemory(ctx); err != nil {
			return 0, err
		}
	}
	return measure.RSS(s.PID())
}

func (b *Bench) heapProfile(ctx context.Context, s *testbed.Server, name string) error {
	if b.o.Profiles == "" {
		return nil
	}
	return s.Profile(ctx, filepath.Join(b.o.Profiles, "nodes-heap-"+slug(name)+".pprof"), 0)
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
