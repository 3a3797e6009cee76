// Removing what sessions left behind, beside the supervisor: a workspace may be large and a disk slow.
package agent

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// janitor forgets sessions whose end is committed. The workspace goes at once; the log of the last keptMax sessions
// stays, so that it can be read after the end.
type janitor struct {
	store   *store
	keptMax int
	log     *slog.Logger

	mu    sync.Mutex
	queue []string      // bounded by the number of sessions
	wake  chan struct{} // holds one
	sweep chan struct{} // holds one

	kept []string // forgotten sessions whose log is kept, oldest first; owned by run
}

// newJanitor takes the sessions that an earlier agent forgot.
func newJanitor(s *store, keptMax int, forgotten []*record, log *slog.Logger) *janitor {
	j := &janitor{store: s, keptMax: keptMax, log: log, wake: make(chan struct{}, 1), sweep: make(chan struct{}, 1)}
	slices.SortFunc(forgotten, func(a, b *record) int { return endTime(a).Compare(endTime(b)) })
	for _, r := range forgotten {
		j.kept = append(j.kept, r.SessionID)
	}
	signal(j.sweep)
	return j
}

func endTime(r *record) time.Time {
	if r.Ended == nil {
		return r.CreateTime
	}
	return r.Ended.Time
}

// signal wakes whoever receives from a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// forget asks for a session that has ended to be forgotten; removed is called with its id once that is done.
func (j *janitor) forget(id string) {
	j.mu.Lock()
	j.queue = append(j.queue, id)
	j.mu.Unlock()
	signal(j.wake)
}

// run forgets until ctx ends. What was not done then is done by the next agent: the record says Forgotten, or the
// cluster says FORGET again.
func (j *janitor) run(ctx context.Context, removed func(id string)) {
	j.shorten()
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
			if err := j.forgetOne(id); err != nil {
				j.log.Error("a session's directory could not be removed", "session", id, "error", err)
			}
			removed(id)
		}
		j.shorten()
	}
}

func (j *janitor) forgetOne(id string) error {
	r, err := j.store.read(id)
	if err != nil || j.keptMax == 0 || r.Ended == nil {
		// No record, or of a session that never ran: there is no log worth keeping.
		return j.store.discard(id, false)
	}
	r.Forgotten = true
	if err := j.store.write(r); err != nil {
		return err
	}
	j.kept = append(slices.DeleteFunc(j.kept, func(k string) bool { return k == id }), id)
	return j.store.discard(id, true)
}

// shorten removes the oldest logs beyond the bound, and has the trash emptied.
func (j *janitor) shorten() {
	for len(j.kept) > j.keptMax {
		id := j.kept[0]
		j.kept = j.kept[1:]
		// A session of that id may have been started again since; then the directory is in use.
		if r, err := j.store.read(id); err != nil || !r.Forgotten {
			continue
		}
		if err := j.store.discard(id, false); err != nil {
			j.log.Error("an old session's log could not be removed", "session", id, "error", err)
		}
	}
	signal(j.sweep)
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
