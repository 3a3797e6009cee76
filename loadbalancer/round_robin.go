// round-robin: the nodes in the order of their ids, one after the other as the seed counts up.

package loadbalancer

import (
	"cmp"
	"slices"
)

type roundRobin struct{}

func (roundRobin) Name() string { return "round-robin" }

func (s roundRobin) Choose(req Request, c []Candidate) (int, string) {
	var l line
	healthy, degraded := 0, 0
	for i := range c {
		switch {
		case !c[i].hasRoom(&req):
		case c[i].Degraded:
			degraded++
		default:
			healthy++
		}
	}
	ring := healthy
	if healthy == 0 {
		ring = degraded
	}
	if ring == 0 {
		return -1, l.none(len(c))
	}
	position := int(req.Seed % uint64(ring))
	order, sorted := []int(nil), slices.IsSortedFunc(c, func(a, b Candidate) int { return cmp.Compare(a.NodeID, b.NodeID) })
	if !sorted { // callers mostly come with a sorted list
		order = make([]int, len(c))
		for i := range order {
			order[i] = i
		}
		slices.SortFunc(order, func(a, b int) int { return cmp.Compare(c[a].NodeID, c[b].NodeID) })
	}
	best, left := -1, position
	for k := range c {
		i := k
		if !sorted {
			i = order[k]
		}
		if !c[i].hasRoom(&req) || c[i].Degraded && healthy > 0 {
			continue
		}
		if left == 0 {
			best = i
			break
		}
		left--
	}
	l.text("its turn, number ").number(uint64(position + 1)).text(" of ").number(uint64(ring))
	return best, l.of(healthy+degraded, len(c), &c[best])
}
