// Node: one server's part in the cluster.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
	wal "github.com/hashicorp/raft-wal"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
)

// Timings are raft's time-outs. A crash of the leader costs Heartbeat to 2×Heartbeat until a follower stands, Election at
// most for the vote, and a round trip. Shorter ones fail over sooner and are disturbed sooner by a slow disk or a busy
// processor.
type Timings struct {
	Heartbeat time.Duration
	Election  time.Duration
	// Lease is how long a leader goes on without hearing from a majority.
	Lease  time.Duration
	Commit time.Duration
	// Stall is how long one write to the log may take before the leader hands over.
	Stall time.Duration
}

// DefaultTimings suit servers in one network with round trips below 10 ms.
func DefaultTimings() Timings {
	return Timings{
		Heartbeat: 300 * time.Millisecond, Election: 300 * time.Millisecond, Lease: 250 * time.Millisecond,
		Commit: 25 * time.Millisecond, Stall: 3 * time.Second,
	}
}

// Options are what a Node needs. The stores and the transport are made from DataDir and Listener unless they are given.
type Options struct {
	// ID names the server for ever; it is its node name.
	ID      string
	Version string
	// DataDir holds the log and the snapshots.
	DataDir string
	// Advertised addresses, as host:port.
	RaftAddress, GRPCAddress, LinkAddress string
	// Listener accepts raft connections, and Dial makes them; both carry TLS where it is used.
	Listener net.Listener
	Dial     func(address string, timeout time.Duration) (net.Conn, error)
	// BootstrapExpect is how many servers form a new cluster together; 0 joins an existing one.
	BootstrapExpect int
	// Gossip is nil where there is no discovery: simulations bootstrap by Servers.
	Gossip *GossipOptions
	// Servers is a fixed first configuration, where there is no discovery.
	Servers []raft.Server
	Timings Timings
	// Autopilot works where there is discovery.
	Autopilot Autopilot
	// SnapshotEvery is the number of entries between snapshots, and TrailingLogs how many stay behind one.
	SnapshotEvery, TrailingLogs uint64
	State                       *state.Store
	// Lead does a leader's duties from when this server leads, and returns soon after ctx ends. It must not block on
	// anything but ctx for long: a server that was deposed waits for it before it may lead again.
	Lead func(ctx context.Context, term uint64)
	// Stats asks another server for the state of its log, for autopilot.
	Stats func(ctx context.Context, address string) (ServerStats, error)
	// Fatal is called when this server must not go on: its log cannot be read or its disk is dead.
	Fatal  func(error)
	Now    func() time.Time
	Logger *slog.Logger
	HCLog  hclog.Logger
	// For simulations.
	Transport raft.Transport
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
}

// Node is one server's part in the cluster.
type Node struct {
	opts      Options
	log       *slog.Logger
	raft      *raft.Raft
	proposer  *proposer
	restoring sync.RWMutex // held while the state is replaced: no entry is given to raft
	verifier  verifier
	contact   *contact
	novice    *novice
	watch     leaderWatch
	notify    chan bool
	gossip    *gossip
	pilot     *autopilot.Autopilot
	pilotInfo pilotInfo
	stall     *stallGuard
	closers   []io.Closer
	closeOnce sync.Once
}

// Retained snapshots, and how much of the log is cached for followers that lag a little.
const (
	retainSnapshots    = 2
	logCacheEntries    = 2048
	maxAppendEntries   = 512
	transportPool      = 3
	transportTimeout   = 10 * time.Second
	dialTimeout        = 3 * time.Second
	maxRaftRPCInFlight = 1 // with pipelining a follower can wedge while heartbeats look healthy (hashicorp/raft#612)
)

// Open starts raft on the server's data. Call Run then, and Close at the end.
func Open(o Options) (*Node, error) {
	n := &Node{opts: o, log: o.Logger, notify: make(chan bool, 64)}
	n.watch.changed = make(chan struct{})
	if err := n.open(); err != nil {
		if n.novice != nil {
			n.novice.end()
		}
		_ = n.closeStores()
		return nil, err
	}
	return n, nil
}

