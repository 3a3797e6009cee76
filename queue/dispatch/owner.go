// The owner: the one goroutine that knows how each call of this server is, and what it does when something is heard.

package dispatch

import (
	"context"
	"errors"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/queue"
)

// owner has the state of a dispatcher. Everything here is called in its goroutine.
type owner struct {
	d *Dispatcher
	o *Options

	entries  map[queue.Key]*entry
	byNumber map[uint64]*entry // of those that are committed: a call's key may change, its number does not
	ended    tombs
	// takingBack are calls that are being ended as their submission had no answer.
	takingBack map[queue.Key]struct{}
	lanes      map[string]*lane
	ready      entryHeap // calls that may begin
	wakes      entryHeap // calls to be looked at again at a time
	room       int       // how many more may run

	streams map[queue.ClientKey]*stream
	rekeys  map[queue.ClientKey]*rekeying // by the key that they have still
	holding map[*stream]struct{}          // those that hold results back until others are seen
	toNote  map[queue.ClientKey]given
	noteAt  time.Time // when they are noted; zero for none

	applied  uint64   // of the state: all changes up to it were seen
	later    []atTime // what is done once the state has been seen up to an index
	stopping bool
	quiet    []chan struct{} // closed when nothing runs any more and all that ended is committed
	ending   int             // ends that are on their way to the log
}

// atTime is what is done once the state was seen up to an index.
type atTime struct {
	index uint64
	do    func()
}

func newOwner(d *Dispatcher) *owner {
	w := &owner{d: d, o: &d.o, streams: map[queue.ClientKey]*stream{}, holding: map[*stream]struct{}{}, toNote: map[queue.ClientKey]given{}, rekeys: map[queue.ClientKey]*rekeying{}}
	w.clear()
	return w
}

// clear forgets all calls, but not who waits for them.
func (w *owner) clear() {
	w.entries, w.byNumber, w.lanes = map[queue.Key]*entry{}, map[uint64]*entry{}, map[string]*lane{}
	w.ready, w.wakes, w.room, w.ending = newReady(), newWakes(), w.o.MaxInFlight, 0
	w.ended = tombs{index: map[queue.Key]uint64{}}
	w.takingBack = map[queue.Key]struct{}{}
}

// Run works until ctx ends. Started again after a defect, it knows calls from the state alone.
func (d *Dispatcher) Run(ctx context.Context) error {
	d.mu.Lock()
	d.resting = make(chan struct{})
	resting := d.resting
	d.mu.Unlock()
	defer close(resting)
	w := d.owner
	w.startOver()
	ctx, cancel := context.WithCancel(ctx)
	changes, ended := make(chan *Change), make(chan error, 1)
	var following sync.WaitGroup
	following.Go(func() { ended <- d.follow(ctx, changes) })
	defer following.Wait()
	defer cancel()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case c := <-changes:
			w.apply(c)
		case <-d.inbox.wake:
			for _, f := range d.inbox.take() {
				f()
			}
		case <-timer.C:
		}
		timer.Reset(w.step(time.Now()))
	}
}

// follow hands on every change of the state until ctx ends.
func (d *Dispatcher) follow(ctx context.Context, to chan<- *Change) error {
	feed := d.o.State.Subscribe()
	defer feed.Close()
	for {
		c, err := feed.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		select {
		case to <- c:
		case <-ctx.Done():
			return nil
		}
	}
}

// startOver forgets what a Run before this one knew. What clients wait for and is committed is found in the state again.
func (w *owner) startOver() {
	for _, e := range w.entries {
		if e.submitting {
			e.gone = true
			w.d.count.refused.Add(1)
			e.sink.Refused(e.key.RequestID, errStartedOver)
			w.answered(e)
		}
		e.gone = true
		e.abandon(errOutdated)
	}
	w.clear()
}

// apply takes what an entry of the log changed.
func (w *owner) apply(c *Change) {
	if c.View != nil {
		if c.Back {
			w.goBack(c.View)
		}
		w.reload(c.View)
	}
	for from, to := range c.Rekeyed {
		w.rekeyed(from, to)
		for _, row := range c.Calls {
			if row.Client() == to {
				w.renameSubmitted(from, row)
			}
		}
	}
	for _, row := range c.Calls {
		if len(c.Rekeyed) == 0 || !w.toldBefore(row) {
			w.seen(row)
		}
	}
	w.applied = max(w.applied, c.Index)
	w.ended.drop(w.applied)
	for st := range w.holding {
		w.release(st)
	}
	for len(w.later) > 0 && w.later[0].index <= w.applied {
		do := w.later[0].do
		w.later = w.later[1:]
		do()
	}
}

