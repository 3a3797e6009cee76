// Moves: never to where a session is, to the node that was named or none, and a refusal that says what to do.

package router

import (
	"strings"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func (w *world) cordon(name string) {
	w.apply(&clusterv1.Command{Kind: &clusterv1.Command_SetNodeSchedulable{SetNodeSchedulable: &clusterv1.SetNodeSchedulable{NodeId: "id-" + name}}})
	w.observe()
}

func TestMoveChoosesAnother(t *testing.T) {
	w := newWorld(t)
	w.node("a", nil)
	if _, err := w.r.Move(spec(nil), "id-a", ""); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "no other node; start a node-agent") {
		t.Errorf("alone: %v", err)
	}
	w.node("b", nil)
	for range 3 { // reservations make b fuller than a, and it is chosen all the same
		p, err := w.r.Move(spec(nil), "id-a", "")
		if err != nil || p.NodeID != "id-b" || !strings.Contains(p.Why, "a is its source") {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	w.cordon("b")
	if _, err := w.r.Move(spec(nil), "id-a", ""); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "b cordoned") {
		t.Errorf("cordoned: %v", err)
	}
	w.node("c", func(n *clusterv1.RegisterNode) { n.Capabilities.CpuMilli = 100 })
	big := spec(func(s *session.Spec) { s.CPUMilli = 200 })
	if _, err := w.r.Move(big, "id-a", ""); !fault.Is(err, fault.Exhausted) || fault.As(err).RetryAfter == 0 || !strings.Contains(err.Error(), "c too little CPU free") {
		t.Errorf("full: %v", err)
	}
	if _, err := w.r.Move(spec(func(s *session.Spec) { s.Strategy = "darts" }), "id-a", ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("no such strategy: %v", err)
	}
}

func TestMoveToANamedNode(t *testing.T) {
	w := newWorld(t)
	w.node("a", nil)
	w.node("b", nil)
	w.node("shut", nil)
	w.cordon("shut")
	w.node("full", func(n *clusterv1.RegisterNode) { n.Capabilities.MaxConcurrentSessions = 1 })
	w.node("gone", nil)
	w.r.SetHealth("id-gone", Health{})
	gpu := spec(func(s *session.Spec) { s.Require = []string{"gpu"} })
	p, err := w.r.Move(spec(nil), "id-a", "id-full")
	if err != nil || p.NodeID != "id-full" || p.Why != "full was asked for" {
		t.Fatalf("%+v, %v", p, err)
	}
	for want, tc := range map[string]struct {
		spec   *session.Spec
		target string
		kind   fault.Kind
	}{
		"node a is where the session runs; name another":                        {spec(nil), "a", fault.FailedPrecondition},
		"node shut cannot take the session: cordoned; uncordon it with":         {spec(nil), "shut", fault.FailedPrecondition},
		"node b cannot take the session: lacks capability gpu; name a node":     {gpu, "b", fault.FailedPrecondition},
		"node full cannot take the session: full; name another":                 {spec(nil), "full", fault.Exhausted},
		"node gone cannot take the session: not linked; see `orchctl nodes get": {spec(nil), "gone", fault.Exhausted},
		"there is none; see `orchctl nodes list`":                               {spec(nil), "nobody", fault.NotFound},
	} {
		if _, err := w.r.Move(tc.spec, "id-a", "id-"+tc.target); !fault.Is(err, tc.kind) || !strings.Contains(err.Error(), want) {
			t.Errorf("to %s: %v, want %s %q", tc.target, err, tc.kind, want)
		}
	}
	w.r.Release(p)
	if _, err := w.r.Move(spec(nil), "id-a", "id-full"); err != nil {
		t.Errorf("after its reservation was given back: %v", err)
	}
}

// TestEveryObstacleHasARemedy: a refusal never leaves its reader alone.
func TestEveryObstacleHasARemedy(t *testing.T) {
	for o := fits + 1; o < obstacles; o++ {
		if o != avoided && o != source && (obstacleText[o] == "" || remedyText[o] == "") {
			t.Errorf("obstacle %d: %q; %q", o, obstacleText[o], remedyText[o])
		}
	}
}
