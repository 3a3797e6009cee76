// A server: construction, running, and the end in good order.

package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/gateway"
	"github.com/neolith/orchestrator/gateway/mcp"
	"github.com/neolith/orchestrator/gateway/record"
	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/supervise"
	"github.com/neolith/orchestrator/leader"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/provider"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/telemetry"
	"github.com/neolith/orchestrator/telemetry/hclogger"
)

// shutdownTime bounds the end of a server, and in it leaveTime the handing over, and callsTime what is still being answered.
const shutdownTime, leaveTime, callsTime = 9 * time.Second, 4 * time.Second, 3 * time.Second

// server is one orchestrator. It is built in the order of the numbers, and ends in the reverse.
//
//	 client :8079        operator :8077            node :8078
//	      │                   │                        │
//	┌─ 9 http ─┐     ┌─ 8 gateway (gRPC) ─┐     ┌─ 9 http ─┐
//	│ health   │     │ guard · forward    │     │          │
//	│ metrics  │     │ operations         │     │          │
//	└──────────┘     └──┬─────────┬───────┘     └────┬─────┘
//	                    │         │ streams          │ links
//	                    │    ┌────▼─────┐      ┌─────▼────┐
//	                    │    │ 6 leader ◄──────► 4 hub    │──► the leader's hub
//	                    │    └─┬──────┬─┘      └──────────┘
//	                    │      │   ┌──▼───────┐
//	                    │      │   │ 5 router │
//	               ┌────▼──────▼┐  └──────────┘
//	 :8075 :8076 ──► 7 cluster  │ proposes, leads
//	               └────┬───────┘
//	               ┌────▼─────┐
//	               │ 3 state  │ changes ──► leader, router, operations
//	               └──────────┘
//	 1 data directory    2 certificates
type server struct {
	cfg Config
	log *slog.Logger

	data      *cluster.DataDir
	certs     *auth.Certs // nil without TLS
	store     *state.Store
	hub       *nodelink.Hub
	leader    *leader.Leader
	node      *cluster.Node
	peers     *gateway.Peers
	chunks    *chunkStore
	upkeep    *upkeep
	secret    string // of the servers, where there is no TLS
	ops       *gateway.Operations
	api       *gateway.Server
	gateway   *socket.Hub
	calls     *dispatch.Dispatcher // those that the cluster keeps
	callLog   *dispatch.ClusterLog
	mcp       *mcp.Handler
	auth      *auth.Authenticator
	registry  *prometheus.Registry
	listeners listeners
	linkHTTP  *http.Server
	userHTTP  *http.Server

	fatal    chan error
	stopping atomic.Bool // it was told to stop
	level    level       // whether its state has caught up since it started
	pulse    pulse       // whether it still applies what is committed
	daemons  *supervise.Tree
	models   *provider.Pools

	recorder *recorder.Recorder // nil where nothing is recorded, like what belongs to it
	sink     recorder.Sink
	feed     *record.Feed
}

type listeners struct{ raft, grpc, link, client net.Listener }

// newServer builds a server; nothing serves yet. Close must be called also after an error of run.
func newServer(ctx context.Context, cfg Config, log *slog.Logger) (*server, error) {
	s := &server{cfg: cfg, log: log, fatal: make(chan error, 1)}
	if err := s.prepare(ctx); err != nil {
		s.closeParts()
		return nil, err
	}
	return s, nil
}

func (s *server) prepare(ctx context.Context) (err error) {
	cfg := s.cfg
	if err := s.checkPorts(); err != nil {
		return err
	}
	if s.data, err = cluster.OpenDataDir(cfg.DataDir, cfg.Cluster, cfg.Name); err != nil {
		return err
	}
	if cfg.TLS.CertFile != "" || cfg.TLS.CAFile != "" {
		if s.certs, err = auth.LoadCerts(auth.Files{Cert: cfg.TLS.CertFile, Key: cfg.TLS.KeyFile, CA: cfg.TLS.CAFile}, auth.DefaultRecheck, s.log, time.Now); err != nil {
			return err
		}
	}
	s.store = state.New(state.DefaultLimits())
	s.auth = auth.NewAuthenticator(&gateway.TokenStore{State: s.store}, time.Now)
	return s.build(ctx)
}

