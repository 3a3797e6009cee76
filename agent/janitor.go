// Removing what sessions left behind, beside the supervisor: a workspace may be large and a disk slow.

package agent

import (
	"context"
	"log/slog"
	"sync"
)

// janitor removes the directories of sessions that are forgotten. A directory is moved to the trash at once, so that its
// place is free, and deleted from there in its own time, also by the next agent.
type janitor struct {
	store *store
	log   *slog.Logger

	mu    sync.Mutex
	queue []string      // bounded by the number of sessions
	wake  chan struct{} // holds one
	sweep chan struct{} // holds one
}

func newJanitor(s *store, log *slog.Logger) *janitor {
	j := &janitor{store: s, log: log, wake: make(chan struct{}, 1), sweep: make(chan struct{}, 1)}
	signal(j.sweep) // an earlier agent may have left something
	return j
}

// signal wakes whoever receives from a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// forget asks for the directory of a session that has ended to be removed.
func (j *janitor) forget(id string) {
	j.mu.Lock()
	j.queue = append(j.queue, id)
	j.mu.Unlock()
	signal(j.wake)
}

// run moves directories to the trash until ctx ends, and calls removed for each. What was not done then the next agent is
// told again.
func (j *janitor) run(ctx context.Context, removed func(id string)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.wake:
		}
		j.mu.Lock()
		ids := j.queue
		j.queue = nil
		j.mu.Unlock()
		for _, id := range ids {
			if err := j.store.discard(id); err != nil {
				j.log.Error("a session's directory could not be removed", "session", id, "error", err)
			}
			removed(id)
		}
		signal(j.sweep)
	}
}

// empty deletes what is in the trash, until ctx ends.
func (j *janitor) empty(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.sweep:
		}
		if err := j.store.emptyTrash(ctx); err != nil {
			j.log.Error("the trash could not be emptied", "error", err)
		}
	}
}
