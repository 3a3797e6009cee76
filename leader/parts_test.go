// The pure parts: what is given next, who is placed first, what does not belong.

package leader

import (
	"container/heap"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/session"
)

// history builds a state from commands, one entry each.
type history struct {
	t     *testing.T
	store *state.Store
	index uint64
	facts uint64
}

func newHistory(t *testing.T) *history {
	h := &history{t: t, store: state.New(state.DefaultLimits())}
	for _, n := range []string{"n1", "n2"} {
		h.do(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{NodeId: n, Name: n, Incarnation: 1}}})
	}
	return h
}

func (h *history) do(c *clusterv1.Command) state.Result {
	h.t.Helper()
	h.index++
	r := h.store.Apply(h.index, &clusterv1.Batch{Time: int64(h.index) * int64(time.Second), Commands: []*clusterv1.Command{c}})[0]
	if r.Err != nil {
		h.t.Fatal(r.Err)
	}
	return r
}

func (h *history) spawn(id, node, restart string) {
	h.t.Helper()
	h.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{
		SessionId: id, NodeId: node, Spec: &apiv1.SessionSpec{Command: []string{"true"}, Restart: restart},
	}}})
}

func (h *history) send(id string, p apiv1.Priority_Level, bytes int) uint64 {
	h.t.Helper()
	return h.do(&clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: &clusterv1.SendMessage{
		SessionId: id, Priority: p, Text: make([]byte, bytes),
	}}}).Sequence
}

func TestStray(t *testing.T) {
	h := newHistory(t)
	h.spawn("here", "n1", "")
	h.spawn("elsewhere", "n2", "")
	h.spawn("given-up", "n1", "always")
	h.spawn("failed", "n1", "")
	h.do(&clusterv1.Command{Kind: &clusterv1.Command_LoseNode{LoseNode: &clusterv1.LoseNode{NodeId: "n1", Incarnation: 1, Reason: "test"}}})
	h.do(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{NodeId: "n1", Name: "n1", Incarnation: 1}}})
	h.spawn("again", "n1", "")
	h.spawn("newer", "n1", "always")
	// newer is at epoch 2, on the same node.
	h.do(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{NodeId: "n1", Incarnation: 1, Facts: []*nodev1.Fact{{
		Index: 1, SessionId: "newer", Epoch: 1, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{Exit: &apiv1.Session_Exit{Code: 1, Cause: "failed"}}},
	}}}}})
	h.index += 10
	h.do(&clusterv1.Command{Kind: &clusterv1.Command_PlaceSession{PlaceSession: &clusterv1.PlaceSession{SessionId: "newer", Epoch: 1, NodeId: "n1"}}})
	exit := &apiv1.Session_Exit{Cause: "lost"}
	const nothing = nodev1.DesiredSession_ACTION_UNSPECIFIED
	for _, c := range []struct {
		has  *nodev1.SessionState
		want nodev1.DesiredSession_Action
	}{
		{&nodev1.SessionState{SessionId: "unknown", Epoch: 1}, nodev1.DesiredSession_FORGET},
		{&nodev1.SessionState{SessionId: "again", Epoch: 1}, nothing},
		{&nodev1.SessionState{SessionId: "elsewhere", Epoch: 1}, nodev1.DesiredSession_FORGET},
		{&nodev1.SessionState{SessionId: "newer", Epoch: 1}, nothing}, // RUN at epoch 2 says it
		{&nodev1.SessionState{SessionId: "newer", Epoch: 2}, nothing},
		{&nodev1.SessionState{SessionId: "given-up", Epoch: 1}, nodev1.DesiredSession_KILL},
		{&nodev1.SessionState{SessionId: "given-up", Epoch: 1, Exit: exit}, nothing}, // its output stays
		{&nodev1.SessionState{SessionId: "failed", Epoch: 1}, nodev1.DesiredSession_KILL},
		{&nodev1.SessionState{SessionId: "failed", Epoch: 1, Exit: exit}, nothing},
	} {
		d := stray(h.store.View(), "n1", c.has)
		got := nothing
		if d != nil {
			got = d.GetAction()
			if d.GetEpoch() != c.has.GetEpoch() || d.GetReason() == "" {
				t.Errorf("%v: told %v", c.has, d)
			}
		}
		if got != c.want {
			t.Errorf("%v: %v, want %v", c.has, got, c.want)
		}
	}
}

// ack ends a message's turn, and lets the leader see it.
func (h *history) ack(r *reign, id string, sequence uint64) {
	h.t.Helper()
	h.facts++
	h.do(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{NodeId: "n1", Incarnation: 1, Facts: []*nodev1.Fact{{
		Index: h.facts, SessionId: id, Epoch: 1, Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{Sequence: sequence}},
	}}}}})
	r.settled(id, sequence)
}

func deliverer(h *history) *reign {
	return newReign(&Leader{opts: Options{State: h.store, Now: time.Now, Logger: slog.New(slog.DiscardHandler)}}, 1)
}

func (h *history) next(r *reign, id string) []uint64 {
	v := h.store.View()
	var got []uint64
	for _, m := range r.nextMessages(v, v.Session(id)) {
		got = append(got, m.Sequence)
	}
	return got
}

