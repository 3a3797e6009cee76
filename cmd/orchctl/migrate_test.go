// sessions migrate: what is shown of a move, on a terminal and elsewhere, and how it is left.

package main

import (
	"bytes"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
)

// moveRig is a rig with two nodes and a session whose moves the test takes step by step.
func moveRig(t *testing.T) (*rig, string) {
	t.Helper()
	r := newRig(t)
	r.c.AddNode("node-2")
	r.c.StepMigrations = true
	id := r.must("sessions spawn --name ledger -o name -- ./ledger")
	r.must("sessions checkpoint ledger")
	return r, id
}

func (r *rig) copyRound(id string, round uint32, sent, reused int64) {
	r.c.Change(id, func(s *apiv1.Session) {
		s.Migration.Rounds, s.Migration.BytesSent, s.Migration.BytesReused = round, sent, reused
	})
}

// tells is what the nodes of a move tell: a second later each time.
func (r *rig) tells(id, step string, round uint32, done, total int64) {
	r.t.Helper()
	r.c.Change(id, func(s *apiv1.Session) {
		at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		if before := s.Migration.GetProgress().GetTime(); before != nil {
			at = before.AsTime().Add(time.Second)
		}
		s.Migration.Progress = &apiv1.Session_Progress{Step: step, Round: round, BytesDone: done, BytesTotal: total, Time: timestamppb.New(at)}
	})
}

func (r *rig) hold(id string) {
	r.c.Change(id, func(s *apiv1.Session) {
		s.Migration.BlackoutMs, s.Migration.State = 1, apiv1.Session_Migration_MOVING
	})
}

func (r *rig) restore(id string) {
	r.c.Change(id, func(s *apiv1.Session) {
		s.Phase, s.Node, s.Epoch = apiv1.Session_RESTORING, s.GetMigration().GetTarget(), s.GetEpoch()+1
	})
}

func (r *rig) arrive(id string) {
	r.c.Change(id, func(s *apiv1.Session) {
		m := s.Migration
		s.Phase = apiv1.Session_RUNNING
		m.State, m.Epoch, m.BlackoutMs, m.TotalMs = apiv1.Session_Migration_DONE, s.GetEpoch(), 87.25, 2345
	})
}

func (r *rig) fail(id, why string) {
	r.c.Change(id, func(s *apiv1.Session) {
		s.Phase, s.Node, s.Migration.State, s.Migration.Error = apiv1.Session_RUNNING, s.GetMigration().GetSource(), apiv1.Session_Migration_FAILED, why
	})
}

// TestMigrateOnATerminal: each part of the move is seen, and its figures are left.
func TestMigrateOnATerminal(t *testing.T) {
	r, id := moveRig(t)
	c := r.onTerminal("sessions migrate ledger --to node-2")
	c.screen.until(t, "node-1 ─▶ node-2")
	r.copyRound(id, 1, 256<<10, 256<<10)
	c.screen.until(t, " 50%")
	c.screen.until(t, "256KiB sent, 256KiB there already")
	r.copyRound(id, 2, 300<<10, 700<<10)
	c.screen.until(t, "round 2")
	r.hold(id)
	c.screen.until(t, "its messages wait")
	r.restore(id)
	c.screen.until(t, "it begins on node-2")
	r.arrive(id)
	code, screen := c.end()
	for _, want := range []string{
		"2.35s on node-2, 87.3ms without an answer", "Source:       node-1", "Target:       node-2", "Rounds:       2", "Bytes sent:   300KiB",
		"Bytes saved:  700KiB (70%)", "Blackout:     87.3ms", "Total:        2.35s", "Epoch:        2",
	} {
		if !strings.Contains(screen, want) {
			t.Errorf("%q is not in %s", want, screen)
		}
	}
	if code != 0 {
		t.Error("exit code", code)
	}
}