// checkPorts refuses to open the cluster to other machines unprotected.
func (s *server) checkPorts() error {
	l := s.cfg.Listen
	tlsOn := s.cfg.TLS.CertFile != ""
	for _, p := range []struct {
		setting, address string
		policy           auth.ListenPolicy
	}{
		{"listen.gossip", l.Gossip, auth.ListenPolicy{TLS: s.cfg.GossipKeyFile != "", Tokens: true}},
		{"listen.raft", l.Raft, auth.ListenPolicy{TLS: tlsOn, Tokens: tlsOn}},
		{"listen.grpc", l.GRPC, auth.ListenPolicy{TLS: tlsOn, Tokens: s.cfg.Auth.Tokens}},
		{"listen.link", l.Link, auth.ListenPolicy{TLS: tlsOn, Tokens: s.cfg.Auth.Tokens}},
		{"listen.client", l.Client, auth.ListenPolicy{TLS: tlsOn, Tokens: s.cfg.Auth.Tokens}},
	} {
		p.policy.Insecure = s.cfg.Insecure
		warning, err := p.policy.Check(p.setting, p.address)
		if err != nil {
			return err
		}
		if warning != "" {
			s.log.Warn(warning)
		}
	}
	return nil
}

// tlsConfigs are the conversations of a server; nil without TLS.
type tlsConfigs struct{ grpc, http, raftAccept, peerDial *tls.Config }

func (s *server) tls() (c tlsConfigs, err error) {
	if s.certs == nil {
		return c, nil
	}
	if c.raftAccept, c.peerDial, err = s.certs.PeerTLS(); err != nil {
		return c, err
	}
	if c.grpc, err = s.certs.ServerTLS(auth.OptionalClientCert); err != nil {
		return c, err
	}
	c.http, err = s.certs.ServerTLS(auth.OptionalClientCert)
	return c, err
}

func (s *server) build(ctx context.Context) error {
	cfg := s.cfg
	tlsc, err := s.tls()
	if err != nil {
		return err
	}
	if err := s.listen(tlsc); err != nil {
		return err
	}
	key, err := readGossipKey(cfg.GossipKeyFile)
	if err != nil {
		return err
	}
	s.secret = peerSecret(key)
	s.peers = gateway.NewPeers(tlsc.peerDial, s.secret)
	s.hub = nodelink.NewHub(nodelink.HubOptions{ServerID: cfg.Name, Authorize: s.authorizeLink, Logger: s.log, MaxLinks: cfg.Link.MaxLinks})
	route, err := router.New(cfg.Placement.Strategy)
	if err != nil {
		return err
	}
	log := &proposals{}
	s.leader = s.newLeader(log, route)
	gossipAddress, err := cluster.ResolveAdvertised(ctx, cfg.Advertise.Gossip, cfg.Listen.Gossip, cluster.SystemLookup, s.log)
	if err != nil {
		return fmt.Errorf("advertise.gossip: %w", err)
	}
	raftAddress, grpcAddress, linkAddress := cfg.advertised()
	build := telemetry.ThisBuild()
	s.registry = telemetry.NewRegistry(build)
	if err := s.openRecorder(ctx); err != nil {
		return err
	}
	s.node, err = cluster.Open(cluster.Options{
		ID: cfg.Name, Version: build.Version, DataDir: cfg.DataDir,
		RaftAddress: raftAddress, GRPCAddress: grpcAddress, LinkAddress: linkAddress,
		Listener: s.listeners.raft, Dial: raftDialer(tlsc.peerDial), BootstrapExpect: cfg.BootstrapExpect,
		Gossip: &cluster.GossipOptions{BindAddress: cfg.Listen.Gossip, AdvertiseAddress: gossipAddress, Key: key, Join: cfg.Join},
		Timings: cluster.Timings{
			Heartbeat: cfg.Raft.HeartbeatTimeout, Election: cfg.Raft.ElectionTimeout, Lease: cfg.Raft.LeaseTimeout,
			Commit: cfg.Raft.CommitTimeout, Stall: cfg.Raft.StallTimeout,
		},
		Autopilot:     cfg.autopilot(),
		SnapshotEvery: uint64(cfg.Raft.SnapshotEntries), TrailingLogs: uint64(cfg.Raft.TrailingEntries),
		State: s.store, Lead: s.lead, Stats: s.peers.Stats, Fatal: s.fail, Now: time.Now,
		Logger: s.log, HCLog: hclogger.New(s.log, ""),
	})
	if err != nil {
		return err
	}
	log.Node = s.node
	if s.chunks, err = openChunks(cfg, s.secret, tlsc.peerDial, s.node.Members, s.log); err != nil {
		return err
	}
	if err := s.openProviders(); err != nil {
		return err
	}
	s.upkeep = &upkeep{chunks: s.chunks, view: s.store.View, node: s.node, log: s.log, repairBytesPerSecond: int64(cfg.Chunks.RepairBytesPerSecond)}
	s.ops = gateway.NewOperations(gateway.Options{
		Node: s.node, State: s.store, Leader: s.leader, Router: route, Auth: s.auth, Peers: s.peers, Chunks: s.chunks,
		Daemons: s.daemonProtos, Providers: s.models, Record: s.record(),
		Version: build.Version, PID: os.Getpid(), Now: time.Now, Logger: s.log,
	})
	s.api = gateway.NewServer(s.ops, gateway.ServerOptions{
		Hub: s.hub, TLS: tlsc.grpc, PeerSecret: s.secret, Open: !cfg.Auth.Tokens, Observe: s.callObserver(),
	})
	if err := s.openGateway(build.Version); err != nil {
		return err
	}
	s.superviseParts()
	s.registerMetrics()
	s.linkHTTP, s.userHTTP = s.httpServers(tlsc.http)
	return nil
}

