// The messages that one epoch of a session was handed and has not finished, most urgent first.

package agent

import (
	"cmp"
	"slices"
	"sync"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// The bounds of one session's inbox. What does not fit is not taken, and so is handed over again later.
const (
	maxInboxMessages   = 1000
	maxInboxBytes      = 8 << 20
	maxFinishedRanges  = 4096
	messageOverheadLen = 64 // bytes counted for a message beside its text
)

// inbox orders the messages of one epoch by priority, then sequence, and knows each sequence that it ever took, so
// that a message handed over twice is given to the process once.
//
// The supervisor offers, the session's goroutine takes out; the mutex is all that they share.
type inbox struct {
	mu       sync.Mutex
	queue    []*apiv1.Message // the most urgent last, so that taking it out is cheap
	bytes    int
	taken    map[uint64]bool // handed to the process, or about to be; its turn has not ended
	finished sequenceSet     // its turn has ended; what was refused is not here, for somebody may have it tried again
	again    []uint64        // finished, and handed over once more: the cluster does not know the end
}

func newInbox() *inbox { return &inbox{taken: map[uint64]bool{}} }

// compareMessages orders the queue: most urgent last.
func compareMessages(a, b *apiv1.Message) int {
	if c := cmp.Compare(urgency(b), urgency(a)); c != 0 {
		return c
	}
	return cmp.Compare(b.GetSequence(), a.GetSequence())
}

func urgency(m *apiv1.Message) apiv1.Priority_Level {
	if p := m.GetPriority(); p != apiv1.Priority_PRIORITY_UNSPECIFIED {
		return p
	}
	return apiv1.Priority_NORMAL
}

// offer takes messages in and returns the sequences that the inbox now answers for: new ones, those it holds, and
// those that are finished. The rest did not fit.
func (b *inbox) offer(ms []*apiv1.Message) []uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	var got []uint64
	for _, m := range ms {
		seq := m.GetSequence()
		if seq == 0 {
			continue
		}
		if b.finished.has(seq) {
			if len(b.again) < maxInboxMessages {
				got, b.again = append(got, seq), append(b.again, seq)
			}
			continue
		}
		if b.taken[seq] {
			got = append(got, seq)
			continue
		}
		at, dup := slices.BinarySearchFunc(b.queue, m, compareMessages)
		if dup {
			got = append(got, seq)
			continue
		}
		size := len(m.GetText()) + messageOverheadLen
		if len(b.queue) >= maxInboxMessages || b.bytes+size > maxInboxBytes {
			continue
		}
		b.queue = slices.Insert(b.queue, at, m)
		b.bytes += size
		got = append(got, seq)
	}
	return got
}

// take removes and returns the most urgent message, nil when there is none. finish or putBack must follow.
func (b *inbox) take() *apiv1.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return nil
	}
	m := b.queue[len(b.queue)-1]
	b.remove(len(b.queue) - 1)
	b.taken[m.GetSequence()] = true
	return m
}

// putBack returns a message that take gave and the process did not take.
func (b *inbox) putBack(m *apiv1.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.taken, m.GetSequence())
	if b.finished.has(m.GetSequence()) {
		return
	}
	if at, dup := slices.BinarySearchFunc(b.queue, m, compareMessages); !dup {
		b.queue = slices.Insert(b.queue, at, m)
		b.bytes += len(m.GetText()) + messageOverheadLen
	}
}

// finish says that a sequence's turn has ended: it is never given to the process again. It reports whether that is news.
func (b *inbox) finish(seq uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(seq)
	return b.finished.add(seq)
}

// refuse says that the process cannot take a sequence.
func (b *inbox) refuse(seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(seq)
}

// drop lets go of a sequence. The lock is held.
func (b *inbox) drop(seq uint64) {
	delete(b.taken, seq)
	if at := slices.IndexFunc(b.queue, func(m *apiv1.Message) bool { return m.GetSequence() == seq }); at >= 0 {
		b.remove(at)
	}
}

// forgotten returns the finished sequences that were handed over once more since it was last asked.
func (b *inbox) forgotten() []uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	again := b.again
	b.again = nil
	return again
}

// expire removes and returns the messages whose deadline has passed, and says when the next one will; the zero time
// when none has a deadline.
func (b *inbox) expire(now time.Time) (expired []*apiv1.Message, next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.queue) - 1; i >= 0; i-- {
		m := b.queue[i]
		if m.GetDeadline() == nil {
			continue
		}
		switch d := m.GetDeadline().AsTime(); {
		case !d.After(now):
			b.remove(i)
			expired = append(expired, m)
		case next.IsZero() || d.Before(next):
			next = d
		}
	}
	return expired, next
}

// sequences returns the messages that are held, in no order that matters: waiting, and with the process.
func (b *inbox) sequences() []uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := make([]uint64, 0, len(b.queue)+len(b.taken))
	for _, m := range b.queue {
		s = append(s, m.GetSequence())
	}
	for seq := range b.taken {
		s = append(s, seq)
	}
	slices.Sort(s)
	return s
}

// remove takes the i-th message out of the queue. The lock is held.
func (b *inbox) remove(i int) {
	b.bytes -= len(b.queue[i].GetText()) + messageOverheadLen
	b.queue = slices.Delete(b.queue, i, i+1)
}

// sequenceSet is a set of sequences as ascending ranges: almost always one or two, since sequences are finished nearly
// in order. Beyond maxFinishedRanges the lowest range is forgotten; a copy of so old a message cannot be on its way any more.
type sequenceSet struct {
	ranges []sequenceRange
}

type sequenceRange struct{ first, last uint64 }

func (s *sequenceSet) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(s.ranges, seq, func(r sequenceRange, q uint64) int {
		switch {
		case r.last < q:
			return -1
		case r.first > q:
			return 1
		default:
			return 0
		}
	})
}

func (s *sequenceSet) has(seq uint64) bool { _, ok := s.find(seq); return ok }

// add reports whether seq was not in the set.
func (s *sequenceSet) add(seq uint64) bool {
	i, ok := s.find(seq)
	if ok {
		return false
	}
	joinsLeft := i > 0 && s.ranges[i-1].last+1 == seq
	joinsRight := i < len(s.ranges) && s.ranges[i].first == seq+1
	switch {
	case joinsLeft && joinsRight:
		s.ranges[i-1].last = s.ranges[i].last
		s.ranges = slices.Delete(s.ranges, i, i+1)
	case joinsLeft:
		s.ranges[i-1].last = seq
	case joinsRight:
		s.ranges[i].first = seq
	default:
		s.ranges = slices.Insert(s.ranges, i, sequenceRange{seq, seq})
		if len(s.ranges) > maxFinishedRanges {
			s.ranges = slices.Delete(s.ranges, 0, 1)
		}
	}
	return true
}
