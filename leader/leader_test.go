// The leader's decisions: what a node is told after its inventory, which messages go out, who is placed first, and when a
// lease is granted or has ended.

package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soleLog is a log of one server: what is proposed is applied at once. Whether it leads is the test's to say.
type soleLog struct {
	mu       sync.Mutex
	store    *state.Store
	index    uint64
	verify   error
	verified int
	refuse   error
	holds    bool // drains that are proposed wait in held
	held     []func()
}

func (l *soleLog) ProposeAsync(reply func([]state.Result, error), commands ...*clusterv1.Command) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return l.refuse
	}
	if commands[0].GetDrainNode() != nil && l.holds {
		l.held = append(l.held, func() { _ = l.ProposeAsync(reply, commands...) })
		return nil
	}
	l.index++
	reply(l.store.Apply(l.index, &clusterv1.Batch{Time: time.Now().UnixNano(), Commands: commands}), nil)
	return nil
}

func (l *soleLog) VerifyLeader(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.verified++
	return l.verify
}

func (l *soleLog) leads(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.verify = err
}

// do commits a command as a client's call would.
func (l *soleLog) do(t *testing.T, c *clusterv1.Command) state.Result {
	t.Helper()
	var res state.Result
	if err := l.ProposeAsync(func(r []state.Result, _ error) { res = r[0] }, c); err != nil || res.Err != nil {
		t.Fatalf("%v: %v, %v", c, err, res.Err)
	}
	return res
}

// soleHub hands the leader to the test.
type soleHub struct{ h nodelink.Handler }

func (s *soleHub) Lead(h nodelink.Handler)                                    { s.h = h }
func (s *soleHub) Pause()                                                     { s.h = nil }
func (s *soleHub) Follow(func(context.Context) (nodelink.RelayStream, error)) {}
func (s *soleHub) frame(l *fakeLink, f *nodev1.Frame)                         { s.h.LinkFrame(l, f) }
func (s *soleHub) up(l *fakeLink)                                             { s.h.LinkUp(l) }

// fakeLink keeps what was sent to the node.
type fakeLink struct {
	hello  *nodev1.Hello
	mu     sync.Mutex
	sent   []*nodev1.Frame
	closed string
	code   int // that it was closed with
	full   bool
}

func (l *fakeLink) ID() string           { return "link of " + l.hello.GetName() }
func (l *fakeLink) Hello() *nodev1.Hello { return l.hello }
func (l *fakeLink) Server() string       { return "server-1" }
func (l *fakeLink) Close(code int, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed, l.code = reason, code
}

func (l *fakeLink) Send(f *nodev1.Frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full {
		return nodelink.ErrQueueFull
	}
	l.sent = append(l.sent, proto.Clone(f).(*nodev1.Frame))
	return nil
}

// take returns what was sent since the last time.
func (l *fakeLink) take() []*nodev1.Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	sent := l.sent
	l.sent = nil
	return sent
}

// reigning runs a leader over one server's state in simulated time.
func reigning(t *testing.T, f func(t *testing.T, log *soleLog, hub *soleHub, l *Leader)) {
	t.Helper()
	reigningWith(t, func(*Options) {}, f)
}

// reigningWith is reigning with other options.
func reigningWith(t *testing.T, change func(*Options), f func(t *testing.T, log *soleLog, hub *soleHub, l *Leader)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := &soleLog{store: state.New(state.DefaultLimits())}
		log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_InitCluster{InitCluster: &clusterv1.InitCluster{ClusterId: "c"}}})
		route, err := router.New("least-connections")
		if err != nil {
			t.Fatal(err)
		}
		hub := &soleHub{}
		o := Options{
			ServerID: "server-1", Lease: DefaultLease(), Retention: time.Hour, Log: log, State: log.store, Hub: hub, Router: route,
			LinkAddresses: func() []string { return []string{"10.0.0.1:8078"} }, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		}
		change(&o)
		l := New(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx, 5) }()
		synctest.Wait()
		f(t, log, hub, l)
		cancel()
		<-done
	})
}

// link registers a node and shows its inventory.
func link(t *testing.T, hub *soleHub, name string, has ...*nodev1.SessionState) *fakeLink {
	t.Helper()
	return linkAs(t, hub, name, 1, has...)
}

