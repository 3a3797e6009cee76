// When a failed attempt is tried again.

package dispatch

import (
	"math/rand/v2"
	"time"
)

// Retry says how often, and when, a call is tried again that failed in a way that may pass.
type Retry struct {
	Max    int           // further attempts
	First  time.Duration // before the first of them
	Factor float64       // by which the pause grows
	Jitter float64       // the part of a pause that is left to chance, 0–1
}

// DefaultRetry tries three times more, after about 1, 2 and 4 seconds.
func DefaultRetry() Retry { return Retry{Max: 3, First: time.Second, Factor: 2, Jitter: 0.2} }

// pause returns how long to wait after so many failures, at least as long as whoever refused asked for; false when it is not worth
// while: it was tried often enough, or the next attempt would begin beyond the deadline, which is left away.
func (r Retry) pause(failures int, asked, left time.Duration) (time.Duration, bool) {
	if failures > r.Max {
		return 0, false
	}
	p := float64(r.First)
	for range failures - 1 {
		p *= r.Factor
	}
	p *= 1 + r.Jitter*(2*rand.Float64()-1)
	d := max(time.Duration(p), asked)
	return d, d < left
}
