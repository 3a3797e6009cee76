// Package dispatchtest is a cluster without raft, for tests of what relies on package dispatch: servers with the real replicated state,
// which one log in memory keeps alike. The log can be slow, be without a leader, and lose answers to what it committed; servers can lag and die.
package dispatchtest

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue/dispatch"
)

// Cluster is a log and the servers that apply it.
type Cluster struct {
	mu      sync.Mutex
	entries []*clusterv1.Batch
	servers map[string]*Server
	leader  string // "" for nobody
	changed chan struct{}
	// latency is how long a commit takes; lose is how many answers to commits are lost.
	latency time.Duration
	lose    int
	commits int
}

// New makes a cluster without servers; the first that is added leads.
func New() *Cluster { return &Cluster{servers: map[string]*Server{}, changed: make(chan struct{})} }

// Server is one server of the cluster. It implements dispatch.Node and dispatch.Peers.
type Server struct {
	ID    string
	Store *state.Store
	c     *Cluster
	at    int  // entries that it has applied; under c.mu
	held  bool // it applies nothing for now
	dead  bool
}

// Add adds a server that knows nothing yet, and has it catch up.
func (c *Cluster) Add(id string) *Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &Server{ID: id, Store: state.New(state.DefaultLimits()), c: c}
	c.servers[id] = s
	if c.leader == "" {
		c.leader = id
	}
	s.catchUp()
	return s
}

// Lead has a server lead, or nobody.
func (c *Cluster) Lead(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader = id
	close(c.changed)
	c.changed = make(chan struct{})
}

// SetLatency says how long a commit takes from now on.
func (c *Cluster) SetLatency(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latency = d
}

// LoseAnswers has the answers to the next commits be lost.
func (c *Cluster) LoseAnswers(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lose = n
}

// Commits is how many entries the log has.
func (c *Cluster) Commits() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commits
}

// Kill has a server take no part any more.
func (s *Server) Kill() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.dead = true
}

// Revive has a server that was killed take part again, with what it knew.
func (s *Server) Revive() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.dead = false
	s.catchUp()
}

// Hold has a server apply nothing until it is told so.
func (s *Server) Hold(yes bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.held = yes
	if !yes {
		s.catchUp()
	}
}

// catchUp applies what the server has not seen. c.mu is held.
func (s *Server) catchUp() {
	for ; s.at < len(s.c.entries) && !s.held && !s.dead; s.at++ {
		s.Store.Apply(uint64(s.at+1), s.c.entries[s.at])
	}
}

// Do commits commands at once, whoever leads, and returns the results as one server has them.
func (c *Cluster) Do(commands ...*clusterv1.Command) []state.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits++
	b := &clusterv1.Batch{Time: time.Now().UnixNano(), Commands: commands}
	c.entries = append(c.entries, b)
	var results []state.Result
	for _, s := range c.servers {
		if s.at == len(c.entries)-1 && !s.held && !s.dead {
			results = s.Store.Apply(uint64(len(c.entries)), b)
			s.at++
		}
	}
	return results
}

// Snapshot returns the state as a server has it.
func (s *Server) Snapshot() ([]byte, error) {
	var b bytes.Buffer
	err := s.Store.View().Persist(&b)
	return b.Bytes(), err
}

// Restore sets all servers back to a snapshot, as an operator does.
func (c *Cluster) Restore(snapshot []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.servers {
		var b bytes.Buffer
		if err := s.Store.View().GoOn(bytes.NewReader(snapshot), &b); err != nil {
			return err
		}
		if err := s.Store.Restore(&b); err != nil {
			return err
		}
		s.at = len(c.entries)
	}
	return nil
}

// Leader implements dispatch.Node.
func (s *Server) Leader() (cluster.Leader, <-chan struct{}) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	l := cluster.Leader{ID: s.c.leader, Address: s.c.leader}
	if l.ID == s.ID {
		l.Self, l.Ready = true, true
	}
	return l, s.c.changed
}

// Index is of the last entry that the server has applied.
func (s *Server) Index() uint64 { return s.Store.Index() }

var errNobody = fault.New(fault.Unavailable, "nobody leads, or the answer was lost")

// Propose implements dispatch.Node.
func (s *Server) Propose(ctx context.Context, commands ...*clusterv1.Command) ([]state.Result, error) {
	s.c.mu.Lock()
	latency, nobody := s.c.latency, s.c.leader == "" || s.dead
	s.c.mu.Unlock()
	if nobody {
		return nil, errNobody
	}
	if latency > 0 {
		t := time.NewTimer(latency)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, errNobody
		}
	}
	results := s.c.Do(commands...)
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.lose > 0 {
		s.c.lose--
		return nil, errNobody
	}
	return results, nil
}

// CommitCalls implements dispatch.Peers.
func (s *Server) CommitCalls(ctx context.Context, _ string, r *clusterv1.CommitCallsRequest) (*clusterv1.CommitCallsResponse, error) {
	results, err := s.Propose(ctx, r.GetCommands()...)
	if err != nil {
		return nil, err
	}
	s.c.mu.Lock()
	index := uint64(len(s.c.entries))
	s.c.mu.Unlock()
	out := &clusterv1.CommitCallsResponse{}
	for _, r := range results {
		c := &clusterv1.CommittedCall{Call: pbconv.CallToRow(r.Call), Known: r.Duplicate, Index: index}
		if f := fault.As(r.Err); f != nil {
			c.Code, c.Message, c.RetryAfterMs = uint32(faultcode.Of(f.Kind)), f.Message, f.RetryAfter.Milliseconds()
		}
		out.Calls = append(out.Calls, c)
	}
	return out, nil
}

// Log returns the server's way to the log.
func (s *Server) Log(log *slog.Logger) *dispatch.ClusterLog {
	return dispatch.NewLog(s, s.Index, s, log)
}
