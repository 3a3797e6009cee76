// Agents that are told to stop, and have their sessions moved elsewhere first.

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// restart stops an agent and starts it with further flags; its sessions go on meanwhile.
func (s *small) restart(i int, flags ...string) {
	s.t.Helper()
	s.agents[i].end(syscall.SIGTERM)
	s.agents[i].args = append(s.agents[i].args, flags...)
	s.again(i)
}

// again starts an agent that has ended, and waits until its sessions can be placed there or go on there.
func (s *small) again(i int) {
	s.t.Helper()
	s.agents[i].run()
	pid := int32(s.agents[i].cmd.Process.Pid)
	s.until("the agent is back", func(context.Context) bool {
		n := s.node(fmt.Sprintf("node-%d", i+1))
		return n.GetPid() == pid && n.GetConnection() == "connected"
	})
}

// end sends a signal and returns the exit code.
func (p *process) end(sig syscall.Signal) int {
	p.t.Helper()
	p.signal(sig)
	return p.wait()
}

func (p *process) wait() int {
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

// says reports whether the program has logged the words.
func (p *process) says(words string) bool {
	b, _ := os.ReadFile(p.log)
	return bytes.Contains(b, []byte(words))
}

func TestAnAgentThatStopsIsDrained(t *testing.T) {
	t.Parallel()
	const sessions = 6
	watch := newObserver(t)
	s := startSmall(t, 3, 5*time.Second)
	s.restart(0, "--sessions-drain-on-stop=1m")
	s.cordon("node-2", true)
	s.cordon("node-3", true)
	var ids []string
	var ends []func() int
	for i := range sessions {
		row := s.spawn(&apiv1.SessionSpec{Name: fmt.Sprint("watched-", i), Command: watch.keeping()})
		ids, ends = append(ids, row.GetId()), append(ends, s.talk(row.GetId()))
	}
	s.cordon("node-2", false)

	// Everything goes, and the agent ends; the node takes nothing until its next agent comes.
	began := time.Now()
	if code := s.agents[0].end(syscall.SIGTERM); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	took := time.Since(began)
	if !s.agents[0].says("drained 6 of 6 sessions, 0 to go") {
		t.Error("the agent does not say how far it got")
	}
	n := s.node("node-1")
	if d := n.GetDrain(); n.GetSchedulable() || n.GetSessions() != 0 || d.GetState() != apiv1.Drain_DRAINED || d.GetMoved() != sessions || !d.GetByAgent() {
		t.Fatalf("drained: %v", n)
	}
	t.Logf("drained in %s, the longest blackout %.0f ms", took, n.GetDrain().GetLongestBlackoutMs())
	s.until("all have begun there", func(context.Context) bool { return watch.starts() >= 2*sessions }) // which they note a moment after they run
	if got := watch.starts(); got != 2*sessions {
		t.Errorf("%d starts of %d sessions that moved once", got, sessions)
	}
	s.again(0)
	if n := s.node("node-1"); !n.GetSchedulable() || n.GetDrain() != nil {
		t.Errorf("its next agent is there: %v", n)
	}

	// What a person has ordered stays; what finds no place in time goes on with the next agent; none of it stops working.
	s.cordon("node-1", true)
	s.cordon("node-2", true)
	s.restart(1, "--sessions-drain-on-stop=2s")
	if code := s.agents[1].end(syscall.SIGTERM); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if !s.agents[1].says("drained 0 of 6 sessions, 6 to go") {
		t.Error("the agent does not say how far it got")
	}
	s.again(1)
	if n := s.node("node-2"); n.GetSchedulable() || n.GetDrain().GetState() == apiv1.Drain_DRAINING || n.GetSessions() != sessions {
		t.Errorf("a person's cordon was lifted, or sessions are gone: %v", n)
	}

	// A second signal has no patience.
	s.restart(1, "--sessions-drain-on-stop=10m")
	s.agents[1].signal(syscall.SIGTERM)
	s.until("the agent waits", func(context.Context) bool { return s.node("node-2").GetDrain().GetState() == apiv1.Drain_DRAINING })
	began = time.Now()
	if code := s.agents[1].end(syscall.SIGTERM); code != 1 || time.Since(began) > 5*time.Second {
		t.Errorf("exit code %d after %s", code, time.Since(began))
	}
	s.again(1)
	for i, end := range ends {
		total := end()
		row := s.session(ids[i])
		if row.GetPhase() != apiv1.Session_RUNNING || row.GetNode() != "node-2" || row.GetEpoch() != 2 {
			t.Errorf("%s is %s on %s, epoch %d", row.GetName(), row.GetPhase(), row.GetNode(), row.GetEpoch())
		}
		text, notices := s.lines(ids[i])
		if len(text) != total || notices != 0 {
			t.Errorf("%s: %d lines and %d notices of %d answers", row.GetName(), len(text), notices, total)
		}
	}
	watch.check(t)
	if b, _ := os.ReadFile(s.agents[1].log); !strings.Contains(string(b), "for a second signal came") {
		t.Error("it does not say why it stopped")
	}
}
