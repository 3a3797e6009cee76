// What a session leaves behind to go on from: checkpoints, and its moves between nodes.

package session

import (
	"fmt"
	"time"
)

// CheckpointsMax bounds a session's chain, in checkpoints; the oldest go first.
const CheckpointsMax = 10

// EveryTurn is the policy of a checkpoint at the end of each turn.
const EveryTurn = "turn"

// MinCheckpointEvery is the shortest time between checkpoints that a policy may ask for.
const MinCheckpointEvery = time.Second

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
	// Copied is the last copy of the session at work, which its target can have ready; Prepared: it has had one ready.
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
