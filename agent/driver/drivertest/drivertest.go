// Package drivertest is the one conformance suite of all drivers: what the agent relies on, whatever runs behind it.
//
// A driver's tests call Run with a Harness. The sessions of the suite are toys that take messages by the line protocol
// and understand the commands that package fake documents; Toy is the same as a real program.
package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// Patience bounds every wait; a test that meets it has failed.
const Patience = 20 * time.Second

// Harness is what a driver brings to the suite.
type Harness struct {
	// New returns a driver as a newly started agent on the same node would make it.
	New func(t *testing.T) driver.Driver
	// Start returns what a toy session is started with: a directory of its own, and a held lease. Its spec may be changed.
	Start func(t *testing.T, name string) driver.Start
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"turns in order":                        testTurns,
		"numbers go on across epochs":           testNumbers,
		"a sequence is written once":            testDedupe,
		"one turn at a time":                    testBusy,
		"what can never be taken is refused":    testRefused,
		"exit codes and causes":                 testExits,
		"stop, grace, kill":                     testStop,
		"the first ending decides the cause":    testFirstEnding,
		"adopt without gap or double":           testAdopt,
		"adopt with a turn under way":           testAdoptOutstanding,
		"adopt what has ended":                  testGone,
		"adopt what never was":                  testNeverStarted,
		"start refuses what lives":              testStartTwice,
		"a start that fails leaves nothing":     testStartFails,
		"logs follow":                           testFollow,
		"long results are cut":                  testLongResult,
		"attach sees output and types":          testAttach,
		"exec runs beside and ends with it":     testExec,
		"release leaves it running":             testRelease,
		"an ended session takes nothing, twice": testAfterEnd,
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) { test(t, h) })
	}
}

func testTurns(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	if s.PID() <= 0 {
		t.Fatalf("pid %d", s.PID())
	}
	sum := 0
	for i := 1; i <= 50; i++ {
		sum += i
		turn := s.Ask(uint64(i), fmt.Sprint(i))
		result(t, turn, fmt.Sprintf("sum %d", sum))
		if turn.OutputLine != uint64(i) {
			t.Fatalf("turn %d ends at line %d", i, turn.OutputLine)
		}
		if s.Outstanding() != 0 {
			t.Fatalf("%d is outstanding after its turn", s.Outstanding())
		}
	}
	if s.OutputLine() != 50 {
		t.Fatalf("the last line is %d, want 50", s.OutputLine())
	}
	if e := s.end("exit 0"); e.Cause != session.CauseCompleted {
		t.Fatalf("exit %+v", e)
	}
	if turn, ok := <-s.Turns(); ok {
		t.Fatalf("one turn more: %+v", turn)
	}
}

func testNumbers(t *testing.T, h Harness) {
	d := h.New(t)
	start := h.Start(t, "a")
	s := Begin(t, d, start)
	s.Ask(1, "say 2 careful")
	s.end("exit 0")
	same(t, "epoch 1", s.Logs(0), "1 STDERR careful", "2 STDERR careful", "3 STDOUT ok 1")
	start.Epoch, start.OutputBase = 2, 3
	s = Begin(t, d, start)
	s.Ask(2, "x")
	s.end("exit 0")
	start.Epoch, start.OutputBase = 4, 10 // epoch 3 ran elsewhere
	s = Begin(t, d, start)
	if turn := s.Ask(3, "y"); turn.OutputLine != 11 {
		t.Fatalf("its line is %d, want 11", turn.OutputLine)
	}
	same(t, "all epochs", s.Logs(3), "3 STDOUT ok 1", "4 STDOUT ok 1", "0 NOTICE lines 5–10 are not kept on this node", "11 STDOUT ok 1")
}

func testDedupe(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	result(t, s.Ask(7, "5"), "sum 5")
	s.Send(7, "5") // a retry: nothing happens
	result(t, s.Ask(8, "1"), "sum 6")
	s.Send(9, "hang")
	s.Send(9, "hang")
	if s.Outstanding() != 9 {
		t.Fatalf("outstanding %d, want 9", s.Outstanding())
	}
}

func testBusy(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	s.Send(1, "hang")
	err := s.Process.Send(t.Context(), driver.Input{Sequence: 2, Text: []byte("1")})
	if !errors.Is(err, driver.ErrBusy) {
		t.Fatalf("a second message: %v, want ErrBusy", err)
	}
	if s.Outstanding() != 1 {
		t.Fatalf("outstanding %d, want 1", s.Outstanding())
	}
}

