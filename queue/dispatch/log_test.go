// The way to the log: order, company, patience and bounds.
package dispatch_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue/dispatch"
)

// slowNode commits in a second, what it is told to refuse not at all.
type slowNode struct {
	mu       sync.Mutex
	requests [][]string // sessions of the commands of each request
	refuse   error
}

func (n *slowNode) Leader() (cluster.Leader, <-chan struct{}) {
	return cluster.Leader{ID: "a", Address: "a", Self: true, Ready: true}, nil
}

func (n *slowNode) Propose(ctx context.Context, commands ...*clusterv1.Command) ([]state.Result, error) {
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, fault.New(fault.Timeout, "%w", ctx.Err())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for _, c := range commands {
		names = append(names, c.GetOpenClient().GetSession())
	}
	n.requests = append(n.requests, names)
	return make([]state.Result, len(commands)), n.refuse
}

func open(session string) []*clusterv1.Command {
	return []*clusterv1.Command{{Kind: &clusterv1.Command_OpenClient{OpenClient: &clusterv1.OpenClient{Session: session}}}}
}

func TestTheLogGathersWhatComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &slowNode{}
		l := dispatch.NewLog(n, func() uint64 { return 7 }, nil, quietLog())
		defer l.Close()
		var got []string
		var mu sync.Mutex
		commit := func(name string) {
			l.Commit(open(name), time.Minute, func(r []dispatch.Committed, err error) {
				mu.Lock()
				defer mu.Unlock()
				if err != nil || len(r) != 1 || r[0].Index != 7 {
					t.Errorf("%s: %+v %v", name, r, err)
				}
				got = append(got, name)
			})
		}
		commit("0")
		synctest.Wait()
		for i := 1; i <= 600; i++ {
			commit(fmt.Sprint(i))
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if len(n.requests) != 3 || len(n.requests[0]) != 1 || len(n.requests[1]) != 512 || len(n.requests[2]) != 88 {
			t.Errorf("%d requests", len(n.requests))
		}
		if !slices.Equal(got, slices.Concat(n.requests...)) || len(got) != 601 || got[600] != "600" {
			t.Errorf("%d answers, and not in order", len(got))
		}
	})
}

func TestTheLogHasBoundsAndPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &slowNode{refuse: fault.New(fault.Unavailable, "nobody leads")}
		l := dispatch.NewLog(n, func() uint64 { return 7 }, nil, quietLog())
		kinds := map[fault.Kind]int{}
		var mu sync.Mutex
		reply := func(_ []dispatch.Committed, err error) {
			mu.Lock()
			defer mu.Unlock()
			kinds[fault.KindOf(err)]++
		}
		told := func(k fault.Kind) int {
			mu.Lock()
			defer mu.Unlock()
			return kinds[k]
		}
		l.Commit(open("first"), 3*time.Second, reply)
		synctest.Wait()
		many := make([]*clusterv1.Command, 512)
		for i := range many {
			many[i] = open("many")[0]
		}
		for range 33 {
			l.Commit(many, 20*time.Second, reply)
		}
		synctest.Wait()
		if told(fault.Exhausted) != 1 {
			t.Error("nothing was refused beyond the bound")
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if told(fault.Unavailable) != 1 {
			t.Errorf("without patience %d were refused", told(fault.Unavailable))
		}
		l.Commit(open("for ever"), 0, reply)
		time.Sleep(time.Minute)
		synctest.Wait()
		if told(fault.Unavailable) != 33 {
			t.Errorf("in the end %d were refused", told(fault.Unavailable))
		}
		n.mu.Lock()
		n.refuse = nil
		n.mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if told(fault.Internal) != 1 { // KindOf(nil)
			t.Error("what has no end of patience was not committed")
		}
		l.Commit(open("late"), 0, reply)
		synctest.Wait()
		l.Commit(open("later"), 0, reply)
		l.Close()
		l.Commit(open("too late"), 0, reply)
		synctest.Wait()
		if told(fault.Unavailable) != 36 || l.Queued() != 0 {
			t.Errorf("after its end %d were refused", told(fault.Unavailable))
		}
	})
}

func TestPausesGrow(t *testing.T) {
	r := dispatch.DefaultRetry()
	if r.Max != 3 || r.First != time.Second || r.Factor != 2 || r.Jitter <= 0 || r.Jitter >= 1 {
		t.Errorf("%+v", r)
	}
}
