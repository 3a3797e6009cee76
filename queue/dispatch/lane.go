// In which order calls begin: by priority and then as they were taken; of those with one order key, one after the other, as they were taken.

package dispatch

import (
	"cmp"
	"slices"
	"time"
)

// lane is the calls of one order key.
type lane struct {
	key      string
	holder   *entry   // that runs, or is about to; nil for none
	waiting  []*entry // by number
	expected int      // submissions on their way to the log
}

// laneOf returns the lane of an order key, nil for the empty one.
func (w *owner) laneOf(key string) *lane {
	if key == "" {
		return nil
	}
	l := w.lanes[key]
	if l == nil {
		l = &lane{key: key}
		w.lanes[key] = l
	}
	return l
}

// free reports whether a new call may begin at once.
func (l *lane) free() bool {
	return l == nil || l.holder == nil && len(l.waiting) == 0 && l.expected == 0
}

// enterLane makes a call the one of its lane.
func (w *owner) enterLane(e *entry) {
	if e.lane == nil {
		return
	}
	e.lane.holder = e
	if i := slices.Index(e.lane.waiting, e); i >= 0 {
		e.lane.waiting = slices.Delete(e.lane.waiting, i, i+1)
	}
}

// waitInLane puts a call among those of its lane that wait. One that holds the lane keeps it: what was taken later must not overtake it.
func (w *owner) waitInLane(e *entry) {
	if e.lane == nil {
		e.lane = w.laneOf(e.call.OrderKey)
	}
	l := e.lane
	if l == nil || l.holder == e || slices.Contains(l.waiting, e) {
		return
	}
	at, _ := slices.BinarySearchFunc(l.waiting, e.call.Number, func(o *entry, n uint64) int { return cmp.Compare(o.call.Number, n) })
	l.waiting = slices.Insert(l.waiting, at, e)
}

// leaveLane lets the next call of the lane begin.
func (w *owner) leaveLane(e *entry) {
	l := e.lane
	if l == nil {
		return
	}
	e.lane = nil
	if l.holder == e {
		l.holder = nil
	}
	if i := slices.Index(l.waiting, e); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
	w.wakeLane(l)
}

// wakeLane looks whether the first call of a lane may begin now.
func (w *owner) wakeLane(l *lane) {
	switch {
	case l.holder != nil:
	case len(l.waiting) > 0:
		w.consider(l.waiting[0], time.Now())
	case l.expected == 0:
		delete(w.lanes, l.key)
	}
}

// wakeAt has a call looked at again at a time; the zero time for not at all.
func (w *owner) wakeAt(e *entry, t time.Time) {
	w.wakes.remove(e)
	e.wakeTime = t
	if !t.IsZero() {
		w.wakes.add(e)
	}
}

// consider looks whether a waiting call may begin, or its time is over.
func (w *owner) consider(e *entry, now time.Time) {
	w.ready.remove(e)
	if e.gone || !e.waits() {
		w.wakeAt(e, time.Time{})
		return
	}
	w.waitInLane(e)
	deadline := time.Unix(0, e.call.Deadline)
	if !now.Before(deadline) {
		w.wakeAt(e, time.Time{})
		w.late(e)
		return
	}
	notBefore := time.Unix(0, e.call.NotBefore)
	if e.notBefore.After(notBefore) {
		notBefore = e.notBefore
	}
	if now.Before(notBefore) {
		w.wakeAt(e, minTime(notBefore, deadline))
		return
	}
	w.wakeAt(e, deadline)
	if l := e.lane; l == nil || l.holder == e || l.holder == nil && l.waiting[0] == e {
		w.ready.add(e)
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
