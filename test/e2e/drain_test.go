// A node that is drained while its sessions work: all of them go, nothing is lost or done twice, and the node is empty.

package e2e

import (
	"context"
	"fmt"
	"slices"
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
	watch := newObserver(t)
	d := &drained{small: startSmall(t, 3, 5*time.Second)}
	d.cordon("node-2", true)
	d.cordon("node-3", true)
	for i := range 6 {
		row := d.spawn(&apiv1.SessionSpec{Name: fmt.Sprint("watched-", i), Command: watch.keeping()})
		d.ids, d.ends = append(d.ids, row.GetId()), append(d.ends, d.talk(row.GetId()))
	}
	d.refusedWithoutRoom()
	d.cordon("node-2", false)
	stayed := d.cancelled()
	d.cordon("node-3", false)
	d.toItsEnd(stayed)
	d.cordon("node-3", true)
	paused := d.withForce()
	d.cordon("node-2", false)
	d.wake(paused)
	watch.check(t)
}

// drained is the cluster of TestDrain: sessions on node-1 that are talked to.
type drained struct {
	*small
	ids  []string
	ends []func() int
}

// refusedWithoutRoom drains node-1 where there is no room: all of them work on where they are.
func (d *drained) refusedWithoutRoom() {
	d.t.Helper()
	_, err := d.c.Nodes.DrainNode(d.t.Context(), &apiv1.DrainNodeRequest{Id: "node-1"})
	if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "6 of its 6 sessions have no place elsewhere") || !strings.Contains(err.Error(), "2 cordoned") {
		d.t.Fatalf("without room: %v", err)
	}
	if n := d.node("node-1"); !n.GetSchedulable() || n.GetDrain() != nil {
		d.t.Fatalf("a refused drain has begun: %v", n)
	}
}

// cancelled uncordons node-1 in the middle of its drain: what moves goes on, and the rest stays.
func (d *drained) cancelled() (stayed uint32) {
	d.t.Helper()
	if _, err := d.c.Nodes.DrainNode(d.t.Context(), &apiv1.DrainNodeRequest{Id: "node-1"}); err != nil {
		d.t.Fatal(err)
	}
	d.until("some are on their way", func(context.Context) bool { return d.node("node-2").GetSessions() > 0 })
	if got := d.cordon("node-1", false).GetDrain(); got.GetState() != apiv1.Drain_CANCELLED || int(got.GetTotal()) != len(d.ids) {
		d.t.Fatalf("uncordoned: %v", got)
	}
	d.until("all work again", func(context.Context) bool {
		return !slices.ContainsFunc(d.ids, func(id string) bool { return d.session(id).GetPhase() != apiv1.Session_RUNNING })
	})
	if stayed = d.node("node-1").GetSessions(); stayed == 0 {
		d.t.Error("nothing stayed, though the drain was cancelled")
	}
	return stayed
}

// toItsEnd drains node-1 of those that stayed: nothing that was said to any of them is lost, or answered twice.
func (d *drained) toItsEnd(stayed uint32) {
	d.t.Helper()
	n := d.drain("node-1", false)
	got := n.GetDrain()
	if got.GetState() != apiv1.Drain_DRAINED || got.GetMoved() != stayed || got.GetPaused() != 0 || n.GetSessions() != 0 || n.GetSchedulable() {
		d.t.Fatalf("drained: %v", n)
	}
	d.t.Logf("%d sessions moved in %s, the longest blackout %.0f ms", stayed, got.GetEndTime().AsTime().Sub(got.GetStartTime().AsTime()), got.GetLongestBlackoutMs())
	for i, end := range d.ends {
		total := end()
		row := d.session(d.ids[i])
		if row.GetPhase() != apiv1.Session_RUNNING || row.GetNode() == "node-1" {
			d.t.Errorf("%s is %s on %s", row.GetName(), row.GetPhase(), row.GetNode())
		}
		text, notices := d.lines(d.ids[i])
		if len(text) != total || notices != 0 {
			d.t.Errorf("%s: %d lines and %d notices of %d answers", row.GetName(), len(text), notices, total)
		}
	}
}

// withForce drains node-2 where there is no room: what has no place is paused.
func (d *drained) withForce() (paused uint32) {
	d.t.Helper()
	held := d.node("node-2").GetSessions()
	if held == 0 {
		d.t.Fatal("node-2 holds nothing to pause")
	}
	n := d.drain("node-2", true)
	if got := n.GetDrain(); got.GetState() != apiv1.Drain_DRAINED || got.GetPaused() != held || got.GetMoved() != 0 || n.GetSessions() != 0 {
		d.t.Fatalf("with force: %v", n)
	}
	return held
}

// wake has those that are paused go on, each by a message.
func (d *drained) wake(paused uint32) {
	d.t.Helper()
	woken := uint32(0)
	for _, id := range d.ids {
		row := d.session(id)
		if row.GetPhase() != apiv1.Session_PAUSED {
			continue
		}
		if before := row.GetMailbox().GetAcked(); d.count(id) != int(before)+1 {
			d.t.Errorf("%s was woken and did not count on from %d", row.GetName(), before)
		}
		woken++
	}
	if woken != paused {
		d.t.Errorf("%d were woken of %d", woken, paused)
	}
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
