// Forks of a large session, which copy nothing; and moves of sessions that have nothing to copy, on simulated nodes.

package suite

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/simnode"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	forks         = 50
	manyMoves     = 1000
	moveCalls     = 64
	maxFork       = 50 // ms
	minMoves      = 500
	forkPatience  = 5 * time.Minute
	movesPatience = 2 * time.Minute
)

// largeWorkspace makes 1 GB that does not compress.
const largeWorkspace = `
if [ ! -d w ]; then mkdir w.new; for i in $(seq 64); do head -c 16000000 /dev/urandom > w.new/f$i; done; mv w.new w; fi
while read -r line; do echo "$line"; done`

// Forks measures forks and many moves.
func (b *Bench) Forks(ctx context.Context) ([]*measure.Figure, error) {
	p50 := &measure.Figure{Part: "forks", Name: "fork of 1 GB: p50 until accepted", Unit: "ms"}
	p99 := &measure.Figure{Part: "forks", Name: "fork of 1 GB: p99 until accepted", Unit: "ms"}
	many := &measure.Figure{Part: "forks", Name: "1,000 sessions moved, simulated nodes", Unit: "/s"}
	if err := b.forkLarge(ctx, p50, p99); err != nil {
		return nil, err
	}
	for run := range b.o.Runs {
		if err := b.moveMany(ctx, many); err != nil {
			return nil, err
		}
		b.logf("forks: 1,000 moves, run %d of %d: %.0f/s", run+1, b.o.Runs, many.Runs[run])
	}
	p50.WantAtMost(maxFork)
	p99.WantAtMost(maxFork)
	many.WantAtLeast(minMoves)
	p50.Note = fmt.Sprintf("%d forks, one after the other", forks)
	return []*measure.Figure{p50, p99, many}, nil
}

func (b *Bench) forkLarge(ctx context.Context, p50, p99 *measure.Figure) error {
	o := testbed.ClusterOptions{
		Servers: 3, Nodes: 1, NodeProgram: b.o.NodeProgram,
		NodeSettings: map[string]any{"sessions": map[string]any{"end_on_stop": true}},
	}
	return b.withCluster(ctx, o, func(c *testbed.Cluster) error {
		ctx, cancel := context.WithTimeout(ctx, forkPatience)
		defer cancel()
		admin := c.Admin()
		r, err := admin.Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Wait: true, Spec: &apiv1.SessionSpec{Command: []string{"sh", "-c", largeWorkspace}}})
		if err != nil {
			return err
		}
		id := r.GetSession().GetId()
		if _, err := admin.Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: id, Text: []byte("ready"), Wait: true}); err != nil {
			return err
		}
		if _, err := admin.Sessions.CheckpointSession(ctx, &apiv1.CheckpointSessionRequest{Id: id, Wait: true}); err != nil {
			return err
		}
		// No place for the new sessions: they are accepted, and wait.
		if _, err := admin.Nodes.CordonNode(ctx, &apiv1.CordonNodeRequest{Id: "node-1"}); err != nil {
			return err
		}
		var times measure.Series
		for range forks {
			start := time.Now()
			if _, err := admin.Sessions.ForkSession(ctx, &apiv1.ForkSessionRequest{Id: id}); err != nil {
				return err
			}
			times = append(times, float64(time.Since(start))/1e6)
		}
		b.logf("forks: p50 %.1f ms, p99 %.1f ms", times.Median(), times.Quantile(.99))
		p50.Runs, p99.Runs = measure.Series{times.Median()}, measure.Series{times.Quantile(.99)}
		return nil
	})
}

// moveMany moves a thousand sessions once.
func (b *Bench) moveMany(ctx context.Context, f *measure.Figure) error {
	// Nothing is copied, so nothing is spared by moving few at a time.
	limits := map[string]any{"migration": map[string]int{"max_per_node": moveCalls, "max_per_cluster": moveCalls}}
	return b.withCluster(ctx, testbed.ClusterOptions{Servers: 3, Settings: limits}, func(c *testbed.Cluster) error {
		return helper(simnode.Role, func(nodes *testbed.Helper) error {
			access, err := c.Access(ctx)
			if err != nil {
				return err
			}
			err = nodes.Ask(ctx, "start", simnode.StartArgs{Access: access, Count: simulatedNodes, Prefix: "sim", Timeout: linkTimeout, Spread: time.Second}, nil)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, movesPatience)
			defer cancel()
			ids := make([]string, manyMoves)
			err = inParallel(moveCalls, manyMoves, func(i int) error {
				r, err := c.Admin().Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Command: spawnCommand}, Wait: true})
				ids[i] = r.GetSession().GetId()
				return err
			})
			if err != nil {
				return fmt.Errorf("spawn: %w", err)
			}
			var failed atomic.Int64
			start := time.Now()
			err = inParallel(moveCalls, manyMoves, func(i int) error {
				r, err := c.Admin().Sessions.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: ids[i], Wait: true})
				if err == nil && r.GetSession().GetMigration().GetState() != apiv1.Session_Migration_DONE {
					failed.Add(1)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("move: %w", err)
			}
			if n := failed.Load(); n > 0 {
				return fmt.Errorf("%d of %d moves did not arrive", n, manyMoves)
			}
			f.Runs = append(f.Runs, manyMoves/time.Since(start).Seconds())
			return nil
		})
	})
}

// inParallel runs do n times, callers at a time, and ends with the first error.
func inParallel(callers, n int, do func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(callers)
	for i := range n {
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}
