// What a durable call costs beside a commit of the log alone, on a real log on this machine's disk.
package socket

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
	"github.com/neolith/orchestrator/telemetry/hclogger"
)

// alone starts a server that leads a cluster of one, whose log is on disk, with a gateway.
func alone(b *testing.B, reads bool) (*world, *cluster.Node) {
	b.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	store := state.New(state.DefaultLimits())
	_, transport := raft.NewInmemTransport("server-1")
	led := make(chan struct{})
	node, err := cluster.Open(cluster.Options{
		ID: "server-1", DataDir: b.TempDir(), RaftAddress: "server-1", GRPCAddress: "server-1", LinkAddress: "server-1",
		Servers: []raft.Server{{ID: "server-1", Address: "server-1", Suffrage: raft.Voter}}, Timings: cluster.DefaultTimings(),
		SnapshotEvery: 1 << 20, TrailingLogs: 64, State: store, Now: time.Now, Logger: quiet, HCLog: hclogger.New(quiet, ""), Transport: transport,
		Lead:  func(ctx context.Context, _ uint64) { close(led); <-ctx.Done() },
		Stats: func(context.Context, string) (cluster.ServerStats, error) { return cluster.ServerStats{}, nil },
		Fatal: func(err error) { b.Error(err) },
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { _ = node.Run(ctx) })
	<-led
	log := dispatch.NewLog(node, store.Index, nil, quiet)
	var calls *dispatch.Dispatcher
	b.Cleanup(func() {
		cancel()
		work.Wait()
		log.Close()
		_ = node.Close()
	})
	w := start(b, func(o *Options) {
		t := o.Tools.(*bench)
		t.reads = reads
		calls = dispatch.New(dispatch.Options{
			Server: "server-1", State: dispatch.StoreState{Store: store}, Log: log, Runner: NewRunner(t, o.Access, 1<<20, quiet),
			MaxInFlight: 100, MaxWaiting: 100, Cancelled: tools.ErrCancelled, Logger: quiet,
		})
		o.Calls, o.Durable = calls, true
	})
	work.Go(func() { _ = calls.Run(ctx) })
	return w, node
}

// measured runs something again and again, and reports its median.
func measured(b *testing.B, do func(i int)) {
	var took []time.Duration
	i := 0
	for b.Loop() {
		i++
		began := time.Now()
		do(i)
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// echo makes a call and reads up to its result.
func (p *peer) echo(i int, more map[string]any) {
	m := map[string]any{"op": "call_tool", "request_id": fmt.Sprint(i), "name": "echo", "arguments": map[string]string{"key": "k"}}
	for k, v := range more {
		m[k] = v
	}
	p.send(m)
	p.until("call_tool_res")
}

func BenchmarkDurable(b *testing.B) {
	b.Run("commit", func(b *testing.B) {
		_, node := alone(b, true)
		c := &clusterv1.Command{Kind: &clusterv1.Command_OpenClient{OpenClient: &clusterv1.OpenClient{Owner: "o", Session: "s", ServerId: "server-1"}}}
		measured(b, func(int) {
			if _, err := node.Propose(b.Context(), c); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("reads", func(b *testing.B) {
		w, _ := alone(b, true)
		p := w.hello("alice", "")
		measured(b, func(i int) { p.echo(i, nil) })
	})
	b.Run("changes", func(b *testing.B) {
		w, _ := alone(b, false)
		p := w.hello("alice", "")
		measured(b, func(i int) { p.echo(i, nil) })
	})
	b.Run("memory", func(b *testing.B) {
		w, _ := alone(b, false)
		p := w.hello("alice", "")
		measured(b, func(i int) { p.echo(i, map[string]any{"durable": false}) })
	})
	b.Run("no-log", func(b *testing.B) { // what is added to the commits
		m := join(b, dispatchtest.New(), "server-1", nil)
		p := m.hello("alice", "")
		measured(b, func(i int) { p.echo(i, nil) })
	})
}