// TestMigrateShowsBytes: where nodes tell how far they are, each part has its bytes, its rate and its time left, and no line is longer
// than a terminal is wide.
func TestMigrateShowsBytes(t *testing.T) {
	r, id := moveRig(t)
	c := r.onTerminal("sessions migrate ledger --to node-2")
	c.screen.until(t, "node-1 ─▶ node-2")
	r.tells(id, "waiting", 0, 0, 0)
	c.screen.until(t, "it waits for its turn among other moves")
	r.tells(id, "copying", 1, 0, 1000<<20)
	c.screen.until(t, "  0%")
	r.tells(id, "copying", 1, 250<<20, 1000<<20)
	c.screen.until(t, " 25%  round 1  250MiB/s  ETA 3.0s")
	c.screen.until(t, "250MiB of 1000MiB read")
	r.tells(id, "copying", 1, 1000<<20, 1000<<20)
	r.copyRound(id, 1, 900<<20, 100<<20)
	c.screen.until(t, "1000MiB of 1000MiB read, 900MiB sent, 100MiB there already")
	r.tells(id, "preparing", 1, 0, 1000<<20)
	c.screen.until(t, "preparing  ")
	r.tells(id, "preparing", 1, 500<<20, 1000<<20)
	c.screen.until(t, " 50%  500MiB/s  ETA 1.0s")
	r.tells(id, "copying", 2, 1<<20, 5<<20)
	c.screen.until(t, " 20%  round 2")
	r.tells(id, "holding", 2, 1<<20, 2<<20)
	c.screen.until(t, "1MiB of 2MiB read")
	r.tells(id, "saving", 2, 1<<20, 2<<20)
	c.screen.until(t, "1MiB of 2MiB stored")
	r.hold(id)
	r.restore(id)
	r.tells(id, "restoring", 0, 1<<20, 100<<20)
	c.screen.until(t, "   1%")
	r.tells(id, "restoring", 0, 75<<20, 100<<20)
	c.screen.until(t, " 75%  74MiB/s  ETA 0.3s")
	r.arrive(id)
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "87.3ms without an answer") {
		t.Errorf("%d %s", code, screen)
	}
}

// TestPaces: a rate is of one step and round, told by one clock, and comes when it means something.
func TestPaces(t *testing.T) {
	ps := paces{}
	at := time.Unix(1000, 0)
	tell := func(after time.Duration, step string, round uint32, done, total int64) string {
		at = at.Add(after)
		ps.update(&apiv1.Session_Progress{Step: step, Round: round, BytesDone: done, BytesTotal: total, Time: timestamppb.New(at)})
		if p := ps[step]; p.known() {
			return strings.Join(append([]string{p.bytes()}, p.speed()...), " ")
		}
		return "?"
	}
	for i, tc := range []struct{ got, want string }{
		{tell(0, "copying", 1, 0, 0), "?"},
		{tell(time.Second, "copying", 1, 1<<20, 4<<20), "1MiB of 4MiB 1MiB/s ETA 3.0s"},
		{tell(0, "copying", 1, 2<<20, 4<<20), "1MiB of 4MiB 1MiB/s ETA 3.0s"}, // the same again
		{tell(time.Second, "copying", 1, 4<<20, 4<<20), "4MiB of 4MiB 2MiB/s"},
		{tell(time.Second, "copying", 2, 1<<10, 2<<10), "1KiB of 2KiB"}, // another round begins anew
		{tell(10*time.Millisecond, "copying", 2, 2<<10, 2<<10), "2KiB of 2KiB"},
		{tell(time.Second, "restoring", 0, 0, 1<<10), "0B of 1KiB"},
		{tell(time.Second, "restoring", 0, 1<<9, 1<<10), "512B of 1KiB 512B/s ETA 1.0s"},
	} {
		if tc.got != tc.want {
			t.Errorf("%d: %q, want %q", i, tc.got, tc.want)
		}
	}
	ps.update(nil)
	if len(ps) != 2 {
		t.Errorf("%d steps", len(ps))
	}
}

