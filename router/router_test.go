// Placement: what keeps a session from a node, what is reserved, and that no node is ever given more than it has.

package router

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// world is a real state with a router over it.
type world struct {
	t     rapid.TB
	store *state.Store
	sub   *state.Subscription
	r     *Router
	index uint64
	seen  uint64 // by the router
}

func newWorld(t rapid.TB) *world {
	r, err := New("least-connections")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: state.New(state.DefaultLimits()), r: r}
	var v *state.View
	w.sub, v = w.store.Subscribe()
	r.Reset(v)
	return w
}

// apply commits a command and lets the router see it.
func (w *world) apply(c *clusterv1.Command) state.Result {
	w.index++
	res := w.store.Apply(w.index, &clusterv1.Batch{Time: int64(w.index), Commands: []*clusterv1.Command{c}})[0]
	return res
}

// observe lets the router see what was committed.
func (w *world) observe() {
	for w.seen < w.store.Index() {
		c, err := w.sub.Next(context.Background())
		if err != nil {
			w.t.Fatal(err)
		}
		w.r.Observe(c)
		w.seen = c.Index
	}
}

func (w *world) node(name string, change func(*clusterv1.RegisterNode)) *state.Node {
	n := &clusterv1.RegisterNode{NodeId: "id-" + name, Name: name, Incarnation: 1, Capabilities: &apiv1.Capabilities{
		CanSpawnSessions: true, SupportedSessionTypes: []string{session.TypeProcess}, CpuMilli: 4000, MemoryBytes: 1 << 30,
	}}
	if change != nil {
		change(n)
	}
	res := w.apply(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: n}})
	if res.Err != nil {
		w.t.Fatal(res.Err)
	}
	w.observe()
	w.r.SetHealth(n.GetNodeId(), Health{Linked: true})
	return res.Node
}

func spec(change func(*session.Spec)) *session.Spec {
	s := &session.Spec{Command: []string{"true"}}
	s.Normalize()
	if change != nil {
		change(s)
	}
	return s
}

// TestObstacles: each kind of obstacle is found, and named in the refusal.
func TestObstacles(t *testing.T) {
	for want, tc := range map[string]struct {
		node func(*clusterv1.RegisterNode)
		then func(*world)
		spec func(*session.Spec)
	}{
		"a cordoned": {nil, func(w *world) {
			w.apply(&clusterv1.Command{Kind: &clusterv1.Command_SetNodeSchedulable{SetNodeSchedulable: &clusterv1.SetNodeSchedulable{NodeId: "id-a"}}})
		}, nil},
		"a lost or offline": {nil, func(w *world) {
			w.apply(&clusterv1.Command{Kind: &clusterv1.Command_LoseNode{LoseNode: &clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1}}})
		}, nil},
		"a not linked": {nil, func(w *world) { w.r.SetHealth("id-a", Health{}) }, nil},
		"a unhealthy": {nil, func(w *world) {
			w.apply(&clusterv1.Command{Kind: &clusterv1.Command_SetNodeStatus{SetNodeStatus: &clusterv1.SetNodeStatus{NodeId: "id-a", Status: apiv1.Node_UNHEALTHY}}})
		}, nil},
		"a takes no sessions":           {func(n *clusterv1.RegisterNode) { n.Capabilities.CanSpawnSessions = false }, nil, nil},
		"a does not run type acp":       {nil, nil, func(s *session.Spec) { s.Type = session.TypeACP }},
		"a lacks capability gpu":        {nil, nil, func(s *session.Spec) { s.Require = []string{"gpu"} }},
		"a lacks label zone=b":          {func(n *clusterv1.RegisterNode) { n.Labels = map[string]string{"zone": "a"} }, nil, func(s *session.Spec) { s.NodeSelector = []session.Pair{{Key: "zone", Value: "b"}} }},
		"a too little CPU free":         {nil, nil, func(s *session.Spec) { s.CPUMilli = 4001 }},
		"a too little memory free":      {nil, nil, func(s *session.Spec) { s.MemoryBytes = 1<<30 + 1 }},
		"there are no nodes; start a n": {nil, func(w *world) { *w = *newWorld(w.t) }, nil},
	} {
		w := newWorld(t)
		w.node("a", tc.node)
		if tc.then != nil {
			tc.then(w)
			w.observe()
		}
		_, err := w.r.Place(spec(tc.spec), "")
		if !fault.Is(err, fault.Exhausted) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("want a refusal with %q, got %v", want, err)
		}
	}
}

