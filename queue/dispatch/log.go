// The way to the log: proposals of this server go to whoever leads, one request after the other, in the order in which they were made.

package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// Committed is the log's answer to one command.
type Committed struct {
	Call  *queue.Call // after the command; nil where it is not about one
	Known bool        // of a submission: the call was there before; of an open: the session was
	Index uint64      // the state has it once it has applied so much
	Again bool        // it was sent more than once: what it made may be from the first time
	Err   error       // why it was refused
}

// Log commits commands about calls.
type Log interface {
	// Commit commits commands, in the order of the calls of Commit, and returns soon; reply comes once, from another goroutine, and must not block.
	// Without an answer of the cluster it tries again until patience is over; for ever, when that is 0. The error is about all of them.
	Commit(commands []*clusterv1.Command, patience time.Duration, reply func([]Committed, error))
}

// Node is this server's part in raft, as cluster.Node is.
type Node interface {
	Leader() (cluster.Leader, <-chan struct{})
	Propose(ctx context.Context, commands ...*clusterv1.Command) ([]state.Result, error)
}

// Peers ask other servers.
type Peers interface {
	CommitCalls(ctx context.Context, address string, r *clusterv1.CommitCallsRequest) (*clusterv1.CommitCallsResponse, error)
}

// The bounds of the way to the log.
const (
	maxRequestCommands = 512
	maxRequestBytes    = 1 << 20
	maxQueuedCommands  = 16384
	requestTimeout     = 10 * time.Second
	repeatFirst        = 20 * time.Millisecond
	repeatMax          = time.Second
)

// errLogClosed is the answer of a log that is closed.
var errLogClosed = fault.New(fault.Unavailable, "the server is stopping; ask another one")

// ClusterLog is the Log of a server in a cluster. One request is under way at a time, and what comes meanwhile goes with the next.
type ClusterLog struct {
	node  Node
	index func() uint64 // of the state here
	peers Peers
	log   *slog.Logger
	life  context.Context
	end   context.CancelFunc
	work  sync.WaitGroup

	mu       sync.Mutex
	waiting  []*proposal
	commands int  // of those that wait
	sending  bool // somebody sends what waits
	closed   bool
}

// proposal is what one Commit wants.
type proposal struct {
	commands []*clusterv1.Command
	bytes    int
	by       time.Time // when patience is over; zero for never
	sent     bool
	reply    func([]Committed, error)
}

// NewLog makes the way to the log; Close ends it. index is of the last entry that the state here has applied.
func NewLog(node Node, index func() uint64, peers Peers, log *slog.Logger) *ClusterLog {
	l := &ClusterLog{node: node, index: index, peers: peers, log: log}
	l.life, l.end = context.WithCancel(context.Background())
	return l
}

// Queued is how many commands wait.
func (l *ClusterLog) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commands
}

// Close ends it; what waits is not committed.
func (l *ClusterLog) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.end()
	l.work.Wait()
}

// Commit implements Log.
func (l *ClusterLog) Commit(commands []*clusterv1.Command, patience time.Duration, reply func([]Committed, error)) {
	p := &proposal{commands: commands, reply: reply}
	for _, c := range commands {
		p.bytes += proto.Size(c)
	}
	if patience > 0 {
		p.by = time.Now().Add(patience)
	}
	if err := l.take(p); err != nil {
		reply(nil, err)
	}
}

func (l *ClusterLog) take(p *proposal) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return errLogClosed
	case !p.by.IsZero() && l.commands+len(p.commands) > maxQueuedCommands: // what has no end to its patience is bounded by what runs
		return fault.New(fault.Exhausted, "%d commands about calls wait for the log already; try again", l.commands).WithRetry(time.Second)
	}
	l.waiting = append(l.waiting, p)
	l.commands += len(p.commands)
	if !l.sending {
		l.sending = true
		l.work.Go(l.send)
	}
	return nil
}

// send sends what waits, until nothing does.
func (l *ClusterLog) send() {
	var batch []*proposal
	pause := repeatFirst
	for {
		if batch = append(batch, l.next(batch)...); len(batch) == 0 {
			return
		}
		results, err := l.request(batch)
		if err == nil {
			pause = repeatFirst
			for _, p := range batch {
				n := len(p.commands)
				p.reply(results[:n:n], nil)
				results = results[n:]
			}
			batch = nil
			continue
		}
		if l.life.Err() != nil {
			l.fail(batch)
			return
		}
		l.log.Debug("calls could not be committed; it is tried again", "error", err)
		l.pause(pause, err)
		pause = min(2*pause, repeatMax)
		batch = l.patient(batch, err)
	}
}

