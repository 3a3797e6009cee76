// Package router decides which node a session goes to.
//
// The Router keeps a view of the nodes: what the state says of them, the health that only the leader knows, and what was
// given away since but is not in the state yet. A placement filters (schedulable, healthy, session type, capabilities,
// labels, free resources), lets a strategy of the load balancer choose, and reserves. The state machine checks the
// reservation again when it applies the placement, so a stale view costs a second try, never an overfull node.
package router

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/loadbalancer"
	"github.com/neolith/orchestrator/session"
)

// MaxExplanationBytes bounds what a placement says of itself; it is kept with the session.
const MaxExplanationBytes = 240

// Health is what the leader knows of a node beside the state.
type Health struct {
	Linked                bool
	CPUUsage, MemoryUsage float64 // percent
}

// Placement is a node given to a session, and reserved until it is settled.
type Placement struct {
	NodeID string
	// Why explains the choice in at most MaxExplanationBytes.
	Why string

	demand demand
	// entry holds the reservation. After a Reset it is no longer the router's, and giving it back changes nothing.
	entry *entry
}

type demand struct {
	sessions uint32
	cpu, mem int64
}

func (d *demand) add(o demand) { d.sessions += o.sessions; d.cpu += o.cpu; d.mem += o.mem }
func (d *demand) sub(o demand) { d.sessions -= o.sessions; d.cpu -= o.cpu; d.mem -= o.mem }

// entry is one node as the router sees it.
type entry struct {
	row          *state.Node
	capabilities []string
	reserved     demand
	// settled reservations that the row does not show yet, by the index at which it will.
	settled []settledDemand
}

type settledDemand struct {
	index uint64
	demand
}

// Router chooses nodes. Its methods may be called from several goroutines.
type Router struct {
	defaultStrategy string

	mu      sync.Mutex
	entries map[string]*entry
	health  map[string]Health // also of nodes whose rows are on their way
	order   []string          // node ids, sorted: the same view gives the same choice
	count   uint64            // of placements; the round-robin position
	scratch []loadbalancer.Candidate
	ids     []string
}

// New makes a router whose sessions are placed by the named strategy unless they name one.
func New(strategy string) (*Router, error) {
	if _, err := loadbalancer.Named(strategy); err != nil {
		return nil, err
	}
	return &Router{defaultStrategy: strategy, entries: map[string]*entry{}, health: map[string]Health{}}, nil
}

// Reset starts again from the state; health and reservations are forgotten.
func (r *Router) Reset(v *state.View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries, r.health, r.order = map[string]*entry{}, map[string]Health{}, nil
	for n := range v.Nodes() {
		r.observe(n)
	}
}

// Observe takes in a change of the state.
func (r *Router) Observe(c *state.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range c.Nodes {
		r.observe(n)
	}
	for _, id := range c.RemovedNodes {
		delete(r.entries, id)
		delete(r.health, id)
		if i, ok := slices.BinarySearch(r.order, id); ok {
			r.order = slices.Delete(r.order, i, i+1)
		}
	}
}

func (r *Router) observe(n *state.Node) {
	e, ok := r.entries[n.ID]
	if !ok {
		e = &entry{}
		r.entries[n.ID] = e
		i, _ := slices.BinarySearch(r.order, n.ID)
		r.order = slices.Insert(r.order, i, n.ID)
	}
	e.row = n
	e.capabilities = capabilityKeys(&n.Capabilities)
	e.drop(n.ModifyIndex)
}

// drop forgets settled reservations that the row shows by now.
func (e *entry) drop(index uint64) {
	i := 0
	for ; i < len(e.settled) && e.settled[i].index <= index; i++ {
		e.reserved.sub(e.settled[i].demand)
	}
	e.settled = e.settled[i:]
}

// SetHealth takes in what the leader learnt of a node.
func (r *Router) SetHealth(nodeID string, h Health) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.health[nodeID] = h
}

// Place chooses a node for a session and reserves room on it. The caller must Settle or Release the placement. Without a
// fitting node the error is of kind fault.Exhausted when one may come (all are full or away), and says why not for each
// kind of obstacle; avoid, when not empty, is chosen only if nothing else fits.
func (r *Router) Place(spec *session.Spec, avoid string) (*Placement, error) {
	return r.Restore(spec, avoid, nil)
}

// Restore is Place for a session that goes on from a checkpoint: it is given no node of which isBusy says that it restores as many
// as it may. isBusy must not call the router; nil is for none.
func (r *Router) Restore(spec *session.Spec, avoid string, isBusy func(nodeID string) bool) (*Placement, error) {
	name, strategy, err := r.strategyOf(spec)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	candidates, rejected := r.filter(spec, avoid, isBusy)
	if len(candidates) == 0 && avoid != "" {
		candidates, rejected = r.filter(spec, "", isBusy)
	}
	if len(candidates) == 0 {
		return nil, fault.New(fault.Exhausted, "no node fits: %s", rejected.explain(len(r.order))).WithRetry(retryPlace)
	}
	return r.reserve(spec, name, strategy, candidates, rejected)
}

// strategyOf is the strategy that a spec asks for, or the cluster's.
func (r *Router) strategyOf(spec *session.Spec) (name string, s loadbalancer.Strategy, err error) {
	if name = spec.Strategy; name == "" {
		name = r.defaultStrategy
	}
	s, err = loadbalancer.Named(name)
	return name, s, err
}

