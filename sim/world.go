// The world: servers, nodes, the network between them, the observer and the clients.

package sim

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/neolith/orchestrator/agent/driver/fake"
	"github.com/neolith/orchestrator/leader"
)

// Options say what world to make.
type Options struct {
	Servers, Nodes int
	Seed           uint64
	// Dir is an empty directory for the agents' data.
	Dir string
	// Lease is the nodes' lease; leader.DefaultLease when its Duration is 0.
	Lease leader.Lease
	// TurnTime is how long a session works on a message.
	TurnTime time.Duration
	// Log gets everything that the parts say; nil for nothing.
	Log *slog.Logger
}

// World is a whole cluster. It must be made, used and closed in one testing/synctest bubble.
type World struct {
	opts    Options
	log     *slog.Logger
	net     *network
	raft    *raftNetwork
	watch   *watch
	steps   *steps
	vault   *fake.Vault // where all nodes' checkpoints are
	client  *client
	servers []*server
	nodes   []*node
	ghosts  map[ghost]time.Time // what runs and is not desired, since when
	chains  map[string]*chain   // by session: what is known of its checkpoints

	mu       sync.Mutex
	failures []string
	closed   bool
	noStore  bool
	line     string // of the story
}

// New makes a world in which everything runs.
func New(o Options) (*World, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Lease.Duration == 0 {
		o.Lease = leader.DefaultLease()
	}
	w := &World{opts: o, log: o.Log, net: newNetwork(o.Seed), ghosts: map[ghost]time.Time{}, chains: map[string]*chain{}, steps: newSteps(), vault: fake.NewVault(vaultTimes())}
	w.raft = &raftNetwork{net: w.net, all: map[string]*raft.InmemTransport{}}
	w.watch = newWatch(w.fail)
	w.watch.acked = func(id string, sequence uint64) bool {
		i := w.freshest()
		return i != nil && i.store.View().Result(id, sequence) != nil
	}
	w.client = newClient(w)
	for i := range o.Servers {
		w.servers = append(w.servers, newServer(w, fmt.Sprintf("server-%d", i+1)))
	}
	for i := range o.Nodes {
		w.nodes = append(w.nodes, newNode(w, fmt.Sprintf("node-%d", i+1)))
	}
	for _, s := range w.servers {
		if err := s.start(); err != nil {
			return w, fmt.Errorf("start %s: %w", s.id, err)
		}
	}
	for _, n := range w.nodes {
		if err := n.start(); err != nil {
			return w, fmt.Errorf("start %s: %w", n.id, err)
		}
	}
	return w, nil
}

// Close ends everything and waits for it.
func (w *World) Close() {
	w.net.change(func() { w.net.frozen = map[string]time.Time{} })
	w.client.wait.Wait()
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	for _, n := range w.nodes {
		n.kill()
	}
	for _, s := range w.servers {
		s.kill()
	}
	for _, n := range w.nodes {
		<-n.ended
		n.machine.Close()
	}
	for _, s := range w.servers {
		<-s.ended
	}
}

// fail notes that something is as it must never be. The first few are kept: what follows is of their making.
func (w *World) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failures) < maxFailures {
		w.failures = append(w.failures, fmt.Sprintf("%s (at %s, %q)", fmt.Sprintf(format, args...), stamp(time.Now()), w.line))
	}
	w.log.Error("FAILURE", "what", fmt.Sprintf(format, args...))
}

const maxFailures = 10

// Failures are what went wrong so far.
func (w *World) Failures() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.failures)
}

func (w *World) at(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line = line
}

func (w *World) configuration() []raft.Server {
	var all []raft.Server
	for _, s := range w.servers {
		all = append(all, raft.Server{ID: raft.ServerID(s.id), Address: raft.ServerAddress(s.id)})
	}
	return all
}

func (w *World) serverIDs() []string {
	var ids []string
	for _, s := range w.servers {
		ids = append(ids, s.id)
	}
	return ids
}

// machines are all names in the network.
func (w *World) machines() []string {
	ids := w.serverIDs()
	for _, n := range w.nodes {
		ids = append(ids, n.id)
	}
	return ids
}

// index is a server's place; -1 for none.
func (w *World) index(id string) int {
	return slices.IndexFunc(w.servers, func(s *server) bool { return s.id == id })
}

func (w *World) node(id string) *node {
	if i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.id == id }); i >= 0 {
		return w.nodes[i]
	}
	return nil
}

// leaders are the processes that say that they lead: one, none, or two while one of them does not know better.
func (w *World) leaders() []*instance {
	var all []*instance
	for _, s := range w.servers {
		if i := s.running(); i != nil {
			if l, _ := i.node.Leader(); l.Self && l.Ready {
				all = append(all, i)
			}
		}
	}
	return all
}

// pickLeader is one of them, by chance.
func (w *World) pickLeader() *instance {
	all := w.leaders()
	if len(all) == 0 {
		return nil
	}
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	return all[w.net.rand.IntN(len(all))]
}

// leading is the one with the highest term; nil when nobody leads.
func (w *World) leading() *instance {
	var best *instance
	var highest uint64
	for _, i := range w.leaders() {
		if l, _ := i.node.Leader(); l.Term > highest {
			best, highest = i, l.Term
		}
	}
	return best
}

// freshest is the process whose state has come furthest.
func (w *World) freshest() *instance {
	var best *instance
	for _, s := range w.servers {
		if i := s.running(); i != nil && (best == nil || i.store.Index() > best.store.Index()) {
			best = i
		}
	}
	return best
}
