// The nouns: spec, session, message, end.

package session

import (
	"cmp"
	"time"
)

// Priority orders messages within a session and sessions that wait. Lower is more urgent; the numbers are those of
// the public API and of snapshots.
type Priority uint8

// The priorities.
const (
	Critical Priority = 1
	High     Priority = 2
	Normal   Priority = 3
	Low      Priority = 4
)

// String returns the priority as it is written on a command line.
func (p Priority) String() string {
	switch p {
	case Critical:
		return "critical"
	case High:
		return "high"
	case Low:
		return "low"
	default:
		return "normal"
	}
}

// ParsePriority reads what String writes.
func ParsePriority(s string) (Priority, bool) {
	for _, p := range []Priority{Critical, High, Normal, Low} {
		if p.String() == s {
			return p, true
		}
	}
	return 0, false
}

// Pair is a key with its value. Lists of pairs are kept sorted by key: maps have no order, and the replicated state
// must have one.
type Pair struct{ Key, Value string }

// Lookup returns the value of a key in a sorted list of pairs.
func Lookup(pairs []Pair, key string) (string, bool) {
	for _, p := range pairs {
		if p.Key == key {
			return p.Value, true
		}
	}
	return "", false
}

// RestartPolicy says whether a session is started again after its process ended.
type RestartPolicy string

// The restart policies.
const (
	RestartNever     RestartPolicy = "never"
	RestartOnFailure RestartPolicy = "on-failure"
	RestartAlways    RestartPolicy = "always"
)

// The protocols by which a process takes messages.
const (
	ProtocolLines = "lines" // a message is a line on stdin; the turn ends with the next whole line on stdout
	ProtocolJSON  = "json"  // a JSON object a line in; the turn ends with a line {"type":"result",…}
	ProtocolRaw   = "raw"   // bytes to a PTY; the turn ends by idle time
	ProtocolNone  = "none"  // takes no messages
)

// The types of sessions.
const (
	TypeProcess    = "process"
	TypeClaudeCode = "claude-code"
	TypeClaudeFlow = "claude-flow"
	TypeACP        = "acp"
)

// Spec is what to run and what it needs; it never changes after the spawn. Treat it as immutable: it is shared.
type Spec struct {
	Type          string
	Name          string
	Namespace     string
	Priority      Priority
	Command       []string
	Env           []Pair
	Secrets       []string
	Require       []string
	Labels        []Pair
	NodeSelector  []Pair
	CPUMilli      int64
	MemoryBytes   int64
	MemoryProfile string
	Protocol      string
	Restart       RestartPolicy
	MaxRestarts   uint32
	TTL           time.Duration
	Grace         time.Duration
	Strategy      string
	TurnIdle      time.Duration
	// CheckpointEvery is "turn", a duration, or empty; see CheckpointPolicy.
	CheckpointEvery string
	// KeepCheckpoints is how many are kept, CheckpointsDefault when 0; KeepCheckpointsFor how long all but the newest, for ever when 0.
	KeepCheckpoints    uint32
	KeepCheckpointsFor time.Duration
	PauseAfter         time.Duration // without a turn and without a message; never when 0
	State              string        // "files", also when empty, or "memory"
}

// The causes of an end.
const (
	CauseCompleted   = "completed"
	CauseTerminated  = "terminated"
	CauseFailed      = "failed"
	CauseOOMKilled   = "oom-killed"
	CauseEvicted     = "evicted"
	CauseLost        = "lost"
	CauseExpired     = "expired"
	CauseStartFailed = "start-failed"
)

// Exit is how a session's process ended.
type Exit struct {
	Code    int32
	Signal  string // such as SIGKILL; empty when none
	Cause   string
	Message string
}

// HistoryMax bounds a session's history, in entries; the oldest go first.
const HistoryMax = 16

// HistoryEntry is one change of phase.
type HistoryEntry struct {
	Time   int64 // Unix nanoseconds
	Index  uint64
	Phase  Phase
	Epoch  uint32
	Node   string
	Reason string
}

// Session is a session as the replicated state holds it. Treat it as immutable: readers share it. Times are Unix
// nanoseconds, 0 for not yet.
type Session struct {
	ID         string
	Spec       *Spec
	Phase      Phase
	Reason     string
	NodeID     string // where it is placed, or was last
	Epoch      uint32
	CreateTime int64
	StartTime  int64
	EndTime    int64
	Restarts   uint32 // over its whole life
	// RestartsForgiven is how many of them came before the last healthy run: they do not count any more.
	RestartsForgiven uint32
	Exit             *Exit
	Placement        string
	CreateIndex      uint64
	ModifyIndex      uint64
	// PlacedIndex is the raft index at which this epoch was placed.
	PlacedIndex uint64
	PID         int32
	OutputLine  uint64
	NotBefore   int64 // a pending session may not be placed before
	StopGrace   time.Duration
	StopCause   string
	History     []HistoryEntry
	Saved
}

// ByUrgency orders sessions that compete: the more urgent one first, of two alike the older one.
func ByUrgency(a, b *Session) int {
	return cmp.Or(cmp.Compare(a.Spec.Priority, b.Spec.Priority), cmp.Compare(a.CreateIndex, b.CreateIndex), cmp.Compare(a.ID, b.ID))
}

// Message is one message of a mailbox. Treat it as immutable.
type Message struct {
	SessionID  string
	Sequence   uint64 // the session's own count, from 1
	Priority   Priority
	Text       []byte
	CreateTime int64
	Deadline   int64
	Attempts   uint32
	// Delivered says that a process of DeliveredEpoch was given it and its turn has not ended.
	Delivered      bool
	DeliveredEpoch uint32
	// Turn is the number of its ended turn; not 0 for a message that is kept until a checkpoint has seen it.
	Turn uint64
}

// Result is what a turn gave.
type Result struct {
	SessionID string
	Sequence  uint64
	Text      []byte
	Truncated bool
	EndTime   int64
	Attempts  uint32
}

// DeadLetter is a message that was given up.
type DeadLetter struct {
	Message
	Namespace string
	Cause     string
	Time      int64
}

// Mailbox counts a session's messages.
type Mailbox struct {
	SessionID    string
	NextSequence uint64
	Queued       uint32 // waiting, not with a process
	Delivered    uint32 // with a process
	Acked        uint32
	Dead         uint32
	Kept         uint32 // acked, and kept until a checkpoint has seen their turns
	Bytes        uint64 // of texts not acked, or kept
	LastAckTime  int64
}
