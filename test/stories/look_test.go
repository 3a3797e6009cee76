// What a story looks at: exit codes, output that comes in time, and what stands in JSON.
package stories

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// run runs a program to its end and returns its exit code.
func run(ts *testscript.TestScript, args []string) int {
	// What hangs must not hang the story; timeout ends with 124 then.
	err := ts.Exec("timeout", append([]string{"-k", "5", "60"}, args...)...)
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	ts.Check(err)
	return 0
}

// exits runs a program that must end with an exit code. What it complains of must be one line, and no stack.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "exits", args, 2)
	if got := run(ts, args[1:]); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s\nstdout: %s\nstderr: %s", got, args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
	if errs := ts.ReadFile("stderr"); args[0] != "0" && strings.Contains(errs, "goroutine ") {
		ts.Fatalf("a stack trace is not an answer:\n%s", errs)
	}
}

// until runs a program again and again until its output matches.
func until(ts *testscript.TestScript, neg bool, args []string) {
	needArgs(ts, "until", args, 2)
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	deadline := time.Now().Add(patience)
	for {
		run(ts, args[1:])
		if pattern.MatchString(ts.ReadFile("stdout")) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waited in vain for %s", args[0])
		}
		time.Sleep(poll)
	}
}

// lookup finds a part of a JSON document: a name or a number of an element for each step.
func lookup(doc []byte, path string) (string, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return "", fmt.Errorf("the output is not JSON: %w", err)
	}
	for step := range strings.SplitSeq(path, ".") {
		var ok bool
		switch x := v.(type) {
		case map[string]any:
			v, ok = x[step]
		case []any:
			if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(x) {
				v, ok = x[i], true
			} else if step == "length" {
				v, ok = json.Number(strconv.Itoa(len(x))), true
			}
		}
		if !ok {
			return "", fmt.Errorf("there is no %s in it (at %s)", path, step)
		}
	}
	switch x := v.(type) {
	case string:
		return x, nil
	case json.Number:
		return x.String(), nil
	default:
		b, err := json.Marshal(v)
		return string(b), err
	}
}

// inJSON looks into the last standard output.
func inJSON(ts *testscript.TestScript, neg bool, args []string) {
	needArgs(ts, "json", args, 1)
	doc := ts.ReadFile("stdout")
	for _, arg := range args {
		end := strings.IndexAny(arg, "=~")
		path := arg
		if end >= 0 {
			path = arg[:end]
		}
		got, err := lookup([]byte(doc), path)
		if neg {
			if err == nil && (end < 0 || got == arg[end+1:]) {
				ts.Fatalf("%s is %q", path, got)
			}
			continue
		}
		if err != nil {
			ts.Fatalf("%s: %v\n%s", arg, err, doc)
		}
		switch {
		case end < 0:
		case arg[end] == '=' && got != arg[end+1:]:
			ts.Fatalf("%s is %q, want %q", path, got, arg[end+1:])
		case arg[end] == '~' && !regexp.MustCompile(arg[end+1:]).MatchString(got):
			ts.Fatalf("%s is %q, want a match of %q", path, got, arg[end+1:])
		}
	}
}

// save keeps something of the last standard output.
func save(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "save", args, 1)
	out := ts.ReadFile("stdout")
	if len(args) > 1 {
		var err error
		if out, err = lookup([]byte(out), args[1]); err != nil {
			ts.Fatalf("%s: %v\n%s", args[1], err, ts.ReadFile("stdout"))
		}
	}
	ts.Setenv(args[0], strings.TrimSpace(out))
}

// letters makes a file of so many letters.
func letters(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "letters", args, 2)
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), bytes.Repeat([]byte("z"), n), 0o600))
}
