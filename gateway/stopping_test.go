// A server that stops: nobody waits for what would not end by itself, and whoever is cut off hears that another server goes on.

package gateway

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func TestAServerThatStopsEndsWhatIsUnderWay(t *testing.T) {
	a := startAlone(t)
	a.spawn("s", "", "s")
	ctx := a.as(a.admin)
	watch, err := apiv1.NewEventServiceClient(a.conn).WatchEvents(ctx, &apiv1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	watched := make(chan error, 1)
	go func() {
		for {
			if _, err := watch.Recv(); err != nil {
				watched <- err
				return
			}
		}
	}()
	waited := make(chan error, 1)
	go func() { // no node takes the message
		_, err := apiv1.NewSessionServiceClient(a.conn).SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: "s", Text: []byte("x"), Wait: true})
		waited <- err
	}()
	for a.ops.State.View().Mailbox("s").Queued == 0 {
		select {
		case err := <-waited:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	began := time.Now()
	a.api.End(10 * time.Second)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	for what, err := range map[string]error{"a watch": <-watched, "a call that waits": <-waited} {
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "is stopping; ask another one") {
			t.Errorf("%s ended with %v", what, err)
		}
	}
}

// TestEndingIsNotBlamedOnTheServer: a call that its caller gave up, or that failed by itself, says so.
func TestEndingIsNotBlamedOnTheServer(t *testing.T) {
	s := newStopping("s1")
	defer s.endStreams()
	defer s.endWaits()
	if err := s.within(s.streams, t.Context(), func(context.Context) error { return io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("its own failure became %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.within(s.streams, ctx, func(ctx context.Context) error { cancel(); <-ctx.Done(); return ctx.Err() }); !errors.Is(err, context.Canceled) {
		t.Errorf("its caller's end became %v", err)
	}
	s.endStreams()
	if err := s.within(s.streams, t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Errorf("what was answered in time became %v", err)
	}
}
