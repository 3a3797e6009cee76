// A call of this server: what is known of it, what is under way, and what follows from the two.

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// entry is a call of this server. The owner's.
type entry struct {
	key     queue.Key
	call    *queue.Call // the newest row that was seen; nil until the submission is answered
	request *Request    // where it was submitted here
	sink    Sink        // of the submission, until it is answered
	gone    bool        // forgotten; what comes in still is not meant for it

	submitting bool          // the submission is not answered
	first      uint32        // the attempt that the submission begins, as far as is known
	known      bool          // the call was there before its submission
	ahead      *queue.Call   // with submitting: it runs, and its submission is held back for its end
	pending    int           // proposals about it that are on their way
	mayRun     uint32        // the attempt that the log gave to this server, as it was told to this very process
	run        *run          // under way
	done       *done         // how the last attempt ended; until the log has it
	failures   int           // attempts that failed in a way that may pass
	notBefore  time.Time     // it is not begun again before that, beside what the state says
	cancelled  []func(error) // who cancelled it while it was being submitted
	before     []*rekeying   // what waits for the submission to be answered

	placed   bool // it counts among those that run
	lane     *lane
	ready    int // its place among those that may begin; -1 for none
	wake     int // and among those that are to be looked at again
	wakeTime time.Time
}

// run is an attempt that is under way.
type run struct {
	attempt uint32
	cancel  context.CancelCauseFunc
}

// done is how an attempt ended, and how that is told to the log.
type done struct {
	attempt uint32
	outputs []byte
	command func(queue.Key) *clusterv1.Command
}

// waits reports whether it waits to be begun, and nothing else is under way.
func (e *entry) waits() bool {
	return e.call != nil && e.call.Status == queue.Queued && e.pending == 0 && e.run == nil && !e.placed
}

// abandon ends a run whose outcome nobody needs.
func (e *entry) abandon(why error) {
	if e.run != nil {
		e.run.cancel(why)
		e.run = nil
	}
}

// submit takes a call of a client.
func (w *owner) submit(r *Request, arguments queue.Blob, sink Sink) {
	refuse := func(err error) {
		w.d.count.refused.Add(1)
		sink.Refused(r.RequestID, err)
	}
	if w.afterRekey(r.Client(), func(k queue.ClientKey, caller *queue.Caller) {
		r.Owner, r.Session = k.Owner, k.Session
		if caller != nil {
			r.Caller = *caller
		}
		w.submit(r, arguments, sink)
	}) {
		return
	}
	w.streamOf(r.Client(), sink)
	if _, ok := w.takingBack[r.Key]; ok { // what is made anew now may be ended for what is taken back, where the log hears that twice
		refuse(fault.New(fault.Unavailable, "call %s is just being taken back; ask again", r.RequestID).WithRetry(time.Second))
		return
	}
	if e := w.entries[r.Key]; e != nil {
		switch {
		case e.submitting:
			refuse(fault.New(fault.Unavailable, "call %s is just being taken; ask again", r.RequestID).WithRetry(time.Second))
		case e.call.RequestHash != r.Hash:
			refuse(fault.New(fault.AlreadyExists, "request_id was used for another call; give each call one of its own"))
		default:
			w.d.count.known.Add(1)
			sink.Accepted(e.call, true)
		}
		return
	}
	switch {
	case w.stopping:
		refuse(w.d.errStopping())
		return
	case len(w.entries) >= w.o.MaxWaiting+w.o.MaxInFlight:
		refuse(fault.New(fault.Exhausted, "as many calls wait on this server as may").WithRetry(time.Second))
		return
	}
	e := w.add(r.Key)
	e.request, e.sink, e.submitting = r, sink, true
	call := &queue.Call{
		Key: r.Key, Caller: r.Caller, Tool: r.Tool, Arguments: arguments, Priority: r.Priority, RequestHash: r.Hash, Deadline: r.Deadline.UnixNano(),
		Server: w.o.Server, OrderKey: r.OrderKey, Repeatable: r.Repeatable,
	}
	e.first = 1
	if old := w.o.State.View().Call(r.Key); old != nil { // it is made anew, and its attempts are counted on
		e.first = old.Attempt + 2
		e.known = !old.Anew()
	}
	e.lane = w.laneOf(r.OrderKey)
	begin := w.room > 0 && w.ready.len() == 0 && e.lane.free()
	switch {
	case begin:
		w.takePlace(e)
	case e.lane != nil:
		e.lane.expected++
	}
	if !begin || !r.ReadOnly {
		w.proposeSubmit(e, call, begin)
		return
	}
	call.Attempt = e.first
	e.ahead = call
	w.start(e, call)
	time.AfterFunc(headStart, func() {
		w.d.inbox.post(func() {
			if e.ahead != nil && !e.gone {
				w.proposeSubmit(e, e.ahead, true)
			}
		})
	})
}

