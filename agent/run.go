// One epoch of one session on this node, from its start or adoption to its end: one goroutine.

package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/driver"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

const (
	// deliveredDelay is how long a turn must last before the cluster is told that its message was delivered: most
	// turns end sooner, and their end says it too.
	deliveredDelay = 100 * time.Millisecond
	// sendRetryDelay is how long a message waits after the process did not take it.
	sendRetryDelay = 50 * time.Millisecond
	// adoptRetryFirst and adoptRetryMax space attempts to take up a session that neither answers nor is gone.
	adoptRetryFirst = 100 * time.Millisecond
	adoptRetryMax   = 5 * time.Second
	// maxCauseBytes bounds the sentence that goes with an end.
	maxCauseBytes = 1024
)

// order is what a run was told to do about its end. A stronger one replaces a weaker one, never the other way.
type order struct {
	strength int // orderNone, orderStop, orderKill
	grace    time.Duration
	exit     session.Exit
}

const (
	orderNone = iota
	orderStop
	orderKill
)

// host is what all runs share. Its fields are set before the first run starts; what changes is safe for several
// goroutines.
type host struct {
	nodeName     string
	nodeID       string
	secretsDir   string
	leasePath    string
	startTimeout time.Duration
	drivers      map[string]driver.Driver
	store        *store
	lease        *lease
	slots        chan struct{} // holds one for each start under way
	room         *gate         // shut while too many facts wait
	keeper       checkpoint.Keeper
	restores     chan struct{}        // holds one for each restore under way
	sweep        chan struct{}        // the janitor's: something is in the trash
	events       chan<- event         // to the supervisor, which takes them until all runs have returned
	progress     chan<- *nodev1.Frame // of moves; see teller
	metrics      *metrics
	log          *slog.Logger
}

// emit hands an event to the supervisor.
func (h *host) emit(e event) {
	if e.fact != nil {
		h.room.waiting.Add(1)
	}
	h.events <- e
}

// event is what a run tells the supervisor.
type event struct {
	run  *run
	fact *nodev1.Fact // nil when there is nothing to report
	// Set with a run's last event: nothing of it lives any more.
	ended bool
	// absent: it was never started, and nothing is to be said of it.
	absent bool
	// settled: the first attempt to adopt it is over.
	settled bool
	// asked, when not 0: the checkpoint that requests over the link up to this one asked for is made, or failed.
	asked      uint64
	checkpoint *nodev1.Checkpointed
	failed     error
}

// run is one epoch of one session. The supervisor makes it, starts main in a goroutine, orders, and reads its state;
// main does the rest.
//
//	            driver.Start                        proc.Done
//	prepare ───────────────► serving: messages in, ──────────► ended
//	            driver.Adopt  turns out, stop, kill
type run struct {
	*host
	id         string
	epoch      uint32
	spec       *session.Spec
	rec        *record
	adopted    bool
	inbox      *inbox
	wake       chan struct{}    // holds one: an order, a message, room for facts, a new lease
	done       chan struct{}    // closed when main has returned
	superseded bool             // guarded by mu: a newer epoch waits; nobody wants this one's turns
	settled    bool             // owned by main
	restore    *nodev1.Restore  // what it begins with; nil for what its directory holds
	peer       *checkpoint.Peer // where that may be fetched from; nil for only the store

	mu    sync.Mutex
	plan  plan
	want  order
	proc  driver.Process // nil before the start
	ended *ending        // nil before the end
}

func newRun(h *host, rec *record, spec *session.Spec, adopted bool) *run {
	return &run{host: h, id: rec.SessionID, epoch: rec.Epoch, spec: spec, rec: rec, adopted: adopted,
		inbox: newInbox(), wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// order tells the run to end; it does not wait. An order no stronger than an earlier one has no effect, and the first
// one's cause stands.
func (r *run) order(o order) {
	r.mu.Lock()
	if o.strength > r.want.strength {
		if r.want.strength != orderNone {
			o.exit = r.want.exit
		}
		r.want = o
	}
	r.mu.Unlock()
	signal(r.wake)
}

// supersede kills the run for the sake of a newer epoch.
func (r *run) supersede(exit session.Exit) {
	r.mu.Lock()
	r.superseded = true
	r.mu.Unlock()
	r.order(order{strength: orderKill, exit: exit})
}

// status is a run's state at one instant.
type status struct {
	proc  driver.Process
	want  order
	ended *ending
}

func (r *run) status() status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return status{proc: r.proc, want: r.want, ended: r.ended}
}

func (r *run) live() bool { return r.status().ended == nil }

func (r *run) start() driver.Start {
	return driver.Start{SessionID: r.id, Epoch: r.epoch, Spec: r.spec, Dir: r.store.dir(r.id), OutputBase: r.rec.OutputBase, LeaseFile: r.leasePath}
}

// main runs the session until it ends, or until ctx ends: then the process is let go, and lives on.
func (r *run) main(ctx context.Context) {
	defer close(r.done)
	var proc driver.Process
	var end *ending
	if r.adopted {
		proc, end = r.adopt(ctx)
	} else {
		proc, end = r.begin(ctx)
	}
	if proc != nil {
		r.mu.Lock()
		r.proc = proc
		r.mu.Unlock()
		r.report(&nodev1.Fact{Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: int32(proc.PID())}}})
		r.settle()
		end = (&serving{run: r, proc: proc}).serve(ctx)
	}
	if end != nil {
		r.finish(end)
	}
	r.settle()
}