// linkAs is link for a later agent.
func linkAs(t *testing.T, hub *soleHub, name string, incarnation uint64, has ...*nodev1.SessionState) *fakeLink {
	t.Helper()
	l := &fakeLink{hello: &nodev1.Hello{NodeId: "id-" + name, Name: name, Incarnation: incarnation, Capabilities: &apiv1.Capabilities{
		CanSpawnSessions: true, SupportedSessionTypes: []string{session.TypeProcess}, CpuMilli: 4000, MemoryBytes: 1 << 30,
	}}}
	hub.up(l)
	synctest.Wait()
	got := l.take()
	if len(got) != 2 || got[0].GetHelloAck().GetClusterId() != "c" || got[1].GetGetSessions() == nil {
		t.Fatalf("after hello: %v", got)
	}
	hub.frame(l, &nodev1.Frame{Payload: &nodev1.Frame_SessionsResponse{SessionsResponse: &nodev1.SessionsResponse{Incarnation: incarnation, Sessions: has}}})
	synctest.Wait()
	return l
}

func spawn(t *testing.T, log *soleLog, id, node string, change func(*apiv1.SessionSpec)) *session.Session {
	t.Helper()
	spec := &apiv1.SessionSpec{Command: []string{"cat"}}
	if change != nil {
		change(spec)
	}
	return log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{SessionId: id, Spec: spec, NodeId: node}}}).Session
}

func started(hub *soleHub, l *fakeLink, index uint64, id string) {
	hub.frame(l, &nodev1.Frame{Payload: &nodev1.Frame_Facts{Facts: &nodev1.Facts{Incarnation: 1, Facts: []*nodev1.Fact{
		{Index: index, SessionId: id, Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 7}}},
	}}}})
	synctest.Wait()
}

func beatOnce(hub *soleHub, l *fakeLink, sentAt int64) {
	hub.frame(l, &nodev1.Frame{Payload: &nodev1.Frame_Heartbeat{Heartbeat: &nodev1.Heartbeat{SentAt: sentAt}}})
	synctest.Wait()
}

// TestHeartbeatsAreAnsweredByAConfirmedLeader: and by no other, or a lease could outlive the leadership that gave it.
func TestHeartbeatsAreAnsweredByAConfirmedLeader(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, _ *Leader) {
		n := link(t, hub, "node-1")
		beatOnce(hub, n, 42)
		ack := n.take()
		if len(ack) != 1 || ack[0].GetHeartbeatAck().GetSentAt() != 42 || ack[0].GetHeartbeatAck().GetTerm() != 5 {
			t.Fatalf("answered with %v", ack)
		}
		log.leads(errors.New("a majority does not answer"))
		beatOnce(hub, n, 43)
		if got := n.take(); len(got) != 0 {
			t.Errorf("an unconfirmed leader answered with %v", got)
		}
	})
}

// TestLeaseEnds: not before the lease and its margin have passed since the last answer, and soon after.
func TestLeaseEnds(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, _ *Leader) {
		n := link(t, hub, "node-1")
		spawn(t, log, "s1", "id-node-1", nil)
		synctest.Wait()
		started(hub, n, 1, "s1")
		time.Sleep(5 * time.Second)
		beatOnce(hub, n, 1)
		lease := DefaultLease()
		time.Sleep(lease.Duration + lease.Margin - time.Millisecond)
		synctest.Wait()
		if row := log.store.View().Node("id-node-1"); row.Lost {
			t.Fatal("lost before its lease and margin were over")
		}
		time.Sleep(2 * tickEvery)
		synctest.Wait()
		row := log.store.View().Node("id-node-1")
		if !row.Lost || n.closed == "" {
			t.Fatalf("not lost after its lease: %+v, link closed: %q", row, n.closed)
		}
		if s := log.store.View().Session("s1"); s.Phase != session.Failed || s.Exit.Cause != session.CauseLost {
			t.Errorf("its session is %s", s.Phase)
		}
		n.take()
		beatOnce(hub, n, 2)
		if got := n.take(); slices.ContainsFunc(got, func(f *nodev1.Frame) bool { return f.GetHeartbeatAck() != nil }) {
			t.Error("a lost node got a lease without registering again")
		}
		time.Sleep(lease.Offline)
		synctest.Wait()
		if row := log.store.View().Node("id-node-1"); row.Status != state.Offline {
			t.Errorf("silent for %s, and %s", lease.Offline, row.Status)
		}
	})
}

