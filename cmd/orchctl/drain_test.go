// nodes drain: what is shown of a drain, how it is left, and how it ends.

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

// drainRig is a rig with two nodes and three sessions on the first, whose drain the test takes step by step.
func drainRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	for _, name := range []string{"s1", "s2", "s3"} {
		r.must("sessions spawn --name " + name + " -- run")
	}
	r.c.AddNode("node-2")
	r.c.StepDrains = true
	return r
}

func (r *rig) gone(moved, paused, left uint32, why string) {
	r.c.ChangeNode("node-1", func(n *apiv1.Node) {
		n.Drain.Moved, n.Drain.Paused, n.Drain.Remaining, n.Drain.Reason = moved, paused, left, why
	})
}

func (r *rig) over(state apiv1.Drain_State) {
	r.c.ChangeNode("node-1", func(n *apiv1.Node) {
		n.Drain.State, n.Drain.EndTime, n.Drain.LongestBlackoutMs = state, timestamppb.New(r.now.Add(2345*time.Millisecond)), 87.25
	})
}

// TestDrainOnATerminal: the plan, the bar, and the figures.
func TestDrainOnATerminal(t *testing.T) {
	r := drainRig(t)
	c := r.onTerminal("nodes drain node-1")
	c.screen.until(t, "SESSION   PRIORITY   ACTION    TARGET   REASON")
	c.screen.until(t, "3 to migrate, 0 to pause, 0 without a place")
	c.screen.until(t, " 0/3")
	r.gone(1, 1, 1, "s3: no other node fits: node-2 full")
	c.screen.until(t, " 2/3  1 paused")
	c.screen.until(t, "waits: s3: no other node fits: node-2 full")
	r.gone(2, 1, 0, "")
	r.over(apiv1.Drain_DRAINED)
	code, screen := c.end()
	for _, want := range []string{"blackout ≤ 87.3ms", "Node:              node-1", "Moved:             2 of 3", "Paused:            1", "Longest blackout:  87.3ms", "Total:             2.35s"} {
		if !strings.Contains(screen, want) {
			t.Errorf("%q is not in %s", want, screen)
		}
	}
	if code != 0 {
		t.Error("exit code", code)
	}
}

// TestDrainElsewhereThanOnATerminal: lines without anything that steers a terminal.
func TestDrainElsewhereThanOnATerminal(t *testing.T) {
	r := drainRig(t)
	var out bytes.Buffer
	errs := newTap()
	var running sync.WaitGroup
	code := -1
	running.Go(func() {
		a := newApp(r.env, strings.NewReader(""), &out, errs)
		a.patience = time.Hour // only what is news
		code = a.execute(words("nodes drain node-1 --wait --force"))
	})
	errs.until(t, "node/node-1: 0 of 3 moved, 0 paused, 3 left\n")
	r.gone(1, 0, 2, "s2: no room")
	errs.until(t, "node/node-1: 1 of 3 moved, 0 paused, 2 left: s2: no room\n")
	r.gone(1, 1, 0, "")
	r.over(apiv1.Drain_DRAINED)
	running.Wait()
	if code != 0 || !strings.Contains(out.String(), "Ended:             1\n") || strings.ContainsAny(errs.String()+out.String(), "\x1b\r█") {
		t.Errorf("%d %q %q", code, out.String(), errs.String())
	}
	// Without --wait it is not waited for.
	r.must("nodes uncordon node-1")
	if res := r.run("nodes drain node-1"); res.code != 0 || !strings.HasSuffix(res.out, "node/node-1 is draining; see 'orchctl nodes get node-1'\n") {
		t.Errorf("%+v", res)
	}
	if res := r.run("nodes drain node-1 -o name"); res.out != "node-1\n" {
		t.Errorf("%+v", res)
	}
}

