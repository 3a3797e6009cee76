// What runs in a server beside the calls. What must not go on after a panic is not among it: the log, the state, the leader.

package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/supervise"
	"github.com/neolith/orchestrator/provider"
	"github.com/neolith/orchestrator/telemetry"
)

// superviseParts makes the tree of a server's daemons, in the order of their start. The recorder is the first, for it ends last.
func (s *server) superviseParts() {
	quiet := func(run func(ctx context.Context)) func(context.Context) error {
		return func(ctx context.Context) error { run(ctx); return nil }
	}
	s.daemons = supervise.New(s.log, slices.Concat(s.recorderDaemons(), []supervise.Daemon{
		{Name: "provider-pools", Run: s.models.Run},
		{Name: "call-waker", Run: quiet(s.ops.Run)},
		{Name: "call-queue", Run: s.calls.Run, Queue: s.calls.Queue},
		{Name: "client-sweeper", Run: quiet(s.gateway.Sweep)},
		{Name: "leader-watch", Run: quiet(s.followLeader)},
		{Name: "catch-up", Run: quiet(func(ctx context.Context) { s.level.find(ctx, s.node, s.peers) })},
		{Name: "pulse", Run: quiet(func(ctx context.Context) { s.pulse.beat(ctx, s.node) })},
	}, s.upkeep.daemons())...)
}

// openProviders opens the pools through which models are asked. Run fills them.
func (s *server) openProviders() (err error) {
	s.models, err = provider.New(provider.Options{
		Config: s.cfg.Providers, ConfigKey: "providers", SpendFile: filepath.Join(s.cfg.DataDir, "providers-spent.json"), Metrics: s.registry, Logger: s.log,
	})
	return err
}

// daemonProtos describes the daemons for clients.
func (s *server) daemonProtos() (out []*apiv1.Daemon) {
	memory := residentBytes()
	for _, d := range s.daemons.List() {
		p := &apiv1.Daemon{
			Name: d.Name, State: apiv1.Daemon_State(apiv1.Daemon_State_value[string(d.State)]), StateTime: timestamppb.New(d.Since), Restarts: uint64(d.Restarts),
			LastError: d.LastError, QueueDepth: uint64(d.QueueDepth), QueueLimit: uint64(d.QueueLimit), Goroutines: uint32(d.Goroutines), ProcessMemoryBytes: memory,
		}
		if !d.LastErrorTime.IsZero() {
			p.LastErrorTime = timestamppb.New(d.LastErrorTime)
		}
		out = append(out, p)
	}
	return out
}

// residentBytes is the memory that this process takes, as the kernel counts; 0 where it does not say.
func residentBytes() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if fields := strings.Fields(string(b)); err == nil && len(fields) > 1 {
		pages, _ := strconv.ParseUint(fields[1], 10, 64)
		return pages * uint64(os.Getpagesize())
	}
	return 0
}

var (
	daemonUpDesc       = desc("daemon_up", "1 where a daemon runs or has nothing more to do, 0 where it keeps failing.", "daemon")
	daemonRestartsDesc = desc("daemon_restarts_total", "How often a daemon failed and was started again.", "daemon")
)

// collectDaemons tells of the daemons.
func (s *server) collectDaemons(ch chan<- prometheus.Metric) {
	for _, d := range s.daemons.Statuses() {
		up := 1
		if d.State == supervise.Failing {
			up = 0
		}
		telemetry.Gauge(ch, daemonUpDesc, up, d.Name)
		telemetry.Counter(ch, daemonRestartsDesc, d.Restarts, d.Name)
	}
}
