// The rules of leases, facts and the hub, with a log that may fail or lie about it.

package leader

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/session"
)

// stageLog commits to one state at once.
type stageLog struct {
	state *state.Store
	mu    sync.Mutex
	index uint64
	// refuse, when not nil, is the error of every proposal; with taken it takes effect all the same.
	refuse error
	taken  bool
	// verify, when not nil, is asked instead of being the leader for ever.
	verify func(ctx context.Context) error
	seen   []*clusterv1.Command
	// holding keeps answers back in held.
	holding bool
	held    []func()
}

func (l *stageLog) ProposeAsync(reply func([]state.Result, error), commands ...*clusterv1.Command) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = append(l.seen, commands...)
	if l.refuse != nil {
		if l.taken {
			l.apply(commands)
		}
		reply(nil, l.refuse)
		return nil
	}
	if l.holding {
		l.held = append(l.held, func() { reply(l.apply(commands), nil) })
		return nil
	}
	reply(l.apply(commands), nil)
	return nil
}

// hold has proposals wait; release has those that wait take effect.
func (l *stageLog) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holding = true
}

func (l *stageLog) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.held {
		f()
	}
	l.holding, l.held = false, nil
}

func (l *stageLog) apply(commands []*clusterv1.Command) []state.Result {
	l.index++
	return l.state.Apply(l.index, &clusterv1.Batch{Time: time.Now().UnixNano(), Commands: commands})
}

func (l *stageLog) VerifyLeader(ctx context.Context) error {
	l.mu.Lock()
	verify := l.verify
	l.mu.Unlock()
	if verify != nil {
		return verify(ctx)
	}
	return nil
}

func (l *stageLog) set(refuse error, taken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse, l.taken = refuse, taken
}

func (l *stageLog) count(match func(*clusterv1.Command) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, c := range l.seen {
		if match(c) {
			n++
		}
	}
	return n
}

func losses(c *clusterv1.Command) bool { return c.GetLoseNode() != nil }

// stageHub hands out the reign.
type stageHub struct {
	mu      sync.Mutex
	handler nodelink.Handler
	mode    []string
}

func (h *stageHub) set(mode string, handler nodelink.Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handler, h.mode = handler, append(h.mode, mode)
}
func (h *stageHub) Lead(handler nodelink.Handler) { h.set("lead", handler) }
func (h *stageHub) Pause()                        { h.set("pause", nil) }
func (h *stageHub) Follow(func(context.Context) (nodelink.RelayStream, error)) {
	h.set("follow", nil)
}

func (h *stageHub) modes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.mode)
}

// stageLink is a node's link that keeps what is sent.
type stageLink struct {
	hello *nodev1.Hello
	mu    sync.Mutex
	sent  []*nodev1.Frame
	why   string // it was closed for; empty while it is open
}

func (l *stageLink) ID() string           { return l.hello.GetNodeId() }
func (l *stageLink) Hello() *nodev1.Hello { return l.hello }
func (l *stageLink) Server() string       { return "s1" }
func (l *stageLink) Close(_ int, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = reason
}

func (l *stageLink) Send(f *nodev1.Frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why != "" {
		return nodelink.ErrClosed
	}
	l.sent = append(l.sent, f)
	return nil
}

func (l *stageLink) closed() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}

// take returns what was sent since the last time.
func (l *stageLink) take() []*nodev1.Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	sent := l.sent
	l.sent = nil
	return sent
}

// stage is a leader with everything around it.
type stage struct {
	t      *testing.T
	log    *stageLog
	hub    *stageHub
	leader *Leader
	state  *state.Store
	end    func()
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, state: state.New(state.DefaultLimits()), hub: &stageHub{}}
	s.log = &stageLog{state: s.state}
	r, err := router.New("least-connections")
	if err != nil {
		t.Fatal(err)
	}
	s.leader = New(Options{
		ServerID: "s1", Lease: DefaultLease(), Retention: time.Hour, Log: s.log, State: s.state, Hub: s.hub, Router: r,
		LinkAddresses: func() []string { return []string{"s1:1"} }, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
	})
	s.reign(1)
	return s
}

// reign begins a term.
func (s *stage) reign(term uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.leader.Run(ctx, term) }()
	s.end = func() { cancel(); <-done }
	synctest.Wait()
}

// link is a node's, registered and with its inventory shown.
func (s *stage) link(incarnation uint64, has ...*nodev1.SessionState) *stageLink {
	s.t.Helper()
	l := &stageLink{hello: &nodev1.Hello{NodeId: "n1", Name: "n1", Incarnation: incarnation, Capabilities: &apiv1.Capabilities{
		CanSpawnSessions: true, SupportedSessionTypes: []string{session.TypeProcess},
	}}}
	s.hub.handler.LinkUp(l)
	synctest.Wait()
	sent := l.take()
	if len(sent) < 2 || sent[0].GetHelloAck() == nil || sent[1].GetGetSessions() == nil {
		s.t.Fatalf("a hello was answered with %v (closed: %s)", sent, l.closed())
	}
	s.hub.handler.LinkFrame(l, &nodev1.Frame{Payload: &nodev1.Frame_SessionsResponse{SessionsResponse: &nodev1.SessionsResponse{Incarnation: incarnation, Sessions: has}}})
	synctest.Wait()
	return l
}