// TestMigrateElsewhereThanOnATerminal: lines without anything that steers a terminal, and nothing at all with --quiet.
func TestMigrateElsewhereThanOnATerminal(t *testing.T) {
	r, id := moveRig(t)
	var out bytes.Buffer
	errs := newTap()
	var running sync.WaitGroup
	code := -1
	running.Go(func() {
		a := newApp(r.env, strings.NewReader(""), &out, errs)
		a.patience = time.Hour // only what is news
		code = a.execute(words("sessions migrate ledger --wait"))
	})
	errs.until(t, "session/"+id+": copying, node-1 to node-2\n")
	r.copyRound(id, 1, 1<<20, 0)
	errs.until(t, "session/"+id+": copying, node-1 to node-2, round 1, 1MiB sent, 0B there already\n")
	r.hold(id)
	errs.until(t, "holding")
	r.restore(id)
	errs.until(t, "restoring")
	r.arrive(id)
	running.Wait()
	if code != 0 || !strings.Contains(out.String(), "Blackout:") || strings.ContainsAny(errs.String()+out.String(), "\x1b\r█") {
		t.Errorf("%d %q %q", code, out.String(), errs.String())
	}
	// Without --wait it is not waited for.
	res := r.run("sessions migrate ledger")
	if res.code != 0 || res.err != "" || res.out != "session/"+id+" is moving from node-2 to node-1; see 'orchctl sessions get "+id+"'\n" {
		t.Errorf("%+v", res)
	}
	if res := r.run("sessions migrate ledger --cancel"); res.code != 0 || res.out != "session/"+id+" stays on node-2\n" {
		t.Errorf("%+v", res)
	}
	if res := r.run("sessions migrate ledger --cancel"); res.code != exitcode.Refused || !strings.Contains(res.err, "nothing to cancel") {
		t.Errorf("%+v", res)
	}
}

// interrupted starts a move on a terminal and presses Ctrl-C: the test's terminal is nobody's, so the signal is sent.
func (r *rig) interrupted(t *testing.T) *console {
	t.Helper()
	c := r.onTerminal("sessions migrate ledger")
	c.screen.until(t, "copying")
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	c.screen.until(t, "go on in the [b]ackground, [r]oll back, or keep [w]atching?")
	return c
}

func TestMigrateInterruptedGoesOnInTheBackground(t *testing.T) {
	r, id := moveRig(t)
	for _, key := range []string{"b", "B", "\x03", "\x04"} {
		c := r.interrupted(t)
		c.typed(key)
		code, screen := c.end()
		if code != 0 || !strings.Contains(screen, "goes on moving to node-2; see 'orchctl sessions get "+id+"'") {
			t.Errorf("%q: %d %s", key, code, screen)
		}
		if got := r.must("sessions get ledger -o json"); !strings.Contains(got, `"state": "COPYING"`) {
			t.Errorf("%q: it does not go on: %s", key, got)
		}
		r.must("sessions migrate ledger --cancel")
	}
}

func TestMigrateInterruptedIsRolledBack(t *testing.T) {
	r, id := moveRig(t)
	c := r.interrupted(t)
	c.typed("x") // is no answer
	c.typed("r")
	code, screen := c.end()
	if code != exitcode.Failed || !strings.Contains(screen, "the move to node-2 was rolled back (cancelled by admin); the session goes on on node-1; see 'orchctl sessions history "+id+"'") {
		t.Errorf("%d %s", code, screen)
	}
	// Too late to roll back: it says so, and is watched to its end.
	c = r.onTerminal("sessions migrate ledger")
	c.screen.until(t, "copying")
	r.hold(id)
	c.screen.until(t, "its messages wait")
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	c.screen.until(t, "[r]oll back")
	c.typed("R")
	c.screen.until(t, "has stopped on its source already")
	r.restore(id)
	r.arrive(id)
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "Blackout:") {
		t.Errorf("%d %s", code, screen)
	}
}

func TestMigrateInterruptedIsWatchedOn(t *testing.T) {
	r, id := moveRig(t)
	c := r.interrupted(t)
	c.typed("w")
	c.screen.untilGone(t, "keep [w]atching?")
	r.copyRound(id, 7, 1<<20, 0)
	c.screen.until(t, "round 7")
	// The move ends while the question is open.
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	r.restore(id)
	r.arrive(id)
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "Blackout:") {
		t.Errorf("%d %s", code, screen)
	}
}

