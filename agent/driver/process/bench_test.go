// What a session costs: its start against bare fork/exec of the same program, and an idle shim's memory.
package process

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/session"
)

// builtShim builds the shim as `make build` does.
func builtShim(b *testing.B) shim.Program {
	b.Helper()
	path := filepath.Join(b.TempDir(), "shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/neolith/orchestrator/agent/shim/cmd/shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build the shim: %v: %s", err, out)
	}
	return shim.Program{Path: path}
}

// measure runs op b.N times from n callers and reports its distribution and rate; rest is part of the rate only.
func measure(b *testing.B, n int, op func(i int) (rest func(), err error)) {
	var mu sync.Mutex
	var took []time.Duration
	var next atomic.Int64
	var wg sync.WaitGroup
	cpu := cpuTime(b)
	b.ResetTimer()
	for range n {
		wg.Go(func() {
			for {
				i := int(next.Add(1))
				if i > b.N {
					return
				}
				began := time.Now()
				rest, err := op(i)
				d := time.Since(began)
				if err != nil {
					b.Error(err)
					return
				}
				rest()
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "spawns/s")
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/1000/float64(b.N), "cpu-ms")
}

// cpuTime is what this process and all it waited for have used: unlike the clock, it says the same on a busy machine.
func cpuTime(b *testing.B) (sum time.Duration) {
	b.Helper()
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

func benchLease(b *testing.B) string {
	b.Helper()
	file := filepath.Join(b.TempDir(), "lease")
	w, err := lease.OpenWriter(file)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	if err := w.Renew(w.Now() + int64(time.Hour)); err != nil {
		b.Fatal(err)
	}
	return file
}

// BenchmarkSpawn: start is from the call to the running process; the rate counts whole lives, to the end that is on disk.
func BenchmarkSpawn(b *testing.B) {
	for _, callers := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("bare/callers=%d", callers), func(b *testing.B) {
			measure(b, callers, func(int) (func(), error) {
				c := exec.Command("/bin/true")
				err := c.Start()
				return func() { _ = c.Wait() }, err
			})
		})
	}
	for name, noCgroups := range map[string]bool{"session": false, "session-no-cgroups": true} {
		for _, callers := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("%s/callers=%d", name, callers), func(b *testing.B) {
				d := New(Options{Shim: builtShim(b), NoCgroups: noCgroups})
				base, file := b.TempDir(), benchLease(b)
				spec := &session.Spec{Command: []string{"/bin/true"}, Protocol: session.ProtocolNone}
				measure(b, callers, func(i int) (func(), error) {
					s := driver.Start{SessionID: fmt.Sprintf("bench-%d-%d", b.N, i), Epoch: 1, Spec: spec, LeaseFile: file, Dir: filepath.Join(base, fmt.Sprint(b.N, "-", i))}
					if err := os.Mkdir(s.Dir, 0o700); err != nil {
						return nil, err
					}
					p, err := d.Start(context.Background(), s)
					return func() { <-p.Done() }, err
				})
			})
		}
	}
}

// BenchmarkTurn is one message there and its result back.
func BenchmarkTurn(b *testing.B) {
	d := New(Options{Shim: builtShim(b)})
	p, err := d.Start(context.Background(), toyStart(b, "bench"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		p.Kill(session.Exit{Cause: session.CauseTerminated})
		<-p.Done()
		p.Release()
	}()
	for i := uint64(1); b.Loop(); i++ {
		if err := p.Send(context.Background(), driver.Input{Sequence: i, Text: []byte("1")}); err != nil {
			b.Fatal(err)
		}
		<-p.Turns()
	}
}

// BenchmarkIdleMemory reports what a shim takes while its session does nothing.
func BenchmarkIdleMemory(b *testing.B) {
	d := New(Options{Shim: builtShim(b)})
	var rss, pss, threads float64
	const sessions = 20
	for range b.N {
		rss, pss, threads = 0, 0, 0
		var ps []driver.Process
		for i := range sessions {
			s := toyStart(b, fmt.Sprint("idle", i))
			s.Spec.Command = []string{"/bin/cat"}
			p, err := d.Start(context.Background(), s)
			if err != nil {
				b.Fatal(err)
			}
			if err := p.Send(context.Background(), driver.Input{Sequence: 1, Text: []byte("x")}); err != nil {
				b.Fatal(err)
			}
			<-p.Turns()
			ps = append(ps, p)
		}
		for _, p := range ps {
			dir := fmt.Sprintf("/proc/%d/", p.(*proc).run.Shim.PID)
			rss += field(b, dir+"smaps_rollup", "Rss:")
			pss += field(b, dir+"smaps_rollup", "Pss:")
			threads += field(b, dir+"status", "Threads:")
		}
		for _, p := range ps {
			p.Kill(session.Exit{Cause: session.CauseTerminated})
			<-p.Done()
			p.Release()
		}
	}
	b.ReportMetric(rss/sessions, "rss-KiB")
	b.ReportMetric(pss/sessions, "pss-KiB")
	b.ReportMetric(threads/sessions, "threads")
}

func field(b *testing.B, path, name string) float64 {
	b.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), name)
	var v float64
	if _, err := fmt.Sscan(rest, &v); err != nil {
		b.Fatalf("%s has no %s: %v", path, name, err)
	}
	return v
}
