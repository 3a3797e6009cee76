// What every strategy has in common: the question, the answer, and how the best of many is found.

package loadbalancer

import (
	"math/bits"
	"slices"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// Candidate is a node that could run the session, as far as the router's filter can tell.
type Candidate struct {
	NodeID           string
	Name             string
	Sessions         uint32
	MaxSessions      uint32 // 0 for no limit
	FreeCPUMilli     int64  // not reserved, in thousandths of a core
	TotalCPUMilli    int64
	FreeMemoryBytes  int64 // not reserved
	TotalMemoryBytes int64
	CPUUsage         float64 // as last measured, 0–100 percent
	MemoryUsage      float64 // as last measured, 0–100 percent
	Degraded         bool
	Weight           float64  // for weighted; 0 counts as 1
	Capabilities     []string // nil when the router has checked them
	// ExtraCapabilities is how many capabilities the node has beyond those required.
	ExtraCapabilities int
	Labels            []session.Pair
}

// Request is what the session needs of a node.
type Request struct {
	Require     []string // capabilities
	SpreadBy    string   // for spread: a label's key; empty spreads over nodes
	CPUMilli    int64    // to be reserved
	MemoryBytes int64    // to be reserved
	// Seed breaks ties, draws samples and is round-robin's position. It is the only source of either.
	Seed uint64
}

// Strategy chooses. Strategies are values without state: they may be shared.
type Strategy interface {
	// Name is how specs and configurations name it.
	Name() string
	// Choose returns the index of the best candidate, -1 when none has room, and why: one line of at most WhyMaxBytes
	// that goes on behind the strategy's name.
	Choose(req Request, c []Candidate) (best int, why string)
}

// WhyMaxBytes bounds an explanation.
const WhyMaxBytes = 120

// Default is the name of the strategy for those who do not care.
const Default = "least-connections"

// strategies are all there are. To add one, add a file and a line here; the tests find it.
var strategies = []Strategy{
	leastConnections{}, roundRobin{}, weighted{}, capabilityAware{}, binPack{}, spread{}, sampled{},
}

// Names returns the names of all strategies.
func Names() []string {
	names := make([]string, len(strategies))
	for i, s := range strategies {
		names[i] = s.Name()
	}
	return names
}

// Named returns a strategy by its name. Errors are of kind fault.Invalid and list the names.
func Named(name string) (Strategy, error) {
	for _, s := range strategies {
		if s.Name() == name {
			return s, nil
		}
	}
	return nil, fault.New(fault.Invalid, "strategy: %.64q is not a strategy; use %s", name, strings.Join(Names(), ", ")).WithField("strategy")
}

// hasRoom reports whether a candidate can take the session at all.
func (c *Candidate) hasRoom(req *Request) bool {
	if c.MaxSessions > 0 && c.Sessions >= c.MaxSessions ||
		req.CPUMilli > 0 && req.CPUMilli > c.FreeCPUMilli ||
		req.MemoryBytes > 0 && req.MemoryBytes > c.FreeMemoryBytes {
		return false
	}
	if c.Capabilities != nil {
		for _, k := range req.Require {
			if !slices.Contains(c.Capabilities, k) {
				return false
			}
		}
	}
	return true
}

// rank orders candidates: less is better, the second value decides where the first ones are equal.
type rank struct{ first, second float64 }

// better reports whether candidate a, of rank ra, is to be preferred to b. It is a total order of different nodes.
func better(req *Request, a *Candidate, ra rank, b *Candidate, rb rank) bool {
	switch {
	case a.Degraded != b.Degraded:
		return b.Degraded
	case ra.first != rb.first:
		return ra.first < rb.first
	case ra.second != rb.second:
		return ra.second < rb.second
	}
	if ta, tb := lot(req.Seed, a.NodeID), lot(req.Seed, b.NodeID); ta != tb {
		return ta < tb
	}
	return a.NodeID < b.NodeID
}

// pick returns the best candidate with room by a rank, and how many have room.
func pick(req *Request, c []Candidate, by func(*Candidate) rank) (best, room int) {
	best = -1
	var bestRank rank
	for i := range c {
		if !c[i].hasRoom(req) {
			continue
		}
		room++
		if r := by(&c[i]); best < 0 || better(req, &c[i], r, &c[best], bestRank) {
			best, bestRank = i, r
		}
	}
	return best, room
}

// reserved is how full a candidate is by what is reserved: the larger of the shares of CPU and memory, 0–1.
func (c *Candidate) reserved() float64 {
	return max(share(c.TotalCPUMilli-c.FreeCPUMilli, c.TotalCPUMilli), share(c.TotalMemoryBytes-c.FreeMemoryBytes, c.TotalMemoryBytes))
}

func share(part, whole int64) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// lot draws a number for a node from a seed: the same for the same, and unlike for neighbours. It is FNV-1a, then the
// finish of splitmix64.
func lot(seed uint64, id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return mix(h ^ bits.RotateLeft64(mix(seed), 32))
}

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
