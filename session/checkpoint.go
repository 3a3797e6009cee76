// What a session leaves behind to go on from: checkpoints, and its moves between nodes.

package session

import (
	"fmt"
	"math"
	"time"
)

// How many checkpoints a session keeps; the oldest go first.
const (
	CheckpointsDefault = 10  // when its spec says nothing
	CheckpointsMax     = 100 // that a spec may ask for
)

// The trees of a checkpoint of a process session: what it works on, and its numbered output.
const (
	RootWorkspace = "workspace"
	RootLog       = "log"
)

// CountMax bounds the sequence, the turn and the output line of a checkpoint that comes from another cluster: what is counted
// on from them has room.
const CountMax = 1 << 53

// EveryTurn is the policy of a checkpoint at the end of each turn.
const EveryTurn = "turn"

// MinCheckpointEvery is the shortest time between checkpoints that a policy may ask for.
const MinCheckpointEvery = time.Second

// MinPauseAfter is the shortest idle time after which a session may ask to be paused.
const MinPauseAfter = time.Second

// pauseAfter says what is wrong with the idle time; empty when nothing is.
func (s *Spec) pauseAfter() string {
	switch {
	case s.PauseAfter == 0:
		return ""
	case s.Protocol == ProtocolNone:
		return "a session that takes no messages has no idle time, and nothing would wake it; give it a protocol, or pause it by hand"
	case s.PauseAfter < MinPauseAfter:
		return fmt.Sprintf("%s is below %s", s.PauseAfter, MinPauseAfter)
	}
	return ""
}

// ManifestID names a checkpoint's manifest in the chunk store.
type ManifestID [32]byte

// Checkpoint is a committed checkpoint. Treat it as immutable.
type Checkpoint struct {
	Sequence   uint64 // the session's own count, from 1; there may be gaps
	Manifest   ManifestID
	Epoch      uint32 // in which it was captured
	Turn       uint64 // how many ended turns it has seen
	OutputLine uint64 // the last line that it holds
	CreateTime int64
	Chunks     uint32
	// Bytes of its content, of what its capture sent, and of what was stored already.
	Bytes, BytesSent, BytesReused int64
	// Keeps says what it holds of the session: messages, transcript, workspace, memory.
	Keeps []string
}

// Saved is what a session's next epoch goes on from.
type Saved struct {
	// Checkpoints are those that are kept, oldest first; the last one is the head.
	Checkpoints []*Checkpoint
	// Turns counts the turns that have ended, over all epochs; UnsavedSince is when the first ended that the head has not seen,
	// 0 when it has seen all.
	Turns        uint64
	UnsavedSince int64
	// CheckpointRequest is the number of the newest checkpoint that was asked for, CheckpointAnswered of the newest that was
	// made, or could not be.
	CheckpointRequest, CheckpointAnswered uint64
	// CheckpointError is why the last attempt at a checkpoint failed, or what the last one leaves out; empty since one was made that
	// leaves out nothing.
	CheckpointError string
	// Captured is the capture that is being stored; nil when there is none. Treat it as immutable.
	Captured *Captured
	// LostLine is the last line of the epoch before, LostEpoch, when it is ahead of what this epoch was restored from; else 0.
	LostLine  uint64
	LostEpoch uint32
	// RestoreFailures counts the epochs in a row that could not be restored.
	RestoreFailures uint16
	// Left: the last checkpoint of the epoch is committed, and its process is being stopped for a move or a pause.
	Left bool
	// Move is the number of the order to leave its node, for a migration, a pause or a rewind; 0 when there is none.
	Move uint64
	// RewindTo is the checkpoint that the next epoch begins with, once the process has been stopped for it; 0 for none.
	RewindTo uint64
	// Migration is the move under way, or the last one; nil when there was none.
	Migration *Migration
}

// Captured is a moment of a session that is being stored.
type Captured struct {
	Sequence, Turn, OutputLine uint64
	Time                       int64
}

// Head returns the newest checkpoint; nil when there is none.
func (s *Saved) Head() *Checkpoint {
	if len(s.Checkpoints) == 0 {
		return nil
	}
	return s.Checkpoints[len(s.Checkpoints)-1]
}

// Checkpoint returns the checkpoint with the sequence, the head for 0; nil when it is not kept.
func (s *Saved) Checkpoint(sequence uint64) *Checkpoint {
	if sequence == 0 {
		return s.Head()
	}
	for _, c := range s.Checkpoints {
		if c.Sequence == sequence {
			return c
		}
	}
	return nil
}

// KeepCount returns how many checkpoints of the session are kept, the head among them.
func (s *Spec) KeepCount() int {
	if s.KeepCheckpoints == 0 {
		return CheckpointsDefault
	}
	return int(min(s.KeepCheckpoints, CheckpointsMax))
}

// outlived reports whether a checkpoint has been kept for as long as the spec says, at a time in Unix nanoseconds.
func (s *Spec) outlived(c *Checkpoint, now int64) bool {
	return s.KeepCheckpointsFor > 0 && now-c.CreateTime >= int64(s.KeepCheckpointsFor)
}