// TestDrainEndsOtherwise: a deadline, somebody else's uncordon, a record that is gone, a time to wait, a server that is away.
func TestDrainEndsOtherwise(t *testing.T) {
	r := drainRig(t)
	begin := func() *console {
		c := r.onTerminal("nodes drain node-1")
		c.screen.until(t, " 0/3")
		return c
	}
	ends := func(c *console, want string) {
		t.Helper()
		if code, screen := c.end(); code != exitcode.Failed || !strings.Contains(screen, want) {
			t.Errorf("%d %s", code, screen)
		}
		r.must("nodes uncordon node-1")
	}
	c := begin()
	r.gone(1, 0, 2, "s2: no room; s3: no room")
	r.over(apiv1.Drain_INCOMPLETE)
	ends(c, "node-1 is not empty at its deadline; 2 of 3 sessions left: s2: no room; s3: no room; it stays cordoned; drain it again with --force")
	c = begin()
	r.must("nodes uncordon node-1")
	ends(c, "the drain of node-1 was cancelled (uncordoned by admin); 3 of 3 sessions left")
	c = begin()
	r.c.ChangeNode("node-1", func(n *apiv1.Node) { n.Drain = nil })
	ends(c, "its record is gone")
	if res := r.run("nodes drain node-1 --wait --timeout 1s"); res.code != exitcode.Unreachable || !strings.Contains(res.err, "node-1 still holds 3 sessions; the drain goes on, see 'orchctl nodes get node-1'") {
		t.Errorf("%+v", res)
	}
	r.c.Inject("GetNode", clienttest.Fault{Err: clienttest.Lost()}, clienttest.Fault{Err: clienttest.Lost()})
	c = begin()
	r.gone(3, 0, 0, "")
	c.screen.until(t, " 3/3")
	r.over(apiv1.Drain_DRAINED)
	if code, screen := c.end(); code != 0 {
		t.Errorf("%d %s", code, screen)
	}
}

// TestDrainInterrupted asks what is to become of it.
func TestDrainInterrupted(t *testing.T) {
	r := drainRig(t)
	interrupt := func(sig syscall.Signal, want string) *console {
		t.Helper()
		c := r.onTerminal("nodes drain node-1")
		c.screen.until(t, " 0/3")
		if err := syscall.Kill(syscall.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		c.screen.until(t, want)
		return c
	}
	c := interrupt(syscall.SIGINT, drainQuestion)
	c.typed("xb")
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "node/node-1 goes on draining; see 'orchctl nodes get node-1'") {
		t.Errorf("%d %s", code, screen)
	}
	if got := r.must("nodes list"); !strings.Contains(got, "draining") {
		t.Errorf("it does not go on: %s", got)
	}
	c = interrupt(syscall.SIGINT, drainQuestion)
	c.typed("s")
	if code, screen := c.end(); code != exitcode.Failed || !strings.Contains(screen, "the drain of node-1 was cancelled (uncordoned by admin)") {
		t.Errorf("%d %s", code, screen)
	}
	c = interrupt(syscall.SIGINT, drainQuestion)
	c.typed("w")
	r.gone(3, 0, 0, "")
	c.screen.until(t, " 3/3")
	r.over(apiv1.Drain_DRAINED)
	if code, screen := c.end(); code != 0 {
		t.Errorf("%d %s", code, screen)
	}
	c = interrupt(syscall.SIGTERM, "interrupted; the drain goes on, see 'orchctl nodes get node-1', or end it with 'orchctl nodes uncordon node-1'")
	if code, screen := c.end(); code != exitcode.Failed {
		t.Errorf("%d %s", code, screen)
	}
}

func TestAMoveThatWaitsIsShown(t *testing.T) {
	r, id := moveRig(t)
	r.must("sessions migrate ledger")
	r.c.Change(id, func(s *apiv1.Session) { s.Migration.Progress = &apiv1.Session_Progress{Step: stepWaiting} })
	if got := r.must("sessions get ledger"); !strings.Contains(got, "copying, live, node-1 to node-2, waiting for its turn among other moves (") {
		t.Error(got)
	}
}