// proposeSubmit has the log take a call, and with it what is to be said about it already.
func (w *owner) proposeSubmit(e *entry, call *queue.Call, begin bool, also ...*clusterv1.Command) {
	e.ahead = nil
	e.pending++
	commands := append([]*clusterv1.Command{submitCommand(call, begin)}, also...)
	expected := e.lane != nil && !begin
	w.propose(w.o.Patience, commands, func(r []Committed, err error) {
		if expected && e.lane != nil {
			e.lane.expected--
		}
		if err != nil {
			r = []Committed{{Err: err}}
		}
		if len(also) == 0 {
			e.pending--
			if e.submitting && !e.gone {
				w.submitted(e, r[0])
			}
			return
		}
		if e.submitting && !e.gone {
			w.submitted(e, r[0])
		}
		e.pending--
		w.ending--
		if len(r) > 1 {
			w.told(e, r[1], r[1].Err)
		}
		if !e.gone {
			w.reconcile(e)
		}
	})
}

// submitted is the answer to a submission.
func (w *owner) submitted(e *entry, c Committed) {
	sink, client := e.sink, e.key.Client()
	e.submitting, e.sink, e.ahead = false, nil, nil
	defer w.answered(e)
	row := c.Call
	if c.Err == nil && e.call != nil && row.Key != e.key && row.Number != e.call.Number {
		w.madeTwice(e, row)
		row, c.Known = e.call, false
	}
	if e.call != nil && (row == nil || e.call.ModifyIndex > row.ModifyIndex) && c.Err == nil {
		row = e.call // the feed was ahead
	}
	waiting := e.cancelled
	e.cancelled = nil
	answer := func(err error) {
		for _, f := range waiting {
			f(err)
		}
	}
	if c.Err != nil {
		w.d.count.refused.Add(1)
		l := e.lane
		w.drop(e, errOutdated)
		if l != nil {
			w.wakeLane(l)
		}
		w.takeBack(e, c.Err)
		sink.Refused(e.key.RequestID, c.Err)
		answer(errNotThere)
		return
	}
	again := c.Again && row.Server == w.o.Server && row.Attempt <= e.first // it is known from a first try of this submission
	if c.Known && !again {
		w.d.count.known.Add(1)
		sink.Accepted(row, true)
		if row.Status.Over() {
			w.drop(e, errOutdated)
			w.wasOver(w.streams[client], row)
			answer(errNotThere)
			return
		}
		e.abandon(errOutdated)
	} else {
		w.d.count.submitted.Add(1)
		sink.Accepted(row, false)
		if row.Status == queue.Running && row.Server == w.o.Server {
			e.mayRun = row.Attempt
		}
	}
	w.learn(e, row)
	for _, f := range waiting {
		w.cancel(e.key, f)
	}
}

// takeBack ends a call whose client is told that it was not taken, where it may have been: the log gave no answer. It ends only what this submission
// made: what the client was promised before goes on.
func (w *owner) takeBack(e *entry, why error) {
	if !fault.Is(why, fault.Unavailable) {
		return
	}
	if !e.known && (e.call == nil || e.call.Server == w.o.Server) {
		attempts := []uint32{e.first, e.first - 1} // it was begun, or waits
		if e.call != nil {
			attempts = []uint32{e.call.Attempt}
		}
		var commands []*clusterv1.Command
		for _, n := range attempts {
			commands = append(commands, w.endCall(n, &queue.Outcome{Cancelled: true, Passing: true}, false)(e.key))
		}
		key, taking := e.key, w.takingBack
		taking[key] = struct{}{}
		w.propose(w.o.Patience, commands, func([]Committed, error) { delete(taking, key) })
	}
	if e.call != nil {
		w.seen(e.call) // it is committed, and does not run
	}
}

// reconcile does what follows from the row of a call and from what is under way.
func (w *owner) reconcile(e *entry) {
	row := e.call
	switch {
	case e.submitting:
	case row.Status.Over():
		w.over(e)
	case row.Server != w.o.Server:
		if e.run != nil {
			w.d.count.outdated.Add(1)
		}
		w.drop(e, errOutdated)
	case row.Status == queue.Queued:
		e.abandon(errOutdated)
		if e.pending == 0 {
			e.done = nil // an answer from before its turn is none: others of its key may have changed what it read
			w.giveBack(e)
			w.consider(e, time.Now())
		}
	case e.run != nil && e.run.attempt == row.Attempt:
		if row.Cancelling {
			e.run.cancel(w.o.Cancelled)
		}
	case e.pending > 0: // the answer will say more
	case e.done != nil && e.done.attempt == row.Attempt:
		w.tell(e)
	case e.mayRun == row.Attempt:
		w.start(e, row)
	default:
		w.orphan(e)
	}
}

