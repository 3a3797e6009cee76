// What recording costs those who call: the throughput of calls with and without, in turns in one run.

package record_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/record"
	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/sqlite"
)

const benchClients = 64

// anybody is who calls.
type anybody struct{}

func (anybody) Identify(auth.Credential) (auth.Identity, error) {
	return auth.Identity{Name: "bench", Role: auth.Client}, nil
}
func (anybody) Recheck(who auth.Identity) (auth.Identity, error) { return who, nil }

func (anybody) As(ctx context.Context, _ auth.Credential) context.Context { return ctx }

func (anybody) AsCaller(ctx context.Context, _ auth.Identity) context.Context { return ctx }

// nothing is an API whose answers are empty.
type nothing struct{ grpc.ClientConnInterface }

func (nothing) Invoke(context.Context, string, any, any, ...grpc.CallOption) error { return nil }

// caller is one client that calls a tool without work, again and again.
type caller struct {
	ws   *websocket.Conn
	next int
}

func newCaller(b *testing.B, url string, n int) *caller {
	b.Helper()
	ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(url, "http"), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ws.Close() })
	c := &caller{ws: ws}
	if err := ws.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"op":"hello","token":"x","session_id":"bench-%d"}`, n)); err != nil {
		b.Fatal(err)
	}
	if _, _, err := ws.ReadMessage(); err != nil {
		b.Fatal(err)
	}
	return c
}

func (c *caller) call() error {
	c.next++
	if err := c.ws.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"op":"call_tool","request_id":"r-%d","name":"list_models","arguments":{}}`, c.next)); err != nil {
		return err
	}
	for {
		_, data, err := c.ws.ReadMessage()
		if err != nil || strings.Contains(string(data), "call_tool_res") {
			return err
		}
	}
}

// gatewayFor serves tools, and returns its clients.
func gatewayFor(b *testing.B, set *tools.Set) []*caller {
	b.Helper()
	l := socket.DefaultLimits()
	l.KeptCalls = 64 // else the one that is measured first has less to collect
	l.Global, l.PerIP, l.PerUser, l.ConnectionsPerIP = socket.Rate{}, socket.Rate{}, socket.Rate{}, 2*benchClients
	hub := socket.New(socket.Options{Server: "bench", Tools: set, Access: anybody{}, Open: true, Ready: func() (bool, string) { return true, "" }, Limits: l, Logger: slog.New(slog.DiscardHandler)})
	s := httptest.NewServer(http.HandlerFunc(hub.ServeHTTP))
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		hub.Close(ctx)
		s.Close()
	})
	callers := make([]*caller, benchClients)
	for n := range callers {
		callers[n] = newCaller(b, s.URL, n)
	}
	return callers
}

// rate is how many calls are answered in a second.
func rate(b *testing.B, callers []*caller, each int) float64 {
	b.Helper()
	begin := time.Now()
	var wait sync.WaitGroup
	for _, c := range callers {
		wait.Go(func() {
			for range each {
				if err := c.call(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	return float64(len(callers)*each) / time.Since(begin).Seconds()
}

// processor is the processor time of a call, in microseconds.
func processor(b *testing.B, callers []*caller, each int) float64 {
	b.Helper()
	used := func() (us int64) {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Sec*1e6 + u.Utime.Usec + u.Stime.Sec*1e6 + u.Stime.Usec
	}
	const rounds = 8
	before := used()
	for range rounds {
		rate(b, callers, each)
	}
	return float64(used()-before) / float64(rounds*each*len(callers))
}

// median leaves out what others do on the machine meanwhile.
func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// BenchmarkOverhead reports the throughput without and with the record, into SQLite on this disk, and what the record takes of it in percent.
// Each iteration is a round of both.
func BenchmarkOverhead(b *testing.B) {
	ballast := make([]byte, 48<<20) // as the server has it
	defer runtime.KeepAlive(ballast)
	dir := b.TempDir()
	sink, err := sqlite.Open(b.Context(), filepath.Join(dir, "x.db"))
	if err != nil {
		b.Fatal(err)
	}
	cfg := recorder.Default()
	cfg.Spool.Dir = filepath.Join(dir, "spool")
	r, err := recorder.Open(recorder.Options{Config: cfg, Sink: sink})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		_ = r.Close()
		_ = sink.Close()
	})
	set := tools.New(nothing{})
	who := func(context.Context) (auth.Identity, error) { return anybody{}.Identify(auth.Credential{}) }
	without := gatewayFor(b, set)
	with := gatewayFor(b, set.Observed(record.NewTools(r, who, func(string, string) string { return "" })))
	const each = 200
	rate(b, without, each/4)
	rate(b, with, each/4)
	// The processor's time says as much on a machine that others use, too. It has the clients' part, and of the record what is sent on meanwhile.
	cpuOff, cpuOn := processor(b, without, each), processor(b, with, each)
	var off, on, ratios []float64
	for b.Loop() {
		var pair [2]float64
		for turn := range 2 { // now the one first, then the other
			which := (turn + len(ratios)) % 2
			pair[which] = rate(b, [][]*caller{without, with}[which], each)
		}
		off, on, ratios = append(off, pair[0]), append(on, pair[1]), append(ratios, pair[1]/pair[0])
	}
	b.ReportMetric(median(off), "off/s")
	b.ReportMetric(median(on), "on/s")
	b.ReportMetric(100*(1-median(ratios)), "%overhead")
	b.ReportMetric(cpuOff, "off-cpu-us/call")
	b.ReportMetric(cpuOn, "on-cpu-us/call")
	b.ReportMetric(0, "ns/op")
	st := r.State()
	b.Log("taken " + strconv.FormatUint(st.Taken, 10) + ", shipped " + strconv.FormatUint(st.Shipped, 10))
}
