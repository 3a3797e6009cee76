// The life of a session: its phases, and the one table that says what a phase may become.

package session

import "fmt"

// Phase is where a session is in its life. The numbers are those of the public API and of snapshots.
type Phase uint8

// The phases.
const (
	Pending     Phase = 1  // wants a node
	Starting    Phase = 2  // has a node, which has not said yet that the process runs
	Running     Phase = 3  // its process runs
	Pausing     Phase = 4  // is being checkpointed in order to stop
	Paused      Phase = 5  // lives in its checkpoint, on no node
	Migrating   Phase = 6  // is moving to another node
	Restoring   Phase = 7  // is being restored from a checkpoint
	Terminating Phase = 8  // was told to end
	Completed   Phase = 9  // ended by itself, with exit code 0
	Failed      Phase = 10 // ended otherwise, and will not be started again
	Terminated  Phase = 11 // was ended by somebody
)

var phaseNames = [...]string{
	Pending: "PENDING", Starting: "STARTING", Running: "RUNNING", Pausing: "PAUSING", Paused: "PAUSED",
	Migrating: "MIGRATING", Restoring: "RESTORING", Terminating: "TERMINATING",
	Completed: "COMPLETED", Failed: "FAILED", Terminated: "TERMINATED",
}

// String returns the phase's name as users see it.
func (p Phase) String() string {
	if int(p) < len(phaseNames) && phaseNames[p] != "" {
		return phaseNames[p]
	}
	return fmt.Sprintf("PHASE(%d)", uint8(p))
}

// Ended reports whether the session will never run again.
func (p Phase) Ended() bool { return p == Completed || p == Failed || p == Terminated }

// HoldsNode reports whether a session in this phase occupies its node.
func (p Phase) HoldsNode() bool {
	return p == Starting || p == Running || p == Pausing || p == Migrating || p == Restoring || p == Terminating
}

// Event is what may happen to a session.
type Event uint8

// The events.
const (
	Place     Event = iota + 1 // it is given a node and its next epoch
	Started                    // its node says that the process runs
	Complete                   // its process ended with exit code 0, and the policy does not restart it
	Fail                       // its process ended otherwise or was lost, and the policy does not restart it
	Retry                      // its process ended or was lost, and the policy starts it again
	Terminate                  // somebody wants it to end
	Ended                      // after Terminate: nothing of it runs any more
	Restore                    // it is given a node and its next epoch, which begins with a checkpoint
	Migrate                    // somebody wants it on another node
	Stay                       // it goes on where it is: the move or the pause is off
	Pause                      // somebody wants it to stop and to hold no node
	Left                       // after Pause: its last checkpoint is committed, and nothing of it runs any more
	Resume                     // somebody wants it to go on
	Rewind                     // somebody wants it to go on from an earlier checkpoint
)

var eventNames = [...]string{
	Place: "place", Started: "started", Complete: "complete", Fail: "fail", Retry: "retry",
	Terminate: "terminate", Ended: "ended", Restore: "restore", Migrate: "migrate", Stay: "stay", Pause: "pause",
	Left: "left", Resume: "resume", Rewind: "rewind",
}

// String returns the event's name.
func (e Event) String() string {
	if int(e) < len(eventNames) && eventNames[e] != "" {
		return eventNames[e]
	}
	return fmt.Sprintf("event(%d)", uint8(e))
}

// Transition is one row of the lifecycle.
type Transition struct {
	From Phase
	On   Event
	To   Phase
}

// Lifecycle is the whole life of a session. What is not here cannot happen.
//
//	          place            started           complete
//	PENDING ────────► STARTING ────────► RUNNING ────────► COMPLETED
//	   ▲  │               │                 │  └─ fail ───► FAILED
//	   │  │               ├── fail ─────────┼─────────────► FAILED
//	   └──┼──── retry ────┴─────────────────┘
//	      │                       terminate │        ended
//	      │                                 └► TERMINATING ─► TERMINATED
//	      └── terminate ──────────────────────────────────► TERMINATED
//
// And with a checkpoint, from which the next epoch is restored:
//
//	          restore             started
//	PENDING ────────► RESTORING ────────► RUNNING ─── pause ──► PAUSING ── left ──► PAUSED
//	   ▲                  ▲               │  ▲  ▲                  │                  │
//	   │                  │       migrate │  │  └────── stay ──────┘                  │
//	   │               restore            ▼  │ stay                                   │
//	   │                  └──────────── MIGRATING                                     │
//	   └───────────────────────────── resume, rewind ─────────────────────────────────┘
//
// What restores, migrates or pauses may also fail, end or be terminated like what runs.
var Lifecycle = []Transition{
	{Pending, Place, Starting},
	{Pending, Terminate, Terminated},
	{Pending, Fail, Failed},
	{Starting, Started, Running},
	{Starting, Complete, Completed},
	{Starting, Fail, Failed},
	{Starting, Retry, Pending},
	{Starting, Terminate, Terminating},
	{Running, Complete, Completed},
	{Running, Fail, Failed},
	{Running, Retry, Pending},
	{Running, Terminate, Terminating},
	{Terminating, Ended, Terminated},

	{Pending, Restore, Restoring},
	{Pending, Pause, Paused},
	{Restoring, Started, Running},
	{Restoring, Complete, Completed},
	{Restoring, Fail, Failed},
	{Restoring, Retry, Pending},
	{Restoring, Terminate, Terminating},
	{Running, Migrate, Migrating},
	{Migrating, Restore, Restoring},
	{Migrating, Stay, Running},
	{Migrating, Complete, Completed},
	{Migrating, Fail, Failed},
	{Migrating, Retry, Pending},
	{Migrating, Terminate, Terminating},
	{Running, Pause, Pausing},
	{Pausing, Left, Paused},
	{Pausing, Stay, Running},
	{Pausing, Complete, Completed},
	{Pausing, Fail, Failed},
	{Pausing, Retry, Pending},
	{Pausing, Terminate, Terminating},
	{Paused, Resume, Pending},
	{Paused, Terminate, Terminated},
	// A rewind gives up what runs: it is no longer desired where it is, and whatever it still does is of a stale epoch.
	{Paused, Rewind, Pending},
	{Failed, Rewind, Pending},
	{Completed, Rewind, Pending},
	{Terminated, Rewind, Pending},
}

var next = func() (t [16][16]Phase) {
	for _, r := range Lifecycle {
		t[r.From][r.On] = r.To
	}
	return t
}()

// Next returns what the phase becomes on the event, and false when that cannot happen.
func Next(p Phase, e Event) (Phase, bool) {
	if p > 15 || e > 15 {
		return p, false
	}
	to := next[p][e]
	if to == 0 {
		return p, false
	}
	return to, true
}