// when has something done once the state was seen up to an index. Indexes are given in no particular order; who asks for an earlier one waits for those
// before it, which is not long.
func (w *owner) when(index uint64, do func()) {
	if index <= w.applied && len(w.later) == 0 {
		do()
		return
	}
	w.later = append(w.later, atTime{index, do})
}

// reload takes the whole state anew.
func (w *owner) reload(v View) {
	here := map[queue.Key]bool{}
	for row := range v.CallsOn(w.o.Server) {
		here[row.Key] = true
		w.seen(row)
	}
	for key, e := range w.entries {
		if here[key] || e.call == nil || e.call.ModifyIndex > v.Index() {
			continue
		}
		if row := v.Call(key); row != nil {
			w.seen(row)
			continue
		}
		w.drop(e, errOutdated) // the state knows it no more
	}
	for _, st := range w.streams {
		w.catchUp(st, v)
	}
	w.applied = max(w.applied, v.Index())
}

// seen takes a row of the state.
func (w *owner) seen(row *queue.Call) {
	if w.ended.has(row) {
		return
	}
	if l := w.lanes[row.OrderKey]; l != nil && row.Status.Over() && l.holder == nil && len(l.waiting) > 0 { // it may have been what they waited for
		l.waiting[0].notBefore = time.Time{}
		w.consider(l.waiting[0], time.Now())
	}
	e := w.entries[row.Key]
	if e == nil {
		if e = w.byNumber[row.Number]; e != nil && e.call.Number == row.Number {
			w.rename(e, row.Key)
		} else {
			e = nil
		}
	}
	switch {
	case e != nil && e.call != nil && row.ModifyIndex < e.call.ModifyIndex:
	case e != nil && e.submitting:
		if row.Status.Over() && row.RequestHash == e.request.Hash { // its answer is on the way, but this says it all
			w.submitted(e, Committed{Call: row, Known: e.known || row.Server != w.o.Server})
			return
		}
		w.know(e, row)
	case e != nil:
		w.learn(e, row)
	case row.Status.Over():
		w.finished(row, nil)
	case row.Server == w.o.Server:
		w.learn(w.add(row.Key), row)
	}
}

// learn takes the newest row of a call of this server.
func (w *owner) learn(e *entry, row *queue.Call) {
	if e.gone || e.call != nil && row.ModifyIndex < e.call.ModifyIndex {
		return
	}
	w.know(e, row)
	w.reconcile(e)
}

// know notes the newest row of a call.
func (w *owner) know(e *entry, row *queue.Call) {
	if e.call != nil && e.call.Number != row.Number && w.byNumber[e.call.Number] == e {
		delete(w.byNumber, e.call.Number)
	}
	w.byNumber[row.Number] = e
	e.call = row
}

// add makes an entry for a call of this server.
func (w *owner) add(key queue.Key) *entry {
	e := &entry{key: key, ready: -1, wake: -1}
	w.entries[key] = e
	return e
}

// rename gives an entry the key that its call has now.
func (w *owner) rename(e *entry, key queue.Key) {
	delete(w.entries, e.key)
	e.key = key
	w.entries[key] = e
}

// drop forgets a call that is not this server's, or not any more.
func (w *owner) drop(e *entry, why error) {
	e.gone = true
	e.abandon(why)
	if w.entries[e.key] == e {
		delete(w.entries, e.key)
	}
	if e.call != nil && w.byNumber[e.call.Number] == e {
		delete(w.byNumber, e.call.Number)
	}
	w.ready.remove(e)
	w.wakeAt(e, time.Time{})
	w.giveBack(e)
	w.leaveLane(e)
}

// giveBack returns the place that a call takes among those that run.
func (w *owner) giveBack(e *entry) {
	if e.placed {
		e.placed = false
		w.room++
	}
}

// propose has commands about a call committed; reply is called in the owner's goroutine with the answer to each, or why there is none.
func (w *owner) propose(patience time.Duration, commands []*clusterv1.Command, reply func([]Committed, error)) {
	w.o.Log.Commit(commands, patience, func(r []Committed, err error) {
		w.d.inbox.post(func() { w.whole(r, func() { reply(r, err) }) })
	})
}

