// Nodes, tokens, the cluster's id and events, command by command.

package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func TestRegister(t *testing.T) {
	m := newMachine(t)
	n := m.ok(register("a", 5)).Node
	if n.Status != Healthy || !n.Schedulable || n.CreateTime != m.now || n.Incarnation != 5 || n.PID != 7 {
		t.Errorf("registered %+v", n)
	}
	if !slices.Equal(n.Labels, []session.Pair{{Key: "rack", Value: "2"}, {Key: "zone", Value: "a"}}) ||
		!slices.Equal(n.Capabilities.Custom, []Flag{{"cgroup", false}, {"pty", true}}) {
		t.Errorf("labels %v, capabilities %+v", n.Labels, n.Capabilities)
	}
	m.ok(spawn("s", "id-a"))
	m.ok(m.facts("a", started("s", 1)))
	m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a"})
	m.refused(fault.FailedPrecondition, register("a", 4))
	if n = m.ok(register("a", 5)).Node; n.FactIndex != 1 {
		t.Errorf("the same incarnation lost its fact index: %+v", n)
	}
	n = m.ok(register("a", 6)).Node
	if n.FactIndex != 0 || n.Incarnation != 6 || n.Sessions != 1 || n.Schedulable {
		t.Errorf("the next incarnation: %+v", n)
	}
	if s := m.session("s"); s.Phase != session.Running || s.NodeID != "id-a" {
		t.Errorf("a registration changed the session: %+v", s)
	}
	for _, wrong := range []*clusterv1.RegisterNode{{Name: "x"}, {NodeId: "id", Name: "Bad Name"}, {NodeId: "id"}, {NodeId: strings.Repeat("i", 200), Name: "x"}} {
		m.refused(fault.Invalid, wrong)
	}
	checkInvariants(t, m.View())
}

func TestRegisterANameThatIsTaken(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.Nodes = 2 })
	m.ok(register("a", 1))
	m.ok(spawn("s", "id-a", restart("always", 3)))
	heir := register("a", 1)
	heir.NodeId = "id-heir"
	m.refused(fault.AlreadyExists, heir)
	m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1})
	if n := m.ok(heir).Node; n.ID != "id-heir" || m.View().Node("id-a") != nil || m.View().NodeByName("a") != n && m.View().NodeByName("a").ID != "id-heir" {
		t.Errorf("the heir: %+v", n)
	}
	// A rename frees the old name, in the same entry too.
	renamed := register("b", 1)
	renamed.NodeId = "id-heir"
	if r := m.do(renamed, register("a", 1)); r[0].Err != nil || r[1].Err != nil {
		t.Errorf("rename and take: %+v", r)
	}
	m.refused(fault.Exhausted, register("c", 1))
	checkInvariants(t, m.View())
}

func TestNodeStatus(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.refused(fault.NotFound, &clusterv1.SetNodeStatus{NodeId: "none", Status: apiv1.Node_HEALTHY})
	m.refused(fault.Invalid, &clusterv1.SetNodeStatus{NodeId: "id-a"})
	m.refused(fault.Invalid, &clusterv1.SetNodeStatus{NodeId: "id-a", Status: 5})
	n := m.ok(&clusterv1.SetNodeStatus{NodeId: "id-a", Status: apiv1.Node_DEGRADED, Reason: "hot"}).Node
	if n.Status != Degraded || n.Reason != "hot" || n.ModifyIndex != m.Index() {
		t.Errorf("status %+v", n)
	}
	if again := m.ok(&clusterv1.SetNodeStatus{NodeId: "id-a", Status: apiv1.Node_DEGRADED, Reason: "hot"}).Node; again.ModifyIndex != n.ModifyIndex {
		t.Error("the same status changed the row")
	}
	if n = m.ok(&clusterv1.SetNodeSchedulable{NodeId: "id-a", Actor: "ann"}).Node; n.Schedulable {
		t.Error("not cordoned")
	}
	m.refused(fault.NotFound, &clusterv1.SetNodeSchedulable{NodeId: "none"})
}

func TestRemoveNode(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("s", "id-a"))
	m.refused(fault.NotFound, &clusterv1.RemoveNode{NodeId: "none"})
	m.refused(fault.FailedPrecondition, &clusterv1.RemoveNode{NodeId: "id-a"})
	m.ok(m.facts("a", exited("s", 1, 0, 0)))
	m.refused(fault.FailedPrecondition, &clusterv1.RemoveNode{NodeId: "id-a"})
	m.ok(&clusterv1.SetNodeStatus{NodeId: "id-a", Status: apiv1.Node_OFFLINE})
	m.ok(&clusterv1.RemoveNode{NodeId: "id-a"})
	if m.View().Node("id-a") != nil || m.View().NodeByName("a") != nil {
		t.Error("it is still there")
	}
	checkInvariants(t, m.View())
}

