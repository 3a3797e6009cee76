// The process driver passes the suite of all drivers, with and without cgroups.
package process

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/driver/drivertest"
	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/session"
)

func TestMain(m *testing.M) {
	shim.MainIfRequested()
	drivertest.ToyIfRequested()
	agentIfRequested()
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil { // with -race each shim would take a second to exit
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func newDriver(t testing.TB, noCgroups bool) *Driver {
	return New(Options{Shim: shim.Self(), NoCgroups: noCgroups})
}

// toyStart is a toy session in a directory of its own, under a lease of an hour.
func toyStart(t testing.TB, name string) driver.Start {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "lease")
	w, err := lease.OpenWriter(file)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Renew(w.Now() + int64(time.Hour)); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec := &session.Spec{Command: []string{exe, drivertest.ToyArg}}
	spec.Normalize()
	bin := filepath.Join(dir, "bin") // what the suite calls "hang" and "exit" outside a shell
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "hang"), []byte("#!/bin/sh\nsleep 3600 & sleep 3600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return driver.Start{
		SessionID: name + "-" + strconv.Itoa(os.Getpid()) + "-" + filepath.Base(filepath.Dir(dir)) + filepath.Base(dir), Epoch: 1, Spec: spec, Dir: dir, LeaseFile: file,
		Env: []string{"PATH=" + bin + ":/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"},
	}
}

func TestConformance(t *testing.T) {
	for name, noCgroups := range map[string]bool{"cgroups": false, "no-cgroups": true} {
		t.Run(name, func(t *testing.T) {
			if !noCgroups && newDriver(t, false).cgroups.unified == "" {
				t.Skip("cgroups cannot be used here")
			}
			drivertest.Run(t, drivertest.Harness{
				New:   func(t *testing.T) driver.Driver { return newDriver(t, noCgroups) },
				Start: func(t *testing.T, name string) driver.Start { return toyStart(t, name) },
			})
		})
	}
}

// alive reports whether a process runs; zombies do not.
func alive(pid int) bool {
	id, err := shim.Identify(pid)
	return err == nil && id.Alive()
}

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(drivertest.Patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come about: %s", what)
		}
		time.Sleep(2 * time.Millisecond) // between two looks
	}
}

// spawned has the toy start a daemon and returns its pid.
func spawned(t *testing.T, s *drivertest.Session, sequence uint64) int {
	t.Helper()
	answer := string(s.Ask(sequence, "spawn").Result)
	pid, err := strconv.Atoi(answer)
	if err != nil || !alive(pid) {
		t.Fatalf("the toy spawned %q: %v", answer, err)
	}
	return pid
}

// However a session ends, the daemon that its process left behind has ended before.
func TestNoOrphans(t *testing.T) {
	for _, noCgroups := range []bool{false, true} {
		ends := map[string]func(s *drivertest.Session){
			"by itself": func(s *drivertest.Session) { s.Send(9, "exit 0") },
			"crash":     func(s *drivertest.Session) { s.Send(9, "die") },
			"stop": func(s *drivertest.Session) {
				s.Stop(drivertest.Patience, session.Exit{Cause: session.CauseTerminated})
			},
			"kill": func(s *drivertest.Session) { s.Kill(session.Exit{Cause: session.CauseTerminated}) },
			"shim killed": func(s *drivertest.Session) {
				if err := syscall.Kill(s.Process.(*proc).run.Shim.PID, syscall.SIGKILL); err != nil {
					s.T.Fatal(err)
				}
			},
			"shim stopped, then kill": func(s *drivertest.Session) {
				if err := syscall.Kill(s.Process.(*proc).run.Shim.PID, syscall.SIGSTOP); err != nil {
					s.T.Fatal(err)
				}
				s.Kill(session.Exit{Cause: session.CauseTerminated})
			},
		}
		for name, end := range ends {
			t.Run(name+" no cgroups "+strconv.FormatBool(noCgroups), func(t *testing.T) {
				d := New(Options{Shim: shim.Self(), NoCgroups: noCgroups, KillPatience: 200 * time.Millisecond})
				s := drivertest.Begin(t, d, toyStart(t, "a"))
				daemon := spawned(t, s, 1)
				main := s.PID()
				end(s)
				exit := s.Ended()
				if alive(daemon) || alive(main) {
					t.Fatalf("done, but daemon alive %v, process alive %v (%+v)", alive(daemon), alive(main), exit)
				}
				switch {
				case name == "shim killed" && (exit.Cause != session.CauseFailed || !strings.Contains(exit.Message, "shim")):
					t.Fatalf("%+v", exit)
				case name == "shim stopped, then kill" && exit.Cause != session.CauseTerminated:
					t.Fatalf("%+v", exit)
				}
				if g := s.Process.(*proc).group; g.v2 != "" {
					if _, err := os.Stat(g.v2); !os.IsNotExist(err) {
						t.Fatalf("its cgroup is left: %v", err)
					}
				}
			})
		}
	}
}