// over forgets a call that has its outcome, and hands that on.
func (w *owner) over(e *entry) {
	row := e.call
	var outputs []byte
	if o := row.Outcome; e.done != nil && e.done.attempt == row.Attempt && o.Code == "" && !o.Cancelled && uint64(len(e.done.outputs)) == o.Outputs.Size {
		outputs = e.done.outputs
	}
	w.drop(e, errOutdated)
	if row.ModifyIndex > w.applied {
		w.ended.add(row)
	}
	w.finished(row, outputs)
}

// begun is the answer to the beginning of a call.
func (w *owner) begun(e *entry, c Committed, err error) {
	e.pending--
	if e.gone {
		return
	}
	if err != nil {
		w.giveBack(e)
		l := e.lane
		if l != nil && l.holder == e && e.failures == 0 {
			l.holder = nil
		}
		e.notBefore = time.Now().Add(refusedPause) // the feed may know more by then
		w.reconcile(e)
		if l != nil && l.holder == nil && len(l.waiting) > 0 { // one that came meanwhile is before it, and was held up by it
			w.consider(l.waiting[0], time.Now())
		}
		return
	}
	e.mayRun = c.Call.Attempt
	w.learn(e, c.Call)
	if !e.gone && e.run == nil { // it was overtaken
		w.giveBack(e)
		w.reconcile(e)
	}
}

// orphan is a call that runs here, as the state says, and does not: this server has been started anew, or was not told that its submission was
// committed. What may be repeated is begun again.
func (w *owner) orphan(e *entry) {
	if w.stopping {
		return
	}
	w.d.count.orphans.Add(1)
	row := e.call
	const why = "its server was started again while it ran"
	switch {
	case row.Cancelling:
		e.done = &done{attempt: row.Attempt, command: w.endCall(row.Attempt, &queue.Outcome{Cancelled: true, Passing: true}, false)}
	case row.Repeatable:
		e.done = &done{attempt: row.Attempt, command: w.deferCall(row.Attempt, time.Now(), queue.CodeUnavailable, why)}
	default:
		e.done = &done{attempt: row.Attempt, command: w.endCall(row.Attempt, &queue.Outcome{
			Code: queue.CodeUnavailable, Message: fmt.Sprintf("%s; whether it had its effect is not known, and %s may not be repeated unasked", why, row.Tool),
		}, true)}
		w.d.count.dead.Add(1)
	}
	w.tell(e)
}

// tell has the log know how an attempt ended.
func (w *owner) tell(e *entry) {
	e.pending++
	w.ending++
	knew, key := e.call, e.key
	w.proposeOne(0, e.done.command(e.key), func(c Committed, err error) {
		w.ending--
		e.pending--
		w.told(e, c, err)
		if err != nil && !e.gone && !e.submitting && (e.call != knew || e.key != key) { // it was refused for what has changed meanwhile
			w.reconcile(e)
		}
	})
}

// told is the answer to that.
func (w *owner) told(e *entry, c Committed, err error) {
	if e.gone {
		return
	}
	if err != nil || c.Call == nil { // the state knows better: its feed says what
		w.d.count.outdated.Add(1)
		w.o.Logger.Debug("the end of a call was refused", "call", e.key.RequestID, "error", err)
		return
	}
	if e.done != nil && !c.Call.Status.Over() {
		e.done = nil
	}
	w.learn(e, c.Call)
}

// late ends a call that waited until its deadline.
func (w *owner) late(e *entry) {
	if w.stopping {
		return
	}
	e.done = &done{attempt: e.call.Attempt, command: w.endCall(e.call.Attempt, &queue.Outcome{
		Code: queue.CodeTimeout, Message: "its deadline passed while it waited for its turn", Passing: true,
	}, false)}
	w.d.count.ended.Add(1)
	w.tell(e)
}

// errNotThere is the answer to who cancels what is over.
var errNotThere = fault.New(fault.NotFound, "no call of this request_id is in flight; it may have ended")

