// Streams: the results of a client in their order, to the client at this server, once.

package dispatch

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/queue"
)

// fetchPatience is how long a large result is tried to be fetched before its client is told that it cannot be had now. Others wait behind it.
const fetchPatience = 10 * time.Second

// stream is the results of a client.
type stream struct {
	key    queue.ClientKey
	was    []queue.ClientKey // the keys that it had before
	sink   Sink
	next   uint64              // the last order that is in out, or was handed on
	held   map[uint64]*Result  // results whose predecessors were not seen
	holes  map[uint64]struct{} // orders that were passed over, and may come yet
	out    []*Result           // to be handed on
	paused int                 // Opens without their Resume or Release
	busy   bool                // the first of out is being fetched, or waits for room
}

// streamOf returns the stream of a client that is at this server.
func (w *owner) streamOf(key queue.ClientKey, sink Sink) *stream {
	st := w.streams[key]
	if st == nil {
		st = &stream{key: key}
		if c := w.o.State.View().Client(key); c != nil {
			st.next = c.Order
		}
		w.streams[key] = st
	}
	if st.sink != sink {
		st.sink = sink
		w.d.setSink(key, sink)
	}
	return st
}

// forget ends a stream.
func (w *owner) forget(key queue.ClientKey, sink Sink) {
	if st := w.streams[key]; st != nil && st.sink == sink {
		delete(w.streams, key)
		delete(w.holding, st)
		st.out, st.sink = nil, nil
		for _, k := range append(st.was, key) {
			if w.d.sinkOf(k) == sink {
				w.d.setSink(k, nil)
			}
		}
	}
}

// finished hands a result on, in its order. outputs are nil where they are not at hand.
func (w *owner) finished(row *queue.Call, outputs []byte) {
	st := w.streams[row.Client()]
	if st == nil {
		return
	}
	if row.Order <= st.next {
		_, late := st.holes[row.Order]
		delete(st.holes, row.Order)
		// One that counts as given already, as one that was fetched elsewhere, is told outside of the order: who waits for it here waits for nothing
		// else, and nobody else hears of it.
		st.out = append(st.out, &Result{Call: row, Outputs: outputs, Kept: !late})
		w.pump(st)
		return
	}
	if st.held == nil {
		st.held = map[uint64]*Result{}
	}
	if old := st.held[row.Order]; old == nil || old.Outputs == nil {
		st.held[row.Order] = &Result{Call: row, Outputs: outputs}
	}
	w.release(st)
}

// release hands on the held results whose predecessors were handed on, or will not be seen any more: the state was seen up to their end.
func (w *owner) release(st *stream) {
	for len(st.held) > 0 {
		order := st.next + 1
		if st.held[order] == nil {
			order = slices.Min(slices.Collect(maps.Keys(st.held)))
			begin := st.next
			if c := w.o.State.View().Client(st.key); c != nil && c.Delivered > begin {
				begin = c.Delivered // a session that is new, or that was forgotten, has its results begin there: nothing is missing before
			}
			if order > begin+1 && st.held[order].Call.ModifyIndex > w.applied {
				w.holding[st] = struct{}{}
				return
			}
			for o := begin + 1; o < order && len(st.holes) < maxHoles; o++ {
				if st.holes == nil {
					st.holes = map[uint64]struct{}{}
				}
				st.holes[o] = struct{}{}
			}
		}
		st.out = append(st.out, st.held[order])
		delete(st.held, order)
		st.next = order
	}
	st.held = nil
	delete(w.holding, st)
	w.pump(st)
}

// pump hands on what is ready, as long as the client has room for it.
func (w *owner) pump(st *stream) {
	for len(st.out) > 0 && !st.busy && st.paused == 0 && st.sink != nil {
		if room := st.sink.Room(); room != nil {
			w.waitRoom(st, room)
			return
		}
		r := st.out[0]
		if o := r.Call.Outcome; r.Outputs == nil && r.Err == nil && o != nil {
			if len(o.Outputs.Chunks) > 0 {
				w.fetch(st, r)
				return
			}
			r.Outputs = o.Outputs.Inline
		}
		st.out[0] = nil
		st.out = st.out[1:]
		st.sink.Ended(*r)
	}
	if len(st.out) == 0 {
		st.out = nil
	}
}

