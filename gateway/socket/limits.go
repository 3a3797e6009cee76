// Limits: what one server lets its clients have, with the defaults.

package socket

import "time"

// Rate is a token bucket: Burst at once, PerSecond in the long run. A PerSecond of 0 is no limit.
type Rate struct {
	Burst     int
	PerSecond float64
}

// Limits bound what one server does for clients. All must be positive, but for those that say what 0 means.
type Limits struct {
	Connections      int // at once
	ConnectionsPerIP int // of one address
	Clients          int // connected or not, whose calls and results are kept

	Global, PerIP, PerUser Rate // of calls and greetings

	FrameBytes     int // of a message, after decompression
	ArgumentBytes  int // of a call
	ResultBytes    int // of a call's answer
	InFlight       int // calls, of all clients
	InFlightClient int // calls, of one client

	QueueFrames int // that wait to be written to one client
	QueueBytes  int // of them
	KeptCalls   int // ended calls whose results are kept for one client
	KeptBytes   int // of all kept results and waiting frames of all clients

	HelloTimeout  time.Duration // from the connection to its hello
	CallTimeout   time.Duration // of a call that names no deadline
	CallMax       time.Duration // the longest deadline
	ResultTTL     time.Duration // how long results are kept
	ProgressEvery time.Duration
	PingEvery     time.Duration // a connection that misses three is closed
	WriteTimeout  time.Duration // for one frame to be taken by the client
}

// MaxFrameBytes is the largest FrameBytes.
const MaxFrameBytes = 32 << 20

// DefaultLimits are the limits where nothing else is said.
func DefaultLimits() Limits {
	return Limits{
		Connections: 1000, ConnectionsPerIP: 10, Clients: 10_000,
		Global: Rate{1000, 100}, PerIP: Rate{100, 10}, PerUser: Rate{50, 5},
		FrameBytes: 1 << 20, ArgumentBytes: 10 << 20, ResultBytes: 4 << 20,
		InFlight: 1024, InFlightClient: 64,
		QueueFrames: 1000, QueueBytes: 8 << 20, KeptCalls: 1000, KeptBytes: 256 << 20,
		HelloTimeout: 15 * time.Second, CallTimeout: 5 * time.Minute, CallMax: 24 * time.Hour, ResultTTL: 10 * time.Minute,
		ProgressEvery: 8 * time.Second, PingEvery: 30 * time.Second, WriteTimeout: 10 * time.Second,
	}
}

// Bounds that nobody needs to set.
const (
	maxRequestIDBytes = 128
	maxTokenBytes     = 4096
	maxNesting        = 64  // objects and arrays in one another
	maxJoined         = 16  // repetitions of one call in flight that are answered
	maxRefusedInRow   = 100 // frames refused one after the other before the connection is closed
	sweepEvery        = 5 * time.Second
	closeGrace        = time.Second // for the other side to take a close
	missedPings       = 3
	readBufferBytes   = 512
	writeBufferBytes  = 4 << 10
	compressMinBytes  = 1 << 10
	keepQueueFrames   = 4 // for which an idle client has room
	keepBufferBytes   = 64 << 10
	maxCloseReason    = 123     // bytes that fit into a close frame
	outputOverhead    = 32      // bytes of one output beside its text
	frameOverhead     = 128     // bytes that a waiting frame or a kept call costs beside its text
	maxBuckets        = 100_000 // of addresses, and of users
)
