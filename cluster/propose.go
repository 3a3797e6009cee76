// The proposer: many callers' commands become few log entries.
//
// A commit costs an fsync on a majority of servers whatever the entry's size, so commands that arrive while entries are
// on their way share the next one. Nothing waits for company: a lone command leaves at once.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
)

// The bounds of the proposer.
const (
	maxBatchCommands   = 1024
	maxBatchBytes      = 1 << 20
	maxQueuedProposals = 16384
	maxEntriesInFlight = 3
	enqueueTimeout     = 5 * time.Second
	retryWhenFull      = 100 * time.Millisecond
)

// proposal is commands of one caller, marshalled by the caller so that this costs its own core's time.
type proposal struct {
	commands [][]byte
	bytes    int
	// reply is called once, from one of the proposer's goroutines; it must not block.
	reply func([]state.Result, error)
}

// batch is one entry on its way.
type batch struct {
	future    raft.ApplyFuture
	proposals []*proposal
}

// proposer coalesces proposals. Two goroutines: collect forms entries and hands them to raft, settle waits for them in
// order.
type proposer struct {
	apply    func(data []byte) raft.ApplyFuture
	now      func() time.Time
	queue    chan *proposal
	inFlight chan batch
	wait     sync.WaitGroup
	stop     chan struct{}

	entries, commands, full atomic.Uint64
}

func newProposer(apply func([]byte) raft.ApplyFuture, now func() time.Time) *proposer {
	p := &proposer{
		apply: apply, now: now,
		queue: make(chan *proposal, maxQueuedProposals),
		// One entry is with settle, the rest wait in the channel.
		inFlight: make(chan batch, maxEntriesInFlight-1),
		stop:     make(chan struct{}),
	}
	p.wait.Add(2)
	go p.collect()
	go p.settle()
	return p
}

// close ends the proposer; proposals that are not yet with raft fail.
func (p *proposer) close() {
	close(p.stop)
	p.wait.Wait()
}

// propose commits the commands in one entry, in order, and returns their results. An error means that none of them is
// known to have been committed; with fault.Unavailable they may be all the same.
func (p *proposer) propose(ctx context.Context, commands []*clusterv1.Command) ([]state.Result, error) {
	type proposed struct {
		results []state.Result
		err     error
	}
	done := make(chan proposed, 1)
	if err := p.proposeAsync(commands, func(r []state.Result, err error) { done <- proposed{r, err} }); err != nil {
		return nil, err
	}
	select {
	case r := <-done:
		return r.results, r.err
	case <-ctx.Done():
		return nil, fault.New(fault.Timeout, "propose: %w; the change may still take effect: retry with the same idempotency key", ctx.Err())
	case <-p.stop:
		return nil, errStopped
	}
}

// proposeAsync is propose for those who cannot wait: proposals are committed in the order of the calls.
func (p *proposer) proposeAsync(commands []*clusterv1.Command, reply func([]state.Result, error)) error {
	pr := &proposal{commands: make([][]byte, len(commands)), reply: reply}
	for i, c := range commands {
		b, err := proto.Marshal(c)
		if err != nil {
			return fmt.Errorf("marshal command: %w", err)
		}
		pr.commands[i] = b
		pr.bytes += len(b)
	}
	select {
	case p.queue <- pr:
		return nil
	default:
		p.full.Add(1)
		return fault.New(fault.Exhausted, "propose: %d proposals wait for the log already; try again", maxQueuedProposals).WithRetry(retryWhenFull)
	}
}

var errStopped = fault.New(fault.Unavailable, "propose: the server is stopping; try another")

func (p *proposer) collect() {
	defer p.wait.Done()
	defer close(p.inFlight)
	var next *proposal
	for {
		first := next
		next = nil
		if first == nil {
			select {
			case first = <-p.queue:
			case <-p.stop:
				return
			}
		}
		b := batch{proposals: []*proposal{first}}
		commands, bytes := len(first.commands), first.bytes
	fill:
		for commands < maxBatchCommands && bytes < maxBatchBytes {
			select {
			case pr := <-p.queue:
				if bytes+pr.bytes > maxBatchBytes {
					next = pr
					break fill
				}
				b.proposals = append(b.proposals, pr)
				commands += len(pr.commands)
				bytes += pr.bytes
			default:
				break fill
			}
		}
		p.entries.Add(1)
		p.commands.Add(uint64(commands))
		b.future = p.apply(encodeBatch(p.now().UnixNano(), b.proposals, bytes, commands))
		select {
		case p.inFlight <- b:
		case <-p.stop:
			b.fail(errStopped)
			return
		}
	}
}

func (p *proposer) settle() {
	defer p.wait.Done()
	for b := range p.inFlight {
		if err := b.future.Error(); err != nil {
			b.fail(proposeError(err))
			continue
		}
		results, ok := b.future.Response().([]state.Result)
		if !ok {
			b.fail(fault.New(fault.Internal, "propose: the state machine gave no results"))
			continue
		}
		for _, pr := range b.proposals {
			n := len(pr.commands)
			pr.reply(results[:n:n], nil)
			results = results[n:]
		}
	}
}

func (b batch) fail(err error) {
	for _, pr := range b.proposals {
		pr.reply(nil, err)
	}
}

// encodeBatch writes a clusterv1.Batch whose commands are marshalled already.
func encodeBatch(time int64, proposals []*proposal, bytes, commands int) []byte {
	b := make([]byte, 0, bytes+commands*6+16)
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(time))
	for _, pr := range proposals {
		for _, c := range pr.commands {
			b = protowire.AppendTag(b, 2, protowire.BytesType)
			b = protowire.AppendBytes(b, c)
		}
	}
	return b
}

// proposeError gives raft's errors a kind.
func proposeError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fault.New(fault.Unavailable, "propose: this server does not lead (any more): %w", err).WithRetry(retryWhenFull)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fault.New(fault.Exhausted, "propose: the log takes no entries: %w", err).WithRetry(time.Second)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return fault.New(fault.Unavailable, "propose: %w; the change may or may not have taken effect: retry with the same idempotency key", err).WithRetry(retryWhenFull)
	case errors.Is(err, raft.ErrRaftShutdown):
		return errStopped
	default:
		return fault.New(fault.Unavailable, "propose: %w", err)
	}
}