// TestMigrateEndsOtherwise: a failure, a deadline, a signal that is no question, a server that is gone, a session that is gone.
func TestMigrateEndsOtherwise(t *testing.T) {
	r, id := moveRig(t)
	c := r.onTerminal("sessions migrate ledger")
	c.screen.until(t, "copying")
	r.fail(id, "node-2: no space left on its disk")
	if code, screen := c.end(); code != exitcode.Failed || !strings.Contains(screen, "the move to node-2 failed (node-2: no space left on its disk); the session goes on on node-1;") {
		t.Errorf("%d %s", code, screen)
	}
	if res := r.run("sessions migrate ledger --wait --timeout 2s"); res.code != exitcode.Unreachable || !strings.Contains(res.err, "the move to node-2 is still copying; it goes on, see 'orchctl sessions get "+id+"'") {
		t.Errorf("%+v", res)
	}
	r.must("sessions migrate ledger --cancel")
	c = r.onTerminal("sessions migrate ledger")
	c.screen.until(t, "copying")
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, screen := c.end(); code != exitcode.Failed || !strings.Contains(screen, "interrupted; the move to node-2 goes on") {
		t.Errorf("%d %s", code, screen)
	}
	r.must("sessions migrate ledger --cancel")
	// The watch breaks, and is opened again.
	r.c.Inject("WatchSessions", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1})
	c = r.onTerminal("sessions migrate ledger")
	c.screen.until(t, "copying")
	r.copyRound(id, 3, 1, 1)
	c.screen.until(t, "round 3")
	r.c.End(id)
	if code, screen := c.end(); code != exitcode.Failed || !strings.Contains(screen, "it is COMPLETED") {
		t.Errorf("%d %s", code, screen)
	}
}

func TestPhasesOfAMove(t *testing.T) {
	at := func(phase apiv1.Session_Phase, state apiv1.Session_Migration_State, mode string, blackout float64) movePhase {
		return phaseOf(&apiv1.Session{Phase: phase, Migration: &apiv1.Session_Migration{State: state, Mode: mode, BlackoutMs: blackout}})
	}
	migrating := apiv1.Session_MIGRATING
	for i, tc := range []struct{ got, want movePhase }{
		{at(migrating, apiv1.Session_Migration_COPYING, "live", 0), copying},
		{at(migrating, apiv1.Session_Migration_COPYING, "live", 2), holding},
		{at(migrating, apiv1.Session_Migration_COPYING, "cold", 0), holding},
		{at(migrating, apiv1.Session_Migration_MOVING, "live", 0), holding},
		{at(apiv1.Session_PENDING, apiv1.Session_Migration_MOVING, "live", 2), restoring},
		{at(apiv1.Session_RESTORING, apiv1.Session_Migration_MOVING, "live", 2), restoring},
		{at(apiv1.Session_RUNNING, apiv1.Session_Migration_DONE, "live", 2), moved},
	} {
		if tc.got != tc.want {
			t.Errorf("%d: %s, want %s", i, movePhaseText[tc.got], movePhaseText[tc.want])
		}
	}
}

func TestSaved(t *testing.T) {
	for want, m := range map[string]*apiv1.Session_Migration{
		"0B":             {BytesSent: 5},
		"95B (95%)":      {BytesSent: 5, BytesReused: 95},
		"9.8KiB (99.9%)": {BytesSent: 1, BytesReused: 9999},
		"7B (100%)":      {BytesReused: 7},
	} {
		if got := savedText(m); got != want {
			t.Errorf("%v: %s, want %s", m, got, want)
		}
	}
}

func TestMillis(t *testing.T) {
	for in, want := range map[float64]string{0: "0ms", 0.4213: "0.421ms", 42.5: "42.5ms", 87.25: "87.3ms", 999.4: "999ms", 1234: "1.23s", 59_900: "59.9s", 61_000: "61s", 3_600_000: "1h"} {
		if got := millisText(in); got != want {
			t.Errorf("%v: %s, want %s", in, got, want)
		}
	}
}
