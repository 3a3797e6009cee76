// What the race detector changes.

//go:build race

package socket

// raceDetected says that this is a test under the race detector.
const raceDetected = true
