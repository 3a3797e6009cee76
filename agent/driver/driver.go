// Package driver says how a kind of session starts, takes a message, ends a turn and stops; each kind is a folder below.
//
// A driver never decides whether a session should run: the agent does, from what the leader desires. A driver owns the
// process tree from Start (or Adopt) to the moment Done is closed, and Done is closed only when nothing of the tree
// lives any more.
package driver

import (
	"context"
	"errors"
	"io"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// ErrGone is returned by Adopt when nothing of the session lives; the Exit it was left with is in Gone.
var ErrGone = errors.New("driver: the session's process is gone")

// ErrBusy is returned by Send while another message's turn has not ended.
var ErrBusy = errors.New("driver: a turn is under way")

// Gone is the error of Adopt for a session that ended while nobody watched. It matches ErrGone.
type Gone struct {
	Exit        session.Exit
	OutputLine  uint64
	Outstanding uint64 // the message whose turn had not ended; 0 for none
	// Turns that ended and may not have been reported.
	Turns []Turn
}

// Error says how the session ended.
func (g *Gone) Error() string { return "driver: the session's process is gone: " + g.Exit.Message }

// Is makes a Gone match ErrGone.
func (g *Gone) Is(target error) bool { return target == ErrGone }

// Start is what a session is started with.
type Start struct {
	SessionID string
	Epoch     uint32
	Spec      *session.Spec
	// Dir is the session's own directory, made by the agent (0700): workspace/ and log/ live below it, and stay when
	// the session is started again on this node.
	Dir string
	// Env is the whole environment of the process, as KEY=VALUE.
	Env []string
	// OutputBase is the number of the last output line of earlier epochs.
	OutputBase uint64
	// LeaseFile holds the node's lease; see package lease.
	LeaseFile string
	// StartBy is when the lease ends under which the start was ordered, in nanoseconds of CLOCK_BOOTTIME; 0 for no bound.
	// The process is not started after it, whatever lease the node has by then: the session may be elsewhere.
	StartBy int64
}

// Input is one message to a session.
type Input struct {
	Sequence uint64
	Priority session.Priority
	Text     []byte
}

// Turn is the end of a turn.
type Turn struct {
	Sequence   uint64
	Result     []byte
	Truncated  bool   // the result was longer than session.MaxResultBytes
	OutputLine uint64 // the last output line that belongs to it
	// Refused is not empty when the session can never take the message; it says why.
	Refused string
}

// Driver makes sessions of one type. Its methods may be called from several goroutines.
type Driver interface {
	// Type is the session type it runs, such as "process".
	Type() string
	// Probe says what of it works on this machine, as capability keys; an empty map when only the type itself.
	Probe(ctx context.Context) (map[string]bool, error)
	// Start starts a session. It returns when the process runs, or an error when it could not be started and nothing of
	// it is left. A session of which something still lives is refused.
	Start(ctx context.Context, s Start) (Process, error)
	// Adopt takes up a session that an earlier agent started from the same directory and epoch, without a gap or a double
	// in its output and its turns. It returns *Gone when it has ended meanwhile.
	Adopt(ctx context.Context, s Start) (Process, error)
}

// Process is one running session. Its methods may be called from several goroutines.
type Process interface {
	PID() int
	// Send writes a message to the process. It returns once the process's pipe took it; ErrBusy while another turn is
	// under way. A sequence that this process was given before is not written again.
	Send(ctx context.Context, in Input) error
	// Turns delivers the ends of turns, in order; it is closed after Done. Turns that ended before an Adopt and may not
	// have been reported come first.
	Turns() <-chan Turn
	// Outstanding is the message whose turn is under way; 0 for none.
	Outstanding() uint64
	// Backlog is how many turns have ended and were not taken from Turns yet. When it is 0 and nothing is Outstanding, every
	// turn that ended was taken, also of those before an Adopt.
	Backlog() int
	// OutputLine is the number of the last output line.
	OutputLine() uint64
	// ReadLogs calls emit with batches of lines from the given number on, oldest first; with follow it goes on until ctx
	// ends or the process has ended and all is read. Lines that are no longer kept are replaced by one NOTICE line.
	ReadLogs(ctx context.Context, from uint64, follow bool, emit func([]*apiv1.LogLine) error) error
	// Attach joins a terminal: output from now on goes to out, what is read from in goes to the process's stdin. It
	// returns when ctx ends, in ends, or the process ends. resize may be nil.
	Attach(ctx context.Context, in io.Reader, out io.Writer, resize <-chan Size) error
	// Stop asks the process to end (SIGTERM), and after grace kills its whole tree. It does not wait.
	Stop(grace time.Duration, exit session.Exit)
	// Kill kills the whole tree at once. It does not wait.
	Kill(exit session.Exit)
	// Done is closed when nothing of the tree lives any more; Exit may be called then.
	Done() <-chan struct{}
	// Exit says how it ended. A Stop or Kill that came first decides the cause; the code and signal are the process's.
	Exit() session.Exit
	// Release lets go of the process without ending it: the agent is about to stop. Neither Done nor Turns is closed.
	Release()
}

// Exec is a further command beside a session's process.
type Exec struct {
	Command []string
	Env     []string // KEY=VALUE; the session's own when nil
	TTY     bool
	Size    Size        // of the terminal at first
	Stdin   io.Reader   // nil for none; a Read that blocks is left behind when the command ends
	Stdout  io.Writer   // nil discards
	Stderr  io.Writer   // unused with TTY
	Resize  <-chan Size // may be nil
}

// Execer is a Process that can run further commands in the session's workspace and environment.
type Execer interface {
	// Exec runs a command and returns when it has ended, with everything that it forked. The whole of it is killed when
	// ctx ends, when the session ends, on Release, and when the agent dies.
	Exec(ctx context.Context, e Exec) (session.Exit, error)
}

// Size is a terminal's.
type Size struct{ Columns, Rows uint16 }
