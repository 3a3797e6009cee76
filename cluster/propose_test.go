// The proposer: what shares an entry, in which order answers come, and what each failure means to a caller.

package cluster

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
)

// entry is a log entry that the fake log was given; it is committed when the test says so.
type entry struct {
	batch *clusterv1.Batch
	done  chan struct{}
	err   error
}

func (e *entry) Error() error  { <-e.done; return e.err }
func (e *entry) Index() uint64 { return 0 }
func (e *entry) Response() any {
	results := make([]state.Result, len(e.batch.GetCommands()))
	for i, c := range e.batch.GetCommands() {
		results[i].Sequence = uint64(c.GetSetPendingReason().GetEpoch())
	}
	return results
}

// fakeLog keeps the entries that it was given.
type fakeLog struct {
	mu      sync.Mutex
	entries []*entry
}

func (l *fakeLog) apply(data []byte) raft.ApplyFuture {
	e := &entry{batch: &clusterv1.Batch{}, done: make(chan struct{})}
	if err := proto.Unmarshal(data, e.batch); err != nil {
		panic(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	return e
}

func (l *fakeLog) at(i int) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[i]
}

func (l *fakeLog) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entries)
}

// numbered is a command that can be told from others.
func numbered(n int) *clusterv1.Command {
	return &clusterv1.Command{Kind: &clusterv1.Command_SetPendingReason{SetPendingReason: &clusterv1.SetPendingReason{Epoch: uint32(n)}}}
}

func inBubble(t *testing.T, f func(t *testing.T, l *fakeLog, p *proposer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{}
		p := newProposer(l.apply, time.Now)
		f(t, l, p)
		synctest.Wait()
		for i := 0; i < l.len(); i++ { // an entry that is committed may let others leave
			if e := l.at(i); !closed(e.done) {
				close(e.done)
				synctest.Wait()
			}
		}
		p.close()
	})
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestALoneCommandLeavesAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, l *fakeLog, p *proposer) {
		var got []state.Result
		go func() { got, _ = p.propose(t.Context(), []*clusterv1.Command{numbered(7)}) }()
		synctest.Wait()
		if l.len() != 1 || len(l.at(0).batch.GetCommands()) != 1 || l.at(0).batch.GetTime() != time.Now().UnixNano() {
			t.Fatalf("%d entries after one command", l.len())
		}
		close(l.at(0).done)
		synctest.Wait()
		if len(got) != 1 || got[0].Sequence != 7 {
			t.Errorf("results %v", got)
		}
	})
}

// TestCommandsShareEntries: while entries are on their way, all that comes shares the next one, in the order of the
// calls, and each caller gets its own results.
func TestCommandsShareEntries(t *testing.T) {
	inBubble(t, func(t *testing.T, l *fakeLog, p *proposer) {
		const callers = 100
		var mu sync.Mutex
		var order []uint64
		for n := range callers {
			err := p.proposeAsync([]*clusterv1.Command{numbered(2 * n), numbered(2*n + 1)}, func(r []state.Result, err error) {
				mu.Lock()
				defer mu.Unlock()
				if err != nil || len(r) != 2 || r[1].Sequence != r[0].Sequence+1 {
					t.Errorf("results %v, %v", r, err)
				}
				order = append(order, r[0].Sequence)
			})
			if err != nil {
				t.Fatal(err)
			}
			if n < maxEntriesInFlight+1 {
				synctest.Wait() // each of the first leaves alone
			}
		}
		synctest.Wait()
		for i := 0; i < l.len(); i++ {
			close(l.at(i).done)
			synctest.Wait()
		}
		if l.len() > maxEntriesInFlight+3 {
			t.Errorf("%d callers took %d entries", callers, l.len())
		}
		if len(order) != callers {
			t.Fatalf("%d callers were answered", len(order))
		}
		for n, first := range order {
			if first != uint64(2*n) {
				t.Fatalf("answer %d is for command %d", n, first)
			}
		}
	})
}