// reserve lets the strategy choose among the candidates that filter returned, and reserves room on the chosen one; mu is held.
func (r *Router) reserve(spec *session.Spec, name string, strategy loadbalancer.Strategy, candidates []loadbalancer.Candidate, rejected *rejections) (*Placement, error) {
	r.count++
	best, why := strategy.Choose(loadbalancer.Request{Require: spec.Require, Seed: r.count}, candidates)
	if best < 0 {
		return nil, fault.New(fault.Exhausted, "no node fits: %s found no room on %d candidates", name, len(candidates)).WithRetry(retryPlace)
	}
	e := r.entries[r.ids[best]]
	p := &Placement{NodeID: e.row.ID, demand: demand{1, spec.CPUMilli, spec.MemoryBytes}, entry: e}
	p.Why = clip(fmt.Sprintf("%s: %s, %d of %d nodes fit%s", name, why, len(candidates), len(r.order), rejected.suffix()))
	e.reserved.add(p.demand)
	return p, nil
}

// Release gives a reservation back: the session was not placed.
func (r *Router) Release(p *Placement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.entry.reserved.sub(p.demand)
}

// Settle keeps a reservation until the node's row shows it: the session was placed at this index.
func (r *Router) Settle(p *Placement, index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := p.entry
	if e.row.ModifyIndex >= index {
		e.reserved.sub(p.demand)
		return
	}
	e.settled = append(e.settled, settledDemand{index, p.demand})
}

// Reservations returns how many placements are neither released nor shown by their node's row.
func (r *Router) Reservations() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := uint32(0)
	for _, e := range r.entries {
		n += e.reserved.sessions
	}
	return int(n)
}

// filter returns the nodes that could take the session, with r.ids holding their ids, and counts why the others cannot.
func (r *Router) filter(spec *session.Spec, avoid string, isBusy func(nodeID string) bool) ([]loadbalancer.Candidate, *rejections) {
	r.scratch, r.ids = r.scratch[:0], r.ids[:0]
	rejected := &rejections{}
	for _, id := range r.order {
		e := r.entries[id]
		health := r.health[id]
		if why, what := e.obstacle(spec, health); why != fits {
			rejected.add(why, e.row.Name, what)
			continue
		}
		if id == avoid {
			rejected.add(avoided, e.row.Name, "")
			continue
		}
		if isBusy != nil && isBusy(id) {
			rejected.add(busy, e.row.Name, "")
			continue
		}
		r.candidate(spec, e, health)
	}
	return r.scratch, rejected
}

// candidate adds a node that could take the session to what filter returns.
func (r *Router) candidate(spec *session.Spec, e *entry, health Health) {
	n := e.row
	r.ids = append(r.ids, n.ID)
	r.scratch = append(r.scratch, loadbalancer.Candidate{
		NodeID: n.ID, Name: n.Name,
		Sessions: n.Sessions + e.reserved.sessions, MaxSessions: n.Capabilities.MaxConcurrentSessions,
		FreeCPUMilli: n.Capabilities.CPUMilli - n.ReservedCPUMilli - e.reserved.cpu, TotalCPUMilli: n.Capabilities.CPUMilli,
		FreeMemoryBytes: n.Capabilities.MemoryBytes - n.ReservedMemoryBytes - e.reserved.mem, TotalMemoryBytes: n.Capabilities.MemoryBytes,
		CPUUsage: health.CPUUsage, MemoryUsage: health.MemoryUsage, Degraded: n.Status == state.Degraded, Weight: 1,
		Capabilities: e.capabilities, ExtraCapabilities: max(0, len(e.capabilities)-len(spec.Require)), Labels: n.Labels,
	})
}

// obstacle says what keeps a session from a node, and what exactly.
func (e *entry) obstacle(spec *session.Spec, h Health) (obstacle, string) {
	n := e.row
	c := &n.Capabilities
	switch {
	case n.Lost || n.Status == state.Offline:
		return away, ""
	case !h.Linked:
		return unlinked, ""
	case !n.Schedulable:
		return cordoned, ""
	case n.Status == state.Unhealthy:
		return unhealthy, ""
	case !c.CanSpawnSessions:
		return noSpawn, ""
	case !slices.Contains(c.SupportedSessionTypes, spec.Type):
		return wrongType, spec.Type
	}
	for _, k := range spec.Require {
		if !slices.Contains(e.capabilities, k) {
			return lacks, k
		}
	}
	for _, p := range spec.NodeSelector {
		if v, ok := session.Lookup(n.Labels, p.Key); !ok || v != p.Value {
			return wrongLabel, p.Key + "=" + p.Value
		}
	}
	switch {
	case c.MaxConcurrentSessions > 0 && n.Sessions+e.reserved.sessions >= c.MaxConcurrentSessions:
		return full, ""
	case spec.CPUMilli > 0 && c.CPUMilli-n.ReservedCPUMilli-e.reserved.cpu < spec.CPUMilli:
		return noCPU, ""
	case spec.MemoryBytes > 0 && c.MemoryBytes-n.ReservedMemoryBytes-e.reserved.mem < spec.MemoryBytes:
		return noMemory, ""
	}
	return fits, ""
}

func clip(s string) string {
	if len(s) <= MaxExplanationBytes {
		return s
	}
	return strings.ToValidUTF8(s[:MaxExplanationBytes-3], "") + "…"
}

// capabilityKeys are the keys that a session may require of a node.
func capabilityKeys(c *state.Capabilities) []string {
	var keys []string
	if c.HasGPUAccess {
		keys = append(keys, "gpu")
	}
	if c.HasHighMemory {
		keys = append(keys, "high-memory")
	}
	for _, f := range c.Custom {
		if f.Value {
			keys = append(keys, f.Key)
		}
	}
	return keys
}
