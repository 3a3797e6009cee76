// The batched sender under broken streams: nothing lost, nothing doubled, every message its own answer.

package client_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/fault"
)

// sendAll sends from many goroutines and returns the sequences, each of which must come once.
func sendAll(t *testing.T, s *client.Sender, id string, goroutines, each int) {
	t.Helper()
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				seq, err := s.Send(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: fmt.Appendf(nil, "%d %d", g, i)})
				mu.Lock()
				if err != nil || seen[seq] || seq == 0 {
					t.Errorf("sequence %d twice, or %v", seq, err)
				}
				seen[seq] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestSenderLosesAndDoublesNothing(t *testing.T) {
	var servers []*clienttest.Server
	var breaks atomic.Int32
	c, servers, cl := setup(t, 2, func(cfg *client.Config) {
		cfg.OnRetry = func(client.Retry) {
			if breaks.Add(1) == 3 {
				servers[0].Stop()
			}
		}
	})
	id := spawn(t, cl, "a")
	for i := range 8 { // streams that break after their batches had their effect
		c.Inject("SendMessages", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1 + i%3})
	}
	s := cl.NewSender()
	defer s.Close()
	sendAll(t, s, id, 32, 50)
	if n := c.Messages(id); n != 32*50 {
		t.Fatalf("%d messages arrived, want %d", n, 32*50)
	}
	if breaks.Load() < 8 {
		t.Fatalf("only %d streams broke; the test proves nothing", breaks.Load())
	}
}

func TestSenderFallsBackToSingleCalls(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	id := spawn(t, cl, "a")
	c.Inject("SendMessages", clienttest.Fault{Err: status.Error(codes.Unimplemented, "unknown method")})
	s := cl.NewSender()
	defer s.Close()
	sendAll(t, s, id, 4, 10)
	if c.Messages(id) != 40 || c.Calls("SendMessages") != 1 || c.Calls("SendMessage") != 40 {
		t.Fatal(c.Messages(id), c.Calls("SendMessages"), c.Calls("SendMessage"))
	}
}

func TestSenderGivesEachMessageItsOwnAnswer(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	id := spawn(t, cl, "a")
	s := cl.NewSender()
	defer s.Close()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			to, want := id, fault.Kind(255)
			if i%2 == 1 {
				to, want = "nobody", fault.NotFound
			}
			seq, err := s.Send(t.Context(), &apiv1.SendMessageRequest{SessionId: to, Text: []byte("x")})
			if want == fault.NotFound && !fault.Is(err, want) || want != fault.NotFound && (err != nil || seq == 0) {
				t.Error(to, seq, err)
			}
		})
	}
	wg.Wait()
	if r, err := s.Send(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x"), IdempotencyKey: "k"}); err != nil || r != 11 {
		t.Fatal(r, err)
	}
	if r, err := s.Send(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x"), IdempotencyKey: "k"}); err != nil || r != 11 {
		t.Fatal("the same key is another message", r, err)
	}
	if c.Messages(id) != 11 {
		t.Fatal(c.Messages(id))
	}
}

func TestSenderStopsAtWhatRepeatingCannotHelp(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	s := cl.NewSender()
	defer s.Close()
	c.Inject("SendMessages", clienttest.Fault{Err: status.Error(codes.PermissionDenied, "you may not")})
	if _, err := s.Send(t.Context(), &apiv1.SendMessageRequest{SessionId: "a", Text: []byte("x")}); !fault.Is(err, fault.PermissionDenied) {
		t.Fatal(err)
	}
}

func TestSenderEndsWithItsCallersAndWithClose(t *testing.T) {
	_, servers, cl := setup(t, 1, nil)
	servers[0].Stop()
	s := cl.NewSender()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Send(ctx, &apiv1.SendMessageRequest{SessionId: "a", Text: []byte("x")}); !fault.Is(err, fault.Timeout) {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		_, err := s.Send(t.Context(), &apiv1.SendMessageRequest{SessionId: "a", Text: []byte("x")})
		failed <- err
	}()
	_ = s.Close()
	if err := <-failed; !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
}

// BenchmarkSend compares the two ways to send, against a server that answers at once.
func BenchmarkSend(b *testing.B) {
	c := clienttest.New()
	c.AddNode("node-1")
	cl, err := client.New(client.Config{Addresses: []string{c.Serve(b, nil).Address}})
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	r, err := cl.Sessions.SpawnSession(b.Context(), &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Command: []string{"run"}}})
	if err != nil {
		b.Fatal(err)
	}
	s := cl.NewSender()
	defer s.Close()
	req := &apiv1.SendMessageRequest{SessionId: r.GetSession().GetId(), Text: make([]byte, 256)}
	for name, send := range map[string]func() error{
		"unary":  func() error { _, err := cl.Sessions.SendMessage(b.Context(), req); return err },
		"sender": func() error { _, err := s.Send(b.Context(), req); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(128)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := send(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// Whatever breaks, each message is answered with the result of its own turn, and none is there twice.
func TestAskIsAnsweredOnceWhateverBreaks(t *testing.T) {
	c, _, cl := setup(t, 2, nil)
	id := spawn(t, cl, "a")
	for i := range 8 { // after the answer to a batch, after some of its turns, in the middle of the next
		c.Inject("SendMessages", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1 + i})
	}
	s := cl.NewSender()
	defer s.Close()
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := range 20 {
				text := fmt.Sprint(g, " ", i)
				m, err := s.Ask(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte(text)})
				if err != nil || string(m.GetResult()) != "echo: "+text {
					t.Errorf("%q was answered with %v, %v", text, m, err)
				}
			}
		})
	}
	wg.Wait()
	if n := c.Messages(id); n != 32*20 {
		t.Errorf("%d messages arrived, want %d", n, 32*20)
	}
}

func TestAskTellsWhatBecameOfIt(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	id := spawn(t, cl, "a")
	s := cl.NewSender()
	defer s.Close()
	// A server that knows batches and not their turns takes the message; it is asked for by itself.
	c.Inject("SendMessages", clienttest.Fault{Err: status.Error(codes.Unimplemented, "unknown method")})
	if m, err := s.Ask(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("one")}); err != nil || string(m.GetResult()) != "echo: one" {
		t.Errorf("by single calls: %v, %v", m, err)
	}
	if _, err := s.Ask(t.Context(), &apiv1.SendMessageRequest{SessionId: "nobody", Text: []byte("one")}); !fault.Is(err, fault.NotFound) {
		t.Errorf("to nobody: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	waits := spawn(t, cl, "waits")
	if _, err := cl.Sessions.PauseSession(t.Context(), &apiv1.PauseSessionRequest{Id: waits}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Ask(ctx, &apiv1.SendMessageRequest{SessionId: waits, Text: []byte("one")})
	if err != nil && !fault.Is(err, fault.Timeout) {
		t.Errorf("a turn that does not end in time: %v", err)
	}
}
