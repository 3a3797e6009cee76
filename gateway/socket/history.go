// The history: what was written last to a client, in a ring that is as large as it needs to be.

package socket

// Of the frames that were written last, so many are kept for a client that says what it saw last.
const (
	maxHistoryFrames = 256
	maxHistoryBytes  = 1 << 20
)

// history is the last frames that were written, without holes.
type history struct {
	ring  []frame
	first int // the place of the oldest
	count int
	bytes int
}

// remember keeps a frame, and forgets the oldest that there is no room for with it.
func (h *history) remember(f *frame) {
	if f.size() > maxHistoryBytes {
		*h = history{} // there must be no holes: what is behind the large one is of no use without it
		return
	}
	for h.count == maxHistoryFrames || h.bytes+f.size() > maxHistoryBytes {
		h.forget()
	}
	if h.count == len(h.ring) {
		h.grow()
	}
	h.ring[(h.first+h.count)%len(h.ring)] = *f
	h.count++
	h.bytes += f.size()
}

// forget drops the oldest.
func (h *history) forget() {
	h.bytes -= h.ring[h.first].size()
	h.ring[h.first] = frame{}
	h.first = (h.first + 1) % len(h.ring)
	h.count--
}

// grow makes room for more.
func (h *history) grow() {
	ring := make([]frame, min(max(2*len(h.ring), 2), maxHistoryFrames))
	i := 0
	for f := range h.all {
		ring[i] = f
		i++
	}
	h.ring, h.first = ring, 0
}

// all goes through them, the oldest first.
func (h *history) all(yield func(f frame) bool) {
	for i := range h.count {
		if !yield(h.ring[(h.first+i)%len(h.ring)]) {
			return
		}
	}
}