// begin starts the session's process. It returns an ending when there is none to serve, and neither when the agent
// ends first.
func (r *run) begin(ctx context.Context) (driver.Process, *ending) {
	failed := func(err error) *ending {
		return r.neverRan(session.Exit{Cause: session.CauseStartFailed, Message: oneLine(err)})
	}
	if r.restore != nil {
		if err := r.bringBack(ctx); err != nil {
			r.metrics.restoreFailures.Inc()
			if o := r.status().want; o.strength > orderNone {
				return nil, r.neverRan(o.exit)
			}
			if ctx.Err() != nil {
				return nil, nil
			}
			end := failed(err)
			end.Unreachable = fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Timeout) || fault.Is(err, fault.Exhausted)
			return nil, end
		}
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil, nil
	}
	if o := r.status().want; o.strength > orderNone {
		return nil, r.neverRan(o.exit)
	}
	startBy := r.lease.deadline.Load()
	if int64(r.lease.now()) >= startBy {
		return nil, r.neverRan(session.Exit{Cause: session.CauseLost, Message: "the node's lease lapsed before the session was started"})
	}
	began := time.Now()
	if r.restore == nil {
		if err := r.store.prepare(r.rec, r.spec.CheckpointEvery != ""); err != nil {
			return nil, failed(err)
		}
		signal(r.sweep) // a workspace that was replaced
	}
	s := r.start()
	s.StartBy = startBy
	env, err := environment(r.id, r.nodeName, s.Dir+"/"+workspaceDir, r.epoch, r.spec, r.secretsDir)
	if err != nil {
		return nil, failed(err)
	}
	s.Env = env
	// A start under way is finished even when the agent is told to end: half of one would leave nobody to adopt.
	startCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.startTimeout)
	defer cancel()
	proc, err := r.drivers[r.spec.Type].Start(startCtx, s)
	if err != nil {
		r.metrics.startFailures.Inc()
		if int64(r.lease.now()) >= startBy {
			return nil, r.neverRan(session.Exit{Cause: session.CauseLost, Message: "the node's lease lapsed while the session was being started: " + oneLine(err)})
		}
		return nil, failed(err)
	}
	r.metrics.startSeconds.Observe(time.Since(began).Seconds())
	return proc, nil
}

// neverRan is the end of a run that has no process.
func (r *run) neverRan(exit session.Exit) *ending {
	return &ending{Exit: exit, OutputLine: r.rec.OutputBase, Time: time.Now()}
}

// adopt takes up a session that an earlier agent started. What can be neither taken up nor found gone may still live:
// it is tried again for as long as the lease lasts, after which its shim has ended it.
func (r *run) adopt(ctx context.Context) (driver.Process, *ending) {
	for delay := adoptRetryFirst; ; delay = min(2*delay, adoptRetryMax) {
		held := r.lease.held() // before the attempt: what is not gone after it may be of this lease
		proc, err := r.adoptOnce(ctx)
		var gone *driver.Gone
		switch {
		case err == nil:
			return proc, nil
		case errors.As(err, &gone) && gone.Exit.Cause == session.CauseStartFailed:
			// The agent ended between the order and the start. It is told again, and starts it then.
			r.emit(event{run: r, ended: true, absent: true})
			return nil, nil
		case errors.As(err, &gone):
			return nil, r.gone(ctx, gone)
		case ctx.Err() != nil:
			return nil, nil
		case !held && r.lease.ever():
			return nil, r.neverRan(session.Exit{Cause: session.CauseLost, Message: "could not be taken up again, and the node's lease has lapsed: " + oneLine(err)})
		}
		r.log.Warn("a session could not be taken up again; trying on", "session", r.id, "epoch", r.epoch, "error", err, "retry_in", delay)
		r.settle()
		if !r.pause(ctx, delay) {
			return nil, nil
		}
	}
}

// settle tells the supervisor, once, that what can be known of an adopted run at once is known.
func (r *run) settle() {
	if r.adopted && !r.settled {
		r.settled = true
		r.emit(event{run: r, settled: true})
	}
}

