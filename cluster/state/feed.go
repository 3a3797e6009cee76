// The feed: every change in order, to whoever subscribed, each at its own pace and within bounds.

package state

import (
	"context"
	"errors"

	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

// ErrLagged tells a subscriber that it fell so far behind that changes are lost to it. It must subscribe again and start
// from the new view.
var ErrLagged = errors.New("state: the subscriber fell too far behind; subscribe again")

// ErrClosed tells that the subscription was closed.
var ErrClosed = errors.New("state: the subscription is closed")

// Change is what one entry of the log changed: rows as they are after it, each in one list at most. An entry that changed
// nothing gives a change too, with its index.
type Change struct {
	Index uint64
	Time  int64 // the state's time, Unix nanoseconds

	Sessions        []*session.Session
	RemovedSessions []*session.Session // as they were before the entry
	Nodes           []*Node
	RemovedNodes    []string
	// Messages became queued: new, retried, or taken back from a process that ended. Delivery to a process is not told.
	Messages []*session.Message
	Results  []*session.Result     // of messages that were acked
	Dead     []*session.DeadLetter // messages that were given up
	Events   []*Event
	// Calls were taken, or are otherwise than before; those that were forgotten are not told. Of the sessions in Rekeyed, which have
	// another owner, all calls are among them, by their new keys.
	Calls   []*queue.Call
	Rekeyed []Rekeyed

	TokensChanged bool
	// Restored says that the whole state was replaced: the rest is empty, and the subscriber must take a new view.
	Restored bool

	bytes int // of texts, for the feed's bound
}

// feed is the ring of the last changes. Store.mu guards it. It holds changes only while somebody is subscribed.
type feed struct {
	maxChanges, maxBytes int
	subscribers          int
	changes              []*Change // the ring; change number n is at n % len
	oldest, next         uint64    // numbers: those held are in [oldest, next)
	bytes                int
	wake                 chan struct{} // closed by the next publication; nil when nobody waits
}

func (f *feed) limits(changes, bytes int) {
	f.maxChanges, f.maxBytes = max(changes, 1), bytes
}

func (f *feed) publish(c *Change) {
	if f.subscribers == 0 {
		return
	}
	for _, m := range c.Messages {
		c.bytes += len(m.Text)
	}
	for _, r := range c.Results {
		c.bytes += len(r.Text)
	}
	for _, d := range c.Dead {
		c.bytes += len(d.Text)
	}
	for _, call := range c.Calls {
		c.bytes += int(call.StateBytes())
	}
	if f.changes == nil {
		f.changes = make([]*Change, f.maxChanges)
	}
	for f.next > f.oldest && (f.next-f.oldest >= uint64(f.maxChanges) || f.bytes+c.bytes > f.maxBytes) {
		slot := &f.changes[f.oldest%uint64(f.maxChanges)]
		f.bytes -= (*slot).bytes
		*slot = nil
		f.oldest++
	}
	f.changes[f.next%uint64(f.maxChanges)] = c
	f.bytes += c.bytes
	f.next++
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
}

// leave drops what is held when nobody is left to read it.
func (f *feed) leave() {
	if f.subscribers--; f.subscribers == 0 {
		f.changes, f.bytes, f.oldest = nil, 0, f.next
	}
}

// Subscription is one reader of the feed. Its methods may be called from any goroutine, Next from one at a time.
type Subscription struct {
	store  *Store
	next   uint64
	closed bool
	done   chan struct{}
}

// Subscribe returns a view, and a subscription to all that changes from exactly there on. The caller must close it.
func (s *Store) Subscribe() (*Subscription, *View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.feed.subscribers++
	return &Subscription{store: s, next: s.feed.next, done: make(chan struct{})}, s.View()
}

// Next returns the next change, and waits for it. It returns ErrLagged when it is not held any more, ErrClosed after
// Close, and the context's error.
func (sub *Subscription) Next(ctx context.Context) (*Change, error) {
	for {
		c, wake, err := sub.poll()
		if c != nil || err != nil {
			return c, err
		}
		select {
		case <-wake:
		case <-sub.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (sub *Subscription) poll() (*Change, <-chan struct{}, error) {
	sub.store.mu.Lock()
	defer sub.store.mu.Unlock()
	f := &sub.store.feed
	switch {
	case sub.closed:
		return nil, nil, ErrClosed
	case sub.next < f.oldest:
		return nil, nil, ErrLagged
	case sub.next < f.next:
		c := f.changes[sub.next%uint64(f.maxChanges)]
		sub.next++
		return c, nil, nil
	}
	if f.wake == nil {
		f.wake = make(chan struct{})
	}
	return nil, f.wake, nil
}

// Close ends the subscription; a waiting Next returns ErrClosed. It may be called more than once.
func (sub *Subscription) Close() {
	sub.store.mu.Lock()
	defer sub.store.mu.Unlock()
	if !sub.closed {
		sub.closed = true
		close(sub.done)
		sub.store.feed.leave()
	}
}

// Resume goes on after ErrLagged with the oldest change that is held, for who does not need a view, and returns how many are lost.
func (sub *Subscription) Resume() (lost uint64) {
	sub.store.mu.Lock()
	defer sub.store.mu.Unlock()
	if oldest := sub.store.feed.oldest; sub.next < oldest {
		lost, sub.next = oldest-sub.next, oldest
	}
	return lost
}
