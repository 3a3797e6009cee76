//go:build !race

package sim

// defaultRuns is how many random stories an ordinary test tells.
const defaultRuns = 60
