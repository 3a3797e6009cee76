// Sessions that move between real nodes: live, after a loss, by way of a pause, as a fork.

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// count sends one message and returns what the session counted.
func (s *small) count(id string) int {
	s.t.Helper()
	r, err := s.c.Sessions.SendMessage(s.t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x"), Wait: true})
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := strconv.Atoi(string(r.GetMessage().GetResult()))
	if err != nil {
		s.t.Fatalf("answered %q", r.GetMessage().GetResult())
	}
	return n
}

// lines reads the output and returns its lines by number; notices have number 0 and are counted.
func (s *small) lines(id string) (text map[uint64]string, notices int) {
	s.t.Helper()
	text = map[uint64]string{}
	var last uint64
	if err := s.c.Logs(s.t.Context(), &apiv1.ReadLogsRequest{SessionId: id}, func(l *apiv1.LogLine) error {
		if l.GetNumber() == 0 {
			notices++
			return nil
		}
		if l.GetNumber() != last+1 {
			s.t.Errorf("line %d follows line %d", l.GetNumber(), last)
		}
		last = l.GetNumber()
		text[last] = string(l.GetText())
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
	return text, notices
}

// followLines follows the output from now on, and fails the test when a line is missing or comes twice. The returned function waits
// for a line, and returns the last one that was seen.
func (s *small) followLines(id string) func(until uint64) uint64 {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	var last atomic.Uint64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := s.c.Logs(ctx, &apiv1.ReadLogsRequest{SessionId: id, Follow: true}, func(l *apiv1.LogLine) error {
			if was := last.Load(); l.GetNumber() != was+1 {
				return fmt.Errorf("line %d (%q) follows line %d", l.GetNumber(), l.GetText(), was)
			}
			last.Store(l.GetNumber())
			return nil
		})
		if err != nil && ctx.Err() == nil {
			s.t.Error(err)
		}
	}()
	return func(line uint64) uint64 {
		s.t.Helper()
		s.until("the last line was seen", func(context.Context) bool { return last.Load() >= line })
		cancel()
		<-ended
		return last.Load()
	}
}

// TestMigrationUnderLoad: a session is moved again and again while messages come in; each has its effect once, and every
// line of output is there once.
func TestMigrationUnderLoad(t *testing.T) {
	t.Parallel()
	const moves = 12
	watch := newObserver(t)
	s := startSmall(t, 3, 5*time.Second)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.keeping()})
	var stop atomic.Bool
	sent := make(chan error, 1)
	total := 0
	go func() {
		for ; !stop.Load(); total++ {
			r, err := s.c.Sessions.SendMessage(t.Context(), &apiv1.SendMessageRequest{SessionId: row.GetId(), Text: []byte("x"), Wait: true})
			if err == nil && string(r.GetMessage().GetResult()) != strconv.Itoa(total+1) {
				err = fmt.Errorf("message %d was answered %q", total+1, r.GetMessage().GetResult())
			}
			if err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	followed := s.followLines(row.GetId())
	node := row.GetNode()
	for n := range moves {
		before := s.session(row.GetId()).GetMailbox().GetAcked()
		s.until("some more are acked", func(context.Context) bool { return s.session(row.GetId()).GetMailbox().GetAcked() > before })
		r, err := s.c.Sessions.MigrateSession(t.Context(), &apiv1.MigrateSessionRequest{Id: row.GetId(), Wait: true, Mode: []string{"live", "cold"}[n%2]})
		if err != nil {
			t.Fatalf("move %d: %v", n+1, err)
		}
		after := r.GetSession()
		m := after.GetMigration()
		if m.GetState() != apiv1.Session_Migration_DONE || m.GetSource() != node || m.GetTarget() == node || after.GetNode() != m.GetTarget() || after.GetEpoch() != uint32(n+2) {
			t.Fatalf("move %d: %v; the session is on %s at epoch %d", n+1, m, after.GetNode(), after.GetEpoch())
		}
		node = after.GetNode()
	}
	stop.Store(true)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if last := followed(uint64(total)); last != uint64(total) {
		t.Errorf("who followed the output saw %d lines of %d", last, total)
	}
	text, notices := s.lines(row.GetId())
	if len(text) != total || notices != 0 {
		t.Errorf("%d lines and %d notices of %d answers", len(text), notices, total)
	}
	for n, line := range text {
		if line != strconv.FormatUint(n, 10) {
			t.Errorf("line %d is %q", n, line)
		}
	}
	watch.check(t)
}

// TestFailover: the node of a session dies for good; it goes on elsewhere from its last checkpoint, and is given again what
// that has not seen.
func TestFailover(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	s := startSmall(t, 2, 2*time.Second)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.keeping(), CheckpointEvery: "turn", Restart: "on-failure"})
	for want := 1; want <= 20; want++ {
		if got := s.count(row.GetId()); got != want {
			t.Fatalf("message %d was counted as %d", want, got)
		}
	}
	s.agents[s.agentOf(row)].kill()
	if got := s.count(row.GetId()); got != 21 { // waits for the failover
		t.Errorf("message 21 was counted as %d", got)
	}
	after := s.session(row.GetId())
	if after.GetNode() == row.GetNode() || after.GetEpoch() < 2 || after.GetMailbox().GetAcked() != 21 {
		t.Errorf("the session is on %s at epoch %d with %d acked", after.GetNode(), after.GetEpoch(), after.GetMailbox().GetAcked())
	}
	text, _ := s.lines(row.GetId())
	for n := uint64(1); n <= 21; n++ {
		if text[n] != strconv.FormatUint(n, 10) {
			t.Errorf("line %d is %q", n, text[n])
		}
	}
	watch.check(t)
}

