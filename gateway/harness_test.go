// Real servers in memory, mostly one alone: its log, its state, its gRPC API on loopback, and callers with tokens.
package gateway

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/leader"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/telemetry/hclogger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// alone is a server, mostly a cluster of one.
type alone struct {
	t     *testing.T
	store *dir.Store // of chunks; one for all servers
	ops   *Operations
	conn  *grpc.ClientConn
	admin string // a token
	stop  func() // for good; once
	gone  atomic.Bool
	all   []*alone // the servers of its cluster
	hub   *nodelink.Hub
	api   *Server
}

// proposer lets the leader be built before the node that it proposes to.
type proposer struct{ *cluster.Node }

func startAlone(t *testing.T) *alone {
	t.Helper()
	return startServers(t, 1)[0]
}

// startServers forms a cluster; the server that leads is the first.
func startServers(t *testing.T, count int) []*alone {
	t.Helper()
	listeners := make([]net.Listener, count)
	transports := make([]*raft.InmemTransport, count)
	voters := make([]raft.Server, count)
	for i := range voters {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		// Without discovery a server is found by its id.
		id := l.Addr().String()
		listeners[i], voters[i] = l, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id), Suffrage: raft.Voter}
		_, transports[i] = raft.NewInmemTransport(raft.ServerAddress(id))
		for j, o := range transports[:i] {
			transports[i].Connect(voters[j].Address, o)
			o.Connect(voters[i].Address, transports[i])
		}
	}
	store, err := dir.Open(t.TempDir(), dir.Options{MaxBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() }) // after the servers
	servers := make([]*alone, count)
	for i := range servers {
		servers[i] = startServer(t, listeners[i], transports[i], voters, store)
	}
	for _, a := range servers {
		a.all = servers
	}
	giveUp := time.After(20 * time.Second)
	for {
		for i, a := range servers {
			if at, _ := a.ops.Node.Leader(); at.Self && at.Ready {
				servers[0], servers[i] = servers[i], servers[0]
				servers[0].admin = servers[0].token(auth.Admin, "")
				for _, o := range servers[1:] {
					o.admin = servers[0].admin
				}
				return servers
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-giveUp:
			t.Fatal("nobody leads")
		}
	}
}

func startServer(t *testing.T, l net.Listener, transport *raft.InmemTransport, voters []raft.Server, chunks *dir.Store) *alone {
	t.Helper()
	a := &alone{t: t, store: chunks}
	id := l.Addr().String()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store := state.New(state.DefaultLimits())
	hub := nodelink.NewHub(nodelink.HubOptions{ServerID: id, Logger: log})
	a.hub = hub
	route, err := router.New("least-connections")
	if err != nil {
		t.Fatal(err)
	}
	later := &proposer{}
	lead := leader.New(leader.Options{
		ServerID: id, Lease: leader.DefaultLease(), Retention: time.Hour, Log: later, State: store, Hub: hub, Router: route,
		LinkAddresses: func() []string { return nil }, Now: time.Now, Logger: log,
	})
	mem := raft.NewInmemStore()
	timings := cluster.Timings{Heartbeat: 50 * time.Millisecond, Election: 50 * time.Millisecond, Lease: 50 * time.Millisecond, Commit: 5 * time.Millisecond}
	if len(voters) > 1 { // the leader is to stay the leader on a busy machine
		timings.Heartbeat, timings.Election, timings.Lease = 300*time.Millisecond, 300*time.Millisecond, 250*time.Millisecond
	}
	node, err := cluster.Open(cluster.Options{
		ID: id, DataDir: "memory", RaftAddress: id, GRPCAddress: id, LinkAddress: id,
		Servers:       voters,
		Timings:       timings,
		SnapshotEvery: 1 << 20, TrailingLogs: 64, State: store, Lead: lead.Run,
		Stats: func(context.Context, string) (cluster.ServerStats, error) { return cluster.ServerStats{}, nil },
		Fatal: func(err error) { t.Errorf("the server must not go on: %v", err) },
		Now:   time.Now, Logger: log, HCLog: hclogger.New(log, ""),
		Transport: transport, Log: mem, Stable: mem, Snapshots: raft.NewInmemSnapshotStore(),
	})
	if err != nil {
		t.Fatal(err)
	}
	later.Node = node
	authenticator := auth.NewAuthenticator(&TokenStore{State: store}, time.Now)
	a.ops = NewOperations(Options{Node: node, State: store, Leader: lead, Router: route, Auth: authenticator, Peers: NewPeers(nil, "secret"), Chunks: chunks, Now: time.Now, Logger: log})
	api := NewServer(a.ops, ServerOptions{Hub: hub, PeerSecret: "secret", Observe: func(string, codes.Code, time.Duration) {}})
	a.api = api
	ctx, cancel := context.WithCancel(context.Background())
	var background sync.WaitGroup
	background.Go(func() { _ = node.Run(ctx) })
	background.Go(func() { a.ops.Run(ctx) })
	background.Go(func() { _ = api.Serve(l) })
	a.conn, err = grpc.NewClient(id, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	a.stop = sync.OnceFunc(func() {
		a.gone.Store(true)
		_ = a.conn.Close()
		api.Stop()
		cancel()
		background.Wait()
		_ = a.ops.Peers.Close()
		_ = hub.Close(context.Background())
		_ = node.Close()
		_ = transport.Close()
	})
	t.Cleanup(a.stop)
	return a
}

// do commits a command.
func (a *alone) do(c *clusterv1.Command) state.Result {
	a.t.Helper()
	r, err := a.ops.one(a.t.Context(), c)
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

// token makes a token of a role, bound to a namespace unless that is empty.
func (a *alone) token(role auth.Role, namespace string) string {
	a.t.Helper()
	t := auth.Generate()
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_CreateToken{CreateToken: &clusterv1.CreateToken{
		Id: t.ID, Name: string(role), Role: string(role), Namespace: namespace, Hash: t.Hash(),
	}}})
	for _, o := range a.all { // each server knows the tokens that it has applied
		o.eventually("it has caught up", func() bool { return o.gone.Load() || o.ops.State.Index() >= a.ops.State.Index() })
	}
	return t.Reveal()
}

// eventually waits for a condition.
func (a *alone) eventually(what string, came func() bool) {
	a.t.Helper()
	patience := time.After(20 * time.Second)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !came() {
		select {
		case <-poll.C:
		case <-patience:
			a.t.Fatal("waited in vain until " + what)
		}
	}
}

// as is a call with a token.
func (a *alone) as(token string) context.Context {
	ctx, cancel := context.WithTimeout(a.t.Context(), 20*time.Second)
	a.t.Cleanup(cancel)
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}