func (n *Node) open() error {
	o := &n.opts
	if o.Log == nil {
		if err := n.openStores(); err != nil {
			return err
		}
	}
	n.stall = newStallGuard(o.Log)
	cached, err := raft.NewLogCache(logCacheEntries, n.stall)
	if err != nil {
		return fmt.Errorf("cache the log: %w", err)
	}
	if o.Gossip != nil {
		id, self := n.selfMeta()
		if n.gossip, err = newGossip(*o.Gossip, id, self, n.log, o.HCLog); err != nil {
			return err
		}
		n.closers = append(n.closers, n.gossip)
	}
	if o.Transport == nil {
		o.Transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:                &streamLayer{Listener: o.Listener, dial: o.Dial, advertise: o.RaftAddress},
			MaxPool:               transportPool,
			MaxRPCsInFlight:       maxRaftRPCInFlight,
			Timeout:               transportTimeout,
			Logger:                o.HCLog.Named("raft-net"),
			ServerAddressProvider: addressProvider{n},
		})
	}
	config := n.raftConfig()
	has, err := raft.HasExistingState(cached, o.Stable, o.Snapshots)
	if err != nil {
		return fmt.Errorf("read the log in %s: %w", o.DataDir, err)
	}
	if n.novice, err = newNovice(o.Transport, !has && len(o.Servers) == 0, cached, o.Stable, n.log); err != nil {
		return fmt.Errorf("start raft in %s: %w", o.DataDir, err)
	}
	if n.contact, err = newContact(n.novice, o.Now); err != nil {
		return fmt.Errorf("start raft in %s: %w", o.DataDir, err)
	}
	n.raft, err = raft.NewRaft(config, &fsm{store: o.State, fatal: o.Fatal}, cached, o.Stable, o.Snapshots, n.contact)
	if err != nil {
		return fmt.Errorf("start raft in %s: %w", o.DataDir, err)
	}
	if !has && len(o.Servers) > 0 {
		if err := n.raft.BootstrapCluster(raft.Configuration{Servers: o.Servers}).Error(); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
	}
	if n.gossip != nil {
		n.gossip.update(context.Background(), func(m *memberMeta) { m.Formed = has }) // nobody is joined yet, who would be waited for
		n.pilot = n.newAutopilot()
	}
	n.verifier.ask = n.confirm
	n.proposer = newProposer(n.applyEntry, o.Now)
	return nil
}

func (n *Node) raftConfig() *raft.Config {
	o := n.opts
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(o.ID)
	c.HeartbeatTimeout, c.ElectionTimeout = o.Timings.Heartbeat, o.Timings.Election
	c.LeaderLeaseTimeout, c.CommitTimeout = o.Timings.Lease, o.Timings.Commit
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.SnapshotThreshold, c.TrailingLogs = o.SnapshotEvery, o.TrailingLogs
	c.SnapshotInterval = 30 * time.Second
	c.NotifyCh = n.notify
	c.Logger = o.HCLog.Named("raft")
	c.NoLegacyTelemetry = true
	return c
}

func (n *Node) openStores() error {
	o := &n.opts
	dir := filepath.Join(o.DataDir, "raft")
	if err := makeDir(filepath.Join(dir, "wal")); err != nil {
		return err
	}
	w, err := wal.Open(filepath.Join(dir, "wal"), wal.WithLogger(o.HCLog.Named("wal")))
	if err != nil {
		return fmt.Errorf("open the log in %s: %w", dir, err)
	}
	n.closers = append(n.closers, w)
	o.Log, o.Stable = w, w
	o.Snapshots, err = raft.NewFileSnapshotStoreWithLogger(dir, retainSnapshots, o.HCLog.Named("snapshot"))
	if err != nil {
		return fmt.Errorf("open the snapshots in %s: %w", dir, err)
	}
	return nil
}

// Run takes part in the cluster until ctx ends: it discovers peers, bootstraps, and leads when it is elected.
func (n *Node) Run(ctx context.Context) error {
	var wait sync.WaitGroup
	run := func(f func(context.Context)) { wait.Go(func() { f(ctx) }) }
	run(n.watchLeadership)
	if n.opts.Timings.Stall > 0 {
		run(n.watchStall)
	}
	if n.gossip != nil {
		run(func(ctx context.Context) { n.gossip.run(ctx, n.missing) })
		run(n.bootstrap)
		run(n.admit)
	}
	wait.Wait()
	return nil
}

