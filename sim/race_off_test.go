// How many random stories are told without the race detector.

//go:build !race

package sim

// defaultRuns is how many random stories an ordinary test tells.
const defaultRuns = 60
