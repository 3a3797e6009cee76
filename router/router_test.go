// Where sessions go, why not elsewhere, and that a node never gets more than it has room for.

package router

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func row(name string, change func(*state.Node)) *state.Node {
	n := &state.Node{
		ID: "id-" + name, Name: name, Status: state.Healthy, Schedulable: true, ModifyIndex: 1,
		Capabilities: state.Capabilities{CanSpawnSessions: true, MaxConcurrentSessions: 10, SupportedSessionTypes: []string{session.TypeProcess}},
	}
	if change != nil {
		change(n)
	}
	return n
}

func with(t interface{ Fatal(...any) }, rows ...*state.Node) *Router {
	r, err := New("least-connections")
	if err != nil {
		t.Fatal(err)
	}
	r.Observe(&state.Change{Nodes: rows})
	for _, n := range rows {
		r.SetHealth(n.ID, Health{Linked: true})
	}
	return r
}

func spec(change func(*session.Spec)) *session.Spec {
	s := &session.Spec{Command: []string{"true"}}
	s.Normalize()
	if change != nil {
		change(s)
	}
	return s
}

func TestEachObstacleIsNamed(t *testing.T) {
	plain := spec(nil)
	for name, c := range map[string]struct {
		node *state.Node
		spec *session.Spec
		says string
	}{
		"lost":      {row("n", func(n *state.Node) { n.Lost = true }), plain, "n lost or offline"},
		"offline":   {row("n", func(n *state.Node) { n.Status = state.Offline }), plain, "n lost or offline"},
		"cordoned":  {row("n", func(n *state.Node) { n.Schedulable = false }), plain, "n cordoned"},
		"unhealthy": {row("n", func(n *state.Node) { n.Status = state.Unhealthy }), plain, "n unhealthy"},
		"no spawn":  {row("n", func(n *state.Node) { n.Capabilities.CanSpawnSessions = false }), plain, "n takes no sessions"},
		"type":      {row("n", nil), spec(func(s *session.Spec) { s.Type = session.TypeACP }), "n does not run type acp"},
		"capability": {row("n", func(n *state.Node) { n.Capabilities.Custom = []state.Flag{{Key: "gpu", Value: false}} }),
			spec(func(s *session.Spec) { s.Require = []string{"gpu"} }), "n lacks capability gpu"},
		"label": {row("n", func(n *state.Node) { n.Labels = []session.Pair{{Key: "zone", Value: "b"}} }),
			spec(func(s *session.Spec) { s.NodeSelector = []session.Pair{{Key: "zone", Value: "a"}} }), "n lacks label zone=a"},
		"full": {row("n", func(n *state.Node) { n.Sessions = 10 }), plain, "n full"},
		"cpu": {row("n", func(n *state.Node) { n.Capabilities.CPUMilli, n.ReservedCPUMilli = 1000, 900 }),
			spec(func(s *session.Spec) { s.CPUMilli = 200 }), "n too little CPU free"},
		"memory": {row("n", func(n *state.Node) { n.Capabilities.MemoryBytes, n.ReservedMemoryBytes = 1000, 900 }),
			spec(func(s *session.Spec) { s.MemoryBytes = 200 }), "n too little memory free"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := with(t, c.node).Place(c.spec, "")
			f := fault.As(err)
			if f == nil || f.Kind != fault.Exhausted || f.RetryAfter <= 0 || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want RESOURCE_EXHAUSTED, when to come back, and %q", err, c.says)
			}
		})
	}
	r := with(t, row("n", nil))
	r.SetHealth("id-n", Health{})
	if _, err := r.Place(plain, ""); err == nil || !strings.Contains(err.Error(), "n not linked") {
		t.Errorf("an unlinked node: %v", err)
	}
	if _, err := with(t).Place(plain, ""); err == nil || !strings.Contains(err.Error(), "there are no nodes; start a node-agent") {
		t.Errorf("no node at all: %v", err)
	}
	many := make([]*state.Node, 50)
	for i := range many {
		many[i] = row(fmt.Sprint("n", i), func(n *state.Node) { n.Schedulable = false })
	}
	if _, err := with(t, many...).Place(plain, ""); err == nil || !strings.Contains(err.Error(), "50 cordoned") {
		t.Errorf("fifty nodes with one obstacle: %v", err)
	}
	if _, err := with(t, row("n", nil)).Place(spec(func(s *session.Spec) { s.Strategy = "none such" }), ""); err == nil {
		t.Error("an unknown strategy was followed")
	}
}

