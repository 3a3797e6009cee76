// Confirming the leadership: rounds are shared, and only fresh answers count.

package cluster

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestAQuestionDuringARoundWaitsForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan error)
		var rounds atomic.Int32
		v := &verifier{ask: func() error { rounds.Add(1); return <-answers }}
		var done atomic.Int32
		ask := func(want error) {
			go func() {
				if err := v.verify(context.Background()); !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
				done.Add(1)
			}()
			synctest.Wait()
		}
		ask(nil) // begins a round
		deposed := raft.ErrNotLeader
		for range 10 {
			ask(deposed) // the round under way may be answered by what was true before
		}
		if n := rounds.Load(); n != 1 {
			t.Fatalf("%d rounds, want one under way", n)
		}
		answers <- nil
		synctest.Wait()
		if n := done.Load(); n != 1 {
			t.Fatalf("%d questions were answered by the first round, want the one before it", n)
		}
		answers <- deposed
		synctest.Wait()
		if n, d := rounds.Load(), done.Load(); n != 2 || d != 11 {
			t.Fatalf("%d rounds answered %d questions, want the other ten to share the second", n, d)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := v.verify(ctx); !fault.Is(err, fault.Timeout) {
			t.Errorf("a round without an answer: %v", err)
		}
		answers <- nil
		v.wait.Wait()
	})
}

// slowTransport holds back the answers to AppendEntries.
type slowTransport struct {
	*raft.InmemTransport
	term   uint64
	answer chan struct{}
}

func (s *slowTransport) AppendEntries(_ raft.ServerID, _ raft.ServerAddress, _ *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	<-s.answer
	resp.Term = s.term
	return nil
}

func TestOnlyAnswersToLaterRequestsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, inmem := raft.NewInmemTransport("a")
		slow := &slowTransport{InmemTransport: inmem, term: 5, answer: make(chan struct{})}
		c, err := newContact(slow, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		voters := []raft.Server{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d", Suffrage: raft.Nonvoter}}
		send := func(to raft.ServerID, term uint64) {
			go func() {
				var resp raft.AppendEntriesResponse
				_ = c.AppendEntries(to, "", &raft.AppendEntriesRequest{Term: term}, &resp)
			}()
			synctest.Wait()
		}
		fresh := func(question, term uint64) bool {
			synctest.Wait()
			ok, _ := c.since(question, term, "a", voters)
			return ok
		}
		send("b", 5)
		question := c.ask()
		slow.answer <- struct{}{}
		if fresh(question, 5) {
			t.Error("an answer to a request that was sent before the question counted")
		}
		send("d", 5)
		slow.answer <- struct{}{}
		if fresh(question, 5) {
			t.Error("the answer of a server without a vote counted")
		}
		slow.term = 6
		send("b", 5)
		slow.answer <- struct{}{}
		if fresh(question, 5) {
			t.Error("the answer of a server that is in a later term counted")
		}
		slow.term = 5
		_, changed := c.since(question, 5, "a", voters)
		send("c", 5)
		slow.answer <- struct{}{}
		if !fresh(question, 5) {
			t.Error("one fresh answer and the leader itself are a majority of three")
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was woken by an answer")
		}
		if fresh(question, 6) {
			t.Error("an answer in term 5 counted for term 6")
		}
	})
}
