// sampled: the best of a few drawn by lot. With thousands of nodes this is nearly as even as looking at all of them, and
// several who choose at the same time do not all choose the same one.

package loadbalancer

// sampleNodes is how many nodes are drawn. Two are enough in theory; more make up for those that are full.
const sampleNodes = 8

// sampled looks at positions, not ids: candidates in another order give another sample.
type sampled struct{}

func (sampled) Name() string { return "sampled" }

func (s sampled) Choose(req Request, c []Candidate) (int, string) {
	var l line
	if len(c) == 0 {
		return -1, l.none(0)
	}
	best, room := -1, 0
	for k := range uint64(sampleNodes) {
		i := int(mix(req.Seed^mix(k)) % uint64(len(c)))
		if c[i].hasRoom(&req) {
			room++
			if best < 0 || better(&req, &c[i], bySessions(&c[i]), &c[best], bySessions(&c[best])) {
				best = i
			}
		}
	}
	if best < 0 || c[best].Degraded { // bad luck: look at all
		best, room = pick(&req, c, bySessions)
		if best < 0 {
			return best, l.none(len(c))
		}
		l.text("no luck in ").number(sampleNodes).text(" draws; has the fewest sessions (").number(uint64(c[best].Sessions)).text(")")
		return best, l.of(room, len(c), &c[best])
	}
	l.text("has the fewest sessions (").number(uint64(c[best].Sessions)).text(") of ").number(uint64(room)).text(" drawn from ").number(uint64(len(c)))
	return best, string(l.buf[:l.n])
}
