// Spawning: from a client's call to the answer that the session runs. With real processes, beside the agent's driver
// and shim called in a loop, and plain fork and exec; with simulated nodes, to see the control plane alone.

package suite

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/neolith/orchestrator/bench/driverload"
	"github.com/neolith/orchestrator/bench/load"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/simnode"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	spawnNodes      = 3
	spawnSingles    = 200 // one after the other, a run
	spawnParallel   = 64
	spawnMany       = 600 // with spawnParallel in flight, a run
	simulatedNodes  = 30
	simulatedCalls  = 256
	simulatedSpawns = 20_000

	maxSpawnP50  = 10 // ms
	maxSpawnP99  = 40 // ms
	minSpawns    = 300
	minSimulated = 8000
)

// spawnCommand is the program that sessions run: it reads its input and needs nothing.
var spawnCommand = []string{"cat"}

type spawnFigures struct{ p50, p99, many, simulated, fork *measure.Figure }

// Spawn measures spawning.
func (b *Bench) Spawn(ctx context.Context) ([]*measure.Figure, error) {
	fig := func(name, unit, raw string) *measure.Figure {
		return &measure.Figure{Part: "spawn", Name: name, Unit: unit, RawName: raw}
	}
	const raw = "the driver and shim alone"
	f := spawnFigures{
		p50:       fig("1 caller, real processes: p50 to RUNNING", "ms", raw),
		p99:       fig("1 caller, real processes: p99 to RUNNING", "ms", raw),
		many:      fig("64 in flight, real processes", "/s", raw),
		simulated: fig("256 in flight, simulated nodes", "/s", ""),
		fork:      fig("plain fork and exec, 64 callers", "/s", ""),
	}
	if b.wanted(f.many.Name) {
		if err := b.spawnReal(ctx, f); err != nil {
			return nil, err
		}
	}
	for run := range b.o.Runs {
		if !b.wanted(f.simulated.Name) {
			break
		}
		b.logf("spawn: simulated nodes, run %d of %d", run+1, b.o.Runs)
		if err := b.spawnSimulated(ctx, f.simulated); err != nil {
			return nil, err
		}
	}
	f.p50.WantAtMost(maxSpawnP50)
	f.p99.WantAtMost(maxSpawnP99)
	f.many.WantRatioOr(0.5, minSpawns)
	f.simulated.WantAtLeast(minSimulated)
	return slices.DeleteFunc([]*measure.Figure{f.p50, f.p99, f.many, f.fork, f.simulated}, func(f *measure.Figure) bool { return len(f.Runs) == 0 }), nil
}

// spawnReal runs sessions on real agents, and the driver in turn with them.
func (b *Bench) spawnReal(ctx context.Context, f spawnFigures) error {
	o := testbed.ClusterOptions{
		Servers: 3, Nodes: spawnNodes, NodeProgram: b.o.NodeProgram,
		NodeSettings: map[string]any{"sessions": map[string]any{"end_on_stop": true}},
	}
	return b.withCluster(ctx, o, func(c *testbed.Cluster) error {
		return helper(load.Role, func(h *testbed.Helper) error {
			return helper(driverload.Role, func(d *testbed.Helper) error {
				dir, remove, err := b.dir("driver")
				if err != nil {
					return err
				}
				defer remove()
				if err := d.Ask(ctx, "open", dir, nil); err != nil {
					return err
				}
				access, err := c.Access(ctx)
				if err != nil {
					return err
				}
				if err := h.Ask(ctx, "connect", load.ConnectArgs{Access: access, Connections: sendConnections}, nil); err != nil {
					return err
				}
				if _, err := b.spawnSessions(ctx, h, 1, 5); err != nil { // warms up
					return err
				}
				for run := range b.o.Runs {
					b.logf("spawn: real processes, run %d of %d", run+1, b.o.Runs)
					if err := b.spawnRun(ctx, c, h, d, f); err != nil {
						return err
					}
				}
				return nil
			})
		})
	})
}

