// How the cluster does: told by the leader, and without one by whoever is asked.
package gateway

import (
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// status asks a server, and returns who answered, whom it takes for the leader, and whom its list of members does.
func (a *alone) status(c apiv1.Consistency_Level) (server, leads, listed string) {
	a.t.Helper()
	api := apiv1.NewClusterServiceClient(a.conn)
	s, err := api.GetStatus(a.as(a.admin), &apiv1.GetStatusRequest{Consistency: c})
	if err != nil {
		a.t.Fatal(err)
	}
	r, err := api.ListMembers(a.as(a.admin), &apiv1.ListMembersRequest{Consistency: c})
	if err != nil {
		a.t.Fatal(err)
	}
	if len(s.GetMembers()) != 3 || len(r.GetMembers()) != 3 {
		a.t.Fatalf("%d and %d members", len(s.GetMembers()), len(r.GetMembers()))
	}
	for _, m := range r.GetMembers() {
		if m.GetRole() == apiv1.Member_LEADER {
			listed = m.GetId()
		}
	}
	return s.GetServer(), s.GetLeader(), listed
}

func TestHowTheClusterDoesIsTheLeadersToTell(t *testing.T) {
	servers := startServers(t, 3)
	leads, asked := servers[0], servers[1]
	leader, own := leads.ops.Node.ID(), asked.ops.Node.ID()
	eventually(t, func() bool { l, _ := asked.ops.Node.Leader(); return l.ID == leader })
	// It takes no token that it has not heard of yet.
	eventually(t, func() bool { return asked.ops.State.Index() >= leads.ops.State.Index() })

	if server, l, listed := asked.status(apiv1.Consistency_LINEARIZABLE); server != leader || l != leader || listed != leader {
		t.Errorf("a follower was asked: %q answered, %q leads, %q in the list; want %q", server, l, listed, leader)
	}
	if server, l, listed := asked.status(apiv1.Consistency_STALE); server != own || l != leader || listed != leader {
		t.Errorf("a follower was asked for its own words: %q answered, %q leads, %q in the list; want %q, and %q", server, l, listed, own, leader)
	}

	leads.stop()
	servers[2].stop()
	// It goes on believing in a leader for a while that cannot be reached any more.
	if server, _, _ := asked.status(apiv1.Consistency_LINEARIZABLE); server != own {
		t.Errorf("the leader has just gone: %q answered, want %q", server, own)
	}
	eventually(t, func() bool { l, _ := asked.ops.Node.Leader(); return l.ID == "" })
	for _, c := range []apiv1.Consistency_Level{apiv1.Consistency_LINEARIZABLE, apiv1.Consistency_STALE} {
		if server, l, listed := asked.status(c); server != own || l != "" || listed != "" {
			t.Errorf("%s without a leader: %q answered, %q leads, %q in the list; want %q and nobody", c, server, l, listed, own)
		}
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, yes func() bool) {
	t.Helper()
	giveUp := time.After(20 * time.Second)
	for !yes() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-giveUp:
			t.Fatal("waited in vain")
		}
	}
}
