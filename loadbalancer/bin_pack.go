// bin-pack: the fullest node that has room.

package loadbalancer

type binPack struct{}

func (binPack) Name() string { return "bin-pack" }

func (s binPack) Choose(req Request, c []Candidate) (int, string) {
	var l line
	best, room := pick(&req, c, byFullness)
	if best < 0 {
		return best, l.none(len(c))
	}
	return best, l.text("is the fullest (").percent(c[best].fullness()).text(")").of(room, len(c), &c[best])
}

func byFullness(c *Candidate) rank { return rank{-c.fullness(), -float64(c.Sessions)} }

// fullness is the mean share of what is taken of CPU, memory and places for sessions, 0–1. What has no limit does not
// count: it is never short.
func (c *Candidate) fullness() float64 {
	sum, n := 0.0, 0.0
	if c.TotalCPUMilli > 0 {
		sum, n = sum+share(c.TotalCPUMilli-c.FreeCPUMilli, c.TotalCPUMilli), n+1
	}
	if c.TotalMemoryBytes > 0 {
		sum, n = sum+share(c.TotalMemoryBytes-c.FreeMemoryBytes, c.TotalMemoryBytes), n+1
	}
	if c.MaxSessions > 0 {
		sum, n = sum+float64(c.Sessions)/float64(c.MaxSessions), n+1
	}
	if n == 0 {
		return 0
	}
	return sum / n
}
