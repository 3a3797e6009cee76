// How many random stories are told without the race detector.

//go:build !race

package sim

// defaultRuns is how many random stories an ordinary test tells.
const defaultRuns = 60

// tableSample: of the table's stories, an ordinary test tells one in so many.
const tableSample = 13
