// What it is without the race detector.

//go:build !race

package socket

// raceDetected says that this is a test under the race detector.
const raceDetected = false
