// What a server asks of its dispatcher, and with what it works.

package dispatch

import (
	"context"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

// View is the replicated state at one index.
type View interface {
	Index() uint64
	// Call returns a call, nil for none.
	Call(queue.Key) *queue.Call
	// CallsOf returns the calls of a client, CallsOn those of a server that are not over.
	CallsOf(queue.ClientKey) iter.Seq[*queue.Call]
	CallsOn(server string) iter.Seq[*queue.Call]
	// Client returns a client's session, nil for none.
	Client(queue.ClientKey) *queue.Client
}

// Change is what one entry of the log changed. A change with a View replaces all that was known before.
type Change struct {
	Index uint64
	Calls []*queue.Call
	// Rekeyed are clients' sessions that have another owner; their calls are among Calls.
	Rekeyed map[queue.ClientKey]queue.ClientKey
	View    View
	// Back says that the view is from before what was known: the state was set back to a snapshot.
	Back bool
}

// Feed is every change from where it began, in order. Next waits for one.
type Feed interface {
	Next(ctx context.Context) (*Change, error)
	Close()
}

// State is the replicated state of this server. The first change of a feed has a View.
type State interface {
	View() View
	Subscribe() Feed
}

// Runner does the work of calls. It may be called concurrently, returns soon after ctx has ended, and does not panic.
type Runner interface {
	Run(ctx context.Context, r Run) Answer
}

// Run is one attempt of a call.
type Run struct {
	Call      *queue.Call // as it was submitted or begun
	Arguments []byte
	// Progress is told what is going on. It does not block.
	Progress func(note string)
	// Chunk takes a part of an answer that is on its way. It waits for a slow reader.
	Chunk func(ctx context.Context, text string) error
}

// Answer is how an attempt ended.
type Answer struct {
	Outputs       []byte // JSON; nil where there is an error, or it was cancelled
	Cancelled     bool
	Code, Message string
	RetryAfter    time.Duration
	Field         string
	// Passing outcomes are not kept: who asks again makes the call anew.
	Passing bool
	// Again says that the attempt failed in a way that may pass, so that another one is worth while.
	Again bool
}

// Sink is a client at this server. Its methods are called by the owner, but for Progress and Chunk, which runs call; but for Chunk they do not block.
type Sink interface {
	// Accepted answers a Submit: the call is committed. known says that it was before.
	Accepted(c *queue.Call, known bool)
	// Refused answers a Submit: the call was not taken.
	Refused(requestID string, err error)
	Progress(requestID, note string)
	Chunk(ctx context.Context, requestID, text string) error
	// Waits returns the calls in flight that the client was told were accepted, here or elsewhere: their numbers, by their request ids.
	Waits() map[string]uint64
	// Room returns nil where another result may be told, else a channel that is closed once that is so, or once the client is not connected any more.
	Room() <-chan struct{}
	// Ended is told the results of the client's calls, in their order, wherever they were made and run; those that are not Kept only while there is room.
	Ended(r Result)
}

// Result is a call that is over.
type Result struct {
	Call    *queue.Call
	Outputs []byte
	// Err says why the outputs cannot be had now, although they are there.
	Err error
	// Kept results answer a Submit of a call that was over before; they stand outside of the order.
	Kept bool
}

// Request is a call that a client makes.
type Request struct {
	queue.Key
	Caller     queue.Caller
	Tool       string
	Arguments  []byte
	Priority   session.Priority
	Hash       uint64 // of what is asked for
	Deadline   time.Time
	OrderKey   string // calls with one such key run one after the other; empty for none
	Repeatable bool   // running it twice has the effect of running it once
	ReadOnly   bool   // it has no effect
}

// Options are what a dispatcher works with.
type Options struct {
	Server string // this server's id
	State  State
	Log    Log
	Runner Runner
	// Chunks keeps what is large; nil for none, and then large arguments and results are refused.
	Chunks chunks.Store
	// MaxInFlight is how many calls run at a time; more wait. MaxWaiting is how many wait at most.
	MaxInFlight, MaxWaiting int
	// Cancelled is the cause of the context of a run whose client cancelled the call.
	Cancelled error
	Retry     Retry
	// Patience is how long the log may take to take a call; 0 for defaultPatience. What clients wait for otherwise has half of it.
	Patience time.Duration
	Logger   *slog.Logger
}

// The bounds and the pace of a dispatcher.
const (
	maxBeginBatch = 50                     // calls that are begun by one proposal
	deliverEvery  = 100 * time.Millisecond // what clients were given is noted so often
	headStart     = 250 * time.Microsecond // of a call that reads only, before its submission is proposed alone
	notePatience  = 10 * time.Second       // for the log to note what was delivered
	refusedPause  = 500 * time.Millisecond // before a call is begun again whose beginning was refused
	maxHoles      = 1024                   // results of a client that were not seen in their order
)

// defaultPatience is how long the log may take to take a call: longer than it takes to elect a leader.
const defaultPatience = 10 * time.Second

// DefaultMaxWaiting is how many calls may wait on a server.
const DefaultMaxWaiting = 10_000

// Dispatcher runs the calls of a server. Its methods may be called from any goroutine.
type Dispatcher struct {
	o     Options
	inbox inbox
	blobs blobs
	work  sync.WaitGroup // runs, and what moves blobs

	life  context.Context // of runs
	leave context.CancelCauseFunc

	mu      sync.RWMutex
	sinks   map[queue.ClientKey]Sink
	resting chan struct{} // closed while Run does not run
	closed  bool

	owner *owner
	count counters
	gone  chan struct{} // closed with closed
}

// counters are written by the owner and read by anybody.
type counters struct {
	waiting, running                                           atomic.Int64
	submitted, known, refused, ended, dead, deferred, outdated atomic.Uint64
	resumed, fetched, orphans, cancelled, fast                 atomic.Uint64
}

// Stats are the numbers of a dispatcher. All but the first two only grow.
type Stats struct {
	Waiting, Running             int64  // calls of this server
	Submitted, Known, Refused    uint64 // calls that were taken, that were known before, and that were not taken
	Ended, Dead, Deferred        uint64 // runs of this server that ended a call, gave it up, or put it back
	Outdated, Orphans, Cancelled uint64 // runs that another server has now; that ended with an earlier start of this server; that were cancelled
	Fast                         uint64 // calls that were submitted and ended by one entry of the log
	Resumed, Fetched             uint64 // results that clients were given on coming back; results fetched from the chunk store
}

// New makes a dispatcher; Run must be running for it to do anything.
func New(o Options) *Dispatcher {
	d := &Dispatcher{o: o, blobs: blobs{store: o.Chunks}, sinks: map[queue.ClientKey]Sink{}, gone: make(chan struct{}), resting: make(chan struct{})}
	if d.o.Patience == 0 {
		d.o.Patience = defaultPatience
	}
	close(d.resting)
	d.life, d.leave = context.WithCancelCause(context.Background())
	d.inbox.wake = make(chan struct{}, 1)
	d.owner = newOwner(d)
	return d
}

// Stats returns the numbers of now.
func (d *Dispatcher) Stats() Stats {
	n := &d.count
	return Stats{
		Waiting: n.waiting.Load(), Running: n.running.Load(), Submitted: n.submitted.Load(), Known: n.known.Load(), Refused: n.refused.Load(),
		Ended: n.ended.Load(), Dead: n.dead.Load(), Deferred: n.deferred.Load(), Outdated: n.outdated.Load(), Orphans: n.orphans.Load(),
		Cancelled: n.cancelled.Load(), Fast: n.fast.Load(), Resumed: n.resumed.Load(), Fetched: n.fetched.Load(),
	}
}

// Queue returns how many calls this server has, and how many it may have.
func (d *Dispatcher) Queue() (depth, limit int64) {
	return d.count.waiting.Load() + d.count.running.Load(), int64(d.o.MaxWaiting + d.o.MaxInFlight)
}

// errStopping is the answer of a dispatcher that ends.
func (d *Dispatcher) errStopping() error {
	return fault.New(fault.Unavailable, "server %s is stopping; ask another one, with the same session_id and request_id", d.o.Server).WithRetry(time.Millisecond)
}

// Submit takes a call. The sink is told whether it was accepted, and, in the order of the client's results, how it ended.
func (d *Dispatcher) Submit(r Request, sink Sink) {
	if len(r.Arguments) <= queue.InlineBytes {
		d.inbox.post(func() { d.owner.submit(&r, inline(r.Arguments), sink) })
		return
	}
	if !d.enter() {
		d.inbox.post(func() { sink.Refused(r.RequestID, d.errStopping()) })
		return
	}
	go func() {
		defer d.work.Done()
		ctx, cancel := context.WithTimeout(d.life, d.o.Patience)
		defer cancel()
		blob, err := d.blobs.put(ctx, "the arguments", r.Arguments)
		d.inbox.post(func() {
			if err != nil {
				d.count.refused.Add(1)
				sink.Refused(r.RequestID, err)
				return
			}
			d.owner.submit(&r, blob, sink)
		})
	}()
}

// Opened is what the cluster knows of a client that has come to this server.
type Opened struct {
	// Known says that the cluster knew the client's session.
	Known bool
	// Order is of its last result, Delivered the last one that it is known to have been given.
	Order, Delivered uint64
	// Unfinished are its calls that are not over, in the order in which they were made.
	Unfinished []*queue.Call
}

// Open notes that a client is at this server now, and finds what it was promised elsewhere. Where it succeeds the client's results are held back
// until Resume or Release, one of which must be called.
func (d *Dispatcher) Open(ctx context.Context, client queue.ClientKey, sink Sink) (Opened, error) {
	type answer struct {
		opened Opened
		err    error
	}
	done := make(chan answer, 1)
	d.inbox.post(func() { d.owner.open(client, sink, func(o Opened, err error) { done <- answer{o, err} }) })
	select {
	case a := <-done:
		return a.opened, a.err
	case <-ctx.Done():
		if d.enter() {
			go func() { // what is held back then is let go
				defer d.work.Done()
				select {
				case a := <-done:
					if a.err == nil {
						d.Release(client)
					}
				case <-d.gone:
				}
			}()
		}
		return Opened{}, fault.New(fault.Timeout, "open session %s: %w", client.Session, ctx.Err())
	case <-d.gone:
		return Opened{}, d.errStopping()
	}
}

// Resume has the sink told all results after an order, and those to come.
func (d *Dispatcher) Resume(client queue.ClientKey, after uint64) {
	d.inbox.post(func() { d.owner.resume(client, after) })
}

// Release takes an Open back of which nothing came: what it held back is told, and nothing beside.
func (d *Dispatcher) Release(client queue.ClientKey) {
	d.inbox.post(func() { d.owner.letGo(client) })
}

// Forget ends what Submit and Open began: the client has left this server for good.
func (d *Dispatcher) Forget(client queue.ClientKey, sink Sink) {
	d.inbox.post(func() { d.owner.forget(client, sink) })
}

// Delivered notes that a client was given its results up to an order. now says that it has gone, and that it is to be known elsewhere soon.
func (d *Dispatcher) Delivered(client queue.ClientKey, order uint64, now bool) {
	d.inbox.post(func() { d.owner.delivered(client, order, now) })
}

// Fetched is Delivered for results that the client came for by itself, so that it has them: it counts also where the client's connection is, or was
// last, at another server.
func (d *Dispatcher) Fetched(client queue.ClientKey, order uint64) {
	d.inbox.post(func() { d.owner.fetched(client, order) })
}

// Cancel ends a call as far as it can be ended, wherever it is. The error is of kind fault.NotFound when it is over, or unknown.
func (d *Dispatcher) Cancel(ctx context.Context, key queue.Key) error {
	return d.wait(ctx, func(done func(error)) { d.owner.cancel(key, done) })
}

// Rekey gives a client's session with its calls to another owner.
func (d *Dispatcher) Rekey(ctx context.Context, from, to queue.ClientKey, caller queue.Caller) error {
	return d.wait(ctx, func(done func(error)) { d.owner.rekey(from, to, caller, done) })
}

// wait has the owner do something that has an answer.
func (d *Dispatcher) wait(ctx context.Context, do func(done func(error))) error {
	answer := make(chan error, 1)
	d.inbox.post(func() { do(func(err error) { answer <- err }) })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fault.New(fault.Timeout, "%w", ctx.Err())
	case <-d.gone:
		return d.errStopping()
	}
}

