// Heaps of calls: those that may begin, and those that are to be looked at again. An entry knows its place in each.

package dispatch

import "container/heap"

// entryHeap is calls, of which the first is at hand. An entry is in it once at most.
type entryHeap struct {
	inner heapOf
}

// heapOf implements heap.Interface for an entryHeap.
type heapOf struct {
	list  []*entry
	less  func(a, b *entry) bool
	place func(*entry) *int // where an entry has its place in this heap; -1 for none
}

// newReady is the heap of calls that may begin: by priority, then as they were taken.
func newReady() entryHeap {
	return entryHeap{heapOf{place: func(e *entry) *int { return &e.ready }, less: func(a, b *entry) bool {
		if a.call.Priority != b.call.Priority {
			return a.call.Priority < b.call.Priority
		}
		return a.call.Number < b.call.Number
	}}}
}

// newWakes is the heap of calls that are to be looked at again, the next first.
func newWakes() entryHeap {
	return entryHeap{heapOf{place: func(e *entry) *int { return &e.wake }, less: func(a, b *entry) bool { return a.wakeTime.Before(b.wakeTime) }}}
}

func (h *entryHeap) len() int { return len(h.inner.list) }

// first returns the first entry; there must be one.
func (h *entryHeap) first() *entry { return h.inner.list[0] }

func (h *entryHeap) add(e *entry) { heap.Push(&h.inner, e) }

// remove takes an entry out, if it is there.
func (h *entryHeap) remove(e *entry) {
	if at := *h.inner.place(e); at >= 0 {
		heap.Remove(&h.inner, at)
	}
}

// Len implements heap.Interface.
func (h *heapOf) Len() int { return len(h.list) }

// Less implements heap.Interface.
func (h *heapOf) Less(i, j int) bool { return h.less(h.list[i], h.list[j]) }

// Swap implements heap.Interface.
func (h *heapOf) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	*h.place(h.list[i]), *h.place(h.list[j]) = i, j
}

// Push implements heap.Interface.
func (h *heapOf) Push(x any) {
	e := x.(*entry)
	*h.place(e) = len(h.list)
	h.list = append(h.list, e)
}

// Pop implements heap.Interface.
func (h *heapOf) Pop() any {
	last := len(h.list) - 1
	e := h.list[last]
	h.list[last] = nil
	h.list = h.list[:last]
	*h.place(e) = -1
	return e
}
