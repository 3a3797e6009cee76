// What a store counts, for metrics.

package chunks

import "sync/atomic"

// Counters count what a store did since it was opened. They are read while it works; whoever exports metrics reads them when asked.
type Counters struct {
	Puts         atomic.Int64 // chunks that were stored
	PutBytes     atomic.Int64 // of frames that were stored
	Present      atomic.Int64 // puts of chunks that were there
	Refused      atomic.Int64 // puts for which there was no room
	Gets         atomic.Int64 // chunks that were served
	GetBytes     atomic.Int64 // of frames that were served
	NotFound     atomic.Int64 // gets of chunks that were not there
	Damaged      atomic.Int64 // chunks that were found damaged and put aside
	Deleted      atomic.Int64 // chunks that were deleted
	DeletedBytes atomic.Int64 // of frames that were deleted
	Syncs        atomic.Int64 // batches that were made durable together
}