func (s *stage) beat(l *stageLink) {
	s.hub.handler.LinkFrame(l, &nodev1.Frame{Payload: &nodev1.Frame_Heartbeat{Heartbeat: &nodev1.Heartbeat{SentAt: time.Now().UnixNano()}}})
	synctest.Wait()
}

// acks counts heartbeat_ack among frames.
func acks(frames []*nodev1.Frame) int {
	n := 0
	for _, f := range frames {
		if f.GetHeartbeatAck() != nil {
			n++
		}
	}
	return n
}

func (s *stage) lost() bool {
	n := s.state.View().Node("n1")
	return n != nil && n.Lost
}

func (s *stage) do(c *clusterv1.Command) state.Result {
	s.t.Helper()
	s.log.mu.Lock()
	r := s.log.apply([]*clusterv1.Command{c})[0]
	s.log.mu.Unlock()
	if r.Err != nil {
		s.t.Fatal(r.Err)
	}
	synctest.Wait()
	return r
}

func (s *stage) spawn(id string) {
	s.t.Helper()
	s.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{
		SessionId: id, Spec: &apiv1.SessionSpec{Command: []string{"true"}, Restart: "always"},
	}}})
}

func TestAHeartbeatIsAnsweredOnlyByAConfirmedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer func() { s.end() }()
		l := s.link(1)
		l.take()
		s.beat(l)
		if n := acks(l.take()); n != 1 {
			t.Errorf("%d answers, want 1", n)
		}
		// While it is not known whether this server still leads, nobody gets an answer; many wait for one confirmation.
		asked, answer := 0, make(chan error)
		s.log.mu.Lock()
		s.log.verify = func(ctx context.Context) error {
			asked++
			select {
			case err := <-answer:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		s.log.mu.Unlock()
		time.Sleep(gatherBeats) // a beat after a pause is asked about at once
		s.beat(l)
		s.beat(l)
		s.beat(l)
		if n := acks(l.take()); n != 0 || asked != 1 {
			t.Fatalf("%d answers before the leadership was confirmed, which was asked %d times", n, asked)
		}
		answer <- nil
		time.Sleep(gatherBeats)
		synctest.Wait()
		if n := acks(l.take()); n != 1 || asked != 2 {
			t.Errorf("%d answers and %d questions, want the first beat answered, and one question for the two after it", n, asked)
		}
		answer <- fault.New(fault.Unavailable, "deposed")
		synctest.Wait()
		if n := acks(l.take()); n != 0 {
			t.Errorf("%d answers of a leader that was not confirmed", n)
		}
	})
}

func TestANodeIsLostWhenItsLeaseHasEndedAndNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer func() { s.end() }()
		l := s.link(1)
		s.beat(l)
		whole := DefaultLease().Duration + DefaultLease().Margin
		s.spawn("a")
		time.Sleep(whole - time.Second)
		if s.lost() {
			t.Error("lost before its lease had ended")
		}
		s.beat(l)
		time.Sleep(whole - time.Second)
		if s.lost() {
			t.Error("lost although its heartbeat was answered")
		}
		time.Sleep(time.Second + 2*tickEvery)
		if !s.lost() || l.closed() == "" {
			t.Errorf("lost: %t, closed: %q; want both", s.lost(), l.closed())
		}
		if a := s.state.View().Session("a"); a.Phase != session.Pending {
			t.Errorf("its session is %s", a.Phase)
		}
	})
}

func TestANewLeaderStartsEveryLeaseAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer func() { s.end() }()
		l := s.link(1)
		s.beat(l)
		whole := DefaultLease().Duration + DefaultLease().Margin
		time.Sleep(whole - time.Second)
		s.end()
		s.reign(2)
		time.Sleep(whole - tickEvery)
		if s.lost() {
			t.Error("lost by a leader that has not led for as long as a lease lasts")
		}
		time.Sleep(3 * tickEvery)
		if !s.lost() {
			t.Error("never lost")
		}
	})
}

// Once LoseNode is on its way, the node gets no lease, whatever the log says.
func TestANodeThatIsBeingLostGetsNoLease(t *testing.T) {
	for name, taken := range map[string]bool{"it takes effect": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				defer func() { s.end() }()
				l := s.link(1)
				time.Sleep(DefaultLease().Duration + DefaultLease().Margin - tickEvery)
				s.log.set(errors.New("may have taken effect"), taken)
				time.Sleep(2 * tickEvery)
				if s.log.count(losses) == 0 {
					t.Fatal("not even tried")
				}
				l.take()
				s.beat(l)
				if n := acks(l.take()); n != 0 {
					t.Error("a node that is being lost was given a lease")
				}
				s.log.set(nil, false)
				time.Sleep(2 * tickEvery)
				if !s.lost() || l.closed() == "" {
					t.Errorf("lost: %t, closed: %q", s.lost(), l.closed())
				}
			})
		})
	}
}

