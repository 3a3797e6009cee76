// Requests with their answers, and their bound.

package nodelink

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func getSession(id string) *nodev1.Frame {
	return &nodev1.Frame{Epoch: 2, Payload: &nodev1.Frame_GetSession{GetSession: &nodev1.GetSession{SessionId: id}}}
}

func TestRequester(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []*nodev1.Frame
		var sendErr error
		r := NewRequester("l7-", 0, func(f *nodev1.Frame) error {
			if sendErr == nil {
				sent = append(sent, f)
			}
			return sendErr
		})
		type res struct {
			f   *nodev1.Frame
			err error
		}
		ask := func(f *nodev1.Frame) chan res {
			ch := make(chan res, 1)
			go func() {
				f, err := r.Do(context.Background(), f)
				ch <- res{f, err}
			}()
			synctest.Wait()
			return ch
		}
		state := func(id, session string) *nodev1.Frame {
			return &nodev1.Frame{RequestId: id, Payload: &nodev1.Frame_SessionState{SessionState: &nodev1.SessionState{SessionId: session}}}
		}
		// Two at once, answered the other way round.
		mine := getSession("a")
		a, b := ask(mine), ask(getSession("b"))
		if len(sent) != 2 || sent[0].GetRequestId() != "l7-1" || sent[1].GetRequestId() != "l7-2" || sent[0].GetEpoch() != 2 || mine.GetRequestId() != "" {
			t.Fatalf("sent %v", sent)
		}
		if !r.Answer(state("l7-2", "b")) || !r.Answer(state("l7-1", "a")) {
			t.Error("an answer was not taken")
		}
		if got := <-a; got.err != nil || got.f.GetSessionState().GetSessionId() != "a" {
			t.Errorf("a: %v", got)
		}
		if got := <-b; got.err != nil || got.f.GetSessionState().GetSessionId() != "b" {
			t.Errorf("b: %v", got)
		}
		// An error frame is an error of its kind; an answer of another type is a defect.
		c, d := ask(getSession("c")), ask(getSession("d"))
		r.Answer(ErrorFrame(sent[2], fault.New(fault.NotFound, "no session c here")))
		r.Answer(&nodev1.Frame{RequestId: "l7-4", Payload: &nodev1.Frame_HealthResponse{HealthResponse: &nodev1.HealthResponse{}}})
		if got := <-c; !fault.Is(got.err, fault.NotFound) || got.err.Error() != "no session c here" {
			t.Errorf("c: %v", got)
		}
		if got := <-d; !fault.Is(got.err, fault.Internal) {
			t.Errorf("d: %v", got)
		}
		// No answer within 30 s; the late one is counted, and reaches nobody.
		began := time.Now()
		e := ask(getSession("e"))
		if got := <-e; !fault.Is(got.err, fault.Timeout) || time.Since(began) != DefaultRequestTimeout {
			t.Errorf("e: %v after %s", got, time.Since(began))
		}
		if r.Late() != 0 || !r.Answer(state("l7-5", "e")) || r.Late() != 1 {
			t.Errorf("late answers: %d", r.Late())
		}
		// What is no answer is not taken; another requester's answer is, and counted.
		if r.Answer(getSession("x")) || r.Answer(heartbeatAckFrame(1)) || r.Answer(state("", "x")) {
			t.Error("a frame that is no answer was taken")
		}
		if !r.Answer(state("other-1", "x")) || r.Late() != 2 {
			t.Errorf("late answers: %d", r.Late())
		}
		// A caller that leaves.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Do(ctx, getSession("f")); !fault.Is(err, fault.Timeout) {
			t.Errorf("f: %v", err)
		}
		sendErr = ErrQueueFull
		if _, err := r.Do(t.Context(), getSession("g")); !fault.Is(err, fault.Exhausted) {
			t.Errorf("a full queue gave %v", err)
		}
		sendErr = ErrClosed
		if _, err := r.Do(t.Context(), getSession("g")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("a closed link gave %v", err)
		}
		sendErr = nil
		if _, err := r.Do(t.Context(), heartbeatAckFrame(1)); !fault.Is(err, fault.Invalid) {
			t.Errorf("no request gave %v", err)
		}
		// The link ends.
		h := ask(getSession("h"))
		r.Close(ErrClosed)
		if got := <-h; !fault.Is(got.err, fault.Unavailable) {
			t.Errorf("h: %v", got)
		}
		if _, err := r.Do(t.Context(), getSession("i")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("i: %v", err)
		}
		if len(r.pending) != 0 {
			t.Errorf("%d requests are still pending", len(r.pending))
		}
	})
}

func TestRequesterBound(t *testing.T) {
	r := NewRequester("", 0, func(*nodev1.Frame) error { return nil })
	for i := range MaxPendingRequests {
		if err := r.register(string(rune(i)), "get_session", &pendingRequest{answer: make(chan result, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Do(t.Context(), getSession("one too many")); !fault.Is(err, fault.Exhausted) {
		t.Errorf("got %v", err)
	}
}
