// "Do I still lead?", asked of a quorum once for all who wonder at the same time.

package cluster

import (
	"context"
	"sync"

	"github.com/neolith/orchestrator/internal/fault"
)

// verifier coalesces VerifyLeader: a question that arrives while a round is under way waits for the next, since the
// round under way may have been answered before the question was asked.
type verifier struct {
	ask  func() error
	mu   sync.Mutex
	next *round // gathers askers; nil when nobody waits
	busy bool
	wait sync.WaitGroup
}

type round struct {
	done chan struct{}
	err  error
}

// verify returns nil when this server led at some moment after the call began.
func (v *verifier) verify(ctx context.Context) error {
	v.mu.Lock()
	if v.next == nil {
		v.next = &round{done: make(chan struct{})}
	}
	r := v.next
	if !v.busy {
		v.busy = true
		v.wait.Add(1)
		go v.run()
	}
	v.mu.Unlock()
	select {
	case <-r.done:
		if r.err != nil {
			return fault.New(fault.Unavailable, "confirm leadership: %w", r.err).WithRetry(retryWhenFull)
		}
		return nil
	case <-ctx.Done():
		return fault.New(fault.Timeout, "confirm leadership: %w", ctx.Err())
	}
}

func (v *verifier) run() {
	defer v.wait.Done()
	for {
		v.mu.Lock()
		r := v.next
		v.next = nil
		if r == nil {
			v.busy = false
			v.mu.Unlock()
			return
		}
		v.mu.Unlock()
		r.err = v.ask()
		close(r.done)
	}
}