func testRefused(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	s.Send(1, "two\nlines")
	if turn := s.Turn(); turn.Sequence != 1 || turn.Refused == "" {
		t.Fatalf("a line break in lines: %+v", turn)
	}
	result(t, s.Ask(2, "4"), "sum 4")

	start := h.Start(t, "b")
	start.Spec.Protocol = session.ProtocolNone
	s = Begin(t, h.New(t), start)
	s.Send(1, "hello")
	if turn := s.Turn(); turn.Sequence != 1 || turn.Refused == "" {
		t.Fatalf("a message to none: %+v", turn)
	}
}

func testExits(t *testing.T, h Harness) {
	for text, want := range map[string]session.Exit{
		"exit 0": {Cause: session.CauseCompleted, Message: "exit code 0"},
		"exit 3": {Code: 3, Cause: session.CauseFailed, Message: "exit code 3"},
		"die":    {Code: 137, Signal: "SIGKILL", Cause: session.CauseFailed, Message: "killed by SIGKILL"},
	} {
		s := Begin(t, h.New(t), h.Start(t, "a"))
		s.Ask(1, "1")
		if got := s.end(text); got != want {
			t.Fatalf("%s: %+v, want %+v", text, got, want)
		}
		if s.Outstanding() != 1<<40 {
			t.Fatalf("%s: outstanding %d: its turn never ended", text, s.Outstanding())
		}
	}
}

func testStop(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	s.Ask(1, "1") // it runs, with its handlers set
	s.Stop(Patience, session.Exit{Cause: session.CauseTerminated, Message: "by test"})
	if e := s.Ended(); e.Cause != session.CauseTerminated || e.Message != "by test" || e.Signal != "SIGTERM" {
		t.Fatalf("stopped: %+v", e)
	}
	s = Begin(t, h.New(t), h.Start(t, "b"))
	s.Ask(1, "ignore-term")
	began := time.Now()
	s.Stop(150*time.Millisecond, session.Exit{Cause: session.CauseExpired})
	if e := s.Ended(); e.Cause != session.CauseExpired || e.Signal != "SIGKILL" {
		t.Fatalf("stopped and deaf: %+v", e)
	}
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Fatalf("killed after %s, before the grace was over", took)
	}
	s = Begin(t, h.New(t), h.Start(t, "c"))
	s.Ask(1, "ignore-term")
	s.Kill(session.Exit{Cause: session.CauseEvicted, Message: "why not"})
	if e := s.Ended(); e.Cause != session.CauseEvicted || e.Message != "why not" || e.Signal != "SIGKILL" {
		t.Fatalf("killed: %+v", e)
	}
}

func testFirstEnding(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	s.Ask(1, "ignore-term")
	s.Stop(time.Hour, session.Exit{Cause: session.CauseExpired, Message: "first"})
	s.Kill(session.Exit{Cause: session.CauseTerminated, Message: "second"})
	if e := s.Ended(); e.Cause != session.CauseExpired || e.Message != "first" || e.Signal != "SIGKILL" {
		t.Fatalf("%+v", e)
	}
}

func testAdopt(t *testing.T, h Harness) {
	start := h.Start(t, "a")
	s := Begin(t, h.New(t), start)
	pid := s.PID()
	for i := uint64(1); i <= 5; i++ {
		s.Ask(i, "1")
	}
	for round := range 3 { // agents come and go
		s.Release()
		s = Adopt(t, h.New(t), start)
		if s.PID() != pid {
			t.Fatalf("round %d: pid %d, want %d", round, s.PID(), pid)
		}
		if n := s.Backlog(); n != 5+round {
			t.Fatalf("round %d: a backlog of %d turns, want %d", round, n, 5+round)
		}
		for i := uint64(1); i <= 5+uint64(round); i++ { // they may not have been reported
			if turn := s.Turn(); turn.Sequence != i || string(turn.Result) != fmt.Sprintf("sum %d", i) || turn.OutputLine != i {
				t.Fatalf("round %d: turn %d again: %+v", round, i, turn)
			}
		}
		for deadline := time.Now().Add(Patience); s.Backlog() != 0; time.Sleep(time.Millisecond) { // between two looks
			if time.Now().After(deadline) {
				t.Fatalf("round %d: all turns were taken, and the backlog is %d", round, s.Backlog())
			}
		}
		s.Send(5+uint64(round), "100") // given before: nothing happens
		next := uint64(6 + round)
		result(t, s.Ask(next, "1"), fmt.Sprintf("sum %d", next))
	}
	if lines := s.Logs(1); len(lines) != 8 || lines[7] != "8 STDOUT sum 8" {
		t.Fatalf("the log: %q", lines)
	}
}

