// Cloning, from real repositories by the real git. These tests need it: without it they fail.

package workspace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// git runs git in a directory, without anybody's configuration.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s (the tests need git)", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// repo makes a repository with a history: its bare directory, and its commits from the oldest on.
func repo(t testing.TB) (dir string, all []string) {
	t.Helper()
	work := filepath.Join(t.TempDir(), "work")
	bare := filepath.Join(t.TempDir(), "project.git")
	must(t, os.Mkdir(work, 0o700))
	git(t, work, "init", "-q", "-b", "main")
	for i := range 3 {
		must(t, os.WriteFile(filepath.Join(work, "f"), []byte(strconv.Itoa(i)), 0o600))
		git(t, work, "add", "f")
		git(t, work, "commit", "-q", "-m", strconv.Itoa(i))
		all = append(all, git(t, work, "rev-parse", "HEAD"))
	}
	git(t, work, "tag", "v1", all[1])
	git(t, work, "branch", "side/fix#12", all[0])
	git(t, work, "clone", "-q", "--bare", work, bare)
	return bare, all
}

func isolated(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Fatalf("these tests need git: %v", err)
	}
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	t.Setenv("GIT_CONFIG_SYSTEM", "/dev/null")
	t.Setenv("GIT_DIR", "/nowhere") // as a hook would have it
	os.Unsetenv("GIT_DIR")
}

func TestClone(t *testing.T) {
	isolated(t)
	bare, all := repo(t)
	t.Setenv("GIT_DIR", "/nowhere") // as where a hook starts it
	for ref, want := range map[string]string{
		"file://" + bare: "2", "git+file://" + bare: "2", "file://" + bare + "#main": "2", "file://" + bare + "#v1": "1", "file://" + bare + "#side/fix#12": "0",
		"file://" + bare + "#" + all[2]: "2", "file://" + bare + "#" + all[0]: "0",
	} {
		tmp, told := t.TempDir(), ""
		dir, cleanup, err := Open(t.Context(), ref, Options{Dir: tmp, Progress: func(p Progress) { told = p.Step }})
		must(t, err)
		if text, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(text) != want || told != "cloning" {
			t.Errorf("%s: %q, want %q: %v", ref, text, want, err)
		}
		if _, err := os.Stat(filepath.Join(dir, ".git/shallow")); err != nil && want != "0" {
			t.Errorf("%s: the whole history came: %v", ref, err)
		}
		cleanup()
		empty(t, tmp, ref)
	}
}

func TestClonesThatFail(t *testing.T) {
	isolated(t)
	bare, _ := repo(t)
	for name, c := range map[string]struct {
		ref  string
		o    Options
		kind fault.Kind
		says string
	}{
		"no such branch":     {"file://" + bare + "#none", Options{}, fault.NotFound, "give a branch, a tag"},
		"no such commit":     {"file://" + bare + "#" + strings.Repeat("0a", 20), Options{}, fault.NotFound, "all digits of a commit"},
		"no such repository": {"file:///nowhere/x.git", Options{}, fault.NotFound, "does not"},
		"nobody there":       {"git://127.0.0.1:1/x.git", Options{}, fault.Unavailable, "git:"},
		"no git":             {"file://" + bare, Options{Git: "/nowhere/git"}, fault.FailedPrecondition, "install it"},
		"too many files":     {"file://" + bare, Options{MaxEntries: 10}, fault.Exhausted, "10 entries"},
		"too many bytes":     {"file://" + bare, Options{MaxBytes: 100}, fault.Exhausted, "100 bytes"},
	} {
		tmp := t.TempDir()
		c.o.Dir = tmp
		if _, _, err := Open(t.Context(), c.ref, c.o); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		empty(t, tmp, name)
	}
}

