// A simulated node against a real hub: it answers as a node should.

package simnode

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/nodelink"
)

// leader is a handler that takes every node in and hands its frames on.
type leader struct {
	links  chan nodelink.Link
	frames chan *nodev1.Frame
}

func (l *leader) LinkUp(link nodelink.Link) {
	_ = link.Send(&nodev1.Frame{Payload: &nodev1.Frame_HelloAck{HelloAck: &nodev1.HelloAck{
		Protocol: 1, Lease: durationpb.New(12 * time.Second), RenewInterval: durationpb.New(3 * time.Second), HeartbeatInterval: durationpb.New(10 * time.Second),
	}}})
	l.links <- link
}
func (l *leader) LinkFrame(_ nodelink.Link, f *nodev1.Frame) { l.frames <- f }
func (l *leader) LinkDown(nodelink.Link, string)             {}

func TestNodeAnswersAsANodeShould(t *testing.T) {
	hub := nodelink.NewHub(nodelink.HubOptions{ServerID: "s"})
	l := &leader{make(chan nodelink.Link, 1), make(chan *nodev1.Frame, 64)}
	hub.Lead(l)
	server := httptest.NewServer(hub)
	defer server.Close()
	var counts counters
	n, err := newNode("n", []string{strings.TrimPrefix(server.URL, "http://")}, nodelink.DialWebSocket(nodelink.DialOptions{}), &counts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); n.run(ctx, time.Hour) }()
	defer func() {
		cancel()
		<-done
		if err := hub.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	link := <-l.links
	next := func(what string, ok func(*nodev1.Frame) bool) {
		t.Helper()
		for {
			select {
			case f := <-l.frames:
				if ok(f) {
					return
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("no %s came", what)
			}
		}
	}
	next("heartbeat", func(f *nodev1.Frame) bool { return f.GetHeartbeat().GetStatus() == apiv1.Node_HEALTHY })
	send := func(f *nodev1.Frame) {
		t.Helper()
		if err := link.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	desire := func(a nodev1.DesiredSession_Action) *nodev1.Frame {
		return &nodev1.Frame{Payload: &nodev1.Frame_Desired{Desired: &nodev1.Desired{Sessions: []*nodev1.DesiredSession{{SessionId: "x", Epoch: 1, Action: a}}}}}
	}
	send(desire(nodev1.DesiredSession_RUN))
	next("started", func(f *nodev1.Frame) bool {
		facts := f.GetFacts().GetFacts()
		return len(facts) == 1 && facts[0].GetStarted() != nil && facts[0].GetIndex() == 1
	})
	send(desire(nodev1.DesiredSession_RUN)) // said again: nothing new
	send(&nodev1.Frame{Payload: &nodev1.Frame_Deliver{Deliver: &nodev1.Deliver{Sessions: []*nodev1.SessionMessages{{
		SessionId: "x", Epoch: 1, Messages: []*apiv1.Message{{Sequence: 7}, {Sequence: 8}},
	}}}}})
	next("turns", func(f *nodev1.Frame) bool {
		facts := f.GetFacts().GetFacts()
		return len(facts) == 2 && facts[0].GetTurnEnded().GetSequence() == 7 && facts[1].GetIndex() == 3
	})
	send(desire(nodev1.DesiredSession_STOP))
	next("exited", func(f *nodev1.Frame) bool {
		facts := f.GetFacts().GetFacts()
		return len(facts) == 1 && facts[0].GetExited() != nil && facts[0].GetIndex() == 4
	})
	send(&nodev1.Frame{Payload: &nodev1.Frame_GetSessions{GetSessions: &nodev1.GetSessions{}}})
	next("inventory", func(f *nodev1.Frame) bool {
		s := f.GetSessionsResponse().GetSessions()
		return len(s) == 1 && s[0].GetPhase() == apiv1.Session_TERMINATED
	})
	if c := counts.get(); c.Linked != 1 || c.Started != 1 || c.Turns != 2 || c.Ended != 1 {
		t.Errorf("counts %+v", c)
	}
}