// TestPauseForkRewind: the other verbs, on real nodes.
func TestPauseForkRewind(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	s := startSmall(t, 2, 5*time.Second)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.keeping()})
	id := row.GetId()
	s.count(id)
	s.count(id)
	if _, err := s.c.Sessions.CheckpointSession(t.Context(), &apiv1.CheckpointSessionRequest{Id: id, Wait: true}); err != nil {
		t.Fatal(err)
	}
	s.count(id)

	paused, err := s.c.Sessions.PauseSession(t.Context(), &apiv1.PauseSessionRequest{Id: id, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	if p := paused.GetSession(); p.GetPhase() != apiv1.Session_PAUSED || !watch.free("watched") {
		t.Fatalf("the session is %s: %s", p.GetPhase(), p.GetReason())
	}
	if got := s.count(id); got != 4 { // a message wakes it
		t.Errorf("counts %d after the pause", got)
	}

	fork, err := s.c.Sessions.ForkSession(t.Context(), &apiv1.ForkSessionRequest{Id: id, Name: "fork", Sequence: 1, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.count(fork.GetSession().GetId()); got != 3 {
		t.Errorf("the fork counts %d", got)
	}

	back, err := s.c.Sessions.RewindSession(t.Context(), &apiv1.RewindSessionRequest{Id: id, Sequence: 1, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.count(id); got != 3 {
		t.Errorf("counts %d after the rewind to %d", got, back.GetSession().GetCheckpoint().GetSequence())
	}
	watch.check(t)
}

// TestRestoreOfWhatEnded: a session that was ended goes on from its last checkpoint, and is given again what it answered since. Of
// its checkpoints as many are kept as it asked for.
func TestRestoreOfWhatEnded(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	s := startSmall(t, 1, 5*time.Second)
	id := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.keeping(), KeepCheckpoints: 2}).GetId()
	for range 3 {
		s.count(id)
		if _, err := s.c.Sessions.CheckpointSession(t.Context(), &apiv1.CheckpointSessionRequest{Id: id, Wait: true}); err != nil {
			t.Fatal(err)
		}
	}
	s.count(id)
	s.count(id)
	if _, err := s.c.Sessions.TerminateSession(t.Context(), &apiv1.TerminateSessionRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	s.until("the session has ended", func(context.Context) bool { return s.session(id).GetPhase() == apiv1.Session_TERMINATED })
	if l := s.session(id).GetLag(); l.GetTurns() != 2 || l.GetMessages() != 2 {
		t.Errorf("a restore would give back %v, want 2 turns by 2 messages", l)
	}
	r, err := s.c.Sessions.RewindSession(t.Context(), &apiv1.RewindSessionRequest{Id: id, Wait: true})
	if err != nil || r.GetSession().GetPhase() != apiv1.Session_RUNNING {
		t.Fatalf("%v: %v", r, err)
	}
	if got := s.count(id); got != 6 {
		t.Errorf("counts %d after the restore, want 6: those two again, and this one", got)
	}
	k, err := s.c.Sessions.ListCheckpoints(t.Context(), &apiv1.ListCheckpointsRequest{Id: id})
	if c := k.GetCheckpoints(); err != nil || len(c) != 2 || c[0].GetSequence() != 2 || c[1].GetSequence() != 3 || strings.Join(c[1].GetKeeps(), " ") != "messages workspace" {
		t.Errorf("keeps %v (%v), want checkpoints 2 and 3", c, err)
	}
	watch.check(t)
}
