// What all parts share.

package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
)

// Options say how to measure.
type Options struct {
	// Root is the checkout; Program and NodeProgram are the programs to measure, from `make build`.
	Root, Program, NodeProgram string
	// Dir is where clusters keep their data; on the disk that is to be measured.
	Dir string
	// Runs is how often each figure is measured.
	Runs int
	// Warm and Length are the times of one measurement under load.
	Warm, Length time.Duration
	// Nodes, Clients, Sessions and Kills are the sizes of the parts of these names.
	Nodes, Clients, Sessions, Kills int
	// Peers is a directory with the program that runs peers; without it they are not measured.
	Peers string
	// Stability is how long the run without elections lasts.
	Stability time.Duration
	// Only limits send, spawn, calls and nodes to the cases whose name holds it; empty for all.
	Only string
	// Profiles is a directory for processor profiles of the servers; empty for none.
	Profiles string
	// Log is told what is under way.
	Log io.Writer
}

// Bench measures.
type Bench struct {
	o            Options
	instrumented string // the server with a debug port, once it is built
}

// New makes a Bench.
func New(o Options) (*Bench, error) {
	if o.Runs < 1 {
		return nil, fmt.Errorf("runs: %d is too few", o.Runs)
	}
	if _, err := os.Stat(o.Program); err != nil {
		return nil, fmt.Errorf("there is no server to measure; run make build: %w", err)
	}
	return &Bench{o: o}, nil
}

func (b *Bench) logf(format string, args ...any) { fmt.Fprintf(b.o.Log, format+"\n", args...) }

// wanted reports whether a case is to be measured.
func (b *Bench) wanted(name string) bool { return strings.Contains(name, b.o.Only) }

// slug makes a name fit for a file.
func slug(name string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r < 128 && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			return unicode.ToLower(r)
		}
		return '-'
	}, name), "-")
}

// dir makes a new directory, and a function that removes it.
func (b *Bench) dir(name string) (string, func(), error) {
	if err := os.MkdirAll(b.o.Dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("make a directory for data: %w", err)
	}
	dir, err := os.MkdirTemp(b.o.Dir, name+"-")
	if err != nil {
		return "", nil, fmt.Errorf("make a directory for data: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", nil, err
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil // what is left is in a directory for temporary files
}

// withCluster runs f with a fresh cluster, and ends it.
func (b *Bench) withCluster(ctx context.Context, o testbed.ClusterOptions, f func(c *testbed.Cluster) error) error {
	dir, remove, err := b.dir("cluster")
	if err != nil {
		return err
	}
	o.Dir = dir
	if o.Program == "" {
		o.Program = b.o.Program
	}
	if b.o.Profiles != "" || len(o.Env) > 0 {
		if o.Program, err = b.instrumentedProgram(ctx); err != nil {
			return err
		}
		o.Env = testbed.DebugEnv(dir)
	}
	c, err := testbed.StartCluster(ctx, o)
	if err != nil {
		return err // the logs that it names stay
	}
	if err := errors.Join(f(c), c.Stop()); err != nil {
		return fmt.Errorf("%w (the logs are in %s)", err, filepath.Join(dir, "logs"))
	}
	remove()
	return nil
}

func (b *Bench) instrumentedProgram(ctx context.Context) (string, error) {
	if b.instrumented != "" {
		return b.instrumented, nil
	}
	dir, err := filepath.Abs(filepath.Join(b.o.Dir, "debug"))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	b.instrumented, err = testbed.BuildInstrumented(ctx, b.o.Root, dir)
	return b.instrumented, err
}

// instrumented asks withCluster for servers with a debug port.
var instrumented = []string{"instrumented"}

// helper runs f with a helper, and ends it.
func helper(role string, f func(h *testbed.Helper) error) error {
	h, err := testbed.StartHelper(role)
	if err != nil {
		return err
	}
	if err := f(h); err != nil {
		h.Kill()
		return err
	}
	return h.Close()
}

// profiled runs f, and meanwhile profiles every server, when profiles are wanted.
func (b *Bench) profiled(ctx context.Context, c *testbed.Cluster, name string, length time.Duration, f func() error) error {
	if b.o.Profiles == "" {
		return f()
	}
	if err := os.MkdirAll(b.o.Profiles, 0o755); err != nil {
		return err
	}
	leader, err := c.Leader(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, len(c.Servers()))
	for _, s := range c.Servers() {
		role := "follower-" + s.Name
		if s == leader {
			role = "leader"
		}
		go func() {
			done <- s.Profile(ctx, filepath.Join(b.o.Profiles, name+"-"+role+".pprof"), max(length, time.Second))
		}()
	}
	err = f()
	for range c.Servers() {
		err = errors.Join(err, <-done)
	}
	return err
}

// profile is the file for a profile; empty when none is wanted.
func (b *Bench) profile(name string) string {
	if b.o.Profiles == "" {
		return ""
	}
	return filepath.Join(b.o.Profiles, name+".pprof")
}

// cpuMeter measures the processor time of processes.
type cpuMeter struct {
	pids  []int
	begin time.Time
	used  time.Duration
}

func meter(pids []int) *cpuMeter {
	m := &cpuMeter{begin: time.Now(), pids: pids}
	m.used = m.now()
	return m
}

func serverPIDs(c *testbed.Cluster) (pids []int) {
	for _, s := range c.Servers() {
		pids = append(pids, s.PID())
	}
	return pids
}

func (m *cpuMeter) now() (sum time.Duration) {
	for _, pid := range m.pids {
		t, err := measure.CPUTime(pid)
		if err == nil { // a process that died fails elsewhere
			sum += t
		}
	}
	return sum
}

// spent is the processor time since the meter was made.
func (m *cpuMeter) spent() time.Duration { return m.now() - m.used }

// cores is how many processors were kept busy since the meter was made.
func (m *cpuMeter) cores() float64 {
	return m.spent().Seconds() / time.Since(m.begin).Seconds()
}

// failedNote tells of operations that failed; empty when none did.
func failedNote(s measure.Summary) string {
	if s.Errors == 0 {
		return ""
	}
	return fmt.Sprintf("%d errors, such as: %s", s.Errors, s.FirstError)
}
