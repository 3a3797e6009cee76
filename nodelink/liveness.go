// Notices that the other side has gone silent.

package nodelink

import (
	"sync"
	"sync/atomic"
	"time"
)

// The default patience of a server's end. A node's end follows its lease instead; see Client.
const (
	defaultIdle    = 20 * time.Second // silence after which the other side is pinged
	defaultSilence = 60 * time.Second // silence after which the link is given up
)

// liveness watches a link with one timer and no goroutine. Every sign of life moves a number; the timer looks at it when
// it fires. So it is a read deadline that pongs renew, at the price of an atomic store a frame.
type liveness struct {
	born time.Time    // only differences count
	last atomic.Int64 // nanoseconds after born

	mu            sync.Mutex
	timer         *time.Timer
	idle, silence time.Duration
	stopped       bool
	ping          func()
	dead          func(silent time.Duration)
}

// touch notes a sign of life.
func (l *liveness) touch() { l.last.Store(int64(time.Since(l.born))) }

// start begins to watch. ping and dead are called from the timer's goroutine.
func (l *liveness) start(idle, silence time.Duration, ping func(), dead func(silent time.Duration)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.born, l.idle, l.silence, l.ping, l.dead = time.Now(), idle, silence, ping, dead
	if !l.stopped {
		l.timer = time.AfterFunc(idle, l.tick)
	}
}

// set changes the patience.
func (l *liveness) set(idle, silence time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle, l.silence = idle, silence
	if l.timer != nil && !l.stopped {
		l.timer.Reset(idle)
	}
}

func (l *liveness) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	if l.timer != nil {
		l.timer.Stop()
	}
}

func (l *liveness) tick() {
	l.mu.Lock()
	if l.stopped {
		l.mu.Unlock()
		return
	}
	silent := time.Since(l.born) - time.Duration(l.last.Load())
	act := func() {}
	switch {
	case silent >= l.silence:
		act = func() { l.dead(silent) }
	case silent >= l.idle:
		act = l.ping
		l.timer.Reset(min(l.idle, l.silence-silent))
	default:
		l.timer.Reset(l.idle - silent)
	}
	l.mu.Unlock()
	act()
}
