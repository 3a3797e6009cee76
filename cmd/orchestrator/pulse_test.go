// Whether a server is alive.

package main

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type log struct{ committed, applied atomic.Uint64 }

func (l *log) CommitIndex() uint64  { return l.committed.Load() }
func (l *log) AppliedIndex() uint64 { return l.applied.Load() }

// TestPulse: a server is wedged that applies nothing though it could, not one that has nothing to do, and not one that is slow.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var p pulse
		var at log
		ended := make(chan struct{})
		go func() { defer close(ended); p.beat(ctx, &at) }()
		defer func() { cancel(); <-ended }()
		alive := func(what string, after time.Duration) {
			t.Helper()
			time.Sleep(after)
			if why := p.wedged(); why != "" {
				t.Errorf("%s: %s", what, why)
			}
		}
		alive("idle", time.Hour)
		at.committed.Store(10)
		for range 10 {
			alive("slow", wedgedAfter-2*pulseEvery)
			at.applied.Add(1)
		}
		alive("idle again", time.Hour)
		at.committed.Store(11)
		time.Sleep(wedgedAfter + 2*pulseEvery)
		if why := p.wedged(); !strings.Contains(why, "after index 10") {
			t.Errorf("it is stuck, and says %q", why)
		}
		at.applied.Add(1)
		alive("it goes on", 2*pulseEvery)
	})
}