func testAdoptOutstanding(t *testing.T, h Harness) {
	start := h.Start(t, "a")
	s := Begin(t, h.New(t), start)
	s.Ask(1, "1")
	s.Send(2, "hang")
	s.Release()
	s = Adopt(t, h.New(t), start)
	if s.Outstanding() != 2 {
		t.Fatalf("outstanding %d, want 2", s.Outstanding())
	}
	s.Turn()
	if err := s.Process.Send(t.Context(), driver.Input{Sequence: 3, Text: []byte("1")}); !errors.Is(err, driver.ErrBusy) {
		t.Fatalf("another message: %v, want ErrBusy", err)
	}
	s.Send(2, "hang")
	s.Kill(session.Exit{Cause: session.CauseTerminated})
	s.Ended()
	if s.Outstanding() != 2 {
		t.Fatalf("outstanding at the end %d, want 2", s.Outstanding())
	}
}

func testGone(t *testing.T, h Harness) {
	start := h.Start(t, "a")
	s := Begin(t, h.New(t), start)
	s.Ask(1, "1")
	s.Send(2, "exit 4")
	s.Ended()
	s.Release()
	for range 2 { // as often as it is asked
		_, err := h.New(t).Adopt(t.Context(), start)
		var gone *driver.Gone
		if !errors.As(err, &gone) || !errors.Is(err, driver.ErrGone) {
			t.Fatalf("adopt: %v, want Gone", err)
		}
		if gone.Exit.Code != 4 || gone.Exit.Cause != session.CauseFailed || gone.OutputLine != 1 || gone.Outstanding != 2 {
			t.Fatalf("%+v", gone)
		}
		if len(gone.Turns) != 1 || gone.Turns[0].Sequence != 1 || string(gone.Turns[0].Result) != "sum 1" {
			t.Fatalf("turns %+v", gone.Turns)
		}
	}
}

func testNeverStarted(t *testing.T, h Harness) {
	_, err := h.New(t).Adopt(t.Context(), h.Start(t, "a"))
	var gone *driver.Gone
	if !errors.As(err, &gone) || gone.Exit.Cause != session.CauseStartFailed {
		t.Fatalf("adopt: %v, want Gone with start-failed", err)
	}
}

func testStartTwice(t *testing.T, h Harness) {
	start := h.Start(t, "a")
	s := Begin(t, h.New(t), start)
	start.Epoch++
	if _, err := h.New(t).Start(t.Context(), start); !fault.Is(err, fault.AlreadyExists) {
		t.Fatalf("start while it lives: %v", err)
	}
	if _, err := h.New(t).Adopt(t.Context(), start); !fault.Is(err, fault.FailedPrecondition) {
		t.Fatalf("adopt another epoch: %v", err)
	}
	result(t, s.Ask(1, "1"), "sum 1")
	s.end("exit 0")
	s = Begin(t, h.New(t), start)
	result(t, s.Ask(1, "1"), "sum 1")
}

func testStartFails(t *testing.T, h Harness) {
	start := h.Start(t, "a")
	good := start.Spec
	bad := *start.Spec
	bad.Command = []string{"fail-start"}
	start.Spec = &bad
	if _, err := h.New(t).Start(t.Context(), start); err == nil {
		t.Fatal("a command that does not exist was started")
	}
	start.Spec = good
	s := Begin(t, h.New(t), start)
	result(t, s.Ask(1, "1"), "sum 1")
}

func testFollow(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	lines := make(chan string, 1000)
	ended := make(chan error, 1)
	go func() {
		ended <- s.ReadLogs(context.Background(), 1, true, func(b []*apiv1.LogLine) error {
			for _, l := range b {
				lines <- Line(l)
			}
			return nil
		})
	}()
	for i := 1; i <= 20; i++ {
		s.Send(uint64(i), fmt.Sprint(i))
		s.Turn()
		select {
		case got := <-lines:
			if want := fmt.Sprintf("%d STDOUT sum %d", i, i*(i+1)/2); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(Patience):
			t.Fatalf("line %d did not come", i)
		}
	}
	s.end("exit 0")
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("at the session's end: %v", err)
		}
	case <-time.After(Patience):
		t.Fatal("it follows an ended session")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.ReadLogs(ctx, 1, false, func([]*apiv1.LogLine) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Fatalf("with a cancelled context: %v", err)
	}
}

