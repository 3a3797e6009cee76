// A server: everything that `orchestrator serve` builds but for sockets, TLS and files.

package sim

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/gateway"
	"github.com/neolith/orchestrator/leader"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/telemetry/hclogger"
)

const (
	// snapshotEvery and trailingLogs are small, so that a server that was away for long is given a snapshot.
	snapshotEvery = 64
	trailingLogs  = 16
	retention     = 24 * time.Hour
)

// timings are longer than the default: they cost the simulation fewer heartbeats, and the order of their lengths is the same.
func timings() cluster.Timings {
	return cluster.Timings{Heartbeat: time.Second, Election: time.Second, Lease: 700 * time.Millisecond, Commit: 50 * time.Millisecond}
}

// server is a machine with a disk, on which a server process runs or does not.
type server struct {
	w      *World
	id     string
	log    *raft.InmemStore
	stable *raft.InmemStore
	snaps  *snapshots

	mu    sync.Mutex
	inst  *instance
	ended chan struct{} // closed once the last process is gone
}

// instance is one life of a server process.
type instance struct {
	connections
	id     string
	node   *cluster.Node
	store  *state.Store
	hub    *nodelink.Hub
	leader *leader.Leader
	router *router.Router
	ops    *gateway.Operations
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

func newServer(w *World, id string) *server {
	s := &server{w: w, id: id, log: raft.NewInmemStore(), stable: raft.NewInmemStore(), snaps: &snapshots{}, ended: make(chan struct{})}
	close(s.ended)
	return s
}

// running is the process; nil when there is none.
func (s *server) running() *instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inst
}

// start starts the process, once the one before is gone.
func (s *server) start() error {
	<-s.ended
	log := s.w.log.With("server", s.id)
	i := &instance{id: s.id, store: state.New(state.DefaultLimits())}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	i.hub = nodelink.NewHub(nodelink.HubOptions{ServerID: s.id, Logger: log})
	route, err := router.New("least-connections")
	if err != nil {
		return err
	}
	i.router = route
	later := &proposals{}
	i.leader = leader.New(leader.Options{
		ServerID: s.id, Lease: s.w.opts.Lease, Retention: retention, Log: later, State: i.store, Hub: i.hub, Router: route,
		Servers:       func() []cluster.Presence { return i.node.Presences() },
		LinkAddresses: func() []string { return nil }, Now: time.Now, Logger: log,
	})
	i.node, err = cluster.Open(cluster.Options{
		ID: s.id, Version: "sim", DataDir: "memory", RaftAddress: s.id, GRPCAddress: s.id, LinkAddress: s.id,
		Servers: s.w.configuration(), Timings: timings(), SnapshotEvery: snapshotEvery, TrailingLogs: trailingLogs,
		State: i.store, Lead: func(ctx context.Context, term uint64) { s.lead(ctx, i, term) },
		Stats: func(context.Context, string) (cluster.ServerStats, error) { return cluster.ServerStats{}, nil },
		Fatal: func(err error) { s.fatal(err) },
		Now:   time.Now, Logger: log, HCLog: hclogger.New(log, ""),
		Transport: s.w.raft.join(i.ctx, s.id), Log: s.log, Stable: s.stable, Snapshots: s.snaps,
	})
	if err != nil {
		i.cancel()
		return err
	}
	later.Node = i.node
	i.ops = gateway.NewOperations(gateway.Options{Node: i.node, State: i.store, Leader: i.leader, Router: route, Now: time.Now, Logger: log})
	i.wait.Go(func() { i.ops.Run(i.ctx) })
	i.wait.Go(func() { _ = i.node.Run(i.ctx) })
	i.wait.Go(func() {
		i.leader.Follow(i.ctx, i.node, func(ctx context.Context, address string) (nodelink.RelayStream, error) {
			return s.w.relay(ctx, s.id, address)
		}, nil)
	})
	s.w.net.change(func() { delete(s.w.net.dead, s.id) })
	s.mu.Lock()
	s.inst, s.ended = i, make(chan struct{})
	s.mu.Unlock()
	return nil
}

// fatal is what a supervisor does when the process ends itself: it starts it again. There is one reason to.
func (s *server) fatal(err error) {
	if !errors.Is(err, cluster.ErrTransferHangs) {
		s.w.fail("server %s must not go on: %v", s.id, err)
		return
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.closed {
		return
	}
	s.w.client.background(func() {
		s.kill()
		time.Sleep(time.Second)
		if err := s.start(); err != nil {
			s.w.fail("server %s was not started again: %v", s.id, err)
		}
	})
}

// proposals lets the leader be built before the node that it proposes to.
type proposals struct{ *cluster.Node }

func (s *server) lead(ctx context.Context, i *instance, term uint64) {
	for ctx.Err() == nil && i.store.View().ClusterID() == "" {
		if _, err := i.node.Propose(ctx, &clusterv1.Command{Kind: &clusterv1.Command_InitCluster{
			InitCluster: &clusterv1.InitCluster{ClusterId: "sim"},
		}}); err != nil {
			time.Sleep(time.Second)
		}
	}
	i.leader.Run(ctx, term)
}

// kill ends the process as SIGKILL does: from this instant nothing of it is heard.
func (s *server) kill() {
	s.mu.Lock()
	i, ended := s.inst, s.ended
	s.inst = nil
	s.mu.Unlock()
	if i == nil {
		return
	}
	s.w.net.change(func() { s.w.net.dead[s.id] = true })
	i.reset()
	i.cancel()
	go func() {
		defer close(ended)
		i.wait.Wait()
		if err := i.node.Close(); err != nil {
			s.w.fail("server %s could not be closed: %v", s.id, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = i.hub.Close(ctx)
	}()
}
