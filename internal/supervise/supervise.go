// Package supervise keeps the parts of a server running that nobody waits for: its daemons. One that fails, or panics, is started again
// without its neighbours noticing; one that goes on failing is started ever so often, and the server says that it is not ready.
//
// Each daemon has a supervisor of its own (suture): restarts of one never hold up another. What must not go on after a panic is no
// daemon: a state machine that stopped half-way is not to be trusted, and its process ends.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/thejerf/suture/v4"
)

const (
	// MaxRestarts is how many failures of a daemon are answered by a restart at once.
	MaxRestarts = 5
	// Decay is the half-life of a failure.
	Decay = time.Minute
	// Pause follows more failures than that; after it they are counted anew.
	Pause = 5 * time.Second
	// StopTimeout is how long a daemon may take to stop.
	StopTimeout = 10 * time.Second
	// maxErrorBytes bounds what is kept of an error.
	maxErrorBytes = 1 << 10
)

// State is what a daemon does.
type State string

// The states of a daemon.
const (
	Waiting State = "WAITING" // the tree does not run yet
	Running State = "RUNNING"
	Failing State = "FAILING" // it failed too often, and is started again after a pause
	Done    State = "DONE"    // it has nothing more to do
	Stopped State = "STOPPED"
)

// Daemon is something that runs beside the calls.
type Daemon struct {
	// Name is for people, and unique in its tree.
	Name string
	// Run works until ctx ends. An error before that is a failure, and nil says that there is nothing more to do.
	Run func(ctx context.Context) error
	// Queue returns how much waits for the daemon, and how much may at most; nil where nothing does.
	Queue func() (depth, limit int64)
}

// Status is how a daemon is.
type Status struct {
	Name     string
	State    State
	Since    time.Time // it is in this state
	Restarts int64
	// LastError is why it failed last, and LastErrorTime when; empty when it never did.
	LastError     string
	LastErrorTime time.Time
	// QueueDepth and QueueLimit are 0 where nothing waits for a daemon.
	QueueDepth, QueueLimit int64
	// Goroutines are those that it started, and those that these did.
	Goroutines int
}

// Tree runs daemons. Its methods may be called from several goroutines.
type Tree struct {
	log     *slog.Logger
	daemons []*daemon // in the order of their start; they stop in the reverse order
}

type daemon struct {
	Daemon
	log *slog.Logger

	mu     sync.Mutex
	status Status
}

// New makes a tree of daemons that begin in this order.
func New(log *slog.Logger, daemons ...Daemon) *Tree {
	t := &Tree{log: log}
	for _, d := range daemons {
		t.daemons = append(t.daemons, &daemon{Daemon: d, log: log, status: Status{Name: d.Name, State: Waiting, Since: time.Now()}})
	}
	return t
}

// Run runs the daemons until ctx ends, and then stops them one by one, the last one first. One that does not stop in StopTimeout is left
// behind with a warning.
func (t *Tree) Run(ctx context.Context) {
	stops := make([]func(), len(t.daemons))
	for i, d := range t.daemons {
		stops[i] = d.start(context.WithoutCancel(ctx))
	}
	<-ctx.Done()
	for _, stop := range slices.Backward(stops) {
		stop()
	}
}

// start starts a daemon, and returns what stops it.
func (d *daemon) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	s := suture.New(d.Name, suture.Spec{
		EventHook: d.event, FailureThreshold: MaxRestarts, FailureDecay: Decay.Seconds(), FailureBackoff: Pause, BackoffJitter: suture.NoJitter{}, Timeout: StopTimeout,
	})
	s.Add(d)
	ended := s.ServeBackground(ctx)
	return func() {
		cancel()
		_ = <-ended // that it was told to; at most StopTimeout, as the supervisor sees to
		d.become(Stopped)
	}
}

// Serve implements suture.Service: one run of the daemon.
func (d *daemon) Serve(ctx context.Context) (err error) {
	d.become(Running)
	pprof.Do(ctx, pprof.Labels(label, d.Name), func(ctx context.Context) { err = d.Run(ctx) })
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		d.become(Done)
		return suture.ErrDoNotRestart
	case errors.Is(err, suture.ErrDoNotRestart), errors.Is(err, suture.ErrTerminateSupervisorTree), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return errors.New(err.Error()) // it is a failure all the same: the supervisor must not take it for more
	default:
		return err
	}
}

// String is its name, for the supervisor.
func (d *daemon) String() string { return d.Name }

// event hears from the supervisor.
func (d *daemon) event(e suture.Event) {
	switch e := e.(type) {
	case suture.EventServicePanic:
		d.failed("panic: "+e.PanicMsg, "stack", e.Stacktrace)
	case suture.EventServiceTerminate:
		d.failed(fmt.Sprint(e.Err))
	case suture.EventBackoff:
		d.become(Failing)
	case suture.EventStopTimeout:
		d.log.Warn("a daemon does not stop; it is left behind", "daemon", d.Name, "after", StopTimeout)
	}
}

func (d *daemon) failed(why string, attrs ...any) {
	why = why[:min(len(why), maxErrorBytes)]
	d.mu.Lock()
	d.status.Restarts++
	d.status.LastError, d.status.LastErrorTime = why, time.Now()
	d.mu.Unlock()
	d.log.Error("a daemon failed, and is started again", append([]any{"daemon", d.Name, "error", why}, attrs...)...)
}

func (d *daemon) become(s State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.status.State != s {
		d.status.State, d.status.Since = s, time.Now()
	}
}

// Statuses returns how all daemons are, in the order of their start, without their goroutines.
func (t *Tree) Statuses() []Status {
	out := make([]Status, len(t.daemons))
	for i, d := range t.daemons {
		d.mu.Lock()
		out[i] = d.status
		d.mu.Unlock()
		if d.Queue != nil {
			out[i].QueueDepth, out[i].QueueLimit = d.Queue()
		}
	}
	return out
}

// List is Statuses with goroutines, for people: to count them takes a moment in which the program stands still.
func (t *Tree) List() []Status {
	out, goroutines := t.Statuses(), goroutinesByLabel()
	for i := range out {
		out[i].Goroutines = goroutines[out[i].Name]
	}
	return out
}

// Failing says which daemon keeps failing, and why; empty when none does.
func (t *Tree) Failing() string {
	for _, s := range t.Statuses() {
		if s.State == Failing {
			return fmt.Sprintf("daemon %s keeps failing: %s", s.Name, s.LastError)
		}
	}
	return ""
}
