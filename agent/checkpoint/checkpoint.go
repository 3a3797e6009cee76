// Package checkpoint is how a node captures a session and goes on from what was captured: the files of its directory on
// one side, the chunk store on the other.
//
// What belongs to a session, and so is captured, are two directories below its own:
//
//	workspace  what it works on
//	log        its numbered output, up to the line at which it was captured
//
// Nothing else is. The agent's record is made anew for each epoch. What the shim keeps (shim.state: pids, the exit, which
// messages the process was given) is about one epoch's process tree and must not be seen by the next: a message that comes
// again after a restore has to be written to the new process, which has not seen it. The log does hold the input markers of
// earlier epochs; who looks for turns reads those of its own epoch only.
//
// # Held, and not held
//
// A capture names a moment, so nothing may happen to the session while its files are read. Reading is all that it waits for: what is
// new goes to a spool on this node's own disk, and from there to the store while the session works on. What the store has
// already, by an earlier checkpoint, is known from an index and neither read nor asked about. Before a session is held that nothing is
// known of, its files are copied once while it works; for a move, in rounds, until little is left.
package checkpoint

import (
	"context"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// The names of what is captured, and of the directories below a session's own.
const (
	Workspace = session.RootWorkspace
	Log       = session.RootLog
)

// Keeper captures sessions and restores them. Its methods may be called concurrently for different sessions, and one at a
// time for each. Errors of a context are returned as such.
type Keeper interface {
	// Warm reports whether a capture of the session would read and send only what has changed of it.
	Warm(sessionID string) bool
	// Copy stores what the session's files hold by now, while it works, so that a capture soon after has little to do. With
	// manifest, what it stored has a name, to be staged by.
	Copy(ctx context.Context, s Session, manifest bool) (Round, error)
	// Capture reads the session's files as they are. The session is held meanwhile.
	Capture(ctx context.Context, s Session) (Capture, error)
	// Restore fills an empty directory with what was captured. After an error what is in it is of no use.
	Restore(ctx context.Context, r Restore) (Restored, error)
	// Stage has what was stored ready, so that a Restore of something like it soon after has little to do. It may be called again, for
	// something newer, and returns how many bytes did not come from this node.
	Stage(ctx context.Context, s Staging) (int64, error)
	// Unstage removes what is ready for the session. Restore does so, too.
	Unstage(sessionID string) error
	// Lend lets the node that has the token take from this one the chunks that the session is made of, until Recall ends that after a
	// while.
	Lend(sessionID, token string)
	Recall(sessionID string, after time.Duration)
}

// Progress is told, now and then, how far a step is: bytes done of all that it reads, sends or writes. It must not block, and is
// called by one goroutine at a time.
type Progress func(done, total int64)

// tell tells, when there is anybody to be told.
func (p Progress) tell(done, total int64) {
	if p != nil {
		p(done, total)
	}
}

// Peer is the node that a session comes from, and what lets this one fetch chunks from it.
type Peer struct {
	Address string // host:port
	Token   string
}

// Staging is what is to be ready, and where.
type Staging struct {
	SessionID string
	Dir       string // the session's for this alone, made when missing
	Manifest  [32]byte
	Peer      *Peer // asked before the store; nil for none
	Progress  Progress
}

// Session is what is captured.
type Session struct {
	Dir             string // the session's own, absolute
	ID              string
	Namespace, Name string
	Spec            []byte // orchestrator.v1.SessionSpec, binary
	NodeID          string // where it runs
	Epoch           uint32
	Sequence        uint64   // of the checkpoint
	Turn            uint64   // ended turns that it has seen, by the node's own count
	OutputLine      uint64   // the last line that belongs to it
	Keeps           []string // what a checkpoint keeps of such a session: messages, transcript, workspace
	// Whole: what cannot be captured, but for sockets, pipes, devices and links that lead elsewhere, is an error of kind
	// FailedPrecondition, for the session is to go on from this and from nothing else. Otherwise it is left out, and Stored says so.
	Whole bool
	// Progress is told of what is read, and then of what is stored. May be nil.
	Progress Progress `json:"-"`
}

// Sent is what went to the store, in bytes.
type Sent struct {
	Sent    int64 // on the wire
	Content int64 // of what was sent, before compression
}

// Round is what a Copy did.
type Round struct {
	Sent
	Manifest [32]byte // when it was asked for
	Bytes    int64    // of all content, then
}

// Capture is a moment of a session, on its way to the store. One of Store's success and Discard must come last.
type Capture interface {
	// Store returns when the checkpoint would outlive this node. It may be called again after an error.
	Store(ctx context.Context) (Stored, error)
	// Discard gives the capture up.
	Discard()
}

// Stored is a checkpoint that is stored.
type Stored struct {
	Manifest [32]byte
	Bytes    int64 // of all its content
	Sent           // what Store sent of it
	Chunks   uint32
	Keeps    []string
	LeftOut  string // what of the session is not in it, in one line; empty for nothing
}

// Restore is what is restored, and where to.
type Restore struct {
	Dir        string // absolute, empty
	SessionID  string
	Manifest   [32]byte
	Epoch      uint32 // that begins with it
	OutputLine uint64 // the log ends with exactly this line, whatever was captured behind it
	Notice     string // written to the log after it, unless empty
	Peer       *Peer  // asked before the store; nil for none
	Progress   Progress
}

// Restored is what was restored.
type Restored struct {
	Turn    uint64 // Session.Turn of the checkpoint
	Bytes   int64  // of files
	Fetched int64  // bytes that did not come from this node
}

// None is the Keeper of a node that keeps no checkpoints: it refuses.
type None struct{}

var errNone = fault.New(fault.Unimplemented, "this node keeps no checkpoints: it was given no chunk store")

// Warm is always true: there is nothing to prepare.
func (None) Warm(string) bool { return true }

// Copy refuses.
func (None) Copy(context.Context, Session, bool) (Round, error) { return Round{}, errNone }

// Capture refuses.
func (None) Capture(context.Context, Session) (Capture, error) { return nil, errNone }

// Restore refuses.
func (None) Restore(context.Context, Restore) (Restored, error) { return Restored{}, errNone }

// Stage refuses.
func (None) Stage(context.Context, Staging) (int64, error) { return 0, errNone }

// Unstage has nothing to do.
func (None) Unstage(string) error { return nil }

// Lend has nothing to lend.
func (None) Lend(string, string) {}

// Recall has nothing to do.
func (None) Recall(string, time.Duration) {}