// The shim and all else were killed while no agent ran: the next one finds the daemon, ends it, and says so.
func TestShimKilledWhileNobodyWatched(t *testing.T) {
	for _, noCgroups := range []bool{false, true} {
		start := toyStart(t, "a")
		s := drivertest.Begin(t, newDriver(t, noCgroups), start)
		daemon := spawned(t, s, 1)
		shimID := s.Process.(*proc).run.Shim
		s.Release()
		if err := syscall.Kill(shimID.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the shim is dead", func() bool { return !shimID.Alive() })
		_, err := newDriver(t, noCgroups).Adopt(t.Context(), start)
		gone, ok := err.(*driver.Gone)
		if !ok || gone.Exit.Cause != session.CauseFailed || len(gone.Turns) != 1 || gone.OutputLine != 1 {
			t.Fatalf("adopt: %v (%+v)", err, gone)
		}
		if alive(daemon) {
			t.Fatal("the daemon outlived the session")
		}
	}
}

func TestPartialAndLongLines(t *testing.T) {
	s := drivertest.Begin(t, newDriver(t, false), toyStart(t, "a"))
	turn := s.Ask(1, "long 600000") // more than two pieces of 256 KiB
	if len(turn.Result) != session.MaxResultBytes || !turn.Truncated || turn.OutputLine != 3 {
		t.Fatalf("%d bytes, truncated %v, line %d", len(turn.Result), turn.Truncated, turn.OutputLine)
	}
	s.Send(2, "close")
	s.Ended()
	lines := s.Logs(1)
	if len(lines) != 4 || lines[3] != "4 STDOUT no newline" {
		t.Fatalf("%d lines", len(lines))
	}
	result := <-s.Turns()
	if string(result.Result) != "no newline" {
		t.Fatalf("the last turn: %+v", result)
	}
}

// A flood beyond the log's bound: the numbers stay right, the hole is told, the session goes on.
func TestFloodBeyondTheBound(t *testing.T) {
	start := toyStart(t, "a")
	d := New(Options{Shim: shim.Self(), LogSegmentBytes: 256 << 10, LogTotalBytes: 1 << 20})
	s := drivertest.Begin(t, d, start)
	s.Ask(1, "flood 50000") // 5 MB
	eventually(t, "all is logged", func() bool { return s.OutputLine() == 50001 })
	lines := s.Logs(1)
	if !strings.HasPrefix(lines[0], "0 NOTICE lines 1–") {
		t.Fatalf("first %.80q", lines[0])
	}
	files, err := filepath.Glob(filepath.Join(LogDir(start.Dir), "*"))
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if total > 1<<20 {
		t.Fatalf("%d bytes are kept, more than 1 MiB", total)
	}
	s.Ask(2, "1")
	s.Release()
	s = drivertest.Adopt(t, d, start) // the first marker is gone, its turn is not
	for i := uint64(1); i <= 2; i++ {
		if turn := s.Turn(); turn.Sequence != i {
			t.Fatalf("turn %d came, want %d", turn.Sequence, i)
		}
	}
}

// A process that never reads its input blocks only who sends to it.
func TestStdinNotRead(t *testing.T) {
	s := drivertest.Begin(t, newDriver(t, false), toyStart(t, "a"))
	s.Ask(1, "deaf")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := s.Process.Send(ctx, driver.Input{Sequence: 2, Text: make([]byte, 200<<10)}) // a pipe takes 64 KiB
	if err == nil {
		t.Fatal("200 KiB fit into a pipe")
	}
	if s.Outstanding() != 2 {
		t.Fatalf("outstanding %d, want 2", s.Outstanding())
	}
	if lines := s.Logs(1); len(lines) != 1 {
		t.Fatalf("%q", lines)
	}
	s.Stop(drivertest.Patience, session.Exit{Cause: session.CauseTerminated})
	if e := s.Ended(); e.Signal != "SIGTERM" {
		t.Fatalf("%+v", e)
	}
}

func TestJSON(t *testing.T) {
	start := toyStart(t, "a")
	start.Spec.Protocol = session.ProtocolJSON
	start.Spec.Command = append(start.Spec.Command, "json")
	s := drivertest.Begin(t, newDriver(t, false), start)
	turn := s.Ask(12, "30")
	if string(turn.Result) != "sum 30" || turn.OutputLine != 2 {
		t.Fatalf("%+v", turn)
	}
	if turn = s.Ask(13, "say 1 \"quoted\"\nand broken"); string(turn.Result) != "ok 2" {
		t.Fatalf("%+v", turn)
	}
	if turn = s.Ask(14, "long 300000"); len(turn.Result) != session.MaxResultBytes || !turn.Truncated {
		t.Fatalf("%d bytes, truncated %v", len(turn.Result), turn.Truncated)
	}
}

func TestRawTerminal(t *testing.T) {
	start := toyStart(t, "a")
	start.Spec.Protocol, start.Spec.TurnIdle = session.ProtocolRaw, 200*time.Millisecond
	start.Spec.Command = []string{"/bin/sh", "-c", "stty -echo; printf 'ready> '; while read x; do stty size; printf 'got %s> ' $x; done"}
	s := drivertest.Begin(t, newDriver(t, false), start)
	eventually(t, "the prompt is logged without a newline", func() bool { return s.OutputLine() == 1 })
	turn := s.Ask(1, "one\n")
	if got := string(turn.Result); got != "24 80\r\ngot one> " {
		t.Fatalf("result %q", got)
	}
	s.Release()
	s = drivertest.Adopt(t, newDriver(t, false), start)
	if again := s.Turn(); string(again.Result) != string(turn.Result) {
		t.Fatalf("adopted: %q", again.Result)
	}
	s.Kill(session.Exit{Cause: session.CauseTerminated})
	s.Ended()
}

func TestEnvironmentAndWorkspace(t *testing.T) {
	start := toyStart(t, "a")
	start.Env = append(start.Env, "SECRET=swordfish")
	s := drivertest.Begin(t, newDriver(t, false), start)
	if got := string(s.Ask(1, "env SECRET").Result); got != "swordfish" {
		t.Fatalf("SECRET is %q", got)
	}
	if got := string(s.Ask(2, "env HOME").Result); got != "" {
		t.Fatalf("the agent's own environment shows: HOME=%q", got)
	}
	for _, f := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(s.Process.(*proc).run.Shim.PID) + "/" + f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "swordfish") {
			t.Fatalf("the shim's %s holds a secret", f)
		}
	}
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(s.PID()) + "/cwd")
	if err != nil || cwd != filepath.Join(start.Dir, "workspace") {
		t.Fatalf("it runs in %q, %v", cwd, err)
	}
	if err := os.WriteFile(filepath.Join(cwd, "kept"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Kill(session.Exit{Cause: session.CauseTerminated})
	s.Ended()
	start.Epoch++
	drivertest.Begin(t, newDriver(t, false), start)
	if _, err := os.Stat(filepath.Join(cwd, "kept")); err != nil {
		t.Fatalf("the workspace was not kept: %v", err)
	}
}

// A data directory may lie deeper than a socket's path may be long.
func TestDeepDirectory(t *testing.T) {
	start := toyStart(t, "a")
	start.Dir = filepath.Join(start.Dir, strings.Repeat("deep/", 40))
	if err := os.MkdirAll(start.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := drivertest.Begin(t, newDriver(t, false), start)
	s.Ask(1, "1")
	s.Release()
	s = drivertest.Adopt(t, newDriver(t, false), start)
	s.Turn()
	s.Ask(2, "1")
	st, err := os.Stat(filepath.Join(start.Dir, shim.SockName))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the socket: %v, %v", st.Mode(), err)
	}
}

func TestMemoryLimit(t *testing.T) {
	d := newDriver(t, false)
	if p, _ := d.Probe(t.Context()); !p[CapabilityCgroupMemory] {
		t.Skip("memory cannot be limited here")
	}
	start := toyStart(t, "a")
	start.Spec.MemoryBytes = 32 << 20
	start.Spec.Protocol = session.ProtocolNone
	start.Spec.Command = []string{"/bin/sh", "-c", "x=0123456789abcdef; while :; do x=$x$x; done"}
	s := drivertest.Begin(t, d, start)
	if e := s.Ended(); e.Cause != session.CauseOOMKilled {
		t.Fatalf("%+v", e)
	}
}