func TestFactsThatLeaveAGapWaitForTheRest(t *testing.T) {
	facts := func(first, last uint64) *nodev1.Frame {
		f := &nodev1.Facts{Incarnation: 1}
		for i := first; i <= last; i++ {
			f.Facts = append(f.Facts, &nodev1.Fact{Index: i, SessionId: "none", Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{}}})
		}
		return &nodev1.Frame{Payload: &nodev1.Frame_Facts{Facts: f}}
	}
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer func() { s.end() }()
		l := s.link(1)
		acked := func() (index uint64) {
			synctest.Wait()
			for _, f := range l.take() {
				index = max(index, f.GetFactsAck().GetIndex())
			}
			return index
		}
		s.hub.handler.LinkFrame(l, facts(3, 4))
		if n := acked(); n != 0 {
			t.Errorf("acked to %d, and 1 and 2 are missing", n)
		}
		s.hub.handler.LinkFrame(l, facts(1, 4)) // as the node does after hello_ack
		if n := acked(); n != 4 {
			t.Errorf("acked to %d, want 4", n)
		}
		s.hub.handler.LinkFrame(l, facts(2, 3)) // once more
		if n := acked(); n != 4 || l.closed() != "" {
			t.Errorf("facts that are known: acked to %d, closed: %q", n, l.closed())
		}
		s.hub.handler.LinkFrame(l, facts(7, 7))
		time.Sleep(resendAfter + time.Second)
		if l.closed() == "" {
			t.Error("5 and 6 never come, and the link stays")
		}
	})
}

func TestInventoryAndDesiredSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer func() { s.end() }()
		first := s.link(1)
		s.beat(first)
		s.spawn("runs")
		s.spawn("missing")
		s.hub.handler.LinkDown(first, "test")
		time.Sleep(time.Second)
		second := s.link(1,
			&nodev1.SessionState{SessionId: "runs", Epoch: 1, Phase: apiv1.Session_RUNNING},
			&nodev1.SessionState{SessionId: "stranger", Epoch: 3, Phase: apiv1.Session_RUNNING})
		got := map[string]nodev1.DesiredSession_Action{}
		for _, f := range second.take() {
			for _, d := range f.GetDesired().GetSessions() {
				got[d.GetSessionId()] = d.GetAction()
			}
		}
		want := map[string]nodev1.DesiredSession_Action{"missing": nodev1.DesiredSession_RUN, "stranger": nodev1.DesiredSession_FORGET}
		if len(got) != len(want) || got["missing"] != want["missing"] || got["stranger"] != want["stranger"] {
			t.Errorf("the node is told %v, want %v", got, want)
		}
	})
}

// fakeWatch says who leads.
type fakeWatch struct {
	mu      sync.Mutex
	now     cluster.Leader
	changed chan struct{}
	slow    chan struct{} // when not nil, Leader answers with what was, once this is closed
}

func (w *fakeWatch) Leader() (cluster.Leader, <-chan struct{}) {
	w.mu.Lock()
	now, changed, slow := w.now, w.changed, w.slow
	w.mu.Unlock()
	if slow != nil {
		<-slow
	}
	return now, changed
}

func (w *fakeWatch) set(l cluster.Leader, slow chan struct{}) {
	w.mu.Lock()
	w.now, w.slow = l, slow
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	synctest.Wait()
}

// Who follows may hear of a leader when this server itself leads already. The reign keeps the hub.
func TestFollowKeepsItsHandsOffTheReignsHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.end()
		w := &fakeWatch{changed: make(chan struct{})}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.leader.Follow(ctx, w, func(context.Context, string) (nodelink.RelayStream, error) { return nil, nil }, nil)
		}()
		synctest.Wait()
		last := func() string { m := s.hub.modes(); return m[len(m)-1] }
		other := cluster.Leader{ID: "s2", Address: "s2"}
		slow := make(chan struct{})
		w.set(other, slow)
		s.reign(2)
		w.mu.Lock()
		w.slow = nil
		w.mu.Unlock()
		close(slow)
		synctest.Wait()
		if last() != "lead" {
			t.Errorf("the hub is told %q while this server leads", last())
		}
		s.end() // and s2 leads again before anybody looked
		w.set(cluster.Leader{}, nil)
		w.set(other, nil)
		if last() != "follow" {
			t.Errorf("the hub is told %q while s2 leads", last())
		}
		w.set(cluster.Leader{}, nil)
		if last() != "pause" {
			t.Errorf("the hub is told %q while nobody leads", last())
		}
		cancel()
		<-done
	})
}
