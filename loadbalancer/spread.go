// spread: evenly over the values of a label, then over the nodes within.

package loadbalancer

import "github.com/neolith/orchestrator/session"

// labelShownBytes is how much of a label's key and value an explanation shows.
const labelShownBytes = 16

type spread struct{}

func (spread) Name() string { return "spread" }

func (s spread) Choose(req Request, c []Candidate) (int, string) {
	var l line
	if req.SpreadBy == "" {
		best, room := pick(&req, c, byEmptiness)
		if best < 0 {
			return best, l.none(len(c))
		}
		return best, l.text("is the emptiest (").percent(c[best].fullness()).text(" taken)").of(room, len(c), &c[best])
	}
	// What runs on nodes without room counts, too: it is in the zone all the same.
	sessions := make(map[string]uint64)
	for i := range c {
		sessions[c[i].label(req.SpreadBy)] += uint64(c[i].Sessions)
	}
	best, room := pick(&req, c, func(c *Candidate) rank {
		return rank{float64(sessions[c.label(req.SpreadBy)]), float64(c.Sessions)}
	})
	if best < 0 {
		return best, l.none(len(c))
	}
	value := c[best].label(req.SpreadBy)
	l.text(clip(req.SpreadBy)).text("=").text(clip(value)).text(" has the fewest sessions (").number(sessions[value]).text(")")
	return best, l.of(room, len(c), &c[best])
}

func byEmptiness(c *Candidate) rank { return rank{c.fullness(), float64(c.Sessions)} }

// label returns the value of a label; nodes without it are a group of their own, named "".
func (c *Candidate) label(key string) string {
	v, _ := session.Lookup(c.Labels, key)
	return v
}

// clip shortens a label, whose characters are all ASCII.
func clip(s string) string {
	if len(s) > labelShownBytes {
		return s[:labelShownBytes-1] + "~"
	}
	return s
}
