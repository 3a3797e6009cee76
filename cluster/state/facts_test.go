// Facts have effect once each, and in an unbroken row.

package state

import (
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestFactsThatLeaveAGapAreRefused(t *testing.T) {
	s := New(DefaultLimits())
	index := uint64(0)
	do := func(m any) Result {
		index++
		return s.Apply(index, &clusterv1.Batch{Time: int64(index), Commands: []*clusterv1.Command{cmd(m)}})[0]
	}
	facts := func(incarnation, first, last uint64) Result {
		f := &clusterv1.ApplyFacts{NodeId: "id-n", Incarnation: incarnation}
		for i := first; i <= last; i++ {
			f.Facts = append(f.Facts, &nodev1.Fact{Index: i, SessionId: "none", Epoch: 1})
		}
		return do(f)
	}
	if r := do(register("n", 1)); r.Err != nil {
		t.Fatal(r.Err)
	}
	for _, c := range []struct {
		incarnation, first, last uint64
		refused                  bool
		known                    uint64 // after it
	}{
		{1, 2, 3, true, 0},
		{1, 1, 3, false, 3},
		{1, 5, 5, true, 3},
		{1, 2, 4, false, 4}, // some of them again
		{1, 1, 2, false, 4}, // all of them again: what is known is not forgotten
		{1, 5, 5, false, 5},
		{2, 1, 1, true, 5}, // of a start that has not registered
	} {
		r := facts(c.incarnation, c.first, c.last)
		if c.refused != fault.Is(r.Err, fault.FailedPrecondition) || c.refused != (r.Err != nil) {
			t.Errorf("facts %d to %d after %d: %v", c.first, c.last, c.known, r.Err)
		}
		if got := s.View().Node("id-n").FactIndex; got != c.known {
			t.Errorf("after facts %d to %d the state knows %d, want %d", c.first, c.last, got, c.known)
		}
	}
	if do(register("n", 2)); s.View().Node("id-n").FactIndex != 0 {
		t.Error("a new start goes on with the facts of the one before")
	}
	if r := facts(2, 1, 1); r.Err != nil {
		t.Error(r.Err)
	}
}
