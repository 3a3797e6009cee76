// Idle sessions: paused so long after their last turn, never in the middle of one, and woken by a message.

package leader

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/session"
)

func pauseAfter(d time.Duration) func(*apiv1.SessionSpec) {
	return func(s *apiv1.SessionSpec) { s.PauseAfter = durationpb.New(d) }
}

func (c *crowd) send(id string) uint64 {
	c.t.Helper()
	seq := c.log.do(c.t, &clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: &clusterv1.SendMessage{SessionId: id, Text: []byte("x")}}}).Sequence
	synctest.Wait()
	return seq
}

func (c *crowd) turn(node, id string, seq uint64) {
	c.node("id-"+node).report(c, &nodev1.Fact{SessionId: id, Epoch: c.session(id).Epoch, Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{Sequence: seq}}})
}

func TestAnIdleSessionIsPaused(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1")
		c.run("node-1", pauseAfter(time.Minute), "s", "busy")
		c.run("node-1", nil, "never")
		seq, hers := c.send("s"), c.send("busy")
		c.pass(5 * time.Minute) // turns under way are no idle time
		c.phase("s", session.Running)
		c.turn("node-1", "s", seq)
		c.pass(59 * time.Second)
		c.phase("s", session.Running)
		c.pass(2 * time.Second)
		c.phase("s", session.Paused)
		if s := c.session("s"); s.History[len(s.History)-2].Reason != "being checkpointed for a pause: idle for 1m0s" {
			t.Errorf("paused for %q", s.History[len(s.History)-2].Reason)
		}
		c.phase("busy", session.Running)
		c.phase("never", session.Running)
		// A message wakes it, and the time counts again from the end of that turn.
		seq = c.send("s")
		c.pass(2 * time.Minute)
		c.where("s", "node-1")
		c.turn("node-1", "s", seq)
		c.turn("node-1", "busy", hers)
		c.pass(time.Minute + time.Second)
		c.phase("s", session.Paused)
		c.phase("busy", session.Paused)
	})
}

// TestASessionThatCannotBeSavedIsNotPausedAllTheTime: it works on, and the pause is tried again after a while.
func TestASessionThatCannotBeSavedIsNotPausedAllTheTime(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1")
		c.full["s"] = true
		c.run("node-1", pauseAfter(time.Second), "s")
		c.pass(5 * time.Minute)
		if n := c.session("s").Move; n != 0 {
			t.Errorf("it is to leave: %d", n)
		}
		if events := len(log.store.View().Events(0, 1000)); events > 60 {
			t.Errorf("%d events in five minutes", events)
		}
		delete(c.full, "s")
		c.pass(time.Minute)
		c.phase("s", session.Paused)
	})
}

// TestIdleSessionsCostNothingBeforeTheyAreDue: a turn leaves no entry behind, and a tick looks at nobody who is not due.
func TestIdleSessionsCostNothingBeforeTheyAreDue(t *testing.T) {
	h := newHistory(t)
	r := deliverer(h)
	for i := range 100 {
		id := fmt.Sprint("s", i)
		h.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{
			SessionId: id, NodeId: "n1", Spec: &apiv1.SessionSpec{Command: []string{"true"}, PauseAfter: durationpb.New(time.Hour)},
		}}})
		h.facts++
		h.do(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{NodeId: "n1", Incarnation: 1, Facts: []*nodev1.Fact{{
			Index: h.facts, SessionId: id, Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 1}},
		}}}}})
		for range 10 {
			r.watchIdle(h.store.View().Session(id))
		}
	}
	if len(r.idle) != 100 {
		t.Fatalf("%d entries for 100 sessions", len(r.idle))
	}
	r.pauseIdle(time.Unix(0, r.idle[0].at-1))
	if len(r.idle) != 100 {
		t.Errorf("%d entries after a tick", len(r.idle))
	}
}

// BenchmarkIdleTick is what a tick costs where a million sessions may be paused and none is due.
func BenchmarkIdleTick(b *testing.B) {
	route, err := router.New("least-connections")
	if err != nil {
		b.Fatal(err)
	}
	r := newReign(New(Options{State: state.New(state.DefaultLimits()), Router: route, Now: time.Now, Logger: slog.New(slog.DiscardHandler)}), 1)
	spec := &session.Spec{PauseAfter: time.Hour}
	for i := range 1_000_000 {
		r.watchIdle(&session.Session{ID: fmt.Sprint(i), Phase: session.Running, Spec: spec, History: []session.HistoryEntry{{Time: int64(i)}}})
	}
	for b.Loop() {
		r.pauseIdle(time.Unix(0, 0))
	}
}
