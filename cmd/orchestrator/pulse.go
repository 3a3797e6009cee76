// Being alive is more than answering: entries that are committed must be applied, or everybody who asks this server waits for ever.

package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// pulseEvery is how often it is looked at.
	pulseEvery = time.Second
	// wedgedAfter is how long committed entries may wait without one being applied. A snapshot of a million sessions, which is applied in
	// one piece, takes a quarter of a minute.
	wedgedAfter = 2 * time.Minute
)

// indexes is how far a server's log is committed, and how far it is applied.
type indexes interface {
	CommitIndex() uint64
	AppliedIndex() uint64
}

// pulse is whether a server still applies what is committed.
type pulse struct {
	mu      sync.Mutex
	applied uint64
	behind  time.Time // since when nothing was applied though something was to be; zero when there is nothing
}

// beat looks again and again, until ctx ends.
func (p *pulse) beat(ctx context.Context, at indexes) {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		p.look(at, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *pulse) look(at indexes, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	applied := at.AppliedIndex() // first, so that what is committed meanwhile does not count
	switch waits := at.CommitIndex() > applied; {
	case !waits:
		p.behind = time.Time{}
	case p.behind.IsZero() || applied != p.applied:
		p.behind = now
	}
	p.applied = applied
}

// wedged says why the server is not alive; empty when it is.
func (p *pulse) wedged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.behind.IsZero() || time.Since(p.behind) < wedgedAfter {
		return ""
	}
	return fmt.Sprintf("nothing was applied to the state for %s though entries wait, after index %d", time.Since(p.behind).Round(time.Second), p.applied)
}
