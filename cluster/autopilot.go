// Autopilot: new servers become voters once they are stable, dead ones are removed while a majority of the rest remains.

package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// Autopilot's thresholds.
const (
	pilotLastContact = 2 * time.Second
	pilotMaxTrailing = 10_000 // entries
	pilotStable      = 5 * time.Second
	pilotUpdate      = 2 * time.Second
	pilotReconcile   = 5 * time.Second
	// A failed server is removed only after this time, so that a restart or a reboot is not a removal.
	pilotRemoveAfter  = 5 * time.Minute
	pilotStatsTimeout = time.Second
)

// pilotInfo is what autopilot last found.
type pilotInfo struct {
	mu          sync.Mutex
	healthy     map[string]bool
	contact     map[string]time.Duration
	applied     map[string]uint64
	tolerance   int
	failedSince map[string]time.Time
}

func (n *Node) newAutopilot() *autopilot.Autopilot {
	n.pilotInfo.failedSince = map[string]time.Time{}
	return autopilot.New(n.raft, pilotDelegate{n},
		autopilot.WithLogger(n.opts.HCLog.Named("autopilot")),
		autopilot.WithUpdateInterval(pilotUpdate), autopilot.WithReconcileInterval(pilotReconcile))
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
		MinQuorum: 3, ServerStabilizationTime: pilotStable,
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

func (d pilotDelegate) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	ctx, cancel := context.WithTimeout(ctx, pilotStatsTimeout)
	defer cancel()
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

// KnownServers tells autopilot of every server that gossip knows. A server that failed only a short while ago is still
// called alive, since autopilot removes failed ones at once; its health says otherwise all the same.
func (d pilotDelegate) KnownServers() map[raft.ServerID]*autopilot.Server {
	now := d.n.opts.Now()
	out := map[raft.ServerID]*autopilot.Server{}
	p := &d.n.pilotInfo
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range d.n.gossip.members() {
		status := autopilot.NodeAlive
		switch m.Status {
		case memberLeft:
			// A server that left in good order keeps its vote: it says so at every restart.
			status = autopilot.NodeAlive
		case memberFailed:
			since, ok := p.failedSince[m.ID]
			if !ok {
				since = now
				p.failedSince[m.ID] = since
			}
			if now.Sub(since) > pilotRemoveAfter {
				status = autopilot.NodeFailed
			}
		}
		if m.Status == memberAlive {
			delete(p.failedSince, m.ID)
		}
		out[raft.ServerID(m.ID)] = &autopilot.Server{
			ID: raft.ServerID(m.ID), Name: m.ID, Address: raft.ServerAddress(m.Meta.RaftAddress), NodeStatus: status,
			Version: m.Meta.Version, RaftVersion: 3, NodeType: autopilot.NodeVoter, IsLeader: m.ID == d.n.opts.ID,
		}
	}
	return out
}

func (d pilotDelegate) RemoveFailedServer(s *autopilot.Server) {
	d.n.log.Warn("removing a server that has been dead for long", "server", s.ID, "after", pilotRemoveAfter)
	if err := d.n.Remove(string(s.ID)); err != nil {
		d.n.log.Error("could not remove a dead server", "server", s.ID, "error", err)
		return
	}
	d.n.gossip.forget(string(s.ID))
}
