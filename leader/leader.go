// Package leader does what only the leader does: it keeps the leases of nodes, tells nodes what to run, hands messages
// to sessions, places what waits, ends what has expired, and collects what is over.
//
// Each time this server is elected, a reign begins: a fresh set of what the leader knows beside the replicated state
// (links, leases, what was sent to whom), owned by one goroutine. Links, the state's change feed, answers of the log and
// a ticker reach it as events; it never waits for any of them. When the leadership ends, the reign is thrown away: what
// mattered is in the state, and nodes tell the next leader their whole inventory.
//
//	reign.go    the goroutine and its events
//	lease.go    heartbeats, leases, lost nodes
//	sync.go     registration, inventory, desired sets, facts
//	deliver.go  messages
//	place.go    sessions that wait for a node
//	moves.go    how many sessions move at once
//	drain.go    nodes that get rid of their sessions
//	farewell.go nodes that ask for it, because their agents are about to end
//	idle.go     sessions that are paused when they are idle
//	calls.go    calls of clients: those of servers that are gone, and those whose deadline has passed
//	expire.go   times to live, deadlines of messages, garbage
//	peer.go     which node may fetch chunks from which other one
//	progress.go how far moves are
//	follow.go   what becomes of this server's links while another one leads
package leader

import (
	"context"
	"log/slog"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/router"
)

// Lease says how long nodes may run their sessions unheard.
type Lease struct {
	// Duration counts on the node from when it sent a heartbeat that was answered.
	Duration time.Duration
	// Margin is what the leader waits beyond it, for clocks that drift and kills that take their time.
	Margin time.Duration
	// Renew is how often nodes ask, and Heartbeat how often they add their health.
	Renew, Heartbeat time.Duration
	// Offline is when a silent node is called so.
	Offline time.Duration
}

// DefaultLease is a lease of 12 s, renewed every 3 s; a node's sessions are elsewhere at most 14 s after it fell silent.
func DefaultLease() Lease {
	return Lease{Duration: 12 * time.Second, Margin: 2 * time.Second, Renew: 3 * time.Second, Heartbeat: 10 * time.Second, Offline: time.Minute}
}

// Log is what the leader needs of the cluster.
type Log interface {
	// ProposeAsync commits commands in the order of the calls; reply must not block.
	ProposeAsync(reply func([]state.Result, error), commands ...*clusterv1.Command) error
	// VerifyLeader returns nil when this server led at some moment after the call began.
	VerifyLeader(ctx context.Context) error
}

// Hub is what the leader needs of the links.
type Hub interface {
	Lead(h nodelink.Handler)
	Follow(open func(ctx context.Context) (nodelink.RelayStream, error))
	Pause()
}

// Options are what a Leader needs.
type Options struct {
	ServerID string
	Lease    Lease
	// Retention is how long ended sessions are kept.
	Retention time.Duration
	// Moves and Restores bound what is under way at once; the defaults where they are zero.
	Moves    MoveLimits
	Restores RestoreLimits
	Log      Log
	State    *state.Store
	Hub      Hub
	Router   *router.Router
	// Servers are those that may have calls of clients, as this leader hears of them. Nil: no server's calls are given to another one.
	Servers func() []cluster.Presence
	// LinkAddresses are told to nodes, so that they know every server.
	LinkAddresses func() []string
	Now           func() time.Time
	Logger        *slog.Logger
}

// Leader runs reigns. Beside Run, its methods say what only a leader knows; on other servers they know nothing.
type Leader struct {
	opts Options

	mu      sync.RWMutex
	present *reign
	live    map[string]Live
	stats   Stats
	// What a reign tells of moves and drains: who waits for its turn, and why a drain waits, by node.
	waiting      map[string]bool
	drainReasons map[string]string
	// progress by session, progressSeq the number of what was told last, progressTold closed when more is.
	progress     map[string]progress
	progressSeq  uint64
	progressTold chan struct{}

	hub     sync.Mutex // held while the hub changes hands; see Follow
	leads   bool
	reigned uint64
}

// Live is what the leader knows of a node beside the state.
type Live struct {
	Linked        bool
	Server        string // that holds the link
	LastHeartbeat time.Time
	CPUUsage      float64
	MemoryUsage   float64
	Active        uint32
	ResponseMS    float64
	UptimeSeconds float64
}

// Stats count what the leader did, over all its reigns on this server.
type Stats struct {
	Heartbeats, Facts, NodesLost, MessagesSent, Placed, LinkEventsDropped uint64
}

// New makes a Leader.
func New(o Options) *Leader {
	if o.Moves == (MoveLimits{}) {
		o.Moves = DefaultMoveLimits()
	}
	if o.Restores == (RestoreLimits{}) {
		o.Restores = DefaultRestoreLimits()
	}
	return &Leader{opts: o, live: map[string]Live{}, progress: map[string]progress{}, progressTold: make(chan struct{}), drainReasons: map[string]string{}}
}

// Run leads until ctx ends.
func (l *Leader) Run(ctx context.Context, term uint64) {
	defer l.take()()
	r := newReign(l, term)
	l.mu.Lock()
	l.present = r
	l.mu.Unlock()
	r.run(ctx)
	l.mu.Lock()
	l.present, l.live, l.progress = nil, map[string]Live{}, map[string]progress{}
	l.waiting, l.drainReasons = nil, map[string]string{}
	l.mu.Unlock()
}

// Live returns what the leader knows of a node.
func (l *Leader) Live(nodeID string) (Live, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	v, ok := l.live[nodeID]
	return v, ok
}

// Stats returns the counts.
func (l *Leader) Stats() Stats {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.stats
}

func (l *Leader) count(f func(*Stats)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.stats)
}

func (l *Leader) setLive(nodeID string, v Live) {
	l.mu.Lock()
	l.live[nodeID] = v
	l.mu.Unlock()
	l.opts.Router.SetHealth(nodeID, router.Health{Linked: v.Linked, CPUUsage: v.CPUUsage, MemoryUsage: v.MemoryUsage})
}

// OpenStream opens a stream of bytes to a session on a node: logs, attach, exec. This server must lead.
func (l *Leader) OpenStream(ctx context.Context, nodeID string, open *nodev1.StreamOpen) (*nodelink.Stream, error) {
	l.mu.RLock()
	r := l.present
	l.mu.RUnlock()
	if r == nil {
		return nil, fault.New(fault.Unavailable, "reach the node: this server does not lead").WithRetry(time.Second)
	}
	type answer struct {
		streams *nodelink.Streams
		ok      bool
	}
	got := make(chan answer, 1)
	r.post(func() {
		n, ok := r.nodes[nodeID]
		if !ok || n.link == nil || !n.synced {
			got <- answer{}
			return
		}
		got <- answer{n.streams, true}
	})
	select {
	case a := <-got:
		if !a.ok {
			return nil, fault.New(fault.Unavailable, "reach the node: it is not linked now; try again when `orchctl nodes list` shows it connected").WithRetry(time.Second)
		}
		return a.streams.Open(open)
	case <-ctx.Done():
		return nil, fault.New(fault.Timeout, "reach the node: %w", ctx.Err())
	case <-r.ended:
		return nil, fault.New(fault.Unavailable, "reach the node: this server does not lead any more").WithRetry(time.Second)
	}
}
