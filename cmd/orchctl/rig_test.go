// The rig of the tests: a cluster in memory, orchctl run against it, and outputs that are followed.

package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/client/clienttest"
)

func TestMain(m *testing.M) {
	// The library of tunnels through a Kubernetes API server lingers for a second over one that has been closed.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown"))
}

// rig is a cluster in memory and the means to run orchctl against it.
type rig struct {
	t   *testing.T
	c   *clienttest.Cluster
	env []string
	now time.Time
	// patience is how long a command works before it shows progress.
	patience time.Duration
}

// newRig is a cluster with a node, whose clock stands still at a round time.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, c: clienttest.New(), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), patience: 50 * time.Millisecond}
	r.c.Now = func() time.Time { return r.now }
	r.c.AddNode("node-1")
	s := r.c.Serve(t, nil)
	r.env = []string{"HOME=" + t.TempDir(), "ORCHCTL_ADDR=" + s.Address}
	return r
}

type result struct {
	code     int
	out, err string
}

// run runs a command line; words with spaces are given in single quotes.
func (r *rig) run(line string) result { return r.runIn(line, strings.NewReader("")) }

func (r *rig) runIn(line string, stdin io.Reader) result {
	r.t.Helper()
	var out, errs bytes.Buffer
	a := newApp(r.env, stdin, &out, &errs)
	a.now = func() time.Time { return r.now.Add(5 * time.Minute) }
	a.refresh, a.patience = 10*time.Millisecond, r.patience
	code := a.execute(words(line))
	return result{code, out.String(), errs.String()}
}

// must runs what has to succeed, and returns what it printed.
func (r *rig) must(line string) string {
	r.t.Helper()
	res := r.run(line)
	if res.code != 0 {
		r.t.Fatalf("%s: exit code %d: %s", line, res.code, res.err)
	}
	return strings.TrimSpace(res.out)
}

func words(line string) (out []string) {
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

// tap is an output that a test follows while the program runs.
type tap struct {
	mu   sync.Mutex
	text string
	grew chan struct{}
}

func newTap() *tap { return &tap{grew: make(chan struct{}, 1000)} }

func (w *tap) Write(p []byte) (int, error) {
	w.mu.Lock()
	w.text += string(p)
	w.mu.Unlock()
	w.grew <- struct{}{}
	return len(p), nil
}

func (w *tap) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text
}

// until waits for a text.
func (w *tap) until(t *testing.T, text string) {
	t.Helper()
	w.wait(t, text, func(all string) bool { return strings.Contains(all, text) })
}

// untilGone waits until a text is not in what was drawn last.
func (w *tap) untilGone(t *testing.T, text string) {
	t.Helper()
	w.wait(t, "an end of "+text, func(all string) bool {
		frame, drawn := strings.CutSuffix(all, "\x1b[J") // a frame ends with erasing what the one before had below it
		return drawn && !strings.Contains(frame[max(0, strings.LastIndex(frame, "\x1b[J")):], text)
	})
}

func (w *tap) wait(t *testing.T, what string, came func(all string) bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !came(w.String()) {
		select {
		case <-w.grew:
		case <-limit:
			t.Fatalf("%q did not come in %q", what, w.String())
		}
	}
}

// watch runs a command that follows, until enough has been seen.
func (r *rig) watch(line string, seen func(out *tap)) result {
	r.t.Helper()
	out, errs := newTap(), newTap()
	a := newApp(r.env, strings.NewReader(""), out, errs)
	a.now = func() time.Time { return r.now }
	a.refresh = 5 * time.Millisecond
	root := a.root()
	root.SetArgs(words(line))
	root.SetOut(out)
	root.SetErr(errs)
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan int)
	go func() {
		cmd, err := root.ExecuteContextC(ctx)
		if a.client != nil {
			_ = a.client.Close()
		}
		ended <- a.report(cmd, err)
	}()
	seen(out)
	cancel()
	return result{<-ended, out.String(), errs.String()}
}