// Kept returns which checkpoints of a session are kept at a time in Unix nanoseconds: those that are not too old, and of
// these the newest. The head is kept always, and so is the one that a rewind under way goes back to. What it returns is the
// session's own list where nothing goes.
func (s *Session) Kept(now int64) []*Checkpoint {
	most := s.Spec.KeepCount()
	goes := func(i int) bool {
		c := s.Checkpoints[i]
		if i == len(s.Checkpoints)-1 || s.RewindTo != 0 && c.Sequence == s.RewindTo {
			return false
		}
		return len(s.Checkpoints)-i > most || s.Spec.outlived(c, now)
	}
	for i := range s.Checkpoints {
		if !goes(i) {
			continue
		}
		kept := make([]*Checkpoint, 0, len(s.Checkpoints)-1)
		for j, c := range s.Checkpoints {
			if !goes(j) {
				kept = append(kept, c)
			}
		}
		return kept
	}
	return s.Checkpoints
}

// KeptUntil returns when the first checkpoint goes for its age, in Unix nanoseconds; 0 when none ever will.
func (s *Session) KeptUntil() int64 {
	if s.Spec.KeepCheckpointsFor <= 0 || len(s.Checkpoints) < 2 {
		return 0
	}
	until := int64(math.MaxInt64)
	for _, c := range s.Checkpoints[:len(s.Checkpoints)-1] {
		if c.Sequence == s.RewindTo {
			continue
		}
		if due := c.CreateTime + int64(s.Spec.KeepCheckpointsFor); due > c.CreateTime { // else it is beyond the end of time
			until = min(until, due)
		}
	}
	if until == math.MaxInt64 {
		return 0
	}
	return until
}

// What a checkpoint may keep of a session; Spec.State asks for more than the files.
const (
	KeepsMessages   = "messages"   // what it has not seen of its mailbox is delivered after a restore
	KeepsTranscript = "transcript" // an agent's own record of its conversation
	KeepsWorkspace  = "workspace"  // its files, with its output
	KeepsMemory     = "memory"     // its process's memory

	StateFiles  = "files"
	StateMemory = "memory"
)

// Keeps returns what a checkpoint of such a session keeps of it.
func (s *Spec) Keeps() []string {
	keeps := make([]string, 0, 4)
	if s.Protocol != ProtocolNone {
		keeps = append(keeps, KeepsMessages)
	}
	if s.Type != TypeProcess {
		keeps = append(keeps, KeepsTranscript)
	}
	keeps = append(keeps, KeepsWorkspace)
	if s.State == StateMemory {
		keeps = append(keeps, KeepsMemory)
	}
	return keeps
}

// keeping says what is wrong with how long checkpoints are kept, and of which field; empty when nothing is.
func (s *Spec) keeping() (field, why string) {
	switch {
	case s.KeepCheckpoints > CheckpointsMax:
		return "keep_checkpoints", fmt.Sprintf("%d is above %d; a checkpoint that is to stay can be exported", s.KeepCheckpoints, CheckpointsMax)
	case s.KeepCheckpointsFor < 0:
		return "keep_checkpoints_for", fmt.Sprintf("%s is negative; give a time such as 24h, or 0 for as long as there are not too many", s.KeepCheckpointsFor)
	}
	return "", ""
}

// LagTurns returns how many ended turns the head has not seen; without one, all.
func (s *Saved) LagTurns() uint64 {
	if h := s.Head(); h != nil {
		return s.Turns - min(h.Turn, s.Turns)
	}
	return s.Turns
}

// MigrationState is how far a move is. The numbers are those of the public API and of snapshots.
type MigrationState uint8

// The states of a move.
const (
	MigrationCopying   MigrationState = 1 // the session works, and what it has is copied
	MigrationMoving    MigrationState = 2 // it has stopped on its source
	MigrationDone      MigrationState = 3
	MigrationFailed    MigrationState = 4
	MigrationCancelled MigrationState = 5
)

// Migration is a move between nodes. Treat it as immutable. Times are Unix nanoseconds, 0 for not yet.
type Migration struct {
	Number                 uint64 // the raft index at which it began
	State                  MigrationState
	Source, Target         string // node ids
	Cold                   bool
	Rounds                 uint32
	BytesSent, BytesReused int64
	// Copied is the last copy of the session at work, which its target can have ready; Prepared: it has that ready.
	Copied    ManifestID
	Prepared  bool
	StartTime int64
	HeldTime  int64 // from when on messages were held
	EndTime   int64
	Epoch     uint32 // on the target
	Error     string
}

// Under reports whether the move is under way.
func (m *Migration) Under() bool {
	return m != nil && (m.State == MigrationCopying || m.State == MigrationMoving)
}

// CheckpointPolicy returns when the session is checkpointed by itself: after each turn, or after so much time when turns
// have ended since; neither when only on demand.
func (s *Spec) CheckpointPolicy() (turn bool, every time.Duration) {
	if s.CheckpointEvery == EveryTurn {
		return true, 0
	}
	d, err := time.ParseDuration(s.CheckpointEvery)
	if err != nil {
		return false, 0
	}
	return false, d
}

// checkpointEvery says what is wrong with the policy; empty when nothing is.
func (s *Spec) checkpointEvery() string {
	if s.CheckpointEvery == "" || s.CheckpointEvery == EveryTurn {
		return ""
	}
	d, err := time.ParseDuration(s.CheckpointEvery)
	switch {
	case err != nil:
		return fmt.Sprintf("%q is neither a duration nor %q; use for example 5m", clip(s.CheckpointEvery), EveryTurn)
	case d < MinCheckpointEvery:
		return fmt.Sprintf("%s is below %s; use %q for a checkpoint after each turn", d, MinCheckpointEvery, EveryTurn)
	}
	return ""
}

// Saves reports whether acked messages are kept until a checkpoint has seen them: a policy makes checkpoints, or one
// was made.
func (s *Session) Saves() bool { return s.Spec.CheckpointEvery != "" || len(s.Checkpoints) > 0 }
