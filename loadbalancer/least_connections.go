// least-connections: the fewest sessions, then the least reserved.

package loadbalancer

type leastConnections struct{}

func (leastConnections) Name() string { return "least-connections" }

func (s leastConnections) Choose(req Request, c []Candidate) (int, string) {
	var l line
	best, room := pick(&req, c, bySessions)
	if best < 0 {
		return best, l.none(len(c))
	}
	return best, l.text("has the fewest sessions (").number(uint64(c[best].Sessions)).text(")").of(room, len(c), &c[best])
}

func bySessions(c *Candidate) rank { return rank{float64(c.Sessions), c.reserved()} }
