// How many random stories are told under the race detector.

//go:build race

package sim

// defaultRuns is fewer under the race detector, which makes everything some ten times slower.
const defaultRuns = 6

// tableSample: of the table's stories, such a test tells one in so many.
const tableSample = 29