// TestInventory: what a node is told after it showed what it has.
func TestInventory(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, _ *Leader) {
		n := link(t, hub, "node-1")
		for i, id := range []string{"running", "missing", "ended"} {
			spawn(t, log, id, "id-node-1", nil)
			synctest.Wait()
			started(hub, n, uint64(i+1), id)
		}
		hub.frame(n, &nodev1.Frame{Payload: &nodev1.Frame_Facts{Facts: &nodev1.Facts{Incarnation: 1, Facts: []*nodev1.Fact{
			{Index: 4, SessionId: "ended", Epoch: 1, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{Exit: &apiv1.Session_Exit{Cause: session.CauseCompleted}}}},
		}}}})
		spawn(t, log, "new", "id-node-1", nil)
		synctest.Wait()
		again := link(t, hub, "node-1",
			&nodev1.SessionState{SessionId: "running", Epoch: 1}, &nodev1.SessionState{SessionId: "ended", Epoch: 1},
			&nodev1.SessionState{SessionId: "unknown", Epoch: 3})
		told := map[string]*nodev1.DesiredSession{}
		for _, f := range again.take() {
			for _, d := range f.GetDesired().GetSessions() {
				told[d.GetSessionId()] = d
			}
		}
		for id, want := range map[string]string{
			"missing": "RUN started", // the node must report it as lost, not start it
			"new":     "RUN",
			"unknown": "FORGET",
			"ended":   "KILL", // its output stays; nothing of it may live
		} {
			got := told[id].GetAction().String()
			if told[id].GetStarted() {
				got += " started"
			}
			if got != want {
				t.Errorf("%s: told %s, want %s", id, got, want)
			}
		}
		if len(told) != 4 {
			t.Errorf("told %v", told)
		}
	})
}

// TestDeliveryWindow: the most urgent first, no more than the window, and more when turns end.
func TestDeliveryWindow(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, _ *Leader) {
		n := link(t, hub, "node-1")
		spawn(t, log, "s1", "id-node-1", nil)
		for i := range deliverWindowMessages + 10 {
			log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: &clusterv1.SendMessage{
				SessionId: "s1", Text: fmt.Append(nil, i), Priority: apiv1.Priority_NORMAL,
			}}})
		}
		synctest.Wait()
		started(hub, n, 1, "s1")
		got := delivered(n.take())
		if len(got) != deliverWindowMessages || got[0] != 1 || !slices.IsSorted(got) {
			t.Fatalf("first: %v", got)
		}
		log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: &clusterv1.SendMessage{
			SessionId: "s1", Text: []byte("now"), Priority: apiv1.Priority_CRITICAL,
		}}})
		synctest.Wait()
		if got := delivered(n.take()); !slices.Equal(got, []uint64{deliverWindowMessages + 11}) {
			t.Errorf("an urgent message waits behind a full window: %v", got)
		}
		hub.frame(n, &nodev1.Frame{Payload: &nodev1.Frame_Facts{Facts: &nodev1.Facts{Incarnation: 1, Facts: []*nodev1.Fact{
			{Index: 2, SessionId: "s1", Epoch: 1, Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{Sequence: 1}}},
		}}}})
		synctest.Wait()
		if got := delivered(n.take()); !slices.Equal(got, []uint64{deliverWindowMessages + 1}) {
			t.Errorf("after a turn: %v", got)
		}
		// What the node does not confirm comes again.
		time.Sleep(resendAfter + 2*tickEvery)
		synctest.Wait()
		if got := delivered(n.take()); len(got) == 0 {
			t.Error("nothing is sent again")
		}
	})
}

func delivered(frames []*nodev1.Frame) (sequences []uint64) {
	for _, f := range frames {
		for _, s := range f.GetDeliver().GetSessions() {
			for _, m := range s.GetMessages() {
				sequences = append(sequences, m.GetSequence())
			}
		}
	}
	return sequences
}

