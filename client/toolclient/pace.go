// How fast calls are asked for: a server that refuses them is asked less often, until it does not any more.

package toolclient

import "time"

// pace bounds the calls that are asked for and not answered in any way. The bound halves with each that the server refuses for want of
// room, and grows by one each time that four times as many were taken. It belongs to the owner.
//
// A server closes the connection of who has a hundred messages in a row refused, so one that is full must not be given all that waits.
type pace struct {
	most, bound float64
	open        int       // asked for and not answered
	until       time.Time // nothing is asked for before
}

func newPace(most int) pace { return pace{most: float64(most), bound: float64(most)} }

// allows reports whether one more may be asked for.
func (p *pace) allows(now time.Time) bool {
	return float64(p.open+1) <= p.bound && !now.Before(p.until)
}

// asked notes that a call is.
func (p *pace) asked(k *Pending) {
	if !k.open {
		k.open = true
		p.open++
	}
}

// taken notes that the server has a call.
func (p *pace) taken(k *Pending) {
	if k.open {
		p.forget(k)
		p.bound = min(p.bound+1/(4*p.bound), p.most)
	}
}

// refused notes that the server has no room before that time.
func (p *pace) refused(until time.Time) {
	p.bound = max(p.bound/2, 1)
	if until.After(p.until) {
		p.until = until
	}
}

// forget notes that a call is not waited for any more, however it was answered.
func (p *pace) forget(k *Pending) {
	if k.open {
		k.open = false
		p.open--
	}
}