func (r *run) adoptOnce(ctx context.Context) (driver.Process, error) {
	d := r.drivers[r.spec.Type]
	if d == nil {
		return nil, errors.New("this node-agent has no driver for session type " + r.spec.Type)
	}
	ctx, cancel := context.WithTimeout(ctx, r.startTimeout)
	defer cancel()
	return d.Adopt(ctx, r.start())
}

// gone reports the turns of a session that ended while nobody watched, and returns its end.
func (r *run) gone(ctx context.Context, g *driver.Gone) *ending {
	for _, t := range g.Turns {
		for !r.room.open() {
			if !r.awaitRoom(ctx) {
				return nil
			}
		}
		r.turnEnded(t)
	}
	return &ending{Exit: g.Exit, OutputLine: g.OutputLine, Outstanding: g.Outstanding, Time: time.Now()}
}

// awaitRoom sleeps until something woke the run; false when ctx has ended.
func (r *run) awaitRoom(ctx context.Context) bool {
	select {
	case <-r.wake:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause sleeps; false when ctx has ended.
func (r *run) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// finish records and reports the end. The record spares the next agent the question; without it, it asks the driver.
func (r *run) finish(end *ending) {
	r.rec.Ended = end
	if err := r.store.write(r.rec); err != nil && !errors.Is(err, fs.ErrNotExist) { // it has no directory when it never ran
		r.log.Warn("a session's end could not be written down", "session", r.id, "error", err)
	}
	r.mu.Lock()
	r.ended = end
	r.mu.Unlock()
	r.log.Info("session ended", "session", r.id, "epoch", r.epoch, "cause", end.Exit.Cause, "code", end.Exit.Code,
		"signal", end.Exit.Signal, "message", end.Exit.Message)
	r.emit(event{run: r, ended: true, fact: r.fact(exitedFact(end))})
}

func exitedFact(end *ending) *nodev1.Fact {
	return &nodev1.Fact{Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{
		Exit: pbconv.ExitToProto(&end.Exit), OutputLine: end.OutputLine, Outstanding: end.Outstanding, Unreachable: end.Unreachable}}}
}

// fact completes a fact about this run.
func (r *run) fact(f *nodev1.Fact) *nodev1.Fact {
	f.SessionId, f.Epoch, f.Time = r.id, r.epoch, timestamppb.Now()
	return f
}

func (r *run) report(f *nodev1.Fact) { r.emit(event{run: r, fact: r.fact(f)}) }

// turnEnded reports the end of a turn, once. It returns whether there was one: a message that was refused had none.
func (r *run) turnEnded(t driver.Turn) bool {
	if t.Refused != "" {
		r.inbox.refuse(t.Sequence)
		r.metrics.messagesRefused.Inc()
		r.report(refusedFact(t.Sequence, t.Refused))
		return false
	}
	if !r.inbox.finish(t.Sequence) {
		return false
	}
	r.metrics.turns.Inc()
	r.report(&nodev1.Fact{Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{
		Sequence: t.Sequence, Result: t.Result, ResultTruncated: t.Truncated, OutputLine: t.OutputLine}}})
	return true
}

func refusedFact(seq uint64, cause string) *nodev1.Fact {
	return &nodev1.Fact{Kind: &nodev1.Fact_MessageRefused{MessageRefused: &nodev1.MessageRefused{Sequence: seq, Cause: cause}}}
}

// phase is how the inventory calls a run's state.
func (s status) phase() apiv1.Session_Phase {
	switch {
	case s.ended != nil && s.ended.Exit.Cause == session.CauseCompleted:
		return apiv1.Session_COMPLETED
	case s.ended != nil && s.ended.Exit.Cause == session.CauseTerminated:
		return apiv1.Session_TERMINATED
	case s.ended != nil:
		return apiv1.Session_FAILED
	case s.want.strength > orderNone:
		return apiv1.Session_TERMINATING
	case s.proc == nil:
		return apiv1.Session_STARTING
	default:
		return apiv1.Session_RUNNING
	}
}

// gate counts the facts that the cluster has not committed, from the moment that they are made, and is shut while there
// are too many.
type gate struct {
	max     int64
	waiting atomic.Int64
	refused atomic.Bool // somebody found it shut, and must be woken
}

// open reports whether a session may do what makes another fact. Who is told no is woken when facts were committed: it
// leaves its name before it looks again, and release takes facts off before it looks for names.
func (g *gate) open() bool {
	if g.waiting.Load() < g.max {
		return true
	}
	g.refused.Store(true)
	return g.waiting.Load() < g.max
}

// release takes off committed facts, and reports whether somebody waits for that.
func (g *gate) release(n int) bool {
	g.waiting.Add(int64(-n))
	return n > 0 && g.refused.Swap(false)
}

// oneLine is an error as a cause that fits into a line.
func oneLine(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > maxCauseBytes {
		s = strings.ToValidUTF8(s[:maxCauseBytes], "") + "…"
	}
	return s
}
