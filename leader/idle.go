// Idle sessions: paused when their spec asks for it, from the end of the last turn on, never while one is under way.
//
// Each session that may be paused has one entry in a heap, with a time before which it cannot be due. Only when that has come
// the session is looked at, and the entry moves to when it may be due then; so a turn costs nothing here, and a tick costs what is due.

package leader

import (
	"container/heap"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/session"
)

const (
	// maxIdlePerTick bounds how many sessions one tick looks at.
	maxIdlePerTick = 1000
	// idleRetryMin is when a pause is tried again at the earliest that could not be committed, idleFailedMin one for which no
	// checkpoint could be made.
	idleRetryMin  = time.Second
	idleFailedMin = 30 * time.Second
)

// idleDue returns when a running session with this mailbox, which may be nil, has been idle for long enough; false while it is not
// idle.
func idleDue(s *session.Session, box *session.Mailbox) (time.Time, bool) {
	since, after := s.History[len(s.History)-1].Time, s.Spec.PauseAfter // since it runs, or goes on after a pause that failed
	if s.CheckpointError != "" {
		after = max(after, idleFailedMin)
	}
	if box != nil {
		if box.Queued+box.Delivered > 0 {
			return time.Time{}, false
		}
		since = max(since, box.LastAckTime)
	}
	return time.Unix(0, since).Add(after), true
}

// watchIdle has a session looked at when it may be idle for long enough.
func (r *reign) watchIdle(s *session.Session) {
	if s.Spec.PauseAfter > 0 && s.Phase == session.Running && !r.idleWatched[s.ID] {
		r.lookIdle(s.ID, time.Unix(0, s.History[len(s.History)-1].Time).Add(s.Spec.PauseAfter))
	}
}

func (r *reign) lookIdle(id string, at time.Time) {
	r.idleWatched[id] = true
	r.idle.add(at.UnixNano(), id, 0)
}

// pauseIdle pauses who has been idle for long enough.
func (r *reign) pauseIdle(now time.Time) {
	if len(r.idle) == 0 || r.idle[0].at > now.UnixNano() {
		return
	}
	view := r.opts.State.View()
	for range maxIdlePerTick {
		if len(r.idle) == 0 || r.idle[0].at > now.UnixNano() {
			return
		}
		id := heap.Pop(&r.idle).(expiry).session
		s := view.Session(id)
		if s == nil || s.Phase != session.Running {
			delete(r.idleWatched, id) // it is watched again when it runs
			continue
		}
		due, idle := idleDue(s, view.Mailbox(id))
		switch {
		case !idle: // the end of that turn is still to come
			r.lookIdle(id, now.Add(s.Spec.PauseAfter))
		case due.After(now):
			r.lookIdle(id, due)
		default:
			r.pauseAsIdle(s)
		}
	}
}

func (r *reign) pauseAsIdle(s *session.Session) {
	r.propose(func([]state.Result, error) {
		delete(r.idleWatched, s.ID)
		// A refusal means that something has happened since; whatever it was, the session is looked at again while it runs.
		if now := r.opts.State.View().Session(s.ID); now != nil && now.Phase == session.Running {
			r.lookIdle(s.ID, r.opts.Now().Add(idleRetryMin))
		}
	}, &clusterv1.Command{Kind: &clusterv1.Command_PauseSession{PauseSession: &clusterv1.PauseSession{
		SessionId: s.ID, Reason: "idle for " + s.Spec.PauseAfter.String(), Idle: &clusterv1.Idle{Epoch: s.Epoch, Turns: s.Turns},
	}}})
}