func testLongResult(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	turn := s.Ask(1, fmt.Sprintf("long %d", session.MaxResultBytes))
	if len(turn.Result) != session.MaxResultBytes || turn.Truncated {
		t.Fatalf("at the limit: %d bytes, truncated %v", len(turn.Result), turn.Truncated)
	}
	turn = s.Ask(2, fmt.Sprintf("long %d", session.MaxResultBytes+1))
	if len(turn.Result) != session.MaxResultBytes || !turn.Truncated {
		t.Fatalf("over the limit: %d bytes, truncated %v", len(turn.Result), turn.Truncated)
	}
}

func testAttach(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	s.Ask(1, "1")
	in, typed := io.Pipe()
	shown, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := s.Attach(context.Background(), in, out, nil)
		out.Close()
		ended <- err
	}()
	if _, err := typed.Write([]byte("41\n")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := shown.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "sum 42") {
		t.Fatalf("shown %q, %v", buf[:n], err)
	}
	go func() { _, _ = io.Copy(io.Discard, shown) }()
	typed.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("when its input ended: %v", err)
		}
	case <-time.After(Patience):
		t.Fatal("attach did not end with its input")
	}
	result(t, s.Ask(2, "1"), "sum 43") // the session goes on
}

func testExec(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	x, ok := s.Process.(driver.Execer)
	if !ok {
		t.Skip("it runs no further commands")
	}
	var out bytes.Buffer
	exit, err := x.Exec(t.Context(), driver.Exec{Command: []string{"echo", "hello", "there"}, Stdout: &out})
	if err != nil || exit.Cause != session.CauseCompleted || !strings.Contains(out.String(), "hello there") {
		t.Fatalf("exec: %+v, %v, %q", exit, err, out.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() {
		_, err := x.Exec(ctx, driver.Exec{Command: []string{"hang"}})
		ended <- err
	}()
	cancel()
	if err := <-ended; err == nil {
		t.Fatal("an exec whose context ended has succeeded")
	}
	go func() {
		exit, err := x.Exec(context.Background(), driver.Exec{Command: []string{"hang"}})
		if err == nil && exit.Cause != session.CauseCompleted { // killed with the session, and so it says
			err = errors.New(exit.Message)
		}
		ended <- err
	}()
	s.Ask(1, "1")
	s.end("exit 0")
	select {
	case err := <-ended:
		if err == nil {
			t.Fatal("an exec whose session ended has succeeded")
		}
	case <-time.After(Patience):
		t.Fatal("an exec outlives its session")
	}
	if _, err := x.Exec(t.Context(), driver.Exec{Command: []string{"echo"}}); err == nil {
		t.Fatal("an ended session runs a command")
	}
}

func testRelease(t *testing.T, h Harness) {
	start := h.Start(t, "a")
	s := Begin(t, h.New(t), start)
	s.Ask(1, "1")
	s.Release()
	s.Release()
	select {
	case <-s.Done():
		t.Fatal("released, and done")
	default:
	}
	if err := s.Process.Send(t.Context(), driver.Input{Sequence: 2, Text: []byte("1")}); err == nil {
		t.Fatal("a released hold took a message")
	}
	s = Adopt(t, h.New(t), start)
	s.Turn()
	result(t, s.Ask(2, "1"), "sum 2")
}

func testAfterEnd(t *testing.T, h Harness) {
	s := Begin(t, h.New(t), h.Start(t, "a"))
	want := s.end("exit 5")
	if err := s.Process.Send(t.Context(), driver.Input{Sequence: 2, Text: []byte("1")}); err == nil {
		t.Fatal("an ended session took a message")
	}
	s.Stop(0, session.Exit{Cause: session.CauseTerminated})
	s.Kill(session.Exit{Cause: session.CauseTerminated})
	if got := s.Exit(); got != want || got.Code != 5 {
		t.Fatalf("its end changed to %+v", got)
	}
	if err := s.Attach(t.Context(), strings.NewReader(""), io.Discard, nil); err == nil {
		t.Fatal("attached to an ended session")
	}
}