// newLeader builds what works while this server leads; it proposes to a log that has no node yet.
func (s *server) newLeader(log *proposals, route *router.Router) *leader.Leader {
	cfg := s.cfg
	return leader.New(leader.Options{
		ServerID:  cfg.Name,
		Lease:     leader.Lease{Duration: cfg.Link.Lease, Margin: cfg.Link.Margin, Renew: cfg.Link.Renew, Heartbeat: cfg.Link.Heartbeat, Offline: cfg.Link.Offline},
		Moves:     leader.MoveLimits{PerNode: cfg.Migration.MaxPerNode, PerCluster: cfg.Migration.MaxPerCluster},
		Restores:  leader.RestoreLimits{PerSecond: cfg.Failover.RestoresPerSecond, PerNode: cfg.Failover.RestoresPerNode},
		Retention: cfg.Sessions.Retention, Log: log, State: s.store, Hub: s.hub, Router: route,
		Servers:       func() []cluster.Presence { return s.node.Presences() },
		LinkAddresses: func() []string { return s.node.LinkAddresses() }, Now: time.Now, Logger: s.log,
	})
}

// proposals lets the leader be built before the node that it proposes to.
type proposals struct{ *cluster.Node }

func (s *server) listen(tlsc tlsConfigs) (err error) {
	for _, p := range []struct {
		setting, address string
		to               *net.Listener
	}{
		{"listen.raft", s.cfg.Listen.Raft, &s.listeners.raft}, {"listen.grpc", s.cfg.Listen.GRPC, &s.listeners.grpc},
		{"listen.link", s.cfg.Listen.Link, &s.listeners.link}, {"listen.client", s.cfg.Listen.Client, &s.listeners.client},
	} {
		if *p.to, err = net.Listen("tcp", p.address); err != nil {
			return fault.New(fault.Invalid, "%s: %w; choose another address, or end what uses it", p.setting, err)
		}
	}
	if tlsc.raftAccept != nil {
		s.listeners.raft = tls.NewListener(s.listeners.raft, tlsc.raftAccept)
	}
	return nil
}

func raftDialer(c *tls.Config) func(string, time.Duration) (net.Conn, error) {
	return func(address string, timeout time.Duration) (net.Conn, error) {
		d := &net.Dialer{Timeout: timeout}
		if c == nil {
			return d.Dial("tcp", address)
		}
		return tls.DialWithDialer(d, "tcp", address, c)
	}
}

// readGossipKey reads 32 bytes in hexadecimal; no file means no key.
func readGossipKey(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, "gossip_key_file: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != 32 {
		return nil, fault.New(fault.Invalid, "gossip_key_file: %s does not hold 32 bytes in hexadecimal; make it with `openssl rand -hex 32`", file)
	}
	return key, nil
}

// peerSecret is what servers know each other by where there is no TLS. It is drawn from the gossip key, which it does not give away to who
// overhears it. Without a key it is the same everywhere, and proves nothing.
func peerSecret(gossipKey []byte) string {
	m := hmac.New(sha256.New, gossipKey)
	m.Write([]byte("orchestrator peer"))
	return hex.EncodeToString(m.Sum(nil))
}

// authorizeLink lets nodes in, by certificate or by token.
func (s *server) authorizeLink(r *http.Request) (string, error) {
	if !s.cfg.Auth.Tokens {
		return "", nil
	}
	if h := r.Header.Get("Authorization"); h == "" && r.TLS != nil {
		if id, ok := auth.PeerIdentity(r.TLS); ok {
			return id.Name, id.Authorize(auth.MethodLink)
		}
	}
	text, err := auth.Bearer(r.Header.Get("Authorization"))
	if err != nil {
		return "", err
	}
	id, err := s.auth.Authenticate(text)
	if err != nil {
		return "", err
	}
	return id.Name, id.Authorize(auth.MethodLink)
}