// Close stops raft and closes the stores. Run must have returned.
func (n *Node) Close() error {
	var err error
	n.closeOnce.Do(func() {
		// Before raft, which leaves what waits for an answer without one when it is shut down. A leader that has lost its
		// majority steps down by itself and answers then.
		n.proposer.close()
		n.verifier.wait.Wait()
		err = n.raft.Shutdown().Error()
		n.novice.end()
		if t, ok := n.opts.Transport.(io.Closer); ok {
			err = errors.Join(err, t.Close())
		}
		if t, ok := n.opts.Transport.(interface{ CloseStreams() }); ok {
			t.CloseStreams() // connections that wait to be used again
		}
		err = errors.Join(err, n.closeStores())
	})
	return err
}

func (n *Node) closeStores() error {
	var errs []error
	for _, c := range n.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// applyEntry gives raft an entry.
func (n *Node) applyEntry(data []byte) raft.ApplyFuture {
	n.restoring.RLock()
	defer n.restoring.RUnlock()
	return n.raft.Apply(data, enqueueTimeout)
}

// Propose commits commands in one entry, in order, and returns one result for each. The error is about the entry; each
// result has its own. This server must lead.
func (n *Node) Propose(ctx context.Context, commands ...*clusterv1.Command) ([]state.Result, error) {
	return n.proposer.propose(ctx, commands)
}

// ProposeAsync is Propose for those who cannot wait: proposals are committed in the order of the calls. The reply comes
// from another goroutine and must not block; it does not come when the returned error is not nil, nor after Close.
func (n *Node) ProposeAsync(reply func([]state.Result, error), commands ...*clusterv1.Command) error {
	return n.proposer.proposeAsync(commands, reply)
}

// VerifyLeader returns nil when this server led at some moment after the call began; its state then holds every change
// that was acknowledged before the call.
func (n *Node) VerifyLeader(ctx context.Context) error {
	if l, _ := n.watch.get(); !l.Self || !l.Ready {
		return fault.New(fault.Unavailable, "confirm leadership: this server does not lead").WithRetry(retryWhenFull)
	}
	return n.verifier.verify(ctx)
}

// Leader returns who leads, and a channel that is closed when that changes.
func (n *Node) Leader() (Leader, <-chan struct{}) { return n.watch.get() }

// ID is the server's own.
func (n *Node) ID() string { return n.opts.ID }

// Term is raft's present term.
func (n *Node) Term() uint64 { return n.raft.CurrentTerm() }

// CommitIndex is the last entry known to be committed.
func (n *Node) CommitIndex() uint64 { return n.raft.CommitIndex() }

// AppliedIndex is the last entry handed to the state machine.
func (n *Node) AppliedIndex() uint64 { return n.raft.AppliedIndex() }

// ProposerStats are entries and commands proposed since the start, and proposals refused because the queue was full.
func (n *Node) ProposerStats() (entries, commands, full uint64, queued int) {
	p := n.proposer
	return p.entries.Load(), p.commands.Load(), p.full.Load(), len(p.queue)
}

// streamLayer carries raft over connections that the options make.
type streamLayer struct {
	net.Listener
	dial      func(address string, timeout time.Duration) (net.Conn, error)
	advertise string
}

// Dial looks a name up each time. An address at which nobody is any more may swallow what is sent there, and the name may lead
// elsewhere by now, so it is given up soon.
func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.dial(string(address), min(timeout, dialTimeout))
}

// Addr is the advertised address: it goes into what peers are told, and may be a name that only they resolve.
func (s *streamLayer) Addr() net.Addr { return advertised(s.advertise) }

type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// addressProvider lets raft find a peer under the address that it gossips now, so that all of them may change.
type addressProvider struct{ n *Node }

func (p addressProvider) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if p.n.gossip != nil {
		if m, ok := p.n.gossip.member(string(id)); ok && m.Meta.RaftAddress != "" {
			return raft.ServerAddress(m.Meta.RaftAddress), nil
		}
	}
	return "", fmt.Errorf("no gossiped address for server %s", id) // raft then uses the configuration's
}