func TestNextMessages(t *testing.T) {
	h := newHistory(t)
	h.spawn("a", "n1", "")
	var normal []uint64
	for range deliverWindowMessages + 10 {
		normal = append(normal, h.send("a", apiv1.Priority_NORMAL, 1))
	}
	r := deliverer(h)
	if got := h.next(r, "a"); !slices.Equal(got, normal[:deliverWindowMessages]) {
		t.Errorf("first %v, want a window of the oldest", got)
	}
	if got := h.next(r, "a"); got != nil {
		t.Errorf("into a full window: %v", got)
	}
	low := h.send("a", apiv1.Priority_LOW, 1)
	if got := h.next(r, "a"); got != nil {
		t.Errorf("less urgent than what waits: %v", got)
	}
	urgent := []uint64{h.send("a", apiv1.Priority_CRITICAL, 1), h.send("a", apiv1.Priority_CRITICAL, 1)}
	if got := h.next(r, "a"); !slices.Equal(got, urgent) {
		t.Errorf("got %v; what is urgent has a window of its own: want %v", got, urgent)
	}
	h.ack(r, "a", normal[0])
	h.ack(r, "a", normal[1])
	if !r.toDeliver["a"] {
		t.Error("there is room and more to send, and nobody will look")
	}
	if got := h.next(r, "a"); !slices.Equal(got, normal[deliverWindowMessages:deliverWindowMessages+2]) {
		t.Errorf("after two acks: %v", got)
	}
	for _, seq := range normal[2:] {
		h.ack(r, "a", seq)
	}
	if got := h.next(r, "a"); !slices.Equal(got, []uint64{low}) {
		t.Errorf("when all else is acked: %v, want %d", got, low)
	}

	h.spawn("b", "n1", "")
	large := []uint64{}
	for range 6 {
		large = append(large, h.send("b", apiv1.Priority_NORMAL, session.MaxMessageBytes))
	}
	n := deliverWindowBytes / session.MaxMessageBytes
	if got := h.next(r, "b"); !slices.Equal(got, large[:n]) {
		t.Errorf("large ones: %v, want %d of them", got, n)
	}
	h.ack(r, "b", large[0])
	if got := h.next(r, "b"); !slices.Equal(got, large[n:n+1]) {
		t.Errorf("room for one: %v", got)
	}
	r.delivered(&nodev1.Delivered{Sessions: []*nodev1.SessionSequences{{SessionId: "b", Epoch: 1, Sequences: large[1:2]}}})
	r.resend(time.Now().Add(2 * resendAfter))
	if got := h.next(r, "b"); !slices.Equal(got, large[2:n+1]) {
		t.Errorf("what the node has not confirmed comes again: %v, want %v", got, large[2:n+1])
	}
}

func TestEligibleOrder(t *testing.T) {
	now := time.Unix(100, 0)
	r := &reign{pending: map[string]*session.Session{}, placing: map[string]bool{"placing": true}}
	add := func(id string, p session.Priority, created uint64, notBefore time.Time) {
		r.pending[id] = &session.Session{ID: id, Spec: &session.Spec{Priority: p}, CreateIndex: created, NotBefore: notBefore.UnixNano()}
	}
	add("low", session.Low, 1, now)
	add("second", session.Normal, 3, now)
	add("first", session.Normal, 2, now)
	add("same-b", session.High, 9, now)
	add("same-a", session.High, 9, now)
	add("urgent", session.Critical, 50, now)
	add("later", session.Critical, 1, now.Add(time.Nanosecond))
	add("placing", session.Critical, 1, now)
	var got []string
	for _, s := range r.eligible(now) {
		got = append(got, s.ID)
	}
	if want := []string{"urgent", "same-a", "same-b", "first", "second", "low"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestShape(t *testing.T) {
	base := session.Spec{Type: "process", Command: []string{"a"}, CPUMilli: 100}
	other := base
	other.Command, other.Env, other.Name, other.Labels = []string{"b"}, []session.Pair{{Key: "X"}}, "name", []session.Pair{{Key: "l"}}
	if shape(&base) != shape(&other) {
		t.Error("what a node does not look at makes a difference")
	}
	for name, change := range map[string]func(*session.Spec){
		"type":     func(s *session.Spec) { s.Type = "acp" },
		"require":  func(s *session.Spec) { s.Require = []string{"gpu"} },
		"selector": func(s *session.Spec) { s.NodeSelector = []session.Pair{{Key: "zone", Value: "a"}} },
		"cpu":      func(s *session.Spec) { s.CPUMilli++ },
		"memory":   func(s *session.Spec) { s.MemoryBytes++ },
		"strategy": func(s *session.Spec) { s.Strategy = "spread" },
	} {
		changed := base
		change(&changed)
		if shape(&base) == shape(&changed) {
			t.Errorf("%s makes no difference", name)
		}
	}
}

func TestLastLost(t *testing.T) {
	s := &session.Session{History: []session.HistoryEntry{{Node: "n1"}, {Node: "n2"}, {}}}
	if got := lastLost(s); got != "" {
		t.Errorf("never lost, and avoids %s", got)
	}
	for cause, want := range map[string]string{session.CauseLost: "n2", session.CauseStartFailed: "n2", session.CauseFailed: ""} {
		s.Exit = &session.Exit{Cause: cause}
		if got := lastLost(s); got != want {
			t.Errorf("%s: avoids %q, want %q", cause, got, want)
		}
	}
}

func TestExpiryHeap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h expiryHeap
		var want []int64
		for i, at := range rapid.SliceOf(rapid.Int64()).Draw(t, "at") {
			h.add(at, fmt.Sprint(i), uint64(i))
			want = append(want, at)
		}
		slices.Sort(want)
		for _, at := range want {
			if e := heap.Pop(&h).(expiry); e.at != at || e.session != fmt.Sprint(e.sequence) {
				t.Fatalf("got %+v, want %d", e, at)
			}
		}
		if len(h) != 0 {
			t.Fatalf("%d are left", len(h))
		}
	})
}
