// Waiters: calls that wait for something to happen to a session, woken by the state's feed.

package gateway

import (
	"context"
	"errors"
	"sync"

	"github.com/neolith/orchestrator/cluster/state"
)

// waiters lets many calls wait for changes of single sessions at the cost of one subscription.
type waiters struct {
	mu   sync.Mutex
	byID map[string]chan struct{}
}

// changed returns a channel that is closed when anything about the session changes: its row, its messages, its results.
// Take it before looking at the state.
func (w *waiters) changed(id string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.byID[id]
	if !ok {
		c = make(chan struct{})
		w.byID[id] = c
	}
	return c
}

func (w *waiters) wake(id string) {
	if c, ok := w.byID[id]; ok {
		close(c)
		delete(w.byID, id)
	}
}

// run follows the feed until ctx ends.
func (w *waiters) run(ctx context.Context, store *state.Store) {
	for ctx.Err() == nil {
		sub, _ := store.Subscribe()
		w.wakeAll() // what happened before the subscription is in the state by now
		for {
			c, err := sub.Next(ctx)
			if err != nil {
				sub.Close()
				if errors.Is(err, state.ErrLagged) {
					break
				}
				return
			}
			w.observe(c)
		}
	}
}

func (w *waiters) observe(c *state.Change) {
	if c.Restored {
		w.wakeAll()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.byID) == 0 {
		return
	}
	for _, s := range c.Sessions {
		w.wake(s.ID)
	}
	for _, s := range c.RemovedSessions {
		w.wake(s.ID)
	}
	for _, r := range c.Results {
		w.wake(r.SessionID)
	}
	for _, d := range c.Dead {
		w.wake(d.SessionID)
	}
}

func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.byID {
		w.wake(id)
	}
}
