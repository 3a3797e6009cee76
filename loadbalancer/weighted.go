// weighted: sessions in proportion to the nodes' weights.

package loadbalancer

import "math"

type weighted struct{}

func (weighted) Name() string { return "weighted" }

func (s weighted) Choose(req Request, c []Candidate) (int, string) {
	var l line
	best, room := pick(&req, c, byWeight)
	if best < 0 {
		return best, l.none(len(c))
	}
	l.text("has the fewest sessions (").number(uint64(c[best].Sessions)).text(") for its weight (").decimal(c[best].weight()).text(")")
	return best, l.of(room, len(c), &c[best])
}

// byWeight is the load that the node would have with one session more, so that idle nodes differ by weight, too.
func byWeight(c *Candidate) rank {
	return rank{(float64(c.Sessions) + 1) / c.weight(), c.reserved()}
}

// weight is the candidate's weight, 1 where none that makes sense is given.
func (c *Candidate) weight() float64 {
	if c.Weight > 0 && !math.IsInf(c.Weight, 1) {
		return c.Weight
	}
	return 1
}
