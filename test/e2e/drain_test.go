// A node that is drained while its sessions work: all of them go, nothing is lost or done twice, and the node is empty.

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func (s *small) cordon(node string, cordoned bool) *apiv1.Node {
	s.t.Helper()
	if cordoned {
		r, err := s.c.Nodes.CordonNode(s.t.Context(), &apiv1.CordonNodeRequest{Id: node})
		if err != nil {
			s.t.Fatal(err)
		}
		return r.GetNode()
	}
	r, err := s.c.Nodes.UncordonNode(s.t.Context(), &apiv1.UncordonNodeRequest{Id: node})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetNode()
}

func (s *small) node(name string) *apiv1.Node {
	s.t.Helper()
	r, err := s.c.Nodes.GetNode(s.t.Context(), &apiv1.GetNodeRequest{Id: name})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetNode()
}

// drain drains a node and returns it when the drain is over.
func (s *small) drain(node string, force bool) *apiv1.Node {
	s.t.Helper()
	if _, err := s.c.Nodes.DrainNode(s.t.Context(), &apiv1.DrainNodeRequest{Id: node, Force: force, Deadline: durationpb.New(time.Minute)}); err != nil {
		s.t.Fatal(err)
	}
	var n *apiv1.Node
	s.until("the drain is over", func(context.Context) bool {
		n = s.node(node)
		return n.GetDrain().GetState() != apiv1.Drain_DRAINING
	})
	return n
}

// talk sends messages to a session, one after the other, and checks each answer, which counts them. The returned function ends that
// and returns how many there were.
func (s *small) talk(id string) (end func() int) {
	var stop atomic.Bool
	sent := make(chan error, 1)
	total := 0
	go func() {
		for ; !stop.Load(); total++ {
			r, err := s.c.Sessions.SendMessage(context.Background(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x"), Wait: true, IdempotencyKey: fmt.Sprint(id, "-", total)})
			if err == nil && string(r.GetMessage().GetResult()) != strconv.Itoa(total+1) {
				err = fmt.Errorf("message %d to %s was answered %q", total+1, id, r.GetMessage().GetResult())
			}
			if err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	return func() int {
		s.t.Helper()
		stop.Store(true)
		if err := <-sent; err != nil {
			s.t.Fatal(err)
		}
		return total
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	const sessions = 6
	watch := newObserver(t)
	s := startSmall(t, 3, 5*time.Second)
	s.cordon("node-2", true)
	s.cordon("node-3", true)
	var ids []string
	var ends []func() int
	for i := range sessions {
		row := s.spawn(&apiv1.SessionSpec{Name: fmt.Sprint("watched-", i), Command: watch.keeping()})
		ids, ends = append(ids, row.GetId()), append(ends, s.talk(row.GetId()))
	}

	// There is no room: it is refused, and all of them work on where they are.
	_, err := s.c.Nodes.DrainNode(t.Context(), &apiv1.DrainNodeRequest{Id: "node-1"})
	if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "6 of its 6 sessions have no place elsewhere") || !strings.Contains(err.Error(), "2 cordoned") {
		t.Fatalf("without room: %v", err)
	}
	if n := s.node("node-1"); !n.GetSchedulable() || n.GetDrain() != nil {
		t.Fatalf("a refused drain has begun: %v", n)
	}

	// An uncordon cancels it: what moves goes on, and the rest stays.
	s.cordon("node-2", false)
	if _, err := s.c.Nodes.DrainNode(t.Context(), &apiv1.DrainNodeRequest{Id: "node-1"}); err != nil {
		t.Fatal(err)
	}
	s.until("some are on their way", func(context.Context) bool { return s.node("node-2").GetSessions() > 0 })
	if d := s.cordon("node-1", false).GetDrain(); d.GetState() != apiv1.Drain_CANCELLED || d.GetTotal() != sessions {
		t.Fatalf("uncordoned: %v", d)
	}
	s.until("all work again", func(context.Context) bool {
		for _, id := range ids {
			if s.session(id).GetPhase() != apiv1.Session_RUNNING {
				return false
			}
		}
		return true
	})
	stayed := s.node("node-1").GetSessions()
	if stayed == 0 {
		t.Error("nothing stayed, though the drain was cancelled")
	}

	// To its end.
	s.cordon("node-3", false)
	n := s.drain("node-1", false)
	if d := n.GetDrain(); d.GetState() != apiv1.Drain_DRAINED || d.GetMoved() != stayed || d.GetPaused() != 0 || n.GetSessions() != 0 || n.GetSchedulable() {
		t.Fatalf("drained: %v", n)
	}
	t.Logf("%d sessions moved in %s, the longest blackout %.0f ms", stayed, n.GetDrain().GetEndTime().AsTime().Sub(n.GetDrain().GetStartTime().AsTime()), n.GetDrain().GetLongestBlackoutMs())
	for i, end := range ends {
		total := end()
		row := s.session(ids[i])
		if row.GetPhase() != apiv1.Session_RUNNING || row.GetNode() == "node-1" {
			t.Errorf("%s is %s on %s", row.GetName(), row.GetPhase(), row.GetNode())
		}
		text, notices := s.lines(ids[i])
		if len(text) != total || notices != 0 {
			t.Errorf("%s: %d lines and %d notices of %d answers", row.GetName(), len(text), notices, total)
		}
	}

	// With force what has no place is paused; a message has it go on, where there is room by then.
	s.cordon("node-3", true)
	held := s.node("node-2").GetSessions()
	if held == 0 {
		t.Fatal("node-2 holds nothing to pause")
	}
	n = s.drain("node-2", true)
	if d := n.GetDrain(); d.GetState() != apiv1.Drain_DRAINED || d.GetPaused() != held || d.GetMoved() != 0 || n.GetSessions() != 0 {
		t.Fatalf("with force: %v", n)
	}
	s.cordon("node-2", false)
	woken := 0
	for _, id := range ids {
		if s.session(id).GetPhase() == apiv1.Session_PAUSED {
			before := s.session(id).GetMailbox().GetAcked()
			if got := s.count(id); got != int(before)+1 {
				t.Errorf("woken, it counts %d after %d", got, before)
			}
			woken++
		}
	}
	if woken != int(held) {
		t.Errorf("%d were woken of %d", woken, held)
	}
	watch.check(t)
}

// TestIdlePause: a session that nobody talks to is paused, and woken by a message.
func TestIdlePause(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	s := startSmall(t, 1, 5*time.Second)
	row := s.spawn(&apiv1.SessionSpec{Command: watch.keeping(), PauseAfter: durationpb.New(time.Second)})
	for want := 1; want <= 2; want++ {
		if got := s.count(row.GetId()); got != want {
			t.Fatalf("counted %d, want %d", got, want)
		}
		s.until("it is paused", func(context.Context) bool { return s.session(row.GetId()).GetPhase() == apiv1.Session_PAUSED })
	}
	watch.check(t)
}