func TestTheFittestIsTakenAndSaysWhy(t *testing.T) {
	r := with(t, row("busy", func(n *state.Node) { n.Sessions = 5 }), row("idle", nil), row("away", func(n *state.Node) { n.Lost = true }))
	p, err := r.Place(spec(nil), "")
	if err != nil || p.NodeID != "id-idle" {
		t.Fatalf("got %+v, %v", p, err)
	}
	for _, part := range []string{"least-connections", "2 of 3 nodes fit", "away lost or offline"} {
		if !strings.Contains(p.Why, part) {
			t.Errorf("%q does not say %q", p.Why, part)
		}
	}
	if p, err = r.Place(spec(nil), "id-idle"); err != nil || p.NodeID != "id-busy" {
		t.Errorf("the node to avoid was taken: %+v, %v", p, err)
	}
	only := with(t, row("only", nil))
	if p, err = only.Place(spec(nil), "id-only"); err != nil || p.NodeID != "id-only" {
		t.Errorf("the node to avoid is the only one, and was not taken: %+v, %v", p, err)
	}
	long := with(t, row(strings.Repeat("n", 250), nil), row("other", func(n *state.Node) { n.Lost = true; n.Name = strings.Repeat("ö", 200) }))
	if p, err = long.Place(spec(nil), ""); err != nil || len(p.Why) > MaxExplanationBytes+len("…") {
		t.Errorf("an explanation of %d bytes, %v", len(p.Why), err)
	}
}

