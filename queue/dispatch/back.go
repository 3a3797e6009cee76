// Going back: the state was set back to a snapshot, and what was promised since is no more.

package dispatch

import (
	"maps"
	"slices"
	"time"

	"github.com/neolith/orchestrator/queue"
)

// goBack forgets what was said of calls since the snapshot that the state was set back to. What the state says of a call counts from here on, although it
// is older than what was known; those that it does not know are lost, and who waits for one is told so.
func (w *owner) goBack(v View) {
	w.applied = v.Index()
	w.ended = tombs{index: map[queue.Key]uint64{}}
	for key, e := range w.entries {
		row := v.Call(key)
		switch {
		case e.call == nil:
		case e.submitting: // the answer is on its way
			if w.byNumber[e.call.Number] == e {
				delete(w.byNumber, e.call.Number)
			}
			e.call = nil
		case row == nil:
			lost := e.call
			w.drop(e, errOutdated)
			if st := w.streams[key.Client()]; st != nil {
				st.lost(lost)
			}
		default:
			if e.run != nil && e.run.attempt != row.Attempt {
				e.abandon(errOutdated)
				w.giveBack(e)
			}
			e.mayRun = 0
			w.know(e, row)
		}
	}
	w.sync(queue.ClientKey{}, 0, func(err error) {
		if err == nil {
			w.tellLost()
		}
	})
}

// tellLost tells clients here of calls that the state does not know, wherever they were made and run. All that was committed since the state was set back has
// been seen: a call that was made since is not taken for one that was lost.
func (w *owner) tellLost() {
	v := w.o.State.View()
	for _, st := range w.streams {
		if st.sink == nil {
			continue
		}
		waits := st.sink.Waits()
		for _, id := range slices.Sorted(maps.Keys(waits)) {
			key := queue.Key{Owner: st.key.Owner, Session: st.key.Session, RequestID: id}
			if row := v.Call(key); row == nil || row.Number != waits[id] {
				st.lost(&queue.Call{Key: key, Number: waits[id]})
			}
		}
	}
}

// lost tells the client that a call is no more. It stands outside of the order.
func (st *stream) lost(c *queue.Call) {
	if st.sink == nil {
		return
	}
	lost := *c
	lost.Status, lost.Order = queue.Ended, 0
	lost.Outcome = &queue.Outcome{
		Code: queue.CodeUnavailable, Message: "the cluster was set back to a snapshot from before the call; ask again", RetryAfter: time.Second, Passing: true,
	}
	st.sink.Ended(Result{Call: &lost})
}
