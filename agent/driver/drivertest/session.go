// A toy session in a test's hands: begun, asked, read, and ended with the test.

package drivertest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/session"
)

// Session is a running toy with what tests need of it.
type Session struct {
	driver.Process
	T        *testing.T
	released bool
}

// Begin starts a session and ends it with the test.
func Begin(t *testing.T, d driver.Driver, s driver.Start) *Session {
	t.Helper()
	p, err := d.Start(t.Context(), s)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	return keep(t, p)
}

// Adopt adopts a session and ends it with the test.
func Adopt(t *testing.T, d driver.Driver, s driver.Start) *Session {
	t.Helper()
	p, err := d.Adopt(t.Context(), s)
	if err != nil {
		t.Fatalf("adopt: %v", err)
	}
	return keep(t, p)
}

func keep(t *testing.T, p driver.Process) *Session {
	s := &Session{Process: p, T: t}
	t.Cleanup(func() {
		p.Kill(session.Exit{Cause: session.CauseTerminated, Message: "the test is over"})
		if s.released {
			return // another holds it, or it ended without this one
		}
		select {
		case <-p.Done():
		case <-time.After(Patience):
			t.Errorf("the session does not end")
		}
		p.Release()
	})
	return s
}

// Release lets go of the process, as an agent does that stops.
func (s *Session) Release() {
	s.released = true
	s.Process.Release()
}

// Send gives a message and fails the test when it is not taken.
func (s *Session) Send(sequence uint64, text string) {
	s.T.Helper()
	ctx, cancel := context.WithTimeout(s.T.Context(), Patience)
	defer cancel()
	if err := s.Process.Send(ctx, driver.Input{Sequence: sequence, Priority: session.Normal, Text: []byte(text)}); err != nil {
		s.T.Fatalf("send %d %q: %v", sequence, text, err)
	}
}

// Turn waits for the next turn's end.
func (s *Session) Turn() driver.Turn {
	s.T.Helper()
	select {
	case turn, ok := <-s.Turns():
		if !ok {
			s.T.Fatalf("no more turns: the session ended: %+v", s.Exit())
		}
		return turn
	case <-time.After(Patience):
		s.T.Fatal("no turn ended")
	}
	return driver.Turn{}
}

// Ask sends a message and returns its turn.
func (s *Session) Ask(sequence uint64, text string) driver.Turn {
	s.T.Helper()
	s.Send(sequence, text)
	turn := s.Turn()
	if turn.Sequence != sequence {
		s.T.Fatalf("the turn of %d ended, want %d", turn.Sequence, sequence)
	}
	return turn
}

// Ended waits for the end and returns it.
func (s *Session) Ended() session.Exit {
	s.T.Helper()
	select {
	case <-s.Done():
	case <-time.After(Patience):
		s.T.Fatal("it did not end")
	}
	return s.Exit()
}

// end sends a last message and waits for the end.
func (s *Session) end(text string) session.Exit {
	s.T.Helper()
	s.Send(1<<40, text)
	return s.Ended()
}

// Logs reads all lines from one on, as "NUMBER STREAM TEXT".
func (s *Session) Logs(from uint64) []string {
	s.T.Helper()
	var out []string
	err := s.ReadLogs(s.T.Context(), from, false, func(lines []*apiv1.LogLine) error {
		for _, l := range lines {
			out = append(out, Line(l))
		}
		return nil
	})
	if err != nil {
		s.T.Fatalf("logs: %v", err)
	}
	return out
}

// Line is a log line as the suite compares it.
func Line(l *apiv1.LogLine) string { return fmt.Sprintf("%d %s %s", l.Number, l.Stream, l.Text) }

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("%s: got\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func result(t *testing.T, turn driver.Turn, want string) {
	t.Helper()
	if string(turn.Result) != want || turn.Truncated || turn.Refused != "" {
		t.Fatalf("turn %d gave %+v, want %q", turn.Sequence, turn, want)
	}
}
