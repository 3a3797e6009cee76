// Discovery: memberlist says who is there and under which addresses. It is a hint; raft decides who is a member.

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"

	"github.com/neolith/orchestrator/internal/fault"
)

// GossipOptions say where to gossip and with whom.
type GossipOptions struct {
	// BindAddress is host:port; AdvertiseAddress is what peers are told, the same when empty, and without a name in it: see
	// ResolveAdvertised.
	BindAddress, AdvertiseAddress string
	// Key encrypts gossip: 16, 24 or 32 bytes; empty for none.
	Key []byte
	// Join are gossip addresses of peers, as host:port, tried until all servers of the cluster are there, and again when one is missing. A
	// name may stand for many, and for this server too.
	Join []string
	// Lookup resolves the names in Join; SystemLookup when nil.
	Lookup Lookup
	// tune changes memberlist's own settings; for tests.
	tune func(*memberlist.Config)
}

// memberMeta is what a server says of itself. It travels as JSON with short keys: memberlist allows 512 bytes.
type memberMeta struct {
	RaftAddress string `json:"r"`
	GRPCAddress string `json:"g"`
	LinkAddress string `json:"l"`
	Version     string `json:"v"`
	PID         int    `json:"p"`
	Expect      int    `json:"e,omitempty"`
	// Formed: the server has raft state, so a cluster exists already.
	Formed bool `json:"f,omitempty"`
	// Leaving: the server is about to stop, and will not be missed. memberlist does not tell who has left from who failed.
	Leaving bool `json:"x,omitempty"`
}

// What discovery says of a member.
const (
	memberAlive  = "alive"
	memberFailed = "failed"
	memberLeft   = "left"
)

type gossipMember struct {
	ID     string
	Status string
	Meta   memberMeta
}

const (
	gossipLeaveTimeout = 500 * time.Millisecond
	// gossipTell is for how long news of this server spread before they are told anew, or its goodbye takes their place: a few rounds of gossip.
	gossipTell = 500 * time.Millisecond
	// gossipTells is how often it tells them at most. Memberlist may lose what is to be told where other news of the same length come in
	// just then (hashicorp/memberlist#322), and by its silence says so.
	gossipTells = 3
	// gossipRejoin is how often a server that is alone looks for others, and gossipRejoinMissing how often one that misses some: they may
	// have come back elsewhere, or belong to a part of the cluster that found itself without this one.
	gossipRejoin, gossipRejoinMissing = 2 * time.Second, 4 * time.Second
	// gossipReclaim: a server that was found dead and comes back under a new address takes its name over after this time. One that left
	// does so at once.
	gossipReclaim = time.Second
	// gossipTCPTimeout bounds one exchange of what two servers know, which is little.
	gossipTCPTimeout = 3 * time.Second
)

// gossip tucks memberlist behind a few methods. It remembers members that failed or left.
type gossip struct {
	opts GossipOptions
	log  *slog.Logger
	list *memberlist.Memberlist
	at   string // where this server gossips

	saying  sync.Mutex  // held while the others are told
	leaving atomic.Bool // it has said goodbye, or is about to

	mu      sync.Mutex
	self    memberMeta
	known   map[string]gossipMember
	changed chan struct{}
}

func (n *Node) selfMeta() (id string, m memberMeta) {
	o := n.opts
	return o.ID, memberMeta{
		RaftAddress: o.RaftAddress, GRPCAddress: o.GRPCAddress, LinkAddress: o.LinkAddress,
		Version: clipVersion(o.Version), PID: pid(), Expect: o.BootstrapExpect,
	}
}

func newGossip(o GossipOptions, id string, self memberMeta, log *slog.Logger, hlog hclog.Logger) (*gossip, error) {
	if o.Lookup == nil {
		o.Lookup = SystemLookup
	}
	g := &gossip{opts: o, log: log, self: self, known: map[string]gossipMember{}, changed: make(chan struct{})}
	most := self
	most.Formed, most.Leaving = true, true
	if b, err := json.Marshal(most); err != nil || len(b) > memberlist.MetaMaxSize {
		return nil, fault.New(fault.Invalid, "gossip: the addresses of this server are %d bytes as metadata, more than %d; use shorter names", len(b), memberlist.MetaMaxSize)
	}
	c := memberlist.DefaultLANConfig()
	c.Name = id
	host, port, err := splitHostPort(o.BindAddress)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	c.BindAddr, c.BindPort = host, port
	c.AdvertisePort = port
	if o.AdvertiseAddress != "" {
		if host, port, err = splitHostPort(o.AdvertiseAddress); err != nil {
			return nil, fmt.Errorf("gossip: %w", err)
		}
		c.AdvertiseAddr, c.AdvertisePort = host, port
	}
	c.Delegate, c.Events = g, g
	c.Logger = hlog.Named("gossip").StandardLogger(&hclog.StandardLoggerOptions{InferLevels: true})
	c.DeadNodeReclaimTime, c.TCPTimeout = gossipReclaim, gossipTCPTimeout
	c.EnableCompression = false
	if len(o.Key) > 0 {
		c.SecretKey = o.Key
		c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	}
	if o.tune != nil {
		o.tune(c)
	}
	if g.list, err = memberlist.Create(c); err != nil {
		return nil, fault.New(fault.Invalid, "gossip: listen on %s: %w; choose another address or end what uses it", o.BindAddress, err)
	}
	g.at = g.list.LocalNode().Address() // later it may be read only under memberlist's own lock
	return g, nil
}