// waitRoom goes on once the client has taken some of what it was told. Large results that wait are fetched when it is their turn: so what waits is in the
// state anyway.
func (w *owner) waitRoom(st *stream, room <-chan struct{}) {
	for _, r := range st.out {
		if o := r.Call.Outcome; o != nil && len(o.Outputs.Chunks) > 0 {
			r.Outputs = nil
		}
	}
	d := w.d
	if !d.enter() {
		return
	}
	st.busy = true
	go func() {
		defer d.work.Done()
		select {
		case <-room:
		case <-d.life.Done():
		}
		d.inbox.post(func() {
			st.busy = false
			w.pump(st)
		})
	}()
}

// fetch gets a large result; what is behind it waits.
func (w *owner) fetch(st *stream, r *Result) {
	d := w.d
	if !d.enter() {
		return
	}
	st.busy = true
	d.count.fetched.Add(1)
	go func() {
		defer d.work.Done()
		ctx, cancel := context.WithTimeout(d.life, fetchPatience)
		defer cancel()
		outputs, err := d.blobs.get(ctx, "the result", r.Call.Outcome.Outputs)
		d.inbox.post(func() {
			r.Outputs, r.Err = outputs, err
			st.busy = false
			w.pump(st)
		})
	}()
}

// wasOver answers a submission of a call that was over. Where its client here has not been given the result, it is given that now, in its order, and the
// state's feed tells it nothing new.
func (w *owner) wasOver(st *stream, row *queue.Call) {
	if st == nil || row.Order <= st.next {
		w.kept(st, row)
		return
	}
	if row.ModifyIndex > w.applied {
		w.ended.add(row)
	}
	w.finished(row, nil)
}

// kept answers a submission of a call that was over, and given.
func (w *owner) kept(st *stream, row *queue.Call) {
	if st == nil || st.sink == nil {
		return
	}
	r := &Result{Call: row, Kept: true}
	if len(row.Outcome.Outputs.Chunks) == 0 {
		r.Outputs = row.Outcome.Outputs.Inline
		st.sink.Ended(*r)
		return
	}
	d := w.d
	if !d.enter() {
		return
	}
	d.count.fetched.Add(1)
	go func() { // it stands outside of the order, so nothing waits for it
		defer d.work.Done()
		ctx, cancel := context.WithTimeout(d.life, fetchPatience)
		defer cancel()
		r.Outputs, r.Err = d.blobs.get(ctx, "the result", row.Outcome.Outputs)
		d.inbox.post(func() {
			if st.sink != nil {
				st.sink.Ended(*r)
			}
		})
	}()
}

// catchUp finds the results that a stream has not seen in a whole view.
func (w *owner) catchUp(st *stream, v View) {
	for row := range v.CallsOf(st.key) {
		if row.Status.Over() && row.Order > st.next {
			w.finished(row, nil)
		}
	}
}

// open notes that a client is here now, and finds what it was promised.
func (w *owner) open(key queue.ClientKey, sink Sink, done func(Opened, error)) {
	if w.stopping {
		done(Opened{}, w.d.errStopping())
		return
	}
	command := &clusterv1.Command{Kind: &clusterv1.Command_OpenClient{OpenClient: &clusterv1.OpenClient{Owner: key.Owner, Session: key.Session, ServerId: w.o.Server}}}
	w.proposeOne(w.o.Patience/2, command, func(c Committed, err error) {
		if err != nil {
			done(Opened{}, err)
			return
		}
		w.when(c.Index, func() {
			st := w.streamOf(key, sink)
			st.paused++
			v := w.o.State.View()
			var o Opened
			if row := v.Client(key); row != nil {
				o.Order, o.Delivered = row.Order, row.Delivered
			}
			for row := range v.CallsOf(key) {
				o.Known = true
				if !row.Status.Over() {
					o.Unfinished = append(o.Unfinished, row)
				}
			}
			// Whether an open that was sent twice has made the session itself is not known; it is taken for that then.
			o.Known = o.Known || c.Known && !c.Again
			done(o, nil)
		})
	})
}

