// Catching up: a server that has just started holds what it held when it stopped, and counts for the majority only once it has the
// rest. Whoever restarts servers one after the other waits for that.

package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/gateway"
)

// levelAgain is how often it is looked at, and levelTimeout how long the leader's answer may take.
const levelAgain, levelTimeout = 100 * time.Millisecond, 2 * time.Second

// level is whether a server has caught up since it started. Once it has, it stays so: raft keeps it close.
type level struct{ reached atomic.Bool }

func (l *level) found() bool { return l.reached.Load() }

// find asks the leader how far it is, waits until this server is as far, and notes it.
func (l *level) find(ctx context.Context, node *cluster.Node, peers *gateway.Peers) {
	tick := time.NewTicker(levelAgain)
	defer tick.Stop()
	var goal uint64 // the leader's state when it was first asked
	for {
		leader, _ := node.Leader()
		switch {
		case leader.Self && leader.Ready:
			goal = 1
		case goal == 0 && !leader.Self && leader.Address != "":
			goal = applied(ctx, peers, leader.Address)
		}
		if goal > 0 && node.AppliedIndex() >= goal {
			l.reached.Store(true)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// applied is the last entry that a server has applied; 0 when it does not answer.
func applied(ctx context.Context, peers *gateway.Peers, address string) uint64 {
	ctx, cancel := context.WithTimeout(ctx, levelTimeout)
	defer cancel()
	s, err := peers.Stats(ctx, address)
	if err != nil {
		return 0
	}
	return s.AppliedIndex
}