// run joins peers, and again whenever this server finds itself alone, or missing says that somebody is not there.
func (g *gossip) run(ctx context.Context, missing func() bool) {
	tick := time.NewTicker(gossipRejoin)
	defer tick.Stop()
	var last time.Time
	for {
		alone := g.list.NumMembers() < 2
		if len(g.opts.Join) > 0 && !g.leaving.Load() && (alone || missing() && time.Since(last) >= gossipRejoinMissing) {
			last = time.Now()
			if _, err := g.join(ctx, g.opts.Join); err != nil {
				g.log.Debug("no peer answers yet", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// join tells peers of this server, and learns what they know, all of them at once: one that is gone must not delay the others. It
// returns how many were reached.
func (g *gossip) join(ctx context.Context, peers []string) (int, error) {
	addresses, errs := resolve(ctx, g.opts.Lookup, peers)
	addresses = slices.DeleteFunc(addresses, func(a string) bool {
		return a == g.at || a == g.opts.BindAddress || a == g.opts.AdvertiseAddress
	})
	var mu sync.Mutex
	var wait sync.WaitGroup
	reached := 0
	for _, a := range addresses {
		wait.Go(func() {
			n, err := g.list.Join([]string{a})
			mu.Lock()
			defer mu.Unlock()
			reached += n
			if err != nil {
				errs = append(errs, err)
			}
		})
	}
	wait.Wait()
	if reached == 0 && len(errs) > 0 {
		return 0, fault.New(fault.Unavailable, "join %s: %s", strings.Join(peers, ", "), oneLine(errors.Join(errs...)))
	}
	return reached, nil
}

// members returns all that are known, ordered by id.
func (g *gossip) members() []gossipMember {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]gossipMember, 0, len(g.known))
	for _, m := range g.known {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b gossipMember) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (g *gossip) member(id string) (gossipMember, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.known[id]
	return m, ok
}

// changes returns a channel that is closed at the next change.
func (g *gossip) changes() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// update changes what this server says of itself, and waits a little until that has spread. Who has left says nothing more: it would be taken
// for one that is back.
func (g *gossip) update(ctx context.Context, change func(*memberMeta)) {
	g.saying.Lock()
	defer g.saying.Unlock()
	if !g.leaving.Load() {
		g.say(ctx, change)
	}
}

// say is update, for the last word too. saying is held.
func (g *gossip) say(ctx context.Context, change func(*memberMeta)) {
	g.mu.Lock()
	change(&g.self)
	g.mu.Unlock()
	for range gossipTells {
		err := g.list.UpdateNode(atMost(ctx, gossipTell))
		if err == nil || ctx.Err() != nil {
			return
		}
		g.log.Debug("gossip own changes", "error", err)
	}
}

// atMost is the time until ctx ends, up to d. It is never 0, which is for ever to memberlist.
func atMost(ctx context.Context, d time.Duration) time.Duration {
	if t, ok := ctx.Deadline(); ok {
		d = max(min(d, time.Until(t)), time.Millisecond)
	}
	return d
}

// leave tells the others that this server goes, so that they need not find out. It is said once.
func (g *gossip) leave(ctx context.Context) {
	if g.leaving.Swap(true) {
		return
	}
	g.saying.Lock() // behind what is being said
	defer g.saying.Unlock()
	g.say(ctx, func(m *memberMeta) { m.Leaving = true })
	if err := g.list.Leave(atMost(ctx, gossipLeaveTimeout)); err != nil {
		g.log.Debug("leave gossip", "error", err)
	}
}

// Close ends gossip.
func (g *gossip) Close() error { return g.list.Shutdown() }

// NodeMeta implements memberlist.Delegate.
func (g *gossip) NodeMeta(limit int) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, err := json.Marshal(g.self)
	if err != nil || len(b) > limit {
		return nil
	}
	return b
}

// NotifyMsg implements memberlist.Delegate; nothing is sent this way.
func (g *gossip) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (g *gossip) GetBroadcasts(_, _ int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (g *gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (g *gossip) MergeRemoteState([]byte, bool) {}

// NotifyJoin implements memberlist.EventDelegate.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.note(n, memberAlive) }

// NotifyUpdate implements memberlist.EventDelegate.
func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.note(n, memberAlive) }

// NotifyLeave implements memberlist.EventDelegate; memberlist calls it for failed members too.
func (g *gossip) NotifyLeave(n *memberlist.Node) { g.note(n, memberFailed) }

func (g *gossip) note(n *memberlist.Node, status string) {
	var meta memberMeta
	if len(n.Meta) > 0 {
		if err := json.Unmarshal(n.Meta, &meta); err != nil {
			g.log.Warn("a member gossips metadata that cannot be read", "member", n.Name, "error", err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if old, ok := g.known[n.Name]; ok && meta.RaftAddress == "" {
		meta = old.Meta
	}
	if meta.Leaving {
		status = memberLeft
	}
	g.known[n.Name] = gossipMember{ID: n.Name, Status: status, Meta: meta}
	close(g.changed)
	g.changed = make(chan struct{})
}

// forget drops a member that was removed from the cluster.
func (g *gossip) forget(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m, ok := g.known[id]; ok && m.Status != memberAlive {
		delete(g.known, id)
	}
}

func splitHostPort(a string) (string, int, error) {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return "", 0, fault.New(fault.Invalid, "address %q: %w", a, err)
	}
	p, err := strconv.Atoi(port)
	if err != nil || p < 0 || p > 65535 {
		return "", 0, fault.New(fault.Invalid, "address %q: %q is not a port", a, port)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	return host, p, nil
}