// Find returns a call as this server knows it, nil for none.
func (d *Dispatcher) Find(key queue.Key) *queue.Call { return d.o.State.View().Call(key) }

// Client returns a client's session as this server knows it, nil for none.
func (d *Dispatcher) Client(key queue.ClientKey) *queue.Client { return d.o.State.View().Client(key) }

// Lookup returns a call as it is in the cluster, nil for none: this server has first seen all that was committed before.
func (d *Dispatcher) Lookup(ctx context.Context, key queue.Key) (*queue.Call, error) {
	if err := d.wait(ctx, func(done func(error)) { d.owner.sync(key.Client(), d.o.Patience/2, done) }); err != nil {
		return nil, err
	}
	return d.Find(key), nil
}

// Join returns a call as this server knows it, nil for none. Where it is not over, the sink is told the end.
func (d *Dispatcher) Join(ctx context.Context, key queue.Key, sink Sink) (c *queue.Call, err error) {
	err = d.wait(ctx, func(done func(error)) {
		d.owner.streamOf(key.Client(), sink)
		c = d.Find(key)
		done(nil)
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Outputs returns what a call answered.
func (d *Dispatcher) Outputs(ctx context.Context, c *queue.Call) ([]byte, error) {
	if c.Outcome == nil {
		return nil, nil
	}
	return d.blobs.get(ctx, "the result", c.Outcome.Outputs)
}

// Close ends it in good order: nothing is begun any more; what runs may end until ctx does; the rest is left to be given to other servers. It
// returns when nothing runs any more. Run should still be running, so that what ends is committed.
func (d *Dispatcher) Close(ctx context.Context) {
	quiet := make(chan struct{})
	d.inbox.post(func() { d.owner.stop(quiet) })
	select {
	case <-quiet:
	case <-d.idle():
	case <-ctx.Done():
	}
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		close(d.gone)
	}
	d.mu.Unlock()
	d.leave(errLeft)
	d.work.Wait()
}

// idle is closed while nobody runs the dispatcher.
func (d *Dispatcher) idle() <-chan struct{} {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.resting
}

// enter counts a goroutine in, unless the dispatcher ends.
func (d *Dispatcher) enter() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return false
	}
	d.work.Add(1)
	return true
}

// sinkOf returns the client that a call is of, if it is at this server.
func (d *Dispatcher) sinkOf(client queue.ClientKey) Sink {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.sinks[client]
}

func (d *Dispatcher) setSink(client queue.ClientKey, s Sink) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s == nil {
		delete(d.sinks, client)
		return
	}
	d.sinks[client] = s
}

// inbox is what the owner is asked to do. It is bounded by those who ask: each has a bound on what it has under way.
type inbox struct {
	mu   sync.Mutex
	list []func()
	wake chan struct{} // holds one when there is something
}

func (b *inbox) post(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list = append(b.list, f)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) take() []func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.list
	b.list = nil
	return list
}