// A password gets one in, and is nowhere afterwards: not in the clone, which becomes part of checkpoints, and not in errors.
func TestCloneOverHTTPWithAPassword(t *testing.T) {
	isolated(t)
	bare, _ := repo(t)
	path, err := exec.LookPath("git")
	must(t, err)
	backend := &cgi.Handler{Path: path, Args: []string{"http-backend"}, Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(bare), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=me"}, Stderr: os.Stderr}
	url, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "hunter/2" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	})
	address := func(user string) string { return strings.Replace(url, "//", "//"+user+"@", 1) + "/project.git" }
	dir, cleanup, err := Open(t.Context(), address("me:hunter%2F2"), Options{Dir: t.TempDir()})
	must(t, err)
	defer cleanup()
	if text, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(text) != "2" {
		t.Errorf("%q, %v", text, err)
	}
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if d.Type().IsRegular() {
			if text, _ := os.ReadFile(p); strings.Contains(string(text), "hunter") {
				t.Errorf("the password is in %s", p)
			}
		}
		return err
	}))
	if got := git(t, dir, "remote", "get-url", "origin"); got != address("me") {
		t.Error(got)
	}
	_, _, err = Open(t.Context(), address("me:wrong-one"), Options{Dir: t.TempDir()})
	if !fault.Is(err, fault.PermissionDenied) || strings.Contains(err.Error(), "wrong-one") {
		t.Error(err)
	}
	if _, _, err = Open(t.Context(), url+"/project.git", Options{Dir: t.TempDir()}); !fault.Is(err, fault.PermissionDenied) { // and nobody is asked
		t.Error(err)
	}
}

// fake is a program in git's place.
func fake(t *testing.T, script string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "git")
	must(t, os.WriteFile(name, []byte("#!/bin/sh\n"+script), 0o700))
	return name
}

// Whatever a reference says, it is no option, and git is told not to ask.
func TestGitGetsNoOptions(t *testing.T) {
	out := filepath.Join(t.TempDir(), "args")
	program := fake(t, fmt.Sprintf(`printf '%%s\n' "$@" > %s; echo "$GIT_TERMINAL_PROMPT $GIT_ALLOW_PROTOCOL $GIT_DIR" >> %s; echo 'fatal: no' >&2; exit 128`, out, out))
	t.Setenv("GIT_DIR", "/nowhere")
	for ref, want := range map[string][2]string{
		"me@host:path/x#v1":                {"me@host:path/x", "--branch=v1"},
		"ssh://git@host/x.git":             {"ssh://git@host/x.git", ""},
		"git+ssh://git@host:22/~me/x#a/b":  {"ssh://git@host:22/~me/x", "--branch=a/b"},
		"git://host/x":                     {"git://host/x", ""},
		"HTTPS://host/x.git#release-1.2+3": {"https://host/x.git", "--branch=release-1.2+3"},
		"git+https://host/x?y=z":           {"https://host/x?y=z", ""},
	} {
		_, _, err := Open(t.Context(), ref, Options{Dir: t.TempDir(), Git: program})
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "fatal: no") {
			t.Errorf("%s: %v", ref, err)
		}
		text, err := os.ReadFile(out)
		must(t, err)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		n := len(lines)
		if lines[n-1] != "0 https:http:ssh:git:file" && lines[n-1] != "0 https:http:ssh:git:file " || lines[n-3] != want[0] || lines[n-4] != "--" {
			t.Errorf("%s: %q", ref, lines)
		}
		if want[1] != "" && lines[n-5] != want[1] {
			t.Errorf("%s: %q", ref, lines)
		}
	}
}

// Who gives up ends git, and what git has started: both hold a pipe, which ends when they do.
func TestCloneCanceled(t *testing.T) {
	held, w, err := os.Pipe()
	must(t, err)
	defer held.Close()
	program := fake(t, fmt.Sprintf(`exec 3>/proc/%d/fd/%d || exit; trap '' TERM; sleep 1000 & echo started >&3; wait`, os.Getpid(), w.Fd()))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tmp, done := t.TempDir(), make(chan error, 1)
	go func() {
		_, _, err := Open(ctx, "git://host/x.git", Options{Dir: tmp, Git: program})
		done <- err
	}()
	must(t, held.SetReadDeadline(time.Now().Add(30*time.Second)))
	out := bufio.NewReader(held)
	if line, err := out.ReadString('\n'); line != "started\n" {
		t.Fatalf("it says %q: %v", line, err)
	}
	must(t, w.Close())
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	empty(t, tmp, "canceled")
	must(t, held.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := out.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("git, or what it has started, is still there: %v", err)
	}
}
