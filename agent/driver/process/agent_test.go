// What happens to sessions when their agent is killed, stopped, or cut off: the agent is a process of its own here.
package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/driver/drivertest"
	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/session"
)

// agentIfRequested is a small agent: it starts the session of its argument, gives it one message, says so, and from
// then on renews the lease, 300 ms at a time.
func agentIfRequested() {
	if len(os.Args) < 3 || os.Args[1] != "__agent" {
		return
	}
	var s driver.Start
	if err := json.Unmarshal([]byte(os.Args[2]), &s); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	w, err := lease.OpenWriter(s.LeaseFile)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	renew := func() { _ = w.Renew(w.Now() + int64(agentLease)) }
	renew()
	go func() { // from the beginning: on a busy machine a start may take longer than the lease
		for {
			time.Sleep(agentLease / 6)
			renew()
		}
	}()
	p, err := New(Options{Shim: shim.Self()}).Start(context.Background(), s)
	if err == nil {
		err = p.Send(context.Background(), driver.Input{Sequence: 1, Text: []byte("spawn")})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	turn := <-p.Turns()
	fmt.Printf("started %d %s\n", p.PID(), turn.Result)
	select {} // until the test stops or kills it
}

const agentLease = time.Second

type agent struct {
	cmd         *exec.Cmd
	pid, daemon int // the session's
}

func startAgent(t *testing.T, s driver.Start) *agent {
	t.Helper()
	if err := os.Remove(s.LeaseFile); err != nil { // the hour that toyStart gave
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{cmd: exec.Command(exe, "__agent", string(b))}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, serr := fmt.Sscanf(line, "started %d %d", &a.pid, &a.daemon); err != nil || serr != nil {
		t.Fatalf("the agent said %q: %v", line, err)
	}
	return a
}

func TestAgentKilledAndBack(t *testing.T) {
	start := toyStart(t, "a")
	a := startAgent(t, start)
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = a.cmd.Wait()
	w, err := lease.OpenWriter(start.LeaseFile)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Renew(w.Now() + int64(time.Hour)); err != nil {
		t.Fatal(err)
	}
	s := drivertest.Adopt(t, newDriver(t, false), start)
	if s.PID() != a.pid || !alive(a.daemon) {
		t.Fatalf("pid %d, want %d; daemon alive %v", s.PID(), a.pid, alive(a.daemon))
	}
	if turn := s.Turn(); turn.Sequence != 1 {
		t.Fatalf("%+v", turn)
	}
	s.Send(1, "spawn") // given by the agent that was killed
	if turn := s.Ask(2, "1"); string(turn.Result) != "sum 1" || turn.OutputLine != 2 {
		t.Fatalf("%+v", turn)
	}
}

// A stopped, a killed and a cut-off agent have one thing in common: they renew nothing.
func TestLeaseEndsTheSession(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"stopped": syscall.SIGSTOP, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			start := toyStart(t, "a")
			a := startAgent(t, start)
			if err := a.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the session ended", func() bool { return !alive(a.pid) && !alive(a.daemon) })
			deadline, err := lease.Read(start.LeaseFile)
			if err != nil {
				t.Fatal(err)
			}
			late := time.Duration(lease.Now() - deadline)
			if late < 0 {
				t.Fatalf("it ended %s before the lease did", -late)
			}
			t.Logf("ended %s after the lease did, as seen from outside", late)
			eventually(t, "the end is written down", func() bool {
				_, err := shim.ReadExit(start.Dir)
				return err == nil
			})
			_, err = newDriver(t, false).Adopt(t.Context(), start)
			var gone *driver.Gone
			if !errors.As(err, &gone) || gone.Exit.Cause != session.CauseLost || gone.Exit.Message != "lease lapsed" {
				t.Fatalf("adopt: %v (%+v)", err, gone)
			}
			start.Epoch++
			if _, err := newDriver(t, false).Start(t.Context(), start); err == nil {
				t.Fatal("a session was started without a lease")
			}
		})
	}
}
