// Somebody who may do little: a program run without root's permissions, so that stories about permissions hold for everybody.
package stories

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// nobodyID is the user and the group of nobody on every Linux.
const nobodyID = 65534

// strangers makes a directory that everybody may look into and only its owner may change, outside of the story's own, which
// is closed to others. Its name is kept as a variable.
func strangers(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "strangers", args, 1)
	dir, err := os.MkdirTemp("", "orchestrator-story-")
	ts.Check(err)
	ts.Defer(func() { _ = os.Chmod(dir, 0o700); _ = os.RemoveAll(dir) })
	mode := os.FileMode(0o755)
	if os.Geteuid() != 0 {
		mode = 0o555 // who runs the story is its owner
	}
	ts.Check(os.Chmod(dir, mode))
	ts.Setenv(args[0], dir)
}

// nobody runs a program as a user without permissions; it must end with the exit code, and say what it says in one line.
func nobody(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "nobody", args, 2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, args[1]), args[2:]...)
	cmd.Dir, cmd.Env = "/", []string{"HOME=/nonexistent", "NO_COLOR=1"}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobodyID, Gid: nobodyID, NoSetGroups: true}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Check(err)
	}
	said := strings.TrimSpace(errs.String())
	_, err = ts.Stderr().Write(errs.Bytes())
	ts.Check(err)
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] || strings.Contains(said, "\n") || said == "" {
		ts.Fatalf("exit code %s, want %s, and one line; it said\n%s", got, args[0], said)
	}
}
