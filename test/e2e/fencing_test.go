// Fencing: whatever happens to an agent or its network, no session has two owners, and none is left behind.
package e2e

import (
	"context"
	"strconv"
	"syscall"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// TestFencing takes a node away in each of the ways it can go, and watches the session start again elsewhere.
func TestFencing(t *testing.T) {
	for _, tc := range []struct {
		name string
		away func(s *small, i int)
		back func(s *small, i int) // nil: it stays away
	}{
		{"the agent is stopped", func(s *small, i int) { s.agents[i].signal(syscall.SIGSTOP) }, nil},
		{"the agent is stopped and thaws", func(s *small, i int) { s.agents[i].signal(syscall.SIGSTOP) }, func(s *small, i int) { s.agents[i].signal(syscall.SIGCONT) }},
		{"the agent dies", func(s *small, i int) { s.agents[i].kill() }, nil},
		{"the agent dies and comes back too late", func(s *small, i int) { s.agents[i].kill() }, func(s *small, i int) { s.agents[i].run() }},
		{"the network is cut", func(s *small, i int) { s.networks[i].cut(true) }, nil},
		{"the network is cut and heals", func(s *small, i int) { s.networks[i].cut(true) }, func(s *small, i int) { s.networks[i].cut(false) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			watch := newObserver(t)
			s := startSmall(t, 2, 2*time.Second)
			row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.command(), Restart: "always"})
			if row.GetPhase() != apiv1.Session_RUNNING || row.GetEpoch() != 1 {
				t.Fatalf("spawned: %v epoch %d: %s", row.GetPhase(), row.GetEpoch(), row.GetReason())
			}
			s.until("it has started", func(context.Context) bool { return watch.starts() == 1 })
			lost := s.agentOf(row)
			tc.away(s, lost)
			s.until("it runs elsewhere", func(context.Context) bool {
				row = s.session(row.GetId())
				return row.GetPhase() == apiv1.Session_RUNNING && row.GetEpoch() > 1 && watch.starts() >= 2
			})
			watch.check(t)
			if s.agentOf(row) == lost {
				t.Errorf("it was started again on the node that was lost")
			}
			if tc.back == nil {
				return
			}
			tc.back(s, lost)
			s.until("the node is back", func(ctx context.Context) bool { return s.linked(ctx) == 2 })
			after := s.session(row.GetId())
			if after.GetPhase() != apiv1.Session_RUNNING || after.GetEpoch() != row.GetEpoch() || after.GetNode() != row.GetNode() {
				t.Errorf("the return of the node disturbed the session: %s epoch %d on %s", after.GetPhase(), after.GetEpoch(), after.GetNode())
			}
			watch.check(t)
		})
	}
}

// TestLostWithoutRestart: a session that must not be started again is FAILED with cause lost, and nothing of it lives.
func TestLostWithoutRestart(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	s := startSmall(t, 1, 2*time.Second)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.command()})
	s.until("it has started", func(context.Context) bool { return watch.starts() == 1 })
	s.agents[0].kill()
	s.until("it has failed", func(context.Context) bool { return s.session(row.GetId()).GetPhase() == apiv1.Session_FAILED })
	if !watch.free("watched") {
		t.Error("the leader called the session lost while something of it lived")
	}
	if cause := s.session(row.GetId()).GetExit().GetCause(); cause != "lost" {
		t.Errorf("cause %q, want lost", cause)
	}
}

// TestAdoption: an agent that is killed and comes back within the lease finds its session as it was.
func TestAdoption(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	s := startSmall(t, 1, 10*time.Second)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.command()})
	send := func(want string) {
		t.Helper()
		ctx := t.Context()
		r, err := s.c.Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: row.GetId(), Text: []byte("x"), Wait: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(r.GetMessage().GetResult()); got != want {
			t.Errorf("answered %q, want %q", got, want)
		}
	}
	send("1")
	for n := range 3 {
		s.agents[0].kill()
		s.agents[0].run()
		send([]string{"2", "3", "4"}[n])
		after := s.session(row.GetId())
		if after.GetPid() != row.GetPid() || after.GetEpoch() != 1 {
			t.Fatalf("process %d epoch %d after the agent came back, want %d epoch 1", after.GetPid(), after.GetEpoch(), row.GetPid())
		}
	}
	watch.check(t)
	lines := 0
	if err := s.c.Logs(t.Context(), &apiv1.ReadLogsRequest{SessionId: row.GetId()}, func(l *apiv1.LogLine) error {
		lines++
		if int(l.GetNumber()) != lines {
			t.Errorf("line %d has number %d", lines, l.GetNumber())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if lines != 4 {
		t.Errorf("%d lines of output, want 4", lines)
	}
}

// TestTerminateTree: the whole tree ends, also what left its process group and ignores SIGTERM.
func TestTerminateTree(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	s := startSmall(t, 1, 2*time.Second)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.command()})
	s.until("it has started", func(context.Context) bool { return watch.starts() == 1 })
	if _, err := s.c.Sessions.TerminateSession(t.Context(), &apiv1.TerminateSessionRequest{Id: row.GetId()}); err != nil {
		t.Fatal(err)
	}
	s.until("it has ended", func(context.Context) bool { return s.session(row.GetId()).GetPhase() == apiv1.Session_TERMINATED })
	if !watch.free("watched") {
		t.Error("something of the session lives on")
	}
	if cause := s.session(row.GetId()).GetExit().GetCause(); cause != "terminated" {
		t.Errorf("cause %q, want terminated", cause)
	}
}

// TestAdoptionUnderLoad: an agent is killed again and again while messages come in; each has its effect once.
func TestAdoptionUnderLoad(t *testing.T) {
	t.Parallel()
	const messages = 400
	watch := newObserver(t)
	s := startSmall(t, 1, 10*time.Second)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.command()})
	sent := make(chan error, 1)
	go func() {
		for range messages {
			if _, err := s.c.Sessions.SendMessage(t.Context(), &apiv1.SendMessageRequest{SessionId: row.GetId(), Text: []byte("x")}); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	acked := func() uint32 { return s.session(row.GetId()).GetMailbox().GetAcked() }
	for n := range uint32(3) {
		s.until("some more are acked", func(context.Context) bool { return acked() >= (n+1)*messages/5 })
		s.agents[0].kill()
		s.agents[0].run()
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	s.until("all are acked", func(context.Context) bool { return acked() == messages })
	want := 0
	if err := s.c.Logs(t.Context(), &apiv1.ReadLogsRequest{SessionId: row.GetId()}, func(l *apiv1.LogLine) error {
		want++
		if string(l.GetText()) != strconv.Itoa(want) || int(l.GetNumber()) != want {
			t.Errorf("line %d is number %d: %q", want, l.GetNumber(), l.GetText())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want != messages {
		t.Errorf("%d answers, want %d", want, messages)
	}
	watch.check(t)
}
