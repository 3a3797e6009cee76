// The supervision of dev: what died is told with its reason, started again only when asked for, and all of it ends, in order.

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// told is what children say, which tests wait for.
type told struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

func newTold() *told { return &told{changed: make(chan struct{}, 1)} }

func (o *told) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return o.text.Write(b)
}

func (o *told) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *told) await(t *testing.T, pattern string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for p := regexp.MustCompile(pattern); !p.MatchString(o.String()); {
		select {
		case <-o.changed:
		case <-late:
			t.Fatalf("waited in vain for %q in %q", pattern, o)
		}
	}
}

func TestWhatDiedIsTold(t *testing.T) {
	out, dir := newTold(), t.TempDir()
	c := newChildren(out, false)
	defer c.stop()
	log := func(name string) string { return filepath.Join(dir, name+".log") }
	if err := c.start("lives", log("lives"), "/bin/sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := c.start("server-1", log("server-1"), "/bin/sh", "-c", "echo starting; echo 'listen.grpc: the port is taken' >&2; exit 2"); err != nil {
		t.Fatal(err)
	}
	out.await(t, `(?m)^server-1 \(pid \d+\) died: exit status 2: listen.grpc: the port is taken$`)
	if err := <-c.died; err.Error() != "server-1 died: exit status 2: listen.grpc: the port is taken" {
		t.Error(err)
	}
	if err := c.start("node-1", log("node-1"), "/bin/sh", "-c", "echo all is well; kill -9 $$"); err != nil {
		t.Fatal(err)
	}
	out.await(t, `(?m)^node-1 \(pid \d+\) died: signal: killed$`)
	if err := c.start("node-2", log("node-2"), "/bin/true"); err != nil {
		t.Fatal(err)
	}
	out.await(t, `(?m)^node-2 \(pid \d+\) died: exit status 0$`)
	if strings.Contains(out.String(), "again") {
		t.Errorf("something was started again: %s", out)
	}
	select {
	case err := <-c.allGone:
		t.Errorf("%v, while one lives", err)
	default:
	}
	if err := c.start("nothing", log("nothing"), filepath.Join(dir, "no-such-program")); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("started what is not there: %v", err)
	}
	c.end([]string{"lives"})
}

func TestAllGone(t *testing.T) {
	c := newChildren(io.Discard, false)
	defer c.stop()
	if err := c.start("only", filepath.Join(t.TempDir(), "log"), "/bin/true"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-c.allGone:
		if err == nil {
			t.Error("no reason is given")
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody says that nothing is left")
	}
}

func TestStartedAgain(t *testing.T) {
	out, dir := newTold(), t.TempDir()
	c := newChildren(out, true)
	mark := filepath.Join(dir, "mark") // the second time it stays
	script := fmt.Sprintf("if [ -e %[1]s ]; then exec sleep 1000; fi; touch %[1]s; exit 3", mark)
	if err := c.start("node-1", filepath.Join(dir, "log"), "/bin/sh", "-c", script); err != nil {
		t.Fatal(err)
	}
	out.await(t, `(?s)node-1 \(pid \d+\) died: exit status 3\nstarting node-1 again\n`)
	for late := time.After(20 * time.Second); c.signal([]string{"node-1"}, 0) == 0; {
		select {
		case <-late:
			t.Fatal("it was not started again")
		case <-time.After(time.Millisecond):
		}
	}
	c.stop([]string{"node-1"})
	if n := strings.Count(out.String(), "died"); n != 1 {
		t.Errorf("an end that was asked for is told as a death: %s", out)
	}
}

// TestAllEndsInOrder: the second group is told to end when the first has.
func TestAllEndsInOrder(t *testing.T) {
	dir := t.TempDir()
	order := filepath.Join(dir, "order")
	c := newChildren(io.Discard, false)
	for _, name := range []string{"agent", "server"} {
		script := fmt.Sprintf("trap 'echo %[1]s >>%[2]s; kill $!; exit 0' TERM; sleep 1000 & touch %[2]s.%[1]s; wait", name, order)
		if err := c.start(name, filepath.Join(dir, name+".log"), "/bin/sh", "-c", script); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"agent", "server"} {
		for late := time.After(20 * time.Second); ; {
			if _, err := os.Stat(order + "." + name); err == nil {
				break
			}
			select {
			case <-late:
				t.Fatalf("%s did not start", name)
			case <-time.After(time.Millisecond):
			}
		}
	}
	c.stop([]string{"agent"}, []string{"server"})
	if b, err := os.ReadFile(order); err != nil || string(b) != "agent\nserver\n" {
		t.Errorf("they ended as %q, %v", b, err)
	}
	if n := c.signal([]string{"agent", "server"}, 0); n != 0 {
		t.Errorf("%d are left", n)
	}
}

func TestLastWords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	for content, want := range map[string]string{
		"":                         "",
		"one":                      "one",
		"one\ntwo\n\n":             "two",
		strings.Repeat("x", 3000):  strings.Repeat("x", lastWordsBytes),
		strings.Repeat("y\n", 900): "y",
		"broken \xff text\n":       "broken  text",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastWords(file); got != want {
			t.Errorf("of %.20q: %.40q, want %.40q", content, got, want)
		}
	}
	if got := lastWords(file + ".none"); got != "" {
		t.Errorf("of no file: %q", got)
	}
}