func (b *Bench) spawnRun(ctx context.Context, c *testbed.Cluster, h, d *testbed.Helper, f spawnFigures) error {
	limit, err := driverStart(ctx, d, "start", 1, spawnSingles)
	if err != nil {
		return err
	}
	b.logf("  driver, 1 caller: %s", brief(limit))
	one, err := b.spawnSessions(ctx, h, 1, spawnSingles)
	if err != nil {
		return err
	}
	b.logf("  1 caller: %s", brief(one))
	f.p50.Runs, f.p50.Raw = append(f.p50.Runs, one.P50), append(f.p50.Raw, limit.P50)
	f.p99.Runs, f.p99.Raw = append(f.p99.Runs, one.P99), append(f.p99.Raw, limit.P99)

	if limit, err = driverStart(ctx, d, "start", spawnParallel, spawnMany); err != nil {
		return err
	}
	b.logf("  driver, %d callers: %s", spawnParallel, brief(limit))
	var many measure.Summary
	err = b.profiled(ctx, c, "spawn-real", 2*time.Second, func() (err error) {
		many, err = b.spawnSessions(ctx, h, spawnParallel, spawnMany)
		return err
	})
	if err != nil {
		return err
	}
	b.logf("  %d in flight: %s (%.2f of the driver)", spawnParallel, brief(many), many.PerSecond/limit.PerSecond)
	f.many.AddRun(many.PerSecond, many.P99)
	f.many.AddRaw(limit.PerSecond, limit.P99)
	forked, err := driverStart(ctx, d, "fork", spawnParallel, spawnMany)
	f.fork.AddRun(forked.PerSecond, forked.P99)
	return err
}

// driverStart starts processes without a cluster, and ends them.
func driverStart(ctx context.Context, d *testbed.Helper, how string, callers, n int) (s measure.Summary, err error) {
	if err := d.Ask(ctx, how, driverload.StartArgs{Callers: callers, Count: n, Command: spawnCommand}, &s); err != nil {
		return s, err
	}
	if s.Errors > 0 {
		return s, fmt.Errorf("the driver: %s", failedNote(s))
	}
	return s, d.Ask(ctx, "end", nil, nil)
}

// spawnSessions spawns sessions, and ends them.
func (b *Bench) spawnSessions(ctx context.Context, h *testbed.Helper, callers, n int) (measure.Summary, error) {
	var r load.SpawnResult
	if err := h.Ask(ctx, "spawn", load.SpawnArgs{Callers: callers, Count: n, Command: spawnCommand, Wait: true}, &r); err != nil {
		return r.Summary, err
	}
	if r.Summary.Errors > 0 {
		return r.Summary, fmt.Errorf("spawn: %s", failedNote(r.Summary))
	}
	return r.Summary, h.Ask(ctx, "terminate", r.IDs, nil)
}

// spawnSimulated spawns sessions on nodes that answer at once.
func (b *Bench) spawnSimulated(ctx context.Context, f *measure.Figure) error {
	return b.withCluster(ctx, testbed.ClusterOptions{Servers: 3}, func(c *testbed.Cluster) error {
		return helper(load.Role, func(h *testbed.Helper) error {
			return helper(simnode.Role, func(nodes *testbed.Helper) error {
				access, err := c.Access(ctx)
				if err != nil {
					return err
				}
				err = nodes.Ask(ctx, "start", simnode.StartArgs{Access: access, Count: simulatedNodes, Prefix: "sim", Timeout: linkTimeout, Spread: time.Second}, nil)
				if err != nil {
					return err
				}
				if err := h.Ask(ctx, "connect", load.ConnectArgs{Access: access, Connections: sendConnections}, nil); err != nil {
					return err
				}
				spawn := func(n int) (r load.SpawnResult, err error) {
					err = h.Ask(ctx, "spawn", load.SpawnArgs{Callers: simulatedCalls, Count: n, Command: spawnCommand, Wait: true}, &r)
					if err == nil && r.Summary.Errors > 0 {
						err = fmt.Errorf("spawn: %s", failedNote(r.Summary))
					}
					return r, err
				}
				if _, err := spawn(simulatedSpawns / 10); err != nil { // warms up
					return err
				}
				var r load.SpawnResult
				m := meter(serverPIDs(c))
				err = b.profiled(ctx, c, "spawn-simulated", 3*time.Second, func() (err error) {
					r, err = spawn(simulatedSpawns)
					return err
				})
				if err != nil {
					return err
				}
				servers := perOperation(m.cores(), r.Summary)
				f.AddRun(r.Summary.PerSecond, r.Summary.P99)
				f.Note = fmt.Sprintf("processor time a spawn: %.0f µs in the three servers, %.0f µs in the load generator, in the last run", servers, perOperation(r.Summary.CPU, r.Summary))
				b.logf("  %s; %.0f + %.0f µs of processor time", brief(r.Summary), servers, perOperation(r.Summary.CPU, r.Summary))
				return nil
			})
		})
	})
}
