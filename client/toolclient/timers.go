// The owner's clock: what is to be done when, with one timer of the runtime for all of it.

package toolclient

import (
	"container/heap"
	"time"
)

// timer is something to do later. It belongs to the owner.
type timer struct {
	at time.Time
	do func()
	i  int // its place in the heap; -1 when it is not there
}

// timers are those that have not come yet.
type timers struct {
	heap  timerHeap
	clock *time.Timer
}

func newTimers() *timers {
	t := &timers{clock: time.NewTimer(time.Hour)}
	t.clock.Stop()
	return t
}

// after has do called by fire once d has passed.
func (t *timers) after(d time.Duration, do func()) *timer {
	x := &timer{at: time.Now().Add(d), do: do}
	heap.Push(&t.heap, x)
	t.set()
	return x
}

// stop takes a timer back; nil and those that have come are fine.
func (t *timers) stop(x *timer) {
	if x == nil || x.i < 0 {
		return
	}
	heap.Remove(&t.heap, x.i)
	t.set()
}

// fire does what is due.
func (t *timers) fire() {
	for now := time.Now(); len(t.heap) > 0 && !t.heap[0].at.After(now); {
		heap.Pop(&t.heap).(*timer).do()
	}
	t.set()
}

func (t *timers) set() {
	if len(t.heap) == 0 {
		t.clock.Stop()
		return
	}
	t.clock.Reset(time.Until(t.heap[0].at))
}

type timerHeap []*timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(a, b int) bool { return h[a].at.Before(h[b].at) }
func (h timerHeap) Swap(a, b int)      { h[a], h[b] = h[b], h[a]; h[a].i, h[b].i = a, b }
func (h *timerHeap) Push(x any)        { t := x.(*timer); t.i = len(*h); *h = append(*h, t) }
func (h *timerHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	last.i = -1
	return last
}