// A reservation counts until the state shows the session, and no longer.
func TestReservations(t *testing.T) {
	one := func() *Router {
		return with(t, row("n", func(n *state.Node) { n.Capabilities.MaxConcurrentSessions = 1 }))
	}
	fits := func(r *Router) bool {
		p, err := r.Place(spec(nil), "")
		if err == nil {
			r.Release(p)
		}
		return err == nil
	}
	place := func(r *Router) *Placement {
		p, err := r.Place(spec(nil), "")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	shown := func(sessions uint32, index uint64) *state.Node {
		return row("n", func(n *state.Node) {
			n.Capabilities.MaxConcurrentSessions, n.Sessions, n.ModifyIndex = 1, sessions, index
		})
	}

	r := one()
	p := place(r)
	if fits(r) {
		t.Error("what is reserved was given away")
	}
	r.Release(p)
	if !fits(r) {
		t.Error("what was given back is still reserved")
	}

	p = place(r)
	r.Settle(p, 7)
	r.Observe(&state.Change{Nodes: []*state.Node{shown(0, 6)}})
	if fits(r) {
		t.Error("settled at 7, and forgotten at 6")
	}
	r.Observe(&state.Change{Nodes: []*state.Node{shown(1, 7)}})
	r.Observe(&state.Change{Nodes: []*state.Node{shown(0, 8)}})
	if !fits(r) {
		t.Error("the session has ended, and its reservation has not")
	}

	p = place(r)
	r.Observe(&state.Change{Nodes: []*state.Node{shown(1, 9)}}) // the change is seen before the answer
	r.Settle(p, 9)
	r.Observe(&state.Change{Nodes: []*state.Node{shown(0, 10)}})
	if !fits(r) {
		t.Error("settled late, and reserved for ever")
	}

	// The leader changes under a reservation, or the node is removed and comes back.
	for _, settle := range []bool{true, false} {
		for name, begin := range map[string]func(r *Router){
			"reset": func(r *Router) { r.Reset(state.New(state.DefaultLimits()).View()) },
			"removed": func(r *Router) {
				r.Observe(&state.Change{RemovedNodes: []string{"id-n"}})
			},
		} {
			r = one()
			p = place(r)
			begin(r)
			r.Observe(&state.Change{Nodes: []*state.Node{shown(0, 11)}})
			r.SetHealth("id-n", Health{Linked: true})
			if settle {
				r.Settle(p, 12)
			} else {
				r.Release(p)
			}
			first := place(r)
			if fits(r) {
				t.Errorf("%s: one session fits, and two were placed", name)
			}
			r.Release(first)
			if !fits(r) {
				t.Errorf("%s: nothing is there, and nothing fits", name)
			}
		}
	}
}

// Whatever the order in which answers and changes come, no node is given more than it has, and in the end all of it is
// free again.
func TestNeverOverCapacity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const nodes, room, cpu = 3, 4, 1000
		truth := map[string]*state.Node{} // what is committed
		var rows []*state.Node
		for i := range nodes {
			n := row(fmt.Sprint("n", i), func(n *state.Node) { n.Capabilities.MaxConcurrentSessions, n.Capabilities.CPUMilli = room, cpu })
			truth[n.ID] = n
			rows = append(rows, n)
		}
		r := with(t, rows...)
		type placed struct {
			p    *Placement
			spec *session.Spec
		}
		var open, running []placed
		var unseen []*state.Node // committed, not observed yet
		index := uint64(1)
		commit := func(id string, change func(n *state.Node)) {
			index++
			n := *truth[id]
			change(&n)
			n.ModifyIndex = index
			truth[id] = &n
			unseen = append(unseen, &n)
		}
		take := func(from *[]placed) placed {
			i := rapid.IntRange(0, len(*from)-1).Draw(t, "which")
			p := (*from)[i]
			*from = append((*from)[:i:i], (*from)[i+1:]...)
			return p
		}
		observe := func() {
			if len(unseen) > 0 {
				r.Observe(&state.Change{Nodes: unseen[:1]})
				unseen = unseen[1:]
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"place": func(t *rapid.T) {
				s := spec(func(s *session.Spec) { s.CPUMilli = rapid.Int64Range(0, 600).Draw(t, "cpu") })
				p, err := r.Place(s, "")
				if err != nil {
					return
				}
				open = append(open, placed{p, s})
				sessions, cpuUsed := truth[p.NodeID].Sessions, truth[p.NodeID].ReservedCPUMilli
				for _, o := range open {
					if o.p.NodeID == p.NodeID {
						sessions++
						cpuUsed += o.spec.CPUMilli
					}
				}
				if sessions > room || cpuUsed > cpu {
					t.Fatalf("%s was given %d sessions and %d of CPU, and has room for %d and %d", p.NodeID, sessions, cpuUsed, room, cpu)
				}
			},
			"commit": func(*rapid.T) {
				if len(open) == 0 {
					return
				}
				o := take(&open)
				commit(o.p.NodeID, func(n *state.Node) { n.Sessions++; n.ReservedCPUMilli += o.spec.CPUMilli })
				at := index
				if rapid.Bool().Draw(t, "seen before the answer") {
					for len(unseen) > 0 {
						observe()
					}
				}
				r.Settle(o.p, at)
				running = append(running, o)
			},
			"refuse": func(*rapid.T) {
				if len(open) > 0 {
					r.Release(take(&open).p)
				}
			},
			"end": func(*rapid.T) {
				if len(running) > 0 {
					o := take(&running)
					commit(o.p.NodeID, func(n *state.Node) { n.Sessions--; n.ReservedCPUMilli -= o.spec.CPUMilli })
				}
			},
			"observe": func(*rapid.T) { observe() },
		})
		for len(open) > 0 {
			r.Release(open[0].p)
			open = open[1:]
		}
		for _, o := range running {
			commit(o.p.NodeID, func(n *state.Node) { n.Sessions--; n.ReservedCPUMilli -= o.spec.CPUMilli })
		}
		for len(unseen) > 0 {
			observe()
		}
		for i := range nodes * room {
			if _, err := r.Place(spec(nil), ""); err != nil {
				t.Fatalf("everything has ended, and only %d of %d places are free: %v", i, nodes*room, err)
			}
		}
	})
}