// patient answers those whose patience is over, those that wait behind the batch, too, and returns what is left of the batch.
func (l *ClusterLog) patient(batch []*proposal, err error) []*proposal {
	now := time.Now()
	var over []*proposal
	impatient := func(p *proposal) bool {
		if p.by.IsZero() || now.Before(p.by) {
			return false
		}
		over = append(over, p)
		return true
	}
	batch = slices.DeleteFunc(batch, impatient)
	before := len(over)
	l.mu.Lock()
	l.waiting = slices.DeleteFunc(l.waiting, impatient)
	for _, p := range over[before:] {
		l.commands -= len(p.commands)
	}
	l.mu.Unlock()
	for _, p := range over {
		p.reply(nil, fault.New(fault.Unavailable, "the cluster did not take it in time: %w", err).WithRetry(time.Second))
	}
	return batch
}

// fail answers what will not be sent.
func (l *ClusterLog) fail(batch []*proposal) {
	l.mu.Lock()
	batch = append(batch, l.waiting...)
	l.waiting, l.commands, l.sending = nil, 0, false
	l.mu.Unlock()
	for _, p := range batch {
		p.reply(nil, errLogClosed)
	}
}

// next takes what goes with the next request, behind what must be sent again. When there is nothing at all, nobody sends any more.
func (l *ClusterLog) next(batch []*proposal) []*proposal {
	l.mu.Lock()
	defer l.mu.Unlock()
	commands, bytes := 0, 0
	for _, p := range batch {
		commands, bytes = commands+len(p.commands), bytes+p.bytes
	}
	n := 0
	for n < len(l.waiting) {
		p := l.waiting[n]
		if len(batch)+n > 0 && (commands+len(p.commands) > maxRequestCommands || bytes+p.bytes > maxRequestBytes) {
			break
		}
		commands, bytes = commands+len(p.commands), bytes+p.bytes
		l.commands -= len(p.commands)
		n++
	}
	taken := l.waiting[:n:n]
	if l.waiting = l.waiting[n:]; len(l.waiting) == 0 {
		l.waiting = nil
	}
	l.sending = len(batch)+n > 0
	return taken
}

// pause waits for another leader, or a little.
func (l *ClusterLog) pause(d time.Duration, err error) {
	if f := fault.As(err); f != nil {
		d = max(d, min(f.RetryAfter, repeatMax))
	}
	_, changed := l.node.Leader()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-l.life.Done():
	}
}

// request has the leader commit a batch.
func (l *ClusterLog) request(batch []*proposal) ([]Committed, error) {
	leader, _ := l.node.Leader()
	if !leader.Self && leader.Address == "" || leader.Self && !leader.Ready {
		return nil, fault.New(fault.Unavailable, "the cluster has no leader now")
	}
	ctx, cancel := context.WithTimeout(l.life, requestTimeout)
	defer cancel()
	var commands []*clusterv1.Command
	again := make([]bool, 0, len(batch))
	for _, p := range batch {
		commands = append(commands, p.commands...)
		for range p.commands {
			again = append(again, p.sent)
		}
		p.sent = true
	}
	var out []Committed
	var err error
	if leader.Self {
		out, err = l.here(ctx, commands)
	} else {
		out, err = l.there(ctx, leader.Address, commands)
	}
	if err == nil && len(out) != len(commands) {
		err = fault.New(fault.Internal, "the leader gave %d answers to %d commands", len(out), len(commands))
	}
	for i := range out {
		if err == nil {
			out[i].Again = again[i]
		}
	}
	return out, err
}

func (l *ClusterLog) here(ctx context.Context, commands []*clusterv1.Command) ([]Committed, error) {
	results, err := l.node.Propose(ctx, commands...)
	if err != nil {
		return nil, err
	}
	index := l.index()
	out := make([]Committed, len(results))
	for i, r := range results {
		out[i] = Committed{Call: r.Call, Known: r.Duplicate, Index: index, Err: r.Err}
	}
	return out, nil
}

func (l *ClusterLog) there(ctx context.Context, address string, commands []*clusterv1.Command) ([]Committed, error) {
	r, err := l.peers.CommitCalls(ctx, address, &clusterv1.CommitCallsRequest{Commands: commands})
	if err != nil {
		return nil, err
	}
	out := make([]Committed, 0, len(r.GetCalls()))
	for _, c := range r.GetCalls() {
		row, err := pbconv.CallFromRow(c.GetCall())
		if err != nil {
			return nil, fault.New(fault.Internal, "the leader's answer: %w", err)
		}
		one := Committed{Call: row, Known: c.GetKnown(), Index: c.GetIndex()}
		if c.GetCode() != 0 {
			one.Err = fault.New(faultcode.Kind(codes.Code(c.GetCode())), "%s", c.GetMessage()).WithRetry(time.Duration(c.GetRetryAfterMs()) * time.Millisecond)
		}
		out = append(out, one)
	}
	return out, nil
}

// errFeedEnded says that the state gave no more changes.
var errFeedEnded = errors.New("the feed of the state ended")
