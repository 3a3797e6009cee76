// Questions to views that no other test asks.

package state

import (
	"slices"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/session"
)

func TestViewLookups(t *testing.T) {
	m := newMachine(t)
	for _, n := range []string{"a", "b"} {
		m.node(n)
	}
	for _, id := range []string{"aa", "ab", "b"} {
		m.ok(spawn(id, "id-a", named("name-"+id)))
	}
	m.ok(spawn("c", ""))
	m.ok(&clusterv1.TerminateSession{SessionId: "c"})
	v := m.View()
	ids := func(l []*session.Session) (got []string) {
		for _, s := range l {
			got = append(got, s.ID)
		}
		return got
	}
	for _, c := range []struct {
		what string
		got  []string
		want []string
	}{
		{"by prefix", ids(v.SessionsByPrefix("a", 9)), []string{"aa", "ab"}},
		{"by prefix, one", ids(v.SessionsByPrefix("a", 1)), []string{"aa"}},
		{"by prefix, none", ids(v.SessionsByPrefix("", 0)), nil},
		{"all", ids(slices.Collect(v.Sessions(""))), []string{"aa", "ab", "b", "c"}},
		{"after one", ids(slices.Collect(v.Sessions("aa"))), []string{"ab", "b", "c"}},
		{"after none", ids(slices.Collect(v.Sessions("aaa"))), []string{"ab", "b", "c"}},
		{"on node", ids(slices.Collect(v.SessionsOnNode("id-a"))), []string{"aa", "ab", "b"}},
		{"on another", ids(slices.Collect(v.SessionsOnNode("id-b"))), nil},
		{"on one that begins alike", ids(slices.Collect(v.SessionsOnNode("id-"))), nil},
		{"ended", ids(slices.Collect(v.Ended())), []string{"c"}},
		{"pending", ids(slices.Collect(v.Pending())), nil},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	for s := range v.SessionsOnNode("id-a") {
		if s.ID != "aa" {
			t.Errorf("went on to %s after a break", s.ID)
		}
		break
	}
	if p := v.PhaseCounts(); p.Total() != 4 || p.Live() != 3 || p[session.Starting] != 3 || p[session.Terminated] != 1 {
		t.Errorf("counts %v", p)
	}
	if n := v.NodesByPrefix("id-", 9); len(n) != 2 || len(v.NodesByPrefix("id-", 1)) != 1 || v.NodesByPrefix("x", 1) != nil || v.NodesByPrefix("", 0) != nil {
		t.Errorf("nodes by prefix: %v", n)
	}
	if v.SessionByName("default", "name-b").ID != "b" || v.SessionByName("default", "") != nil || v.SessionByName("other", "name-b") != nil {
		t.Error("by name")
	}
	if v.Session("none") != nil || v.Node("none") != nil || v.NodeByName("none") != nil || v.Token("none") != nil || v.Results("none") != nil ||
		v.DeadLetter(LetterKey{"none", 1}) != nil || v.Message("none", 1) != nil || v.Result("none", 1) != nil {
		t.Error("something is there that is not")
	}
	if got := CapabilitiesFromProto(v.Node("id-a").Capabilities.Proto()); !slices.Equal(got.Custom, v.Node("id-a").Capabilities.Custom) {
		t.Errorf("capabilities there and back: %+v", got)
	}
	if Healthy.String() != "HEALTHY" || NodeStatus(9).String() != "STATUS(9)" || NodeStatus(0).String() != "STATUS(0)" {
		t.Error("names of statuses")
	}
}

func TestClip(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"aéé", 4, "aé"}, {"é", 1, ""}} {
		if got := clip(c.in, c.n); got != c.want {
			t.Errorf("clip(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
}
