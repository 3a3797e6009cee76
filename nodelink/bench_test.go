// What a link costs: memory of an idle one, frames a second.

package nodelink

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

const benchLinks = 2000

// BenchmarkIdleLinks opens 2,000 real links from another process and reports what each costs this one: the resident
// set, the heap and the stacks. Every link has exchanged a hello and a heartbeat first.
func BenchmarkIdleLinks(b *testing.B) {
	if addr := os.Getenv("NODELINK_BENCH_DIAL"); addr != "" {
		dialMany(b, addr, benchLinks)
		return
	}
	b.Run("plain", func(b *testing.B) { idleLinks(b, false) })
	b.Run("tls", func(b *testing.B) { idleLinks(b, true) })
}

func idleLinks(b *testing.B, secure bool) {
	const links = benchLinks
	raiseFileLimit(b)
	hub, addr := startHub(b, HubOptions{})
	scheme := "ws"
	if secure {
		srv := httptest.NewTLSServer(hub)
		b.Cleanup(srv.Close)
		scheme, addr = "wss", srv.Listener.Addr().String()
	}
	handler := newEchoHandler()
	hub.Lead(handler)
	for b.Loop() {
		base := memory()
		cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=BenchmarkIdleLinks", "-test.benchtime=1x")
		cmd.Env = append(os.Environ(), "NODELINK_BENCH_DIAL="+addr, "NODELINK_BENCH_SCHEME="+scheme)
		in, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		handler.await(b, "all heartbeats", func() bool {
			n := 0
			for _, c := range handler.calls {
				if strings.HasPrefix(c, "heartbeat ") {
					n++
				}
			}
			return n == links
		})
		handler.mu.Lock()
		handler.calls = nil
		handler.mu.Unlock()
		used := memory()
		b.ReportMetric(float64(used.rss-base.rss)/links, "B-rss/link")
		b.ReportMetric(float64(used.heap-base.heap)/links, "B-heap/link")
		b.ReportMetric(float64(used.stack-base.stack)/links, "B-stack/link")
		b.ReportMetric(float64(used.goroutines-base.goroutines)/links, "goroutines/link")
		_ = in.Close()
		_ = cmd.Wait() // it fails, for its standard input ended; that is how it is told to
		handler.await(b, "all links down", func() bool { return len(handler.links) == 0 })
	}
}

func dialMany(b *testing.B, addr string, links int) {
	raiseFileLimit(b)
	var o DialOptions
	if os.Getenv("NODELINK_BENCH_SCHEME") == "wss" {
		o.TLS = func() (*tls.Config, error) {
			return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}, nil //nolint:gosec // loopback, for memory
		}
	}
	dial := DialWebSocket(o)
	for i := range links {
		c, err := dial(context.Background(), addr)
		if err != nil {
			b.Fatal(err)
		}
		mustSend(b, c, helloFrame(fmt.Sprintf("node-%d", i), 1, 1))
		mustSend(b, c, heartbeatFrame(1))
		recv(b, c)
		recv(b, c)
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0)
}

func raiseFileLimit(b *testing.B) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		b.Fatal(err)
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		b.Fatal(err)
	}
}

type memoryUse struct{ rss, heap, stack, goroutines int }

func memory() memoryUse {
	for range 3 {
		runtime.GC()
	}
	debug.FreeOSMemory()
	time.Sleep(100 * time.Millisecond) // for the kernel to take the pages back
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	u := memoryUse{heap: int(ms.HeapInuse), stack: int(ms.StackInuse), goroutines: runtime.NumGoroutine()}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(f[1])
			u.rss = kb << 10
		}
	}
	return u
}

// BenchmarkHeartbeat is one heartbeat and its answer over a real socket, one at a time.
func BenchmarkHeartbeat(b *testing.B) {
	for _, o := range []DialOptions{{}, {JSON: true}} {
		b.Run(map[bool]string{false: "binary", true: "json"}[o.JSON], func(b *testing.B) {
			hub, addr := startHub(b, HubOptions{})
			hub.Lead(quietHandler{})
			c := dialTest(b, addr, o)
			mustSend(b, c, helloFrame("n1", 1, 1))
			recv(b, c)
			b.ReportAllocs()
			for b.Loop() {
				mustSend(b, c, heartbeatFrame(1))
				if _, err := c.Recv(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// quietHandler answers and keeps nothing.
type quietHandler struct{}

func (quietHandler) LinkUp(l Link) { _ = l.Send(ackFrame()) }
func (quietHandler) LinkFrame(l Link, f *nodev1.Frame) {
	_ = l.Send(heartbeatAckFrame(f.GetHeartbeat().GetSentAt()))
}
func (quietHandler) LinkDown(Link, string) {}