// sync is done once all was seen here that was committed before; patience is the log's.
func (w *owner) sync(client queue.ClientKey, patience time.Duration, done func(error)) {
	// It changes nothing: what was delivered is never taken back.
	command := &clusterv1.Command{Kind: &clusterv1.Command_TakeDelivery{TakeDelivery: &clusterv1.TakeDelivery{Owner: client.Owner, Session: client.Session}}}
	w.proposeOne(patience, command, func(c Committed, err error) {
		if err != nil && c.Index == 0 {
			done(err)
			return
		}
		w.when(c.Index, func() { done(nil) })
	})
}

// resume hands on the results after an order, and then those to come.
func (w *owner) resume(key queue.ClientKey, after uint64) {
	st := w.streams[key]
	if st == nil {
		return
	}
	st.paused = max(st.paused-1, 0)
	// Those that were about to be handed on stay: the state here may not have them yet, and they may have their outputs at hand.
	st.out = slices.DeleteFunc(st.out, func(r *Result) bool { return r.Call.Order <= after })
	there := map[uint64]bool{}
	for _, r := range st.out {
		there[r.Call.Order] = true
		r.Kept = false // the client has said that it has no result behind that order, so this one is missed, not asked for
	}
	for row := range w.o.State.View().CallsOf(key) {
		if row.Status.Over() && row.Order > after && row.Order <= st.next && !there[row.Order] {
			st.out = append(st.out, &Result{Call: row})
		}
	}
	slices.SortFunc(st.out, func(a, b *Result) int { return cmp.Compare(a.Call.Order, b.Call.Order) })
	w.d.count.resumed.Add(uint64(len(st.out)))
	w.pump(st)
}

// letGo takes an open back.
func (w *owner) letGo(key queue.ClientKey) {
	if st := w.streams[key]; st != nil {
		st.paused = max(st.paused-1, 0)
		w.pump(st)
	}
}

// given is what a client was given and is not noted yet: up to which result by its connection, and up to which it is sure to have.
type given struct{ written, fetched uint64 }

// delivered notes what a client was given, soon.
func (w *owner) delivered(key queue.ClientKey, order uint64, now bool) {
	if order > 0 {
		g := w.toNote[key]
		g.written = max(g.written, order)
		w.toNote[key] = g
	}
	w.noteSoon(now)
}

// fetched notes what a client has fetched, soon.
func (w *owner) fetched(key queue.ClientKey, order uint64) {
	g := w.toNote[key]
	g.fetched = max(g.fetched, order)
	w.toNote[key] = g
	w.noteSoon(false)
}

func (w *owner) noteSoon(now bool) {
	switch {
	case len(w.toNote) == 0:
	case now:
		w.note()
	case w.noteAt.IsZero():
		w.noteAt = time.Now().Add(deliverEvery)
	}
}

// note has the log know what clients were given. Of a client that is at another server by now, only what it has fetched counts: what was written to its
// former connection may never have arrived.
func (w *owner) note() {
	w.noteAt = time.Time{}
	var commands []*clusterv1.Command
	v := w.o.State.View()
	for key, g := range w.toNote {
		c, order := v.Client(key), max(g.written, g.fetched)
		if c != nil && c.Server != "" && c.Server != w.o.Server {
			order = g.fetched
		}
		if order == 0 || c != nil && c.Delivered >= order {
			continue
		}
		commands = append(commands, &clusterv1.Command{Kind: &clusterv1.Command_TakeDelivery{TakeDelivery: &clusterv1.TakeDelivery{Owner: key.Owner, Session: key.Session, Order: order}}})
	}
	clear(w.toNote)
	for part := range slices.Chunk(commands, maxBeginBatch) {
		w.propose(notePatience, part, func(_ []Committed, err error) {
			if err != nil && !errors.Is(err, errLogClosed) {
				w.o.Logger.Warn("what clients were given could not be noted; they may be given it again", "clients", len(part), "error", err)
			}
		})
	}
}