func TestEveryCapabilityCounts(t *testing.T) {
	w := newWorld(t)
	w.node("a", func(n *clusterv1.RegisterNode) {
		n.Capabilities.HasGpuAccess, n.Capabilities.HasHighMemory = true, true
		n.Capabilities.CustomCapabilities = map[string]bool{"cgroup": true, "criu": false}
	})
	if _, err := w.r.Place(spec(func(s *session.Spec) { s.Require = []string{"gpu", "high-memory", "cgroup"} }), ""); err != nil {
		t.Error(err)
	}
	if _, err := w.r.Place(spec(func(s *session.Spec) { s.Require = []string{"criu"} }), ""); err == nil {
		t.Error("a capability that is declared absent was found")
	}
}

func TestAvoidedOnlyWhileThereIsAnother(t *testing.T) {
	w := newWorld(t)
	w.node("a", nil)
	p, err := w.r.Place(spec(nil), "id-a")
	if err != nil || p.NodeID != "id-a" {
		t.Fatalf("the only node is to be avoided: %v, %v", p, err)
	}
	w.node("b", nil)
	for range 3 {
		if p, err := w.r.Place(spec(nil), "id-b"); err != nil || p.NodeID != "id-a" {
			t.Fatalf("placed on %v, %v", p, err)
		}
	}
}

func TestUnknownStrategyIsRefused(t *testing.T) {
	if _, err := New("darts"); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
	w := newWorld(t)
	w.node("a", nil)
	if _, err := w.r.Place(spec(func(s *session.Spec) { s.Strategy = "darts" }), ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
}

func TestExplanationsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.node("a", nil)
	w.node(strings.Repeat("b", 120), func(n *clusterv1.RegisterNode) { n.Capabilities.CanSpawnSessions = false })
	w.node(strings.Repeat("c", 120), func(n *clusterv1.RegisterNode) { n.Capabilities.SupportedSessionTypes = nil })
	p, err := w.r.Place(spec(nil), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Why) > MaxExplanationBytes || !strings.Contains(p.Why, "1 of 3 nodes fit") {
		t.Errorf("%d bytes: %s", len(p.Why), p.Why)
	}
}

// TestNeverMoreThanANodeHas: whatever is placed, settled late, released or ended, the state never refuses a placement for
// want of room as long as the router saw all that happened, and no node is promised more than it has.
func TestNeverMoreThanANodeHas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		most := uint32(rapid.IntRange(1, 4).Draw(t, "most"))
		for _, name := range []string{"a", "b"} {
			w.node(name, func(n *clusterv1.RegisterNode) { n.Capabilities.MaxConcurrentSessions = most })
		}
		placed, ended := 0, 0
		var live []string
		var unsettled []func()
		t.Repeat(map[string]func(*rapid.T){
			"place": func(t *rapid.T) {
				s := spec(nil)
				p, err := w.r.Place(s, "")
				if err != nil {
					if placed-ended < int(most)*2 && len(unsettled) == 0 {
						t.Fatalf("no room, and %d of %d places are taken: %v", placed-ended, most*2, err)
					}
					return
				}
				if rapid.Bool().Draw(t, "give back") {
					w.r.Release(p)
					return
				}
				placed++
				id := fmt.Sprintf("session%013d", placed)
				res := w.apply(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{
					SessionId: id, Spec: pbconv.SpecToProto(s), NodeId: p.NodeID, Placement: p.Why,
				}}})
				if res.Err != nil || res.Session.Phase != session.Starting {
					t.Fatalf("the state did not take a placement: %v, %+v", res.Err, res.Session)
				}
				live = append(live, id)
				unsettled = append(unsettled, func() { w.r.Settle(p, res.Session.ModifyIndex) })
			},
			"settle": func(*rapid.T) {
				for _, f := range unsettled {
					f()
				}
				unsettled = nil
			},
			"observe": func(*rapid.T) { w.observe() },
			"end": func(t *rapid.T) {
				if len(live) == 0 || len(unsettled) > 0 {
					return
				}
				s := w.store.View().Session(live[0])
				n := w.store.View().Node(s.NodeID)
				w.apply(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{
					NodeId: n.ID, Incarnation: n.Incarnation, Facts: exited(s, n.FactIndex+1),
				}}})
				live = live[1:]
				ended++
				w.observe()
			},
		})
	})
}

// exited is the fact that a session ended well.
func exited(s *session.Session, index uint64) []*nodev1.Fact {
	return []*nodev1.Fact{{Index: index, SessionId: s.ID, Epoch: s.Epoch, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{
		Exit: &apiv1.Session_Exit{Cause: session.CauseCompleted},
	}}}}
}
