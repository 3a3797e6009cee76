// No needless election: a cluster under full send load, whose sessions take their messages, while another process
// writes and syncs to the same disk as fast as it can. Terms are counted by asking every server all the time.

package suite

import (
	"context"
	"fmt"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/bench/diskload"
	"github.com/neolith/orchestrator/bench/load"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/simnode"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	stabilitySessions = 64
	stabilityNodes    = 6
	stabilityCallers  = 64
	stabilityPoll     = time.Second
	stabilityStep     = 30 * time.Second // one line of progress each
)

// Stability counts elections under full load.
func (b *Bench) Stability(ctx context.Context) ([]*measure.Figure, error) {
	length := b.o.Stability.Round(time.Second)
	elections := &measure.Figure{Part: "stability", Name: fmt.Sprintf("elections in %s of full load on a busy disk", length), Unit: ""}
	rate := &measure.Figure{Part: "stability", Name: "messages accepted meanwhile", Unit: "/s"}
	turns := &measure.Figure{Part: "stability", Name: "turns ended meanwhile", Unit: "/s"}
	syncs := &measure.Figure{Part: "stability", Name: "the disk writer: one write of 1 MiB with its sync", Unit: "ms"}
	err := b.withCluster(ctx, testbed.ClusterOptions{Servers: 3}, func(c *testbed.Cluster) error {
		return helper(simnode.Role, func(nodes *testbed.Helper) error {
			return helper(load.Role, func(h *testbed.Helper) error {
				return helper(diskload.Role, func(disk *testbed.Helper) error {
					return b.stabilityRun(ctx, c, nodes, h, disk, elections, rate, turns, syncs)
				})
			})
		})
	})
	elections.WantNone()
	return []*measure.Figure{elections, rate, turns, syncs}, err
}

func (b *Bench) stabilityRun(ctx context.Context, c *testbed.Cluster, nodes, h, disk *testbed.Helper, elections, rate, turns, syncs *measure.Figure) error {
	access, err := c.Access(ctx)
	if err != nil {
		return err
	}
	err = nodes.Ask(ctx, "start", simnode.StartArgs{Access: access, Count: stabilityNodes, Prefix: "sim", Timeout: linkTimeout, Spread: time.Second}, nil)
	if err != nil {
		return err
	}
	if err := h.Ask(ctx, "connect", load.ConnectArgs{Access: access, Connections: sendConnections}, nil); err != nil {
		return err
	}
	var spawned load.SpawnResult
	if err := h.Ask(ctx, "spawn", load.SpawnArgs{Callers: 16, Count: stabilitySessions, Command: spawnCommand, Wait: true}, &spawned); err != nil {
		return err
	}
	if spawned.Summary.Errors > 0 {
		return fmt.Errorf("spawn: %s", failedNote(spawned.Summary))
	}
	dir, remove, err := b.dir("disk")
	if err != nil {
		return err
	}
	defer remove()
	if err := disk.Ask(ctx, "start", dir, nil); err != nil {
		return err
	}
	var sent measure.Summary
	done := make(chan error, 1)
	go func() {
		done <- h.Ask(ctx, "send", load.SendArgs{
			Sessions: spawned.IDs, Callers: stabilityCallers, Bytes: messageBytes, Warm: b.o.Warm, Length: b.o.Stability, Form: load.Unary, Patient: true,
		}, &sent)
	}()
	count, watchErr := b.watchTerms(ctx, c, done)
	if watchErr != nil {
		return watchErr
	}
	var written diskload.Written
	var counts simnode.Counts
	if err := disk.Ask(ctx, "stop", nil, &written); err != nil {
		return err
	}
	if err := nodes.Ask(ctx, "counts", nil, &counts); err != nil {
		return err
	}
	elections.Runs = append(elections.Runs, float64(count))
	rate.AddRun(sent.PerSecond, sent.P99)
	rate.Note = failedNote(sent)
	turns.Runs = append(turns.Runs, float64(counts.Turns)/(b.o.Warm+b.o.Stability).Seconds())
	syncs.AddRun(written.P50, written.P99)
	syncs.Note = fmt.Sprintf("%d writes, the longest %.0f ms", written.Operations, written.Max)
	return nil
}

// watchTerms asks every server for its term until the load is done, and returns how often a term rose.
func (b *Bench) watchTerms(ctx context.Context, c *testbed.Cluster, done <-chan error) (elections uint64, err error) {
	var last uint64
	poll := time.NewTicker(stabilityPoll)
	defer poll.Stop()
	progress := time.NewTicker(stabilityStep)
	defer progress.Stop()
	ask := func() error {
		for _, s := range c.Servers() {
			asking, cancel := context.WithTimeout(ctx, 10*time.Second)
			st, err := s.Client().Cluster.GetStatus(asking, &apiv1.GetStatusRequest{Consistency: apiv1.Consistency_STALE}) // its own term
			cancel()
			if err != nil {
				return fmt.Errorf("ask %s for its term: %w", s.Name, err)
			}
			if term := st.GetTerm(); term > last {
				if last != 0 {
					elections += term - last
					b.logf("stability: the term rose from %d to %d", last, term)
				}
				last = term
			}
		}
		return nil
	}
	for begin := time.Now(); ; {
		select {
		case err := <-done:
			if err == nil {
				err = ask()
			}
			return elections, err
		case <-progress.C:
			b.logf("stability: %s, %d elections", time.Since(begin).Round(time.Second), elections)
		case <-poll.C:
			if err := ask(); err != nil {
				return elections, err
			}
		}
	}
}
