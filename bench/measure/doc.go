// Package measure turns observations into figures that can be compared: a value for each of several runs, beside the
// raw limit or the peer that was measured in the same run, and a target that was met or missed.
//
// Absolute times of one day say little on another; ratios within one run do. So a Figure keeps every run, its ratio is
// the median of the runs' own ratios, and a Report names the machine, the commit and the command.
package measure