// cancel ends a call as far as it can be ended.
func (w *owner) cancel(key queue.Key, done func(error)) {
	if w.afterRekey(key.Client(), func(k queue.ClientKey, _ *queue.Caller) {
		w.cancel(queue.Key{Owner: k.Owner, Session: k.Session, RequestID: key.RequestID}, done)
	}) {
		return
	}
	if e := w.entries[key]; e != nil {
		switch {
		case e.submitting:
			e.cancelled = append(e.cancelled, done)
			return
		case e.run != nil:
			e.run.cancel(w.o.Cancelled)
			done(nil)
			return
		}
	}
	w.proposeOne(w.o.Patience/2, cancelCommand(key), func(c Committed, err error) {
		switch {
		case fault.Is(err, fault.NotFound):
			err = errNotThere
		case err == nil && c.Known && c.Call != nil && c.Call.Status.Over():
			err = errNotThere
		}
		if err == nil && c.Call != nil {
			if e := w.entries[key]; e != nil && !e.submitting {
				w.learn(e, c.Call)
			}
		}
		done(err)
	})
}

// ranOut is how an attempt of this server ended.
func (w *owner) ranOut(e *entry, r *run, why error, a Answer, outputs queue.Blob) {
	if e.gone || e.run != r {
		return
	}
	e.run = nil
	w.giveBack(e)
	if errors.Is(why, errLeft) && a.Outputs == nil {
		return // another server has it soon
	}
	row := e.call
	if row == nil {
		row = e.ahead
	}
	if row == nil { // its submission is on its way
		row = &queue.Call{Key: e.key, Attempt: r.attempt, Deadline: e.request.Deadline.UnixNano(), Repeatable: e.request.Repeatable}
	}
	e.done = w.conclude(e, row, r.attempt, a, outputs)
	switch {
	case e.ahead != nil:
		w.d.count.fast.Add(1)
		w.ending++
		w.proposeSubmit(e, e.ahead, true, e.done.command(e.key))
	case e.submitting: // it comes behind the submission
		w.tell(e)
	default:
		w.reconcile(e)
	}
}

// conclude decides what becomes of a call by how an attempt ended: its end, another attempt, or giving it up.
func (w *owner) conclude(e *entry, row *queue.Call, attempt uint32, a Answer, outputs queue.Blob) *done {
	d := &done{attempt: attempt, outputs: a.Outputs}
	o := &queue.Outcome{Outputs: outputs, Cancelled: a.Cancelled, Code: a.Code, Message: a.Message, RetryAfter: a.RetryAfter, Field: a.Field, Passing: a.Passing}
	if a.Cancelled {
		w.d.count.cancelled.Add(1)
	}
	dead := false
	if a.Again && row.Repeatable && !row.Cancelling {
		e.failures++
		pause, more := w.o.Retry.pause(e.failures, a.RetryAfter, time.Until(time.Unix(0, row.Deadline)))
		if more {
			w.d.count.deferred.Add(1)
			d.command = w.deferCall(attempt, time.Now().Add(pause), a.Code, a.Message)
			return d
		}
		dead = true
		w.d.count.dead.Add(1)
	} else {
		w.d.count.ended.Add(1)
	}
	d.command = w.endCall(attempt, o, dead)
	return d
}

// The commands.

func submitCommand(c *queue.Call, begin bool) *clusterv1.Command {
	return &clusterv1.Command{Kind: &clusterv1.Command_SubmitCall{SubmitCall: pbconv.SubmitOf(c, begin)}}
}

func beginCommand(c *queue.Call) *clusterv1.Command {
	return &clusterv1.Command{Kind: &clusterv1.Command_BeginCall{BeginCall: &clusterv1.BeginCall{Key: pbconv.CallKeyToProto(c.Key), ServerId: c.Server, Attempt: c.Attempt}}}
}

// deferCall and endCall are commands about an attempt of this server, for the key that the call has when it is proposed.
func (w *owner) deferCall(attempt uint32, notBefore time.Time, code, message string) func(queue.Key) *clusterv1.Command {
	return func(k queue.Key) *clusterv1.Command {
		return &clusterv1.Command{Kind: &clusterv1.Command_DeferCall{DeferCall: &clusterv1.DeferCall{
			Key: pbconv.CallKeyToProto(k), ServerId: w.o.Server, Attempt: attempt, NotBefore: notBefore.UnixNano(), Code: code, Message: message,
		}}}
	}
}

func (w *owner) endCall(attempt uint32, o *queue.Outcome, dead bool) func(queue.Key) *clusterv1.Command {
	return func(k queue.Key) *clusterv1.Command {
		return &clusterv1.Command{Kind: &clusterv1.Command_EndCall{EndCall: &clusterv1.EndCall{
			Key: pbconv.CallKeyToProto(k), ServerId: w.o.Server, Attempt: attempt, Outcome: pbconv.OutcomeToProto(o), Dead: dead,
		}}}
	}
}

func cancelCommand(k queue.Key) *clusterv1.Command {
	return &clusterv1.Command{Kind: &clusterv1.Command_CancelCall{CancelCall: &clusterv1.CancelCall{Key: pbconv.CallKeyToProto(k)}}}
}
