// capability-aware: rare capabilities, such as a GPU, stay free for those who need them.

package loadbalancer

type capabilityAware struct{}

func (capabilityAware) Name() string { return "capability-aware" }

func (s capabilityAware) Choose(req Request, c []Candidate) (int, string) {
	var l line
	best, room := pick(&req, c, byExtras)
	if best < 0 {
		return best, l.none(len(c))
	}
	l.text("has the fewest capabilities to spare (").number(uint64(max(0, c[best].ExtraCapabilities))).text(")")
	return best, l.of(room, len(c), &c[best])
}

func byExtras(c *Candidate) rank {
	return rank{float64(c.ExtraCapabilities), float64(c.Sessions)}
}
