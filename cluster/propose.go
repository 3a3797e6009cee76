// The proposer: many callers' commands become few log entries.
//
// A commit costs an fsync on a majority of servers whatever the entry's size, so commands that arrive while an entry is
// on its way share the next one. It leaves when the one before is committed, or sooner when it is worth a commit of its
// own. Nothing waits for company otherwise: a lone command leaves at once.

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
	// pipelineCommands and pipelineBytes are when an entry does not wait for the one before.
	pipelineCommands = 64
	pipelineBytes    = 128 << 10
	enqueueTimeout   = 5 * time.Second
	retryWhenFull    = 100 * time.Millisecond
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
	landed   chan struct{} // one for each entry that is committed, or failed
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
		landed:   make(chan struct{}, maxEntriesInFlight),
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

// collector is the state of the goroutine that forms entries.
type collector struct {
	p      *proposer
	next   *proposal // that did not fit into the last entry
	flying int       // entries that raft has and that have not landed
	batch  batch
	// commands and bytes are those of the batch.
	commands, bytes int
}

func (p *proposer) collect() {
	defer p.wait.Done()
	defer close(p.inFlight)
	c := collector{p: p}
	for c.first() {
		if !c.gather() {
			c.batch.fail(errStopped)
			return
		}
		p.entries.Add(1)
		p.commands.Add(uint64(c.commands))
		c.batch.future = p.apply(encodeBatch(p.now().UnixNano(), c.batch.proposals, c.bytes, c.commands))
		c.flying++
		if !c.hand() {
			c.batch.fail(errStopped)
			return
		}
	}
	if c.next != nil {
		batch{proposals: []*proposal{c.next}}.fail(errStopped)
	}
}

// hand gives an entry that raft has to settle, once few enough are on their way; false when the proposer ends.
func (c *collector) hand() bool {
	for {
		select {
		case c.p.inFlight <- c.batch:
			return true
		case <-c.p.landed:
			c.flying--
		case <-c.p.stop:
			return false
		}
	}
}

// first waits for the first proposal of an entry; false when the proposer ends.
func (c *collector) first() bool {
	c.batch, c.commands, c.bytes = batch{}, 0, 0
	pr := c.next
	c.next = nil
	for pr == nil {
		select {
		case pr = <-c.p.queue:
		case <-c.p.landed:
			c.flying--
		case <-c.p.stop:
			return false
		}
	}
	c.add(pr)
	return true
}

// gather adds proposals until the entry is worth a commit of its own or none is on its way, and then all that are there
// and fit; false when the proposer ends.
func (c *collector) gather() bool {
	for c.flying > 0 && c.commands < pipelineCommands && c.bytes < pipelineBytes && c.next == nil {
		select {
		case pr := <-c.p.queue:
			c.add(pr)
		case <-c.p.landed:
			c.flying--
		case <-c.p.stop:
			return false
		}
	}
	for c.commands < maxBatchCommands && c.bytes < maxBatchBytes && c.next == nil {
		select {
		case pr := <-c.p.queue:
			c.add(pr)
		default:
			return true
		}
	}
	return true
}

// add puts a proposal into the entry; one that does not fit is the first of the next.
func (c *collector) add(pr *proposal) {
	if len(c.batch.proposals) > 0 && c.bytes+pr.bytes > maxBatchBytes {
		c.next = pr
		return
	}
	c.batch.proposals = append(c.batch.proposals, pr)
	c.commands += len(pr.commands)
	c.bytes += pr.bytes
}

func (p *proposer) settle() {
	defer p.wait.Done()
	for b := range p.inFlight {
		err := b.future.Error()
		select {
		case p.landed <- struct{}{}: // before the answers: the next entry leaves while they are given
		case <-p.stop:
		}
		if err != nil {
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
