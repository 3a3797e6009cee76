// A disk that hangs: raft's leader goes on sending heartbeats while its own writes stand still, so nobody replaces it
// (hashicorp/raft#503, #683). The guard times each write to the log.

package cluster

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// stallGuard wraps the log store. Raft writes from one goroutine.
type stallGuard struct {
	raft.LogStore
	began  atomic.Int64 // when the write under way began, Unix nanoseconds; 0 for none
	writes atomic.Uint64
	nanos  atomic.Uint64
}

func newStallGuard(s raft.LogStore) *stallGuard { return &stallGuard{LogStore: s} }

func (g *stallGuard) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

func (g *stallGuard) StoreLogs(ls []*raft.Log) error {
	start := time.Now()
	g.began.Store(start.UnixNano())
	err := g.LogStore.StoreLogs(ls)
	g.began.Store(0)
	g.writes.Add(1)
	g.nanos.Add(uint64(time.Since(start)))
	return err
}

// IsMonotonic tells raft that the store below wants no gaps.
func (g *stallGuard) IsMonotonic() bool {
	m, ok := g.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// stalled is how long the write under way has taken.
func (g *stallGuard) stalled(now time.Time) time.Duration {
	began := g.began.Load()
	if began == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, began))
}

// stallFatalFactor times Timings.Stall is when a server whose disk still hangs gives up.
const stallFatalFactor = 10

// watchStall hands the leadership over when a write hangs, and ends the server when it keeps hanging: its peers are
// better off without it, and a supervisor may bring it back on a disk that works.
func (n *Node) watchStall(ctx context.Context) {
	limit := n.opts.Timings.Stall
	tick := time.NewTicker(limit / 4)
	defer tick.Stop()
	warned := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d := n.stall.stalled(time.Now())
		switch {
		case d < limit:
			warned = false
		case d > limit*stallFatalFactor:
			n.opts.Fatal(fmt.Errorf("a write to the log in %s has not ended for %s: the disk hangs", n.opts.DataDir, d.Round(time.Second)))
			return
		case !warned:
			warned = true
			n.log.Error("a write to the log hangs", "for", d.Round(time.Millisecond), "dir", n.opts.DataDir)
			if n.raft.State() == raft.Leader {
				if err := n.transfer(ctx, ""); err != nil {
					n.log.Error("could not hand the leadership over from a hanging disk", "error", err)
				}
			}
		}
	}
}

// LogStats are the writes to the log since the start, and the time they took.
func (n *Node) LogStats() (writes uint64, took time.Duration) {
	return n.stall.writes.Load(), time.Duration(n.stall.nanos.Load())
}
