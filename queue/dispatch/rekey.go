// Rekeying: a client's session goes to another owner, and its calls have other keys from then on.
//
// The log may commit a request twice when its answer is lost. What is said about a call under a former key finds nothing then, which is harmless; but a
// submission makes the call once more, as one of a session that begins anew, and the rekeying behind it is refused, because the new owner has the session
// already. So a session is rekeyed once all its submissions of this server are answered, and those that come meanwhile wait until it is.

package dispatch

import (
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// rekeying is a session that is being given to another owner. The owner's.
type rekeying struct {
	from, to queue.ClientKey
	caller   queue.Caller
	by       time.Time // when who asked for it waits no more
	before   int       // submissions that must be answered first
	seen     bool      // the state has told that it was done
	held     []func(queue.ClientKey, *queue.Caller)
	done     func(error)
}

// rekey gives a session to another owner.
func (w *owner) rekey(from, to queue.ClientKey, caller queue.Caller, done func(error)) {
	if w.rekeys[from] != nil {
		done(fault.New(fault.Unavailable, "session %s is just being given to another owner; ask again", from.Session).WithRetry(time.Second))
		return
	}
	patience := w.o.Patience / 2
	r := &rekeying{from: from, to: to, caller: caller, by: time.Now().Add(patience), done: done}
	w.rekeys[from] = r
	for _, e := range w.entries {
		if e.submitting && e.key.Client() == from {
			e.before = append(e.before, r)
			r.before++
		}
	}
	if r.before == 0 {
		w.proposeRekey(r)
		return
	}
	time.AfterFunc(patience, func() {
		w.d.inbox.post(func() {
			if r.before > 0 {
				r.before = 0
				w.rekeyDone(r, fault.New(fault.Unavailable, "calls of session %s are still being taken; ask again", from.Session).WithRetry(time.Second))
			}
		})
	})
}

// answered lets what waits for the answer to a submission go on.
func (w *owner) answered(e *entry) {
	waiting := e.before
	e.before = nil
	for _, r := range waiting {
		if r.before == 0 {
			continue // it was given up
		}
		if r.before--; r.before == 0 {
			w.proposeRekey(r)
		}
	}
}

// proposeRekey has the log do it.
func (w *owner) proposeRekey(r *rekeying) {
	command := &clusterv1.Command{Kind: &clusterv1.Command_RekeyClient{RekeyClient: &clusterv1.RekeyClient{
		Owner: r.from.Owner, Session: r.from.Session, NewOwner: r.to.Owner, Caller: pbconv.CallerToProto(r.caller),
	}}}
	w.proposeOne(max(time.Until(r.by), time.Millisecond), command, func(c Committed, err error) {
		w.when(c.Index, func() {
			switch {
			case err == nil:
			case r.seen: // a first try of it was committed, and its answer lost
				err = nil
			case fault.Is(err, fault.NotFound): // it has made no call yet
				w.rekeyed(r.from, r.to)
				err = nil
			}
			w.rekeyDone(r, err)
		})
	})
}

// rekeyDone answers, and has what came meanwhile go on with the key that the session has now.
func (w *owner) rekeyDone(r *rekeying, err error) {
	delete(w.rekeys, r.from)
	r.done(err)
	key, caller := r.to, &r.caller
	if err != nil {
		key, caller = r.from, nil
	}
	for _, do := range r.held {
		do(key, caller)
	}
}

// afterRekey reports whether a session is being given to another owner, and has something done afterwards then: with the key that the session has by
// then, and as whom its calls are made, nil where nothing has changed.
func (w *owner) afterRekey(key queue.ClientKey, do func(queue.ClientKey, *queue.Caller)) bool {
	r := w.rekeys[key]
	if r == nil {
		return false
	}
	r.held = append(r.held, do)
	return true
}

// rekeyed brings along what is known here of a session that has another owner.
func (w *owner) rekeyed(from, to queue.ClientKey) {
	if r := w.rekeys[from]; r != nil && r.to == to {
		r.seen = true
	}
	st := w.streams[from]
	if st == nil {
		return
	}
	delete(w.streams, from)
	if up, ok := w.toNote[from]; ok {
		delete(w.toNote, from)
		w.toNote[to] = up
	}
	st.was = append(st.was, from) // runs that are under way know the session by it
	st.key = to
	w.streams[to] = st
	w.d.setSink(to, st.sink)
}

// renameSubmitted finds the entry of a call that was taken and rekeyed by one entry of the log, while its submission is not answered.
func (w *owner) renameSubmitted(from queue.ClientKey, row *queue.Call) {
	key := queue.Key{Owner: from.Owner, Session: from.Session, RequestID: row.RequestID}
	e := w.entries[key]
	if e != nil && e.submitting && e.call == nil && row.Server == w.o.Server && row.RequestHash == e.request.Hash && w.entries[row.Key] == nil && w.byNumber[row.Number] == nil {
		w.rename(e, row.Key)
	}
}

// toldBefore reports whether a row is of a result that was handed on before: rekeying changes the rows of all calls, and those that are over are no news.
func (w *owner) toldBefore(row *queue.Call) bool {
	st := w.streams[row.Client()]
	if st == nil || !row.Status.Over() || row.Order > st.next || w.entries[row.Key] != nil || w.byNumber[row.Number] != nil {
		return false
	}
	_, late := st.holes[row.Order]
	return !late
}

// madeTwice ends a call that the repetition of a submission has made under its session's former key: the first one has gone along to the new key, where it
// is known. Another server has rekeyed the session.
func (w *owner) madeTwice(e *entry, second *queue.Call) {
	if second.Status.Over() || second.Server != w.o.Server || w.entries[second.Key] != nil { // where it is known by itself, it goes its way
		return
	}
	w.takingBack[second.Key] = struct{}{}
	end := w.endCall(second.Attempt, &queue.Outcome{Cancelled: true, Passing: true}, false)(second.Key)
	taking := w.takingBack
	w.proposeOne(w.o.Patience, end, func(Committed, error) { delete(taking, second.Key) })
}