// fail ends the server; the first reason counts.
func (s *server) fail(err error) {
	select {
	case s.fatal <- err:
	default:
	}
}

// ballastBytes is memory that is reserved and never touched, so it takes no room. The collector starts when the heap has
// doubled: with a live heap of a few MiB that is many times a second under load, and a quarter of a server's time.
const ballastBytes = 48 << 20

// run serves until ctx ends or something fails for good, and ends in good order.
func (s *server) run(ctx context.Context) error {
	ballast := make([]byte, ballastBytes)
	defer runtime.KeepAlive(ballast)
	var wait sync.WaitGroup
	serve := func(what string, f func() error) {
		wait.Go(func() {
			if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	running, stop := context.WithCancel(context.Background())
	defer stop()
	background := make(chan struct{}) // closed when nothing of it runs any more
	go func() {
		defer close(background)
		var both sync.WaitGroup
		both.Go(func() { s.daemons.Run(running) })
		_ = s.node.Run(running)
		both.Wait()
	}()
	serve("grpc", func() error { return s.api.Serve(s.listeners.grpc) })
	serve("link", func() error { return s.linkHTTP.Serve(s.listeners.link) })
	serve("client", func() error { return s.userHTTP.Serve(s.listeners.client) })
	s.log.Info("serving", "server", s.cfg.Name, "grpc", s.cfg.Listen.GRPC, "link", s.cfg.Listen.Link, "client", s.cfg.Listen.Client, "tls", s.certs != nil, "pid", os.Getpid())
	var err error
	select {
	case <-ctx.Done():
		s.log.Info("stopping")
	case err = <-s.fatal:
		s.log.Error("stopping", "error", err)
	}
	s.shutdown(stop, background)
	wait.Wait()
	return err
}

// shutdown ends what newServer built, in the reverse order: first it is out of service, so that others are asked; then the leadership
// is handed over; then what is under way ends, and who is linked goes elsewhere; then the rest.
func (s *server) shutdown(stop func(), background <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	s.stopping.Store(true)
	s.api.Health.Shutdown()
	s.leave(ctx)
	var wait sync.WaitGroup
	wait.Go(func() {
		calls, cancel := context.WithTimeout(ctx, callsTime)
		defer cancel()
		defer context.AfterFunc(calls, s.releaseRecord)() // who waits for room in it would wait beyond the end
		s.closeGateway(calls)
	})
	wait.Go(func() { s.api.End(callsTime) })
	wait.Go(func() { _ = s.hub.Close(ctx) })
	wait.Wait()
	if err := s.linkHTTP.Shutdown(ctx); err != nil {
		_ = s.linkHTTP.Close() // chunks that take too long; who sends or fetches them asks another server
	}
	s.leave(ctx) // it may have been elected meanwhile
	_ = s.userHTTP.Shutdown(ctx)
	_ = s.userHTTP.Close()
	s.releaseRecord()
	stop()
	<-background
	s.closeParts()
	s.log.Info("stopped")
}

// leave has the node leave, in the time for it.
func (s *server) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	s.node.Leave(ctx)
}

// closeParts closes what was opened, and is not closed yet.
func (s *server) closeParts() {
	if s.mcp != nil {
		s.closeGateway(context.Background())
	}
	if s.callLog != nil {
		s.callLog.Close()
	}
	s.closeRecorder()
	if s.peers != nil {
		_ = s.peers.Close()
	}
	if s.models != nil {
		if err := s.models.Close(); err != nil {
			s.log.Warn("close the pools of providers", "error", err)
		}
	}
	if s.chunks != nil {
		if err := s.chunks.Close(); err != nil {
			s.log.Warn("close the chunks", "error", err)
		}
	}
	if s.node != nil {
		if err := s.node.Close(); err != nil {
			s.log.Warn("close the log", "error", err)
		}
	}
	for _, l := range []net.Listener{s.listeners.raft, s.listeners.grpc, s.listeners.link, s.listeners.client} {
		if l != nil {
			_ = l.Close()
		}
	}
	if s.data != nil {
		_ = s.data.Close()
	}
}

// followLeader points the hub at whoever leads.
func (s *server) followLeader(ctx context.Context) {
	s.leader.Follow(ctx, s.node, s.peers.Relay, func(l cluster.Leader) { s.api.Health.SetServingStatus("", serving(l)) })
}
