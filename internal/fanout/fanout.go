// Package fanout tells events to subscribers of different speed. Each has a buffer of its own; one that is too slow for it misses events, and is told
// with the next one how many. So whoever emits is never held up, and nobody takes a gap for silence.
package fanout

import "sync"

// Fanout has subscribers to events of one type. Its zero value has none. Its methods may be used by many goroutines; events come in one
// order to all.
type Fanout[E any] struct {
	mu     sync.Mutex
	subs   map[*subscriber[E]]struct{}
	closed bool
}

type subscriber[E any] struct {
	ch     chan E
	missed uint64
}

// Subscribe returns what is emitted from now on, and a function that ends the subscription. As many events as buffer says, one at least, wait to
// be taken. The channel is closed when the subscription ends, and by Close.
func (f *Fanout[E]) Subscribe(buffer int) (<-chan E, func()) {
	s := &subscriber[E]{ch: make(chan E, max(buffer, 1))}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		close(s.ch)
		return s.ch, func() {}
	}
	if f.subs == nil {
		f.subs = map[*subscriber[E]]struct{}{}
	}
	f.subs[s] = struct{}{}
	return s.ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.end(s)
	}
}

// Emit tells every subscriber an event, which is made for each: missed is how many it was too slow for just before this one.
func (f *Fanout[E]) Emit(event func(missed uint64) E) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.subs {
		select {
		case s.ch <- event(s.missed):
			s.missed = 0
		default:
			s.missed++
		}
	}
}

// Close ends all subscriptions, and those that are still to come.
func (f *Fanout[E]) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for s := range f.subs {
		f.end(s)
	}
}

// end closes a subscription's channel, once.
func (f *Fanout[E]) end(s *subscriber[E]) {
	if _, ok := f.subs[s]; ok {
		delete(f.subs, s)
		close(s.ch)
	}
}
