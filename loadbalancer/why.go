// Explanations, built in place: one allocation, for the line itself.

package loadbalancer

import "strconv"

// line is an explanation in the making. What does not fit is cut.
type line struct {
	buf [WhyMaxBytes]byte
	n   int
}

func (l *line) text(s string) *line {
	l.n += copy(l.buf[l.n:], s)
	return l
}

func (l *line) number(n uint64) *line {
	var digits [20]byte
	l.n += copy(l.buf[l.n:], strconv.AppendUint(digits[:0], n, 10))
	return l
}

func (l *line) percent(share float64) *line {
	return l.number(uint64(max(0, min(share, 1))*100 + 0.5)).text("%")
}

// decimal writes a number with at most two places.
func (l *line) decimal(f float64) *line {
	var digits [32]byte
	l.n += copy(l.buf[l.n:], strconv.AppendFloat(digits[:0], f, 'g', 3, 64))
	return l
}

// of ends an explanation: how many had no room, and why a degraded node was chosen.
func (l *line) of(room, all int, chosen *Candidate) string {
	if full := all - room; full > 0 {
		l.text("; ").number(uint64(full)).text(" of ").number(uint64(all)).text(" have no room")
	}
	if chosen.Degraded {
		l.text("; degraded, as no healthy node has room")
	}
	return string(l.buf[:l.n])
}

// none explains that there is nobody to choose.
func (l *line) none(all int) string {
	if all == 0 {
		l.text("no candidates")
	} else {
		l.text("none of ").number(uint64(all)).text(" candidates has room")
	}
	return string(l.buf[:l.n])
}
