// Autopilot: new servers become voters once they are stable, dead ones are removed while a majority of the rest remains.

package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// Autopilot says when servers are taken for healthy, for stable, and for dead.
type Autopilot struct {
	// Every is how often the leader looks at the servers; what it does about them, it does at most 2.5 times later.
	Every time.Duration
	// Stable is how long a new server must be healthy before it becomes a voter.
	Stable time.Duration
	// RemoveAfter is how long a server must be dead before it is removed, so that a restart or a reboot is not a removal.
	RemoveAfter time.Duration
	// RemoveLeftAfter is the same for a server that left in good order: most often it starts again, and otherwise its place was given up.
	// It may be shorter, for who was removed and comes back is taken in again.
	RemoveLeftAfter time.Duration
	// MinVoters is how many voters a removal must leave. A cluster of three with a minimum of three keeps a dead server
	// until another has taken its place: of two voters none may fail either, and the dead one may yet come back.
	MinVoters uint
}

// DefaultAutopilot suits clusters of three and five.
func DefaultAutopilot() Autopilot {
	return Autopilot{Every: 2 * time.Second, Stable: 5 * time.Second, RemoveAfter: 5 * time.Minute, RemoveLeftAfter: time.Minute, MinVoters: 3}
}

// Autopilot's other thresholds.
const (
	pilotLastContact = 2 * time.Second
	pilotMaxTrailing = 10_000 // entries
)

// pilotInfo is what autopilot last found.
type pilotInfo struct {
	mu        sync.Mutex
	healthy   map[string]bool
	contact   map[string]time.Duration
	applied   map[string]uint64
	tolerance int
	gone      map[string]gone // servers that are not there, as far as this leader knows
}

// gone is since when a server is not there, and how gossip says that.
type gone struct {
	since  time.Time
	status string
}

// forget begins a leadership: how it stood in an earlier one says nothing about what was between.
func (p *pilotInfo) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.healthy, p.contact, p.applied, p.tolerance, p.gone = nil, nil, nil, 0, map[string]gone{}
}

func (n *Node) newAutopilot() *autopilot.Autopilot {
	return autopilot.New(n.raft, pilotDelegate{n},
		autopilot.WithLogger(n.opts.HCLog.Named("autopilot")),
		autopilot.WithUpdateInterval(n.opts.Autopilot.Every), autopilot.WithReconcileInterval(n.opts.Autopilot.Every*5/2))
}

// Health is what autopilot last found of a server, on the leader.
type Health struct {
	Healthy     bool
	LastContact time.Duration
	Applied     uint64
}

// Health returns what autopilot last found of each server, and how many more may fail; empty on followers.
func (n *Node) Health() (map[string]Health, int) {
	p := &n.pilotInfo
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]Health, len(p.healthy))
	for id, ok := range p.healthy {
		out[id] = Health{Healthy: ok, LastContact: p.contact[id], Applied: p.applied[id]}
	}
	return out, p.tolerance
}

// pilotDelegate implements autopilot.ApplicationIntegration.
type pilotDelegate struct{ n *Node }

func (d pilotDelegate) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{
		CleanupDeadServers: true, LastContactThreshold: pilotLastContact, MaxTrailingLogs: pilotMaxTrailing,
		MinQuorum: d.n.opts.Autopilot.MinVoters, ServerStabilizationTime: d.n.opts.Autopilot.Stable,
	}
}

func (d pilotDelegate) NotifyState(s *autopilot.State) {
	p := &d.n.pilotInfo
	p.mu.Lock()
	defer p.mu.Unlock()
	p.healthy, p.contact, p.tolerance = map[string]bool{}, map[string]time.Duration{}, s.FailureTolerance
	for id, server := range s.Servers {
		p.healthy[string(id)], p.contact[string(id)] = server.Health.Healthy, server.Stats.LastContact
	}
}

// FetchServerStats is given half the time between two looks; who has not answered then is not in the answer.
func (d pilotDelegate) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	var mu sync.Mutex
	var wait sync.WaitGroup
	out := make(map[raft.ServerID]*autopilot.ServerStats, len(servers))
	applied := make(map[string]uint64, len(servers))
	for id := range servers {
		wait.Go(func() {
			var s ServerStats
			if string(id) == d.n.opts.ID {
				s = d.n.Stats()
			} else {
				var err error
				if s, err = d.n.opts.Stats(ctx, d.n.grpcAddress(string(id))); err != nil {
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = &autopilot.ServerStats{LastContact: s.LastContact, LastTerm: s.Term, LastIndex: s.LastIndex}
			applied[string(id)] = s.AppliedIndex
		})
	}
	wait.Wait()
	d.n.pilotInfo.mu.Lock()
	d.n.pilotInfo.applied = applied
	d.n.pilotInfo.mu.Unlock()
	return out
}

// KnownServers tells autopilot of every server that gossip knows, and of those that only raft knows: gossip forgets, a server that has
// just started has not heard of all yet, and autopilot removes at once whom it is not told of. It also removes at once who is failed, so
// a server is called alive until it has been gone for long; its health says otherwise all the same.
func (d pilotDelegate) KnownServers() map[raft.ServerID]*autopilot.Server {
	now := d.n.opts.Now()
	out := map[raft.ServerID]*autopilot.Server{}
	p := &d.n.pilotInfo
	p.mu.Lock()
	defer p.mu.Unlock()
	know := func(m gossipMember) {
		out[raft.ServerID(m.ID)] = &autopilot.Server{
			ID: raft.ServerID(m.ID), Name: m.ID, Address: raft.ServerAddress(m.Meta.RaftAddress), NodeStatus: autopilot.NodeAlive,
			Version: m.Meta.Version, RaftVersion: 3, NodeType: autopilot.NodeVoter, IsLeader: m.ID == d.n.opts.ID,
		}
		if p.goneTooLong(m, now, d.n.opts.Autopilot) {
			out[raft.ServerID(m.ID)].NodeStatus = autopilot.NodeFailed
		}
	}
	for _, m := range d.n.gossip.members() {
		know(m)
	}
	if f := d.n.raft.GetConfiguration(); f.Error() == nil {
		for _, s := range f.Configuration().Servers {
			if out[s.ID] == nil {
				know(gossipMember{ID: string(s.ID), Status: memberFailed, Meta: memberMeta{RaftAddress: string(s.Address)}})
			}
		}
	}
	return out
}

// goneTooLong reports whether a server has not been there for so long that it is to be removed. p.mu is held.
func (p *pilotInfo) goneTooLong(m gossipMember, now time.Time, limits Autopilot) bool {
	if m.Status == memberAlive {
		delete(p.gone, m.ID)
		return false
	}
	g, ok := p.gone[m.ID]
	if !ok || g.status != m.Status {
		g = gone{now, m.Status}
		p.gone[m.ID] = g
	}
	limit := limits.RemoveAfter
	if m.Status == memberLeft {
		limit = limits.RemoveLeftAfter
	}
	return now.Sub(g.since) > limit
}

func (d pilotDelegate) RemoveFailedServer(s *autopilot.Server) {
	d.n.log.Warn("removing a server that has been gone for long", "server", s.ID)
	if err := d.n.Remove(string(s.ID)); err != nil {
		d.n.log.Error("could not remove a dead server", "server", s.ID, "error", err)
		return
	}
	d.n.gossip.forget(string(s.ID))
	d.n.pilotInfo.mu.Lock()
	defer d.n.pilotInfo.mu.Unlock()
	delete(d.n.pilotInfo.gone, string(s.ID))
}
