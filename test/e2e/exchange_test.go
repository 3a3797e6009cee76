// Sessions as files between two clusters of real processes, by the real orchctl; and sessions that begin with files.

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// person runs orchctl against a cluster, with a home of its own.
type person struct {
	t    *testing.T
	home string
	addr string
}

// orchctl returns what it printed and its exit code.
func (p *person) orchctl(args ...string) (out, errs string, code int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "orchctl"), args...)
	cmd.Env = []string{"HOME=" + p.home, "ORCHCTL_ADDR=" + p.addr, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + p.home}
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// must runs what has to succeed, and returns what it printed.
func (p *person) must(args ...string) string {
	p.t.Helper()
	out, errs, code := p.orchctl(args...)
	if code != 0 {
		p.t.Fatalf("orchctl %s: exit code %d: %s%s", strings.Join(args, " "), code, out, errs)
	}
	return strings.TrimSpace(out)
}

// sessions is how many the cluster has.
func (s *small) sessions() int {
	s.t.Helper()
	r, err := s.c.Sessions.ListSessions(s.t.Context(), &apiv1.ListSessionsRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	return len(r.GetSessions())
}

// TestASessionGoesToAnotherCluster: with its files, its count and its output; twice over. What is damaged or signed by a stranger makes nothing.
func TestASessionGoesToAnotherCluster(t *testing.T) {
	t.Parallel()
	here, there := startSmall(t, 1, 5*time.Second), startSmall(t, 1, 5*time.Second)
	watch := newObserver(t)
	me := &person{t, t.TempDir(), here.addr}
	row := here.spawn(&apiv1.SessionSpec{Name: "ledger", Command: watch.keeping()})
	for want := 1; want <= 7; want++ {
		if got := here.count(row.GetId()); got != want {
			t.Fatalf("message %d was counted as %d", want, got)
		}
	}
	me.must("sessions", "checkpoint", "ledger", "--wait")
	here.count(row.GetId()) // 8, which is not in the file
	file := filepath.Join(t.TempDir(), "ledger.orchsession")
	me.must("sessions", "export", "ledger", "-f", file)
	if got := here.count(row.GetId()); got != 9 {
		t.Errorf("after the export it counts %d", got)
	}

	stranger := &person{t, t.TempDir(), there.addr}
	out, errs, code := stranger.orchctl("sessions", "import", file, "--name", "ledger", "--quiet")
	if code != 4 || !strings.Contains(errs, "it is signed by SHA256:") || !strings.Contains(errs, "--signer SHA256:") {
		t.Errorf("a stranger: exit code %d: %s%s", code, out, errs)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, content := range map[string][]byte{"cut off": whole[:len(whole)*2/3], "changed": flip(whole, len(whole)/2)} {
		bad := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, errs, code := (&person{t, me.home, there.addr}).orchctl("sessions", "import", bad, "--quiet"); code != 1 && code != 4 {
			t.Errorf("%s: exit code %d: %s%s", what, code, out, errs)
		}
	}
	if n := there.sessions(); n != 0 {
		t.Fatalf("%d sessions were made", n)
	}

	moved := &person{t, me.home, there.addr} // whose key it is
	if got := moved.must("sessions", "import", file, "--dry-run", "--quiet"); !strings.Contains(got, "(trusted: your own key)") || there.sessions() != 0 {
		t.Errorf("a dry run: %s", got)
	}
	id := moved.must("sessions", "import", file, "--name", "imported", "--wait", "-o", "name", "--quiet")
	for want := 8; want <= 10; want++ {
		if got := there.count(id); got != want {
			t.Errorf("there, message %d is counted as %d", want, got)
		}
	}
	text, _ := there.lines(id)
	for n := uint64(1); n <= 10; n++ {
		if text[n] != fmt.Sprint(n) {
			t.Errorf("line %d is %q", n, text[n])
		}
	}
	s := there.session(id)
	if s.GetEpoch() != 1 || s.GetCheckpoint().GetTurn() != 7 || s.GetLag().GetTurns() != 3 {
		t.Errorf("epoch %d, turn %d of its checkpoint, lag %v", s.GetEpoch(), s.GetCheckpoint().GetTurn(), s.GetLag())
	}
	// It is a session like any other: its own checkpoint, what differs from the one it came with, and back where it came from.
	moved.must("sessions", "checkpoint", "imported", "--wait")
	if got := moved.must("sessions", "checkpoints", "diff", "imported", "-o", "name", "--quiet"); !strings.Contains(got, "workspace/count") {
		t.Errorf("differs in %q", got)
	}
	back := filepath.Join(t.TempDir(), "back")
	moved.must("sessions", "export", "imported", "-f", back, "--quiet")
	again := me.must("sessions", "import", back, "--name", "returned", "--wait", "-o", "name", "--quiet")
	if got := here.count(again); got != 11 {
		t.Errorf("back again it counts %d", got)
	}
	if got := here.count(row.GetId()); got != 10 {
		t.Errorf("the first one counts %d", got)
	}
	watch.check(t)
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x10
	return b
}

// TestSessionsBeginWithFiles: from a directory, an archive and a git repository; at turn 0, line 1, and restored as any other.
func TestSessionsBeginWithFiles(t *testing.T) {
	t.Parallel()
	s := startSmall(t, 2, 5*time.Second)
	me := &person{t, t.TempDir(), s.addr}
	dir := filepath.Join(t.TempDir(), "work")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "deep", "er"), 0o755), os.WriteFile(filepath.Join(dir, "deep", "er", "words"), []byte("hello\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "run.sh"), []byte("#!/bin/sh\nwhile read -r line; do echo \"$(cat deep/er/words) $line\"; done\n"), 0o755), os.Symlink("run.sh", filepath.Join(dir, "link")),
		os.Symlink("/etc/passwd", filepath.Join(dir, "out")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(t.TempDir(), "work.tar.gz")
	run(t, dir, "tar", "--exclude", "./out", "-czf", archive, ".")
	repo := filepath.Join(t.TempDir(), "work.git")
	run(t, "", "cp", "-a", dir, repo)
	run(t, repo, "rm", "out")
	run(t, repo, "git", "init", "-q", "-b", "main")
	run(t, repo, "git", "add", ".")
	run(t, repo, "git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "-m", "one")
	for name, ref := range map[string]string{"dir": dir, "archive": archive, "git": "file://" + repo + "#main"} {
		out, errs, code := me.orchctl("sessions", "spawn", "--workspace", ref, "--name", name, "--wait", "-o", "name", "--", "./link")
		if code != 0 {
			t.Errorf("%s: exit code %d: %s", name, code, errs)
			continue
		}
		if warned := strings.Contains(errs, "warning: out is not in the workspace"); warned != (name == "dir") {
			t.Errorf("%s: %s", name, errs)
		}
		id := strings.TrimSpace(out)
		row := s.session(id)
		if k := row.GetCheckpoint(); row.GetPhase() != apiv1.Session_RUNNING || row.GetEpoch() != 1 || k.GetSequence() != 1 || k.GetTurn() != 0 || k.GetOutputLine() != 0 {
			t.Errorf("%s: %v", name, row)
		}
		r, err := s.c.Sessions.SendMessage(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("you"), Wait: true})
		if err != nil || string(r.GetMessage().GetResult()) != "hello you" {
			t.Errorf("%s: answers %q, %v", name, r.GetMessage().GetResult(), err)
		}
		if text, notices := s.lines(id); text[1] != "hello you" || notices != 0 {
			t.Errorf("%s: its output is %v with %d notices", name, text, notices)
		}
	}
	// It goes on elsewhere from a checkpoint of its own, and begins anew from the one it was made with.
	me.must("sessions", "migrate", "dir", "--wait", "--quiet")
	me.must("sessions", "rewind", "dir", "--to", "1", "--wait", "--quiet")
	if r, err := s.c.Sessions.SendMessage(t.Context(), &apiv1.SendMessageRequest{SessionId: "dir", Text: []byte("again"), Wait: true}); err != nil || string(r.GetMessage().GetResult()) != "hello again" {
		t.Errorf("after a move and a rewind: %q, %v", r.GetMessage().GetResult(), err)
	}
}

// run runs a program of this machine.
func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
