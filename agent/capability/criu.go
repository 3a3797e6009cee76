// CRIU, which could checkpoint the memory of processes: whether it works here, and why not.

package capability

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	// criuTimeout bounds "criu check".
	criuTimeout = 5 * time.Second
	// The oldest version that is used: those before fail on new kernels, some of them only when they restore.
	criuMajor, criuMinor = 4, 1
	// criuSaidBytes bounds what is told of the output of "criu check".
	criuSaidBytes = 160
)

// criu says why criu cannot be used here; empty when it can.
func criu(ctx context.Context) (why string) {
	path, err := exec.LookPath("criu")
	if err != nil {
		return "criu is not in the PATH of the node-agent"
	}
	out, err := output(ctx, path, "--version")
	if err != nil {
		return "criu --version " + ended(ctx, err) + said(out)
	}
	major, minor, ok := criuVersion(out)
	if !ok {
		return "criu --version does not tell a version" + said(out)
	}
	if major < criuMajor || major == criuMajor && minor < criuMinor {
		return fmt.Sprintf("criu is at version %d.%d, and %d.%d is the oldest that works on new kernels", major, minor, criuMajor, criuMinor)
	}
	if out, err = output(ctx, path, "check"); err != nil {
		return "criu check " + ended(ctx, err) + said(out)
	}
	return ""
}

// output runs a program, and returns what it writes to either stream.
func output(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = criuTimeout
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// criuVersion reads "Version: 4.1.1".
func criuVersion(out string) (major, minor int, ok bool) {
	for line := range strings.Lines(out) {
		v, is := strings.CutPrefix(strings.TrimSpace(line), "Version:")
		if !is {
			continue
		}
		first, rest, _ := strings.Cut(strings.TrimSpace(v), ".")
		second, _, _ := strings.Cut(rest, ".")
		if i := strings.IndexFunc(second, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
			second = second[:i] // of a development version
		}
		major, err := strconv.Atoi(first)
		if err != nil {
			return 0, 0, false
		}
		minor, _ = strconv.Atoi(second) // none is 0
		return major, minor, true
	}
	return 0, 0, false
}

// ended says how a program failed.
func ended(ctx context.Context, err error) string {
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Sprintf("did not end within %s", criuTimeout)
	case errors.As(err, &exit):
		return fmt.Sprintf("failed (%s)", exit)
	default:
		return "could not be run: " + err.Error()
	}
}

// said is the last line that a program wrote, which is where criu says what is wrong.
func said(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if last == "" {
		return ""
	}
	if len(last) > criuSaidBytes {
		last = strings.ToValidUTF8(last[:criuSaidBytes], "") + "…"
	}
	return ": " + last
}
