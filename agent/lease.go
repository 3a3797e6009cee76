// The node's lease: its right to run sessions, and what it does with the answers to its heartbeats.

package agent

import (
	"context"
	"slices"
	"sync/atomic"
	"time"
)

// LeaseWriter writes the lease where the shims read it beside the agent; lease.Writer is the real one. Deadlines are
// nanoseconds of CLOCK_BOOTTIME.
type LeaseWriter interface {
	// Renew writes the deadline; one that would move it back has no effect.
	Renew(deadline int64) error
	// Deadline is the one last written in this boot of the machine, by whichever agent; 0 for none.
	Deadline() int64
}

const (
	// maxHeartbeatsRemembered bounds how many heartbeats may wait for their answer; the oldest are forgotten first.
	maxHeartbeatsRemembered = 64
	// maxLease is longer than any lease that makes sense; a longer one is a defect of whoever grants it.
	maxLease = 10 * time.Minute
	// leaseCheckMax is how long the supervisor sleeps at most before it looks at the lease again. Timers run on
	// CLOCK_MONOTONIC, which stands still while a machine is suspended, and the lease does not.
	leaseCheckMax = time.Second
)

// lease is the node's own idea of its lease. The deadline is what the lease file says, never more: shims go by the
// file, and the agent does not outlive them. It moves only forwards.
type lease struct {
	now      func() time.Duration
	deadline atomic.Int64    // read by sessions; written by the supervisor
	sent     []time.Duration // heartbeats whose answer may still come, oldest first
	wanted   time.Duration   // the latest deadline that was granted, written or not
	lapsed   bool            // it ended, and what ran was told to die
}

// held reports whether sessions may run now. Any goroutine may call it.
func (l *lease) held() bool { return l.now() < time.Duration(l.deadline.Load()) }

// remaining is how much of the lease is left; negative once it has lapsed.
func (l *lease) remaining() time.Duration { return time.Duration(l.deadline.Load()) - l.now() }

// ever reports whether the node has had a lease at all.
func (l *lease) ever() bool { return l.deadline.Load() != 0 }

// heartbeat remembers that one is sent now, and returns its sent_at.
func (l *lease) heartbeat() time.Duration {
	at := l.now()
	if len(l.sent) >= maxHeartbeatsRemembered {
		l.sent = slices.Delete(l.sent, 0, 1)
	}
	l.sent = append(l.sent, at)
	return at
}

// answered returns the deadline that an answer grants. It is refused when it answers none of this agent's heartbeats,
// and when it would move the deadline backwards.
func (l *lease) answered(sentAt, granted time.Duration) (time.Duration, bool) {
	if granted <= 0 || granted > maxLease || !slices.Contains(l.sent, sentAt) {
		return 0, false
	}
	d := sentAt + granted
	if d <= l.wanted {
		return 0, false
	}
	l.wanted = d
	return d, true
}

// waiting is the age of the oldest heartbeat that was sent after the last one answered; 0 when all are answered.
func (l *lease) waiting(lastAnswered time.Duration) time.Duration {
	for _, at := range l.sent {
		if at > lastAnswered {
			return l.now() - at
		}
	}
	return 0
}

// leaseKeeper writes deadlines to the lease file beside the supervisor, which must not wait for a disk. Of several
// deadlines that wait, only the last is written.
type leaseKeeper struct {
	to   LeaseWriter
	next chan time.Duration // holds the latest
}

func newLeaseKeeper(to LeaseWriter) *leaseKeeper {
	return &leaseKeeper{to: to, next: make(chan time.Duration, 1)}
}

// write asks for a deadline to be written. Only the supervisor calls it.
func (k *leaseKeeper) write(deadline time.Duration) {
	select {
	case <-k.next:
	default:
	}
	k.next <- deadline
}

// run writes until ctx ends, and reports each deadline once it stands in the file.
func (k *leaseKeeper) run(ctx context.Context, written func(time.Duration, error)) {
	for {
		select {
		case d := <-k.next:
			written(d, k.to.Renew(int64(d)))
		case <-ctx.Done():
			return
		}
	}
}