// whole does something once no row among answers lacks bytes, which a leader leaves out of a large answer: the state here has them.
func (w *owner) whole(r []Committed, do func()) {
	lacks := func(b *queue.Blob) bool { return b.Size > 0 && len(b.Inline) == 0 && len(b.Chunks) == 0 }
	var short []int
	var index uint64
	for i := range r {
		if c := r[i].Call; c != nil && (!c.Status.Over() && lacks(&c.Arguments) || c.Outcome != nil && lacks(&c.Outcome.Outputs)) {
			short, index = append(short, i), max(index, r[i].Index)
		}
	}
	if len(short) == 0 {
		do()
		return
	}
	w.when(index, func() {
		v := w.o.State.View()
		for _, i := range short {
			if row := v.Call(r[i].Call.Key); row != nil {
				r[i].Call = row
			}
		}
		do()
	})
}

// proposeOne is propose for one command.
func (w *owner) proposeOne(patience time.Duration, c *clusterv1.Command, reply func(Committed, error)) {
	w.propose(patience, []*clusterv1.Command{c}, func(r []Committed, err error) {
		if err != nil {
			reply(Committed{}, err)
			return
		}
		reply(r[0], r[0].Err)
	})
}

// step does what has become possible, and returns in how long there is something to do without being told.
func (w *owner) step(now time.Time) time.Duration {
	for w.wakes.len() > 0 && !now.Before(w.wakes.first().wakeTime) {
		e := w.wakes.first()
		w.wakeAt(e, time.Time{})
		w.consider(e, now)
	}
	w.beginMore()
	if !w.noteAt.IsZero() && !now.Before(w.noteAt) {
		w.note()
	}
	w.d.count.waiting.Store(int64(len(w.entries) - (w.o.MaxInFlight - w.room)))
	w.d.count.running.Store(int64(w.o.MaxInFlight - w.room))
	if len(w.quiet) > 0 && w.ending <= 0 && w.room == w.o.MaxInFlight {
		for _, q := range w.quiet {
			close(q)
		}
		w.quiet = nil
	}
	next := time.Hour
	if w.wakes.len() > 0 {
		next = min(next, w.wakes.first().wakeTime.Sub(now))
	}
	if !w.noteAt.IsZero() {
		next = min(next, w.noteAt.Sub(now))
	}
	return max(next, time.Millisecond)
}

// beginMore has as many waiting calls begun as there is room for.
func (w *owner) beginMore() {
	for w.room > 0 && w.ready.len() > 0 && !w.stopping {
		var batch []*entry
		var commands []*clusterv1.Command
		for w.room > 0 && w.ready.len() > 0 && len(batch) < maxBeginBatch {
			e := w.ready.first()
			w.ready.remove(e)
			if e.lane != nil && e.lane.holder != nil && e.lane.holder != e {
				continue // it is considered again when the lane is free
			}
			w.takePlace(e)
			e.pending++
			e.mayRun = e.call.Attempt + 1 // which nobody else can begin: also where the answer is lost
			batch = append(batch, e)
			commands = append(commands, beginCommand(e.call))
		}
		if len(batch) == 0 {
			return
		}
		w.propose(w.o.Patience/2, commands, func(r []Committed, err error) {
			for i, e := range batch {
				if err != nil {
					w.begun(e, Committed{}, err)
				} else {
					w.begun(e, r[i], r[i].Err)
				}
			}
		})
	}
}

// takePlace counts a call among those that run.
func (w *owner) takePlace(e *entry) {
	e.placed = true
	w.room--
	w.enterLane(e)
}

// stop begins the end.
func (w *owner) stop(quiet chan struct{}) {
	w.stopping = true
	w.note()
	w.quiet = append(w.quiet, quiet)
}

// The causes of runs that end without their outcome being told.
var (
	errLeft        = errors.New("the server is stopping; another one takes the call over")
	errOutdated    = errors.New("another server has the call now")
	errStartedOver = errors.New("the server lost sight of the call; ask again, with the same request_id")
)

// tombs remember calls whose end was learned from the log's answer until the state's feed has come as far.
type tombs struct {
	index map[queue.Key]uint64
	order []queue.Key
}

func (t *tombs) add(row *queue.Call) {
	t.index[row.Key] = max(t.index[row.Key], row.ModifyIndex)
	t.order = append(t.order, row.Key)
}

func (t *tombs) has(row *queue.Call) bool {
	index, ok := t.index[row.Key]
	return ok && row.ModifyIndex <= index
}

func (t *tombs) drop(applied uint64) {
	for len(t.order) > 0 {
		index, ok := t.index[t.order[0]]
		if ok && index > applied {
			return
		}
		delete(t.index, t.order[0])
		t.order = t.order[1:]
	}
}
