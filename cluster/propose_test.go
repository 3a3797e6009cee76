// What the proposer promises: entries are shared, order is kept, bounds hold, and every caller gets its own answer.

package cluster

import (
	"context"
	"errors"
	"fmt"
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

// entryFuture is an entry on its way: done when somebody says so.
type entryFuture struct {
	raft.ApplyFuture
	batch *clusterv1.Batch
	done  chan error
	err   error
	given bool
}

func (f *entryFuture) Error() error {
	if !f.given {
		f.err, f.given = <-f.done, true
	}
	return f.err
}

// Response names each command by its session's id, so that a caller can tell its answers from others'.
func (f *entryFuture) Response() any {
	var out []state.Result
	for i := range f.batch.GetCommands() {
		out = append(out, state.Result{Sequence: uint64(i), Err: errors.New(f.batch.GetCommands()[i].GetRemoveSession().GetSessionId())})
	}
	return out
}

// fakeLog takes entries in place of raft.
type fakeLog struct {
	t       *testing.T
	mu      sync.Mutex
	entries []*entryFuture
	auto    bool // entries are done at once
}

// release ends every entry, and those to come.
func (l *fakeLog) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.auto = true
	for _, e := range l.entries {
		select {
		case e.done <- nil:
		default: // it has ended
		}
	}
}

func (l *fakeLog) apply(data []byte) raft.ApplyFuture {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &entryFuture{batch: &clusterv1.Batch{}, done: make(chan error, 1)}
	if err := proto.Unmarshal(data, f.batch); err != nil {
		l.t.Errorf("an entry that cannot be decoded: %v", err)
	}
	if l.auto {
		f.done <- nil
	}
	l.entries = append(l.entries, f)
	return f
}

func named(id string) *clusterv1.Command {
	return &clusterv1.Command{Kind: &clusterv1.Command_RemoveSession{RemoveSession: &clusterv1.RemoveSession{SessionId: id}}}
}

func TestProposalsShareEntriesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{t: t}
		p := newProposer(l.apply, time.Now)
		const n = 300
		var order []int
		propose := func(i int) {
			commands := []*clusterv1.Command{named(fmt.Sprint(i, "a")), named(fmt.Sprint(i, "b"))}
			err := p.proposeAsync(commands, func(r []state.Result, err error) {
				order = append(order, i)
				if err != nil || len(r) != 2 || r[0].Err.Error() != fmt.Sprint(i, "a") || r[1].Err.Error() != fmt.Sprint(i, "b") {
					t.Errorf("proposal %d got %v, %v", i, r, err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for i := range n {
			propose(i)
			if i < maxEntriesInFlight+1 {
				synctest.Wait() // so that each of the first gets an entry of its own
			}
		}
		synctest.Wait()
		if got := len(l.entries); got != maxEntriesInFlight+1 {
			t.Fatalf("%d entries were handed to raft, want %d on their way and one waiting for room", got, maxEntriesInFlight+1)
		}
		for i := 0; i < len(l.entries); i++ {
			l.entries[i].done <- nil
			synctest.Wait()
		}
		if got := len(l.entries); got != maxEntriesInFlight+2 {
			t.Errorf("%d entries for %d proposals, want the rest to share one", got, n)
		}
		if len(order) != n {
			t.Fatalf("%d of %d proposals were answered", len(order), n)
		}
		for i, got := range order {
			if got != i {
				t.Fatalf("answer %d is that of proposal %d", i, got)
			}
		}
		p.close()
	})
}

func TestEntriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{t: t}
		p := newProposer(l.apply, time.Now)
		ignore := func([]state.Result, error) {}
		for range maxEntriesInFlight + 1 { // keep the collector busy, so that the rest piles up
			_ = p.proposeAsync([]*clusterv1.Command{named("first")}, ignore)
			synctest.Wait()
		}
		for range 3 * maxBatchCommands {
			_ = p.proposeAsync([]*clusterv1.Command{named("small")}, ignore)
		}
		large := string(make([]byte, maxBatchBytes/3))
		for range 7 {
			_ = p.proposeAsync([]*clusterv1.Command{named(large)}, ignore)
		}
		_ = p.proposeAsync([]*clusterv1.Command{named(string(make([]byte, 2*maxBatchBytes)))}, ignore)
		l.release()
		synctest.Wait()
		commands := 0
		for i, e := range l.entries {
			commands += len(e.batch.GetCommands())
			if n := len(e.batch.GetCommands()); n > maxBatchCommands {
				t.Errorf("entry %d has %d commands", i, n)
			}
			if size := proto.Size(e.batch); size > maxBatchBytes+maxBatchBytes/2 && len(e.batch.GetCommands()) > 1 {
				t.Errorf("entry %d has %d bytes in %d commands", i, size, len(e.batch.GetCommands()))
			}
		}
		if want := maxEntriesInFlight + 1 + 3*maxBatchCommands + 8; commands != want {
			t.Errorf("%d commands were committed, want %d", commands, want)
		}
		p.close()
	})
}

func TestAFullQueueRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{t: t}
		p := newProposer(l.apply, time.Now)
		var refused error
		taken := 0
		for range maxQueuedProposals + 2*maxBatchCommands*(maxEntriesInFlight+2) {
			if refused = p.proposeAsync([]*clusterv1.Command{named("x")}, func([]state.Result, error) {}); refused != nil {
				break
			}
			taken++
		}
		f := fault.As(refused)
		if f == nil || f.Kind != fault.Exhausted || f.RetryAfter <= 0 {
			t.Errorf("after %d proposals: %v, want RESOURCE_EXHAUSTED with a time to come back", taken, refused)
		}
		if _, _, full, _ := (&Node{proposer: p}).ProposerStats(); full != 1 {
			t.Errorf("%d refusals are counted, want 1", full)
		}
		l.release()
		synctest.Wait()
		p.close()
	})
}

func TestErrorsOfTheLog(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind fault.Kind
	}{
		{raft.ErrNotLeader, fault.Unavailable},
		{raft.ErrLeadershipTransferInProgress, fault.Unavailable},
		{raft.ErrLeadershipLost, fault.Unavailable},
		{raft.ErrAbortedByRestore, fault.Unavailable},
		{raft.ErrEnqueueTimeout, fault.Exhausted},
		{raft.ErrRaftShutdown, fault.Unavailable},
		{errors.New("anything else"), fault.Unavailable},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &fakeLog{t: t}
			p := newProposer(l.apply, time.Now)
			go func() {
				synctest.Wait()
				l.entries[0].done <- c.err
			}()
			results, err := p.propose(context.Background(), []*clusterv1.Command{named("x")})
			if results != nil || !fault.Is(err, c.kind) {
				t.Errorf("%v became %v (%v), want kind %v", c.err, err, fault.KindOf(err), c.kind)
			}
			p.close()
		})
	}
}

func TestProposeEndsWithItsContextAndWithTheProposer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLog{t: t}
		p := newProposer(l.apply, time.Now)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := p.propose(ctx, []*clusterv1.Command{named("x")}); !fault.Is(err, fault.Timeout) {
			t.Errorf("after its time: %v", err)
		}
		waiting := make(chan error)
		go func() {
			_, err := p.propose(context.Background(), []*clusterv1.Command{named("y")})
			waiting <- err
		}()
		synctest.Wait()
		go p.close()
		if err := <-waiting; !fault.Is(err, fault.Unavailable) {
			t.Errorf("after the end: %v", err)
		}
		l.release()
	})
}
