// The network: who reaches whom, how long it takes, and what happens to what is under way when that changes.
//
// It behaves as TCP does. What is sent arrives in the order in which it was sent, or the connection breaks and nothing
// more arrives on it. A cut line holds a call back until it is mended or the caller gives up; a dead process refuses at
// once. Only with disorder does a node link double and reorder frames, which is worse than any network. A frame that is
// lost on a link that is none the worse was lost behind it: a follower drops frames while it knows no leader.

package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/nodelink"
)

const (
	latencyMin = 200 * time.Microsecond
	latencyMax = 2 * time.Millisecond
	disorder   = 20 * time.Millisecond // how far frames overtake one another
)

// network is asked by every transport about every message. Its methods may be called from any goroutine.
type network struct {
	mu      sync.Mutex
	rand    *rand.Rand
	cut     map[line]bool
	dead    map[string]bool
	frozen  map[string]time.Time // processes that do nothing before
	changed chan struct{}
	// duplicate and reorder are probabilities for frames on node links.
	duplicate, reorder float64
	lost               float64                  // probability that a client does not get an answer
	delay              map[string]time.Duration // on a node's link, beside the latency
	lose               map[string]*loss         // of a node's frames
}

// loss is how many of the next frames of a type get lost between a node and the leader, on links that are none the worse.
type loss struct {
	frame string
	count int
}

// line is one direction between two machines.
type line struct{ from, to string }

func newNetwork(seed uint64) *network {
	return &network{
		rand: rand.New(rand.NewPCG(seed, 2)), cut: map[line]bool{}, dead: map[string]bool{},
		frozen: map[string]time.Time{}, delay: map[string]time.Duration{}, lose: map[string]*loss{}, changed: make(chan struct{}),
	}
}

// change changes who reaches whom.
func (n *network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// partition cuts a machine off from the others, in both directions.
func (n *network) partition(id string, others []string) {
	n.change(func() {
		for _, o := range others {
			if o != id {
				n.cut[line{id, o}], n.cut[line{o, id}] = true, true
			}
		}
	})
}

// heal mends every line and ends disorder.
func (n *network) heal() {
	n.change(func() {
		n.cut = map[line]bool{}
		n.duplicate, n.reorder, n.lost = 0, 0, 0
		n.delay = map[string]time.Duration{}
		n.lose = map[string]*loss{}
	})
}

// loses reports whether a frame of a node gets lost.
func (n *network) loses(node string, f *nodev1.Frame) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.lose[node]
	if l == nil || l.count == 0 || f == nil || nodelink.FrameType(f) != l.frame {
		return false
	}
	l.count--
	return true
}

// reaches reports whether something sent now would arrive.
func (n *network) reaches(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut[line{from, to}] && !n.dead[from] && !n.dead[to]
}

// chance reports whether something of a probability happens.
func (n *network) chance(p float64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return p > 0 && n.rand.Float64() < p
}

func (n *network) latency() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return latencyMin + time.Duration(n.rand.Int64N(int64(latencyMax-latencyMin)))
}

// thaw is when a process does something again; the zero time for one that is not frozen.
func (n *network) thaw(id string) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.frozen[id]
}

// awake waits until a process is not frozen.
func (n *network) awake(id string) {
	for {
		wait := time.Until(n.thaw(id))
		if wait <= 0 {
			return
		}
		time.Sleep(wait)
	}
}

// pass waits until what is sent has arrived, and says why it does not: the other process is dead, the line stayed cut for
// as long as patience, ctx ended.
func (n *network) pass(ctx context.Context, from, to string, patience time.Duration) error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		n.mu.Lock()
		cut, dead, changed := n.cut[line{from, to}], n.dead[from] || n.dead[to], n.changed
		n.mu.Unlock()
		if dead {
			return fmt.Errorf("%s to %s: connection refused", from, to)
		}
		if !cut {
			break
		}
		select {
		case <-changed:
		case <-timeout.C:
			return fmt.Errorf("%s to %s: nothing came through within %s", from, to, patience)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	delay := time.NewTimer(n.latency())
	defer delay.Stop()
	select {
	case <-delay.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