// TestThoseThatWaitArePlacedByUrgency: when a node comes, and within one round.
func TestThoseThatWaitArePlacedByUrgency(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, _ *Leader) {
		for i, p := range []apiv1.Priority_Level{apiv1.Priority_LOW, apiv1.Priority_NORMAL, apiv1.Priority_CRITICAL, apiv1.Priority_NORMAL} {
			spawn(t, log, fmt.Sprintf("s%d", i), "", func(s *apiv1.SessionSpec) { s.Priority = p })
		}
		spawn(t, log, "never", "", func(s *apiv1.SessionSpec) { s.Require = []string{"gpu"}; s.Priority = apiv1.Priority_CRITICAL })
		synctest.Wait()
		link(t, hub, "node-1")
		v := log.store.View()
		var order []*session.Session
		for s := range v.SessionsOnNode("id-node-1") {
			order = append(order, s)
		}
		slices.SortFunc(order, func(a, b *session.Session) int { return int(a.PlacedIndex) - int(b.PlacedIndex) })
		var ids []string
		for _, s := range order {
			ids = append(ids, s.ID)
		}
		if !slices.Equal(ids, []string{"s2", "s1", "s3", "s0"}) {
			t.Errorf("placed in the order %v", ids)
		}
		if s := v.Session("never"); s.Phase != session.Pending || s.Reason != "no node fits: node-1 lacks capability gpu" {
			t.Errorf("%s: %s", s.Phase, s.Reason)
		}
	})
}

// TestTimeEndsThings: a session's time to live, a message's deadline, and the memory of what is over.
func TestTimeEndsThings(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, _ *soleHub, _ *Leader) {
		spawn(t, log, "short", "", func(s *apiv1.SessionSpec) { s.Ttl = durationpb.New(10 * time.Second) })
		spawn(t, log, "long", "", nil)
		log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: &clusterv1.SendMessage{
			SessionId: "long", Text: []byte("x"), Priority: apiv1.Priority_NORMAL, Deadline: time.Now().Add(5 * time.Second).UnixNano(),
		}}})
		time.Sleep(11 * time.Second)
		synctest.Wait()
		v := log.store.View()
		if s := v.Session("short"); s.Phase != session.Terminated {
			t.Errorf("after its time to live it is %s", s.Phase)
		}
		if d := v.DeadLetter(state.LetterKey{SessionID: "long", Sequence: 1}); d == nil {
			t.Error("a message outlived its deadline")
		}
		time.Sleep(time.Hour + 2*collectEvery)
		synctest.Wait()
		if log.store.View().Session("short") != nil {
			t.Error("an ended session is kept for ever")
		}
	})
}

// TestALinkThatIsFullIsGivenUp: the node comes back and syncs; nothing is skipped silently.
func TestALinkThatIsFullIsGivenUp(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		n := link(t, hub, "node-1")
		n.full = true
		spawn(t, log, "s1", "id-node-1", nil)
		synctest.Wait()
		if n.closed == "" || n.code != nodelink.CloseLimit {
			t.Errorf("the link stays, or was closed with %d", n.code)
		}
		if live, _ := l.Live("id-node-1"); live.Linked {
			t.Error("the node still counts as linked")
		}
	})
}

func TestNamesAndClustersAreChecked(t *testing.T) {
	reigning(t, func(t *testing.T, _ *soleLog, hub *soleHub, _ *Leader) {
		for want, hello := range map[string]*nodev1.Hello{
			"INVALID_ARGUMENT":    {NodeId: "id-1", Name: "Not a name", Incarnation: 1},
			"FAILED_PRECONDITION": {NodeId: "id-2", Name: "node-2", Incarnation: 1, ClusterId: "another"},
		} {
			l := &fakeLink{hello: hello}
			hub.up(l)
			synctest.Wait()
			if got := l.take(); len(got) != 1 || got[0].GetError().GetCode() != want || l.closed == "" || l.code != nodelink.CloseProtocol {
				t.Errorf("%v: answered %v, closed %q (%d)", hello, got, l.closed, l.code)
			}
		}
		link(t, hub, "node-1")
		taken := &fakeLink{hello: &nodev1.Hello{NodeId: "id-other", Name: "node-1", Incarnation: 1}}
		hub.up(taken)
		synctest.Wait()
		if got := taken.take(); len(got) != 1 || got[0].GetError().GetCode() != "ALREADY_EXISTS" || taken.code != nodelink.CloseProtocol {
			t.Errorf("a name that is taken: %v, closed with %d", got, taken.code)
		}
	})
}
