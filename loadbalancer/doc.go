// Package loadbalancer chooses one of the nodes that could run a session.
//
// The router filters nodes (capabilities, labels, resources, health), makes a Candidate of each that is left, and asks a
// Strategy. A strategy is a pure function: it keeps nothing, reads no clock and no randomness, and gives the same answer
// to the same question, so that every decision can be made again. Request.Seed is where chance and position come from;
// the caller changes it from request to request. But for sampled, the order of the candidates has no effect.
//
// All strategies have in common that they never choose a candidate without room, and one that is degraded only when no
// other has room. Ties are broken by the seed. Each answer comes with its reason in one line.
//
//	least-connections  the fewest sessions; the default
//	round-robin        one after the other, by node id
//	weighted           the fewest sessions for its weight
//	capability-aware   the fewest capabilities that the session does not need, so that rare ones stay free
//	bin-pack           the fullest that has room, so that others can be emptied
//	spread             evenly over the values of a label, such as the zone
//	sampled            the best of a few drawn by lot: for thousands of nodes
package loadbalancer
