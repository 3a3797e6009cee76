// The leader is killed as by a power cut, again and again, under light load: how long until a write is accepted again?
// Beside it bare raft with the same time-outs, which is killed in the same way.

package suite

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/rawraft"
	"github.com/neolith/orchestrator/bench/testbed"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/cluster"
)

const (
	maxFailoverP50 = 800  // ms
	maxFailoverP99 = 1500 // ms
	// lightWriters write lightPause apart, all the time, also while there is no leader.
	lightWriters = 4
	lightPause   = 20 * time.Millisecond
	// calmBefore lets heartbeats settle between kills; it grows a little each time, so that kills fall anywhere.
	calmBefore = 1500 * time.Millisecond
	calmStep   = 37 * time.Millisecond
)

// Failover measures the time without a leader.
func (b *Bench) Failover(ctx context.Context) ([]*measure.Figure, error) {
	t := cluster.DefaultTimings()
	const raw = "raft with the same time-outs"
	p50 := &measure.Figure{Part: "failover", Name: "leader killed: p50 to the next accepted write", Unit: "ms", RawName: raw}
	p99 := &measure.Figure{Part: "failover", Name: "leader killed: p99 to the next accepted write", Unit: "ms", RawName: raw}
	lost := &measure.Figure{Part: "failover", Name: "accepted messages that were lost or doubled", Unit: ""}
	rawTimes, err := b.rawFailover(ctx, rawraft.Timings{Heartbeat: t.Heartbeat, Election: t.Election, Lease: t.Lease})
	if err != nil {
		return nil, err
	}
	var times measure.Latencies
	var accepted, wrong int64
	err = b.withCluster(ctx, testbed.ClusterOptions{Servers: 3}, func(c *testbed.Cluster) error {
		times, accepted, wrong, err = b.killLeaders(ctx, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	s, limit := times.Summarize(0), rawTimes.Summarize(0)
	p50.Runs, p50.Raw = measure.Series{s.P50}, measure.Series{limit.P50}
	p99.Runs, p99.Raw = measure.Series{s.P99}, measure.Series{limit.P99}
	lost.Runs = measure.Series{float64(wrong)}
	p50.WantAtMost(maxFailoverP50)
	p99.WantAtMost(maxFailoverP99)
	lost.WantNone()
	p50.Note = fmt.Sprintf("%d kills each; heartbeat %s, election %s, lease %s", b.o.Kills, t.Heartbeat, t.Election, t.Lease)
	lost.Note = fmt.Sprintf("of %d accepted by the writers", accepted)
	return []*measure.Figure{p50, p99, lost}, nil
}

func (b *Bench) rawFailover(ctx context.Context, t rawraft.Timings) (measure.Latencies, error) {
	dir, remove, err := b.dir("raft")
	if err != nil {
		return nil, err
	}
	defer remove()
	raw, err := rawraft.Start(ctx, dir, t)
	if err != nil {
		return nil, err
	}
	defer raw.Stop()
	var times measure.Latencies
	for kill := range b.o.Kills {
		if err := pause(ctx, calmBefore+time.Duration(kill)*calmStep); err != nil {
			return nil, err
		}
		leader, err := raw.Commit(ctx)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		raw.Kill(leader)
		if _, err := raw.Commit(ctx); err != nil {
			return nil, err
		}
		took := time.Since(start)
		times = append(times, took)
		b.logf("failover: raft, kill %d of %d: %d ms", kill+1, b.o.Kills, took.Milliseconds())
		if err := raw.StartNode(ctx, leader); err != nil {
			return nil, err
		}
	}
	return times, nil
}

// killLeaders kills leader after leader, while writers write; then it compares what they were told with what is there.
func (b *Bench) killLeaders(ctx context.Context, c *testbed.Cluster) (times measure.Latencies, accepted, wrong int64, err error) {
	admin := c.Admin()
	ids, err := spawnWaiting(ctx, admin, lightWriters+1)
	if err != nil {
		return nil, 0, 0, err
	}
	w := startWriters(ctx, admin, ids[:lightWriters])
	defer w.stop()
	for kill := range b.o.Kills {
		if err := pause(ctx, calmBefore+time.Duration(kill)*calmStep); err != nil {
			return nil, 0, 0, err
		}
		took, err := b.killOne(ctx, c, ids[lightWriters])
		if err != nil {
			return nil, 0, 0, fmt.Errorf("kill %d: %w", kill+1, err)
		}
		times = append(times, took)
		b.logf("failover: kill %d of %d: %d ms", kill+1, b.o.Kills, took.Milliseconds())
	}
	w.stop()
	wrong, err = w.check(ctx, admin)
	return times, w.accepted.Load(), wrong, err
}

// killOne kills the leader, times the next accepted write, and has the server come back.
func (b *Bench) killOne(ctx context.Context, c *testbed.Cluster, id string) (time.Duration, error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	leader.Kill()
	_, err = c.Admin().Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: id, Text: []byte("after the kill")})
	if err != nil {
		return 0, err
	}
	took := time.Since(start)
	if err := leader.Start(); err != nil {
		return 0, err
	}
	return took, c.WaitReady(ctx)
}

// spawnWaiting makes sessions that wait for a place, there being no node.
func spawnWaiting(ctx context.Context, c *client.Client, n int) ([]string, error) {
	var ids []string
	for range n {
		r, err := c.Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Command: spawnCommand}})
		if err != nil {
			return nil, fmt.Errorf("spawn: %w", err)
		}
		ids = append(ids, r.GetSession().GetId())
	}
	return ids, nil
}

// writers write to a mailbox each, one message after the other.
type writers struct {
	cancel   context.CancelFunc
	wait     sync.WaitGroup
	accepted atomic.Int64
	ids      []string
	counts   []int64 // accepted, by writer; valid after stop
	unknown  []int64 // neither accepted nor refused, by writer
}

func startWriters(ctx context.Context, c *client.Client, ids []string) *writers {
	ctx, cancel := context.WithCancel(ctx)
	w := &writers{cancel: cancel, ids: ids, counts: make([]int64, len(ids)), unknown: make([]int64, len(ids))}
	for i, id := range ids {
		w.wait.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: id, Text: []byte("light load")}); err != nil {
					w.unknown[i]++
				} else {
					w.counts[i]++
					w.accepted.Add(1)
				}
				_ = pause(ctx, lightPause) // the loop looks at ctx
			}
		})
	}
	return w
}

func (w *writers) stop() {
	w.cancel()
	w.wait.Wait()
}

// check counts messages that the mailboxes have too few or too many, compared with what the writers were told.
func (w *writers) check(ctx context.Context, c *client.Client) (wrong int64, err error) {
	for i, id := range w.ids {
		r, err := c.Sessions.GetSession(ctx, &apiv1.GetSessionRequest{Id: id})
		if err != nil {
			return 0, fmt.Errorf("look at session %s: %w", id, err)
		}
		has := int64(r.GetSession().GetMailbox().GetQueued())
		wrong += max(0, w.counts[i]-has, has-w.counts[i]-w.unknown[i])
	}
	return wrong, nil
}
