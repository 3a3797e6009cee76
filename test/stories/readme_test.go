// The README's tour, typed line by line: what it shows is what a person gets.
package stories

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shown is a command of the tour, with the output that the README shows.
type shown struct{ command, output string }

// readmeTour reads the commands of the tour.
func readmeTour(t *testing.T) (tour []shown) {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(b), "\n## A tour")
	text, _, closed := strings.Cut(text, "\n## ")
	if !found || !closed {
		t.Fatal("the README has no tour, or nothing after it")
	}
	for i, block := range strings.Split(text, "```\n") {
		if i%2 == 0 {
			continue // what is said between
		}
		for line := range strings.Lines(block) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				tour = append(tour, shown{command: strings.TrimSpace(command)})
			} else {
				tour[len(tour)-1].output += line
			}
		}
	}
	return tour
}

// What differs from run to run, and what is put in its place. Widths of columns follow the width of what is in them.
var variable = []struct {
	is    *regexp.Regexp
	shows string
}{
	{regexp.MustCompile(`\bSHA256:[A-Za-z0-9+/]{43}`), "SIGNER"}, // first: there may be anything in it
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`), "TIME"},
	{regexp.MustCompile(`\b[a-z2-7]{20}\b`), "ID"},
	{regexp.MustCompile(`\b(node|server)-\d\b`), "$1"},
	{regexp.MustCompile(`(/\S+)?/orchestrator/dev`), "DATA"},
	{regexp.MustCompile(`--context dev(-\d+)?\b`), "CONTEXT"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`\b\d+(\.\d+)?(ms|s|%|[KM]?i?B)`), "SOME"},
	{regexp.MustCompile(`PID: +\d+`), "PID"},
	{regexp.MustCompile(`Rounds: +\d+`), "ROUNDS"},
	{regexp.MustCompile(`checkpoint \d+`), "CHECKPOINT"}, // by how fast one follows the other
	{regexp.MustCompile(`\bDEGRADED\b`), "HEALTHY"},      // so is a node of a machine that has other work
	{regexp.MustCompile(`; degraded, as no healthy node has room`), ""},
	{regexp.MustCompile(` +`), " "},
}

// same makes what is to be the same in every run of what was shown.
func same(output string) string {
	for _, v := range variable {
		output = v.is.ReplaceAllString(output, v.shows)
	}
	return strings.TrimSpace(output)
}

// tourist is the shell in which the tour is typed.
type tourist struct {
	t    *testing.T
	home string
	env  []string
}

// types types a command into a shell of its own; what a command keeps in a variable is kept in env.
func (p *tourist) types(command string) string {
	p.t.Helper()
	name, value, assigns := strings.Cut(command, "=")
	assigns = assigns && regexp.MustCompile(`^[A-Z]+$`).MatchString(name)
	if assigns {
		command = "echo " + value
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.Env, cmd.Dir = p.env, p.home
	var progress bytes.Buffer // a bar on a terminal, which is gone at the end
	cmd.Stderr = &progress
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("%s: %v\n%s%s", command, err, out, &progress)
	}
	if assigns {
		p.env = append(p.env, name+"="+strings.TrimSpace(string(out)))
		return ""
	}
	return string(out)
}

// dev runs the tour's cluster on ports of its own until the test ends, and returns what it says when it is ready.
func (p *tourist) dev(command string) string {
	p.t.Helper()
	base, guard, err := takePorts()
	if err != nil {
		p.t.Fatal(err)
	}
	logFile := filepath.Join(p.home, "dev.log")
	log, err := os.Create(logFile)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	args := append(strings.Fields(command), "--base-port", strconv.Itoa(base))
	cmd := exec.Command(filepath.Join(programs, args[0]), args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("dev ended with %v", err)
		}
		_ = guard.Close()
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		said, err := os.ReadFile(logFile)
		if err != nil || time.Now().After(deadline) {
			p.t.Fatalf("dev is not ready: %v\n%s", err, said)
		}
		if bytes.Contains(said, []byte("orchctl.env")) { // in the last of its lines
			return string(said)
		}
	}
}

func TestReadmeTour(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	p := &tourist{t: t, home: home, env: []string{"HOME=" + home, "PATH=" + programs + ":" + os.Getenv("PATH")}}
	tour := readmeTour(t)
	if len(tour) < 8 {
		t.Fatalf("the README's tour has only %d commands", len(tour))
	}
	for _, step := range tour {
		var got string
		switch {
		case strings.HasPrefix(step.command, "orchestrator dev"):
			got = p.dev(step.command)
		case strings.Contains(step.command, "sessions history"): // the README says that it takes its time
			for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
				if got = p.types(step.command); same(got) == same(step.output) || time.Now().After(deadline) {
					break
				}
			}
		default:
			got = p.types(step.command)
		}
		if same(got) != same(step.output) {
			t.Fatalf("$ %s\n--- the README shows\n%s\n--- it is\n%s", step.command, step.output, got)
		}
	}
}