// TestSmallEntriesWaitForTheOneBefore: what comes while an entry is on its way leaves together when that is committed.
func TestSmallEntriesWaitForTheOneBefore(t *testing.T) {
	inBubble(t, func(t *testing.T, l *fakeLog, p *proposer) {
		propose := func(commands ...*clusterv1.Command) {
			t.Helper()
			if err := p.proposeAsync(commands, func([]state.Result, error) {}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		propose(numbered(0))
		for n := range pipelineCommands - 1 {
			propose(numbered(n))
		}
		if l.len() != 1 {
			t.Fatalf("%d entries before the first is committed", l.len())
		}
		close(l.at(0).done)
		synctest.Wait()
		if l.len() != 2 || len(l.at(1).batch.GetCommands()) != pipelineCommands-1 {
			t.Fatalf("%d entries after the first was committed", l.len())
		}
		propose(numbered(1))
		close(l.at(1).done)
		synctest.Wait()
		if l.len() != 3 {
			t.Fatalf("a lone command still waits when nothing is on its way")
		}
	})
}

// TestLargeEntriesArePipelined: an entry that is worth a commit of its own does not wait, up to a bound.
func TestLargeEntriesArePipelined(t *testing.T) {
	for name, commands := range map[string][]*clusterv1.Command{
		"many":  slices.Repeat([]*clusterv1.Command{numbered(1)}, pipelineCommands),
		"large": {{Kind: &clusterv1.Command_SendMessage{SendMessage: &clusterv1.SendMessage{Text: make([]byte, pipelineBytes)}}}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *fakeLog, p *proposer) {
				for range 3 * maxEntriesInFlight {
					if err := p.proposeAsync(commands, func([]state.Result, error) {}); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				}
				if n := l.len(); n < maxEntriesInFlight || n > maxEntriesInFlight+1 {
					t.Errorf("%d entries are on their way", n)
				}
			})
		})
	}
}

func TestEntriesAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, l *fakeLog, p *proposer) {
		large := &clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: &clusterv1.SendMessage{Text: make([]byte, maxBatchBytes*2/3)}}}
		for range 12 {
			if err := p.proposeAsync([]*clusterv1.Command{large}, func([]state.Result, error) {}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for i := 0; i < l.len(); i++ {
			if size := proto.Size(l.at(i).batch); size > maxBatchBytes+1024 {
				t.Errorf("entry %d has %d bytes", i, size)
			}
			close(l.at(i).done)
			synctest.Wait()
		}
	})
}

func TestAFullQueueSaysWhenToComeBack(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fakeLog, p *proposer) {
		var refused error
		for range maxQueuedProposals + maxBatchCommands*(maxEntriesInFlight+2) + 1 {
			if err := p.proposeAsync([]*clusterv1.Command{numbered(1)}, func([]state.Result, error) {}); err != nil {
				refused = err
				break
			}
		}
		if f := fault.As(refused); f == nil || f.Kind != fault.Exhausted || f.RetryAfter == 0 {
			t.Errorf("got %v", refused)
		}
	})
}

func TestFailuresHaveKinds(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want fault.Kind
	}{
		{raft.ErrNotLeader, fault.Unavailable},
		{raft.ErrLeadershipLost, fault.Unavailable},
		{raft.ErrLeadershipTransferInProgress, fault.Unavailable},
		{raft.ErrEnqueueTimeout, fault.Exhausted},
		{raft.ErrRaftShutdown, fault.Unavailable},
		{errors.New("something else"), fault.Unavailable},
	} {
		inBubble(t, func(t *testing.T, l *fakeLog, p *proposer) {
			var got error
			go func() { _, got = p.propose(t.Context(), []*clusterv1.Command{numbered(1)}) }()
			synctest.Wait()
			l.at(0).err = tc.err
			close(l.at(0).done)
			synctest.Wait()
			if fault.KindOf(got) != tc.want {
				t.Errorf("%v became %v", tc.err, got)
			}
		})
	}
}

func TestACallerThatLeavesIsTold(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fakeLog, p *proposer) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.propose(ctx, []*clusterv1.Command{numbered(1)}); !fault.Is(err, fault.Timeout) {
			t.Errorf("got %v", err)
		}
	})
}