func TestTokens(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.Tokens = 2 })
	token := func(id string, change func(*clusterv1.CreateToken)) *clusterv1.CreateToken {
		c := &clusterv1.CreateToken{Id: id, Name: "n", Role: "admin", Hash: bytes.Repeat([]byte{1}, 32)}
		if change != nil {
			change(c)
		}
		return c
	}
	first := func(c *clusterv1.CreateToken) { c.OnlyFirst = true }
	for _, wrong := range []func(*clusterv1.CreateToken){
		func(c *clusterv1.CreateToken) { c.Id = "" }, func(c *clusterv1.CreateToken) { c.Role = "king" },
		func(c *clusterv1.CreateToken) { c.Hash = nil }, func(c *clusterv1.CreateToken) { c.ExpireTime = m.now },
		func(c *clusterv1.CreateToken) { c.Namespace = "Not a name" }, func(c *clusterv1.CreateToken) { c.Name = strings.Repeat("x", 300) },
	} {
		m.refused(fault.Invalid, token("a", wrong))
	}
	m.ok(token("a", first))
	if r := m.ok(token("a", first)); !r.Duplicate {
		t.Error("the same token again is not the same")
	}
	m.refused(fault.FailedPrecondition, token("b", first))
	m.refused(fault.AlreadyExists, token("a", func(c *clusterv1.CreateToken) { c.Hash = bytes.Repeat([]byte{2}, 32) }))
	m.ok(token("b", func(c *clusterv1.CreateToken) { c.ExpireTime = m.now + second }))
	m.refused(fault.Exhausted, token("c", nil))
	m.refused(fault.NotFound, &clusterv1.RevokeToken{Id: "c"})
	m.ok(&clusterv1.RevokeToken{Id: "a"})
	if m.View().Token("a") != nil || m.View().Token("b") == nil {
		t.Error("the wrong one went")
	}
	m.now += second
	if r := m.ok(&clusterv1.CollectGarbage{}); r.Count != 1 || m.View().Stats().Tokens != 0 {
		t.Errorf("collected %d", r.Count)
	}
	m.ok(token("c", first))
	checkInvariants(t, m.View())
}

func TestInitCluster(t *testing.T) {
	m := newMachine(t)
	m.refused(fault.Invalid, &clusterv1.InitCluster{})
	m.ok(&clusterv1.InitCluster{ClusterId: "one"})
	m.ok(&clusterv1.InitCluster{ClusterId: "one"})
	m.refused(fault.FailedPrecondition, &clusterv1.InitCluster{ClusterId: "two"})
	if m.View().ClusterID() != "one" {
		t.Errorf("cluster %q", m.View().ClusterID())
	}
}

func TestEventsAreARing(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.Events = 10 })
	for i := range 4 { // entries of 3 events, and one of more than there is room for
		m.do(spawn(fmt.Sprint("a", i), ""), spawn(fmt.Sprint("b", i), ""), spawn(fmt.Sprint("c", i), ""))
	}
	numbers := func(after uint64, limit int) (got []uint64) {
		for _, e := range m.View().Events(after, limit) {
			got = append(got, e.Number)
		}
		return got
	}
	if got := numbers(0, 100); !slices.Equal(got, []uint64{3, 4, 5, 6, 7, 8, 9, 10, 11, 12}) {
		t.Errorf("kept %v", got)
	}
	if got := numbers(5, 3); !slices.Equal(got, []uint64{6, 7, 8}) {
		t.Errorf("after 5: %v", got)
	}
	if got := numbers(12, 3); got != nil {
		t.Errorf("after the last: %v", got)
	}
	checkInvariants(t, m.View())
	var many []any
	for i := range 25 {
		many = append(many, spawn(fmt.Sprint("many", i), ""))
	}
	m.do(many...)
	if got := numbers(0, 100); len(got) != 10 || got[0] != 28 || got[9] != 37 {
		t.Errorf("kept %v", got)
	}
	checkInvariants(t, m.View())
}

func TestEveryTransitionHasAnEvent(t *testing.T) {
	m := running(t)
	m.ok(send("s", "x"))
	m.ok(&clusterv1.TerminateSession{SessionId: "s"})
	m.ok(m.facts("a", exited("s", 1, 0, 0)))
	m.ok(&clusterv1.SetNodeStatus{NodeId: "id-a", Status: apiv1.Node_OFFLINE})
	m.ok(&clusterv1.RemoveNode{NodeId: "id-a"})
	m.ok(&clusterv1.RemoveSession{SessionId: "s"})
	var got []string
	for _, e := range m.View().Events(0, 100) {
		got = append(got, e.Type)
		if strings.HasPrefix(e.Type, "session.") && (e.SessionID != "s" || e.Namespace != "default") {
			t.Errorf("event %+v", e)
		}
	}
	want := []string{
		"node.registered", "session.starting", "session.running", "session.terminating", "session.terminated", "message.dead",
		"node.offline", "node.removed", "session.removed",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events %v\nwant %v", got, want)
	}
}
