// What the recorder promises: everything arrives once, through outages, crashes and full spools, and no secret with it.

package recorder_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/sqlite"
	"github.com/neolith/orchestrator/telemetry/metricstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSink is a sink in memory that can be away, lose answers, and refuse what it does not like.
type fakeSink struct {
	mu     sync.Mutex
	kept   map[string]recorder.Interaction
	order  []string
	away   bool
	lose   bool // it keeps a batch, and its answer is lost
	writes int
	takes  time.Duration // each write
	wrote  chan struct{} // gets a token with each write, when there is room
	pruned atomic.Int64
}

func newFakeSink() *fakeSink {
	return &fakeSink{kept: map[string]recorder.Interaction{}, wrote: make(chan struct{}, 1)}
}

func (s *fakeSink) Write(_ context.Context, batch []recorder.Interaction) (added int, err error) {
	if s.takes > 0 {
		time.Sleep(s.takes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.wrote <- struct{}{}:
	default:
	}
	s.writes++
	if s.away {
		return 0, errors.New("connection refused")
	}
	for i := range batch {
		if batch[i].Tool == "poison" {
			return 0, fault.New(fault.Invalid, "no poison")
		}
	}
	for i := range batch {
		if _, there := s.kept[batch[i].ID]; !there {
			s.kept[batch[i].ID] = batch[i]
			s.order = append(s.order, batch[i].ID)
			added++
		}
	}
	if s.lose {
		s.lose = false
		return 0, errors.New("connection reset")
	}
	return added, nil
}

func (s *fakeSink) set(change func(*fakeSink)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *fakeSink) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.order...)
}

func (s *fakeSink) List(context.Context, recorder.Query) ([]recorder.Interaction, string, error) {
	return nil, "", nil
}
func (s *fakeSink) Prune(context.Context, recorder.Retention) (int64, error) {
	s.pruned.Add(1)
	return 0, nil
}
func (s *fakeSink) Close() error { return nil }

func config(dir string) recorder.Config {
	c := recorder.Default()
	c.Spool.Dir = dir
	c.Spool.SyncEvery = 2 * time.Millisecond
	return c
}

// served is a recorder that runs.
type served struct {
	*recorder.Recorder
	stop func() // as a process that ends in good order
}

func serve(t testing.TB, c recorder.Config, sink recorder.Sink, reg prometheus.Registerer) *served {
	t.Helper()
	r, err := recorder.Open(recorder.Options{Config: c, Sink: sink, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil && !fault.Is(err, fault.Exhausted) {
			t.Errorf("serve: %v", err)
		}
		if err := r.Close(); err != nil && !fault.Is(err, fault.Exhausted) {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(stop)
	return &served{r, stop}
}

func call(id string) recorder.Interaction {
	return recorder.Interaction{ID: id, Kind: recorder.ToolCall, Namespace: "default", Session: "s-1", Tool: "session_list", Request: `{"n":1}`, Response: "fine"}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Several at once record while the sink goes away, loses answers and comes back, and the recorder is stopped and started; all is there once,
// and each one's in order.
func TestEverythingArrivesOnce(t *testing.T) {
	sink, dir := newFakeSink(), t.TempDir()
	const workers, each, lives = 4, 500, 3
	for life := range lives {
		r := serve(t, config(dir), sink, nil)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for n := range each {
					if err := r.Record(call(fmt.Sprintf("%d-%d-%04d", w, life, n))); err != nil {
						t.Error(err)
					}
				}
			})
		}
		<-sink.wrote
		sink.set(func(s *fakeSink) { s.lose = true })
		if err := r.Record(call(fmt.Sprintf("m-%d", life))); err != nil { // all of the others may have gone in one batch
			t.Error(err)
		}
		<-sink.wrote
		sink.set(func(s *fakeSink) { s.away = true })
		wg.Wait()
		if err := r.Flush(within(t)); err != nil {
			t.Fatal(err)
		}
		if life < lives-1 {
			r.stop() // with the sink away
			sink.set(func(s *fakeSink) { s.away = false })
			continue
		}
		sink.set(func(s *fakeSink) { s.away = false })
		if err := r.Drain(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	last := map[string]string{}
	ids := sink.ids()
	for _, id := range ids {
		worker, rest, _ := strings.Cut(id, "-")
		if rest <= last[worker] {
			t.Fatalf("%s came behind %s", rest, last[worker])
		}
		last[worker] = rest
	}
	if len(ids) != (workers*each+1)*lives {
		t.Fatalf("%d arrived, want %d", len(ids), (workers*each+1)*lives)
	}
}

// fillBytes is what each interaction of fill asks for.
const fillBytes = 60 << 10

// fill records until something is refused, or until stop is closed.
func fill(r *served, stop <-chan struct{}) (recorded int, err error) {
	big := strings.Repeat("x", fillBytes)
	for {
		select {
		case <-stop:
			return recorded, nil
		default:
		}
		i := call(fmt.Sprintf("%05d", recorded))
		i.Request = big
		if err := r.Record(i); err != nil {
			return recorded, err
		}
		recorded++
	}
}

// untilFull waits until all that was handed over is in the spool and nothing further fits.
func untilFull(t *testing.T, r *served) {
	t.Helper()
	ctx := within(t)
	for taken := uint64(0); ; {
		if err := r.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		s := r.State()
		if s.Taken == taken && s.SpoolBytes+s.QueueBytes+fillBytes+1<<10 > s.SpoolMaxBytes {
			return
		}
		taken = s.Taken
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it is never full: %+v", s)
		}
	}
}

func TestFullSpoolBlocks(t *testing.T) {
	sink := newFakeSink()
	sink.away = true
	c := config(t.TempDir())
	c.Spool.MaxBytes, c.Spool.WhenFull = 32<<20, recorder.Block
	reg := prometheus.NewRegistry()
	r := serve(t, c, sink, reg)
	stop, waiting, room := make(chan struct{}), make(chan error, 1), make(chan error, 1)
	recorded := 0
	go func() {
		n, err := fill(r, stop)
		recorded = n
		waiting <- err
	}()
	untilFull(t, r)
	s := r.State()
	if s.SpoolBytes > 32<<20 || !s.Alarm || !fault.Is(r.Health(), fault.Exhausted) || s.SinkError == "" || s.Dropped != 0 {
		t.Fatalf("%+v, %v", s, r.Health())
	}
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.Room(soon); !fault.Is(err, fault.Timeout) || !strings.Contains(err.Error(), "drop-and-count") {
		t.Errorf("there is room: %v", err)
	}
	go func() { room <- r.Room(context.Background()) }()
	select {
	case err := <-waiting:
		t.Fatalf("nobody waits for room: %v", err)
	default:
	}
	close(stop) // the one that waits is the last
	sink.set(func(s *fakeSink) { s.away = false })
	if err := errors.Join(<-waiting, <-room); err != nil {
		t.Fatal(err)
	}
	if err := r.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	if got := len(sink.ids()); got != recorded || uint64(got) != s.Taken+1 {
		t.Fatalf("%d arrived of %d, and %d before it was full", got, recorded, s.Taken)
	}
	if err := r.Health(); err != nil {
		t.Fatalf("healthy again: %v", err)
	}
	metricstest.Lint(t, reg)
	if text := metricstest.Text(t, reg); !strings.Contains(text, "orchestrator_recorder_spool_alarm 0") || strings.Contains(text, "orchestrator_recorder_blocked_seconds_total 0\n") {
		t.Error(text)
	}
}

// A server that ends waits for no room: what finds none is dropped and counted.
func TestReleaseEndsTheWait(t *testing.T) {
	sink := newFakeSink()
	sink.away = true
	c := config(t.TempDir())
	c.Spool.MaxBytes = 32 << 20
	r := serve(t, c, sink, nil)
	waiting, room := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := fill(r, nil)
		waiting <- err
	}()
	untilFull(t, r)
	go func() { room <- r.Room(context.Background()) }()
	r.Release()
	if err := <-waiting; !fault.Is(err, fault.Exhausted) {
		t.Errorf("who waited was told %v", err)
	}
	if err := <-room; err != nil {
		t.Error(err)
	}
	if n := r.State().Dropped; n != 1 {
		t.Errorf("%d are counted", n)
	}
}

// The shipper sends a few thousand a second, and not each record by itself, while there is room.
func TestTheShipperRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &pacedSink{fakeSink: newFakeSink()}
		sink.takes = 30 * time.Millisecond
		r := serve(t, config(t.TempDir()), sink, nil)
		for n := range 10_000 {
			if err := r.Record(call(fmt.Sprint(n))); err != nil {
				t.Fatal(err)
			}
			if n == 200 { // a small batch, too
				if err := r.Drain(within(t)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := r.Drain(within(t)); err != nil {
			t.Fatal(err)
		}
		for n, w := range sink.log[:len(sink.log)-1] {
			want := max(min(time.Duration(w.records)*time.Second/5200, 12*sink.takes), 50*time.Millisecond)
			if got := sink.log[n+1].begun.Sub(w.begun); got < want*9/10 || got > want { // a spool that is not quite empty makes it a little shorter
				t.Errorf("write %d of %d: %d records, and %s until the next; want %s", n+1, len(sink.log), w.records, got, want)
			}
		}
		if len(sink.log) < 4 {
			t.Errorf("%d writes", len(sink.log))
		}
	})
}

// pacedSink notes when it was written to.
type pacedSink struct {
	*fakeSink
	log []struct {
		begun   time.Time
		records int
	}
}

func (s *pacedSink) Write(ctx context.Context, batch []recorder.Interaction) (int, error) {
	s.log = append(s.log, struct {
		begun   time.Time
		records int
	}{time.Now(), len(batch)})
	return s.fakeSink.Write(ctx, batch)
}

func TestFullSpoolDropsAndCounts(t *testing.T) {
	sink := newFakeSink()
	sink.away = true
	c := config(t.TempDir())
	c.Spool.MaxBytes, c.Spool.WhenFull = 32<<20, recorder.DropAndCount
	reg := prometheus.NewRegistry()
	r := serve(t, c, sink, reg)
	recorded := 0
	for r.State().SpoolBytes < 31<<20 { // dropped for want of memory does not count: the disk may be slow
		n, err := fill(r, nil)
		if !fault.Is(err, fault.Exhausted) {
			t.Fatalf("full: %v", err)
		}
		recorded += n
		if err := r.Flush(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	s := r.State()
	if s.Dropped == 0 || s.SpoolBytes > 32<<20 || uint64(recorded) != s.Taken || !fault.Is(r.Health(), fault.Exhausted) {
		t.Fatalf("%d recorded, %+v, %v", recorded, s, r.Health())
	}
	if text := metricstest.Text(t, reg); !strings.Contains(text, fmt.Sprintf("orchestrator_recorder_dropped_records_total %d\n", s.Dropped)) {
		t.Errorf("%d were dropped, and the metrics say\n%s", s.Dropped, text)
	}
	sink.set(func(s *fakeSink) { s.away = false })
	if err := r.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := r.Record(call("again")); err != nil || r.Health() != nil {
		t.Fatalf("%v, %v", err, r.Health())
	}
}

// What a sink can never keep is put aside, and only that.
func TestPoisonIsPutAside(t *testing.T) {
	sink, c := newFakeSink(), config(t.TempDir())
	r := serve(t, c, sink, nil)
	for n := range 100 {
		i := call(fmt.Sprint(n))
		if n%40 == 7 {
			i.Tool = "poison"
		}
		if err := r.Record(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	if got := len(sink.ids()); got != 97 {
		t.Fatalf("%d arrived", got)
	}
	text, err := os.ReadFile(filepath.Join(c.Spool.Dir, "rejected.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	b := string(text)
	if strings.Count(b, "\n") != 3 || !strings.Contains(b, `"id":"47"`) {
		t.Fatalf("put aside: %s", b)
	}
}

func TestWhatIsKept(t *testing.T) {
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := config(t.TempDir())
	c.MaxPayloadBytes, c.Redact = 1<<10, []string{"E-[0-9]+"}
	r := serve(t, c, s, nil)
	began := time.Now()
	long := strings.Repeat("漢", 1000)
	for _, i := range []recorder.Interaction{
		{Kind: recorder.ModelCall, Namespace: "a", Epoch: 3, RequestID: "r", Principal: "ann", Provider: "p", Model: "m", TokensIn: 1, TokensOut: 2, CostMicros: 3,
			Latency: time.Second, Status: recorder.Failed, Code: "TIMEOUT", Error: "password=hunter2 E-123", Request: `{"token":"hunter2"}`, Response: long + "hunter2"},
		{Kind: recorder.Message, Namespace: "b", Request: "a\x00b\xff"},
	} {
		if err := r.Record(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	got, _, err := s.List(t.Context(), recorder.Query{OldestFirst: true, Namespace: "a"})
	if err != nil || len(got) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	i := got[0]
	if len(i.ID) != 36 || i.ID[14] != '7' || i.Time.Before(began.Add(-time.Second)) || i.Epoch != 3 || i.Latency != time.Second || i.Code != "TIMEOUT" || i.TokensOut != 2 {
		t.Errorf("%+v", i)
	}
	if i.Error != "password=[REDACTED] [REDACTED]" || i.Request != `{"token":"[REDACTED]"}` || i.Redactions != 3 {
		t.Errorf("%+v", i)
	}
	if !i.ResponseTruncated || i.RequestTruncated || i.ResponseBytes != 3007 || len(i.Response) != 1023 || i.RequestBytes != 19 {
		t.Errorf("%d bytes of %d, %v", len(i.Response), i.ResponseBytes, i.ResponseTruncated)
	}
	got, _, err = s.List(t.Context(), recorder.Query{Namespace: "b"})
	if err != nil || len(got) != 1 || got[0].Request != "a\uFFFDb\uFFFD" || got[0].Status != recorder.OK {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestBadInteractions(t *testing.T) {
	r := serve(t, config(t.TempDir()), newFakeSink(), nil)
	for field, i := range map[string]recorder.Interaction{
		"kind":      {Namespace: "x", Kind: "other"},
		"status":    {Namespace: "x", Kind: recorder.Message, Status: "other"},
		"namespace": {Kind: recorder.Message},
		"id":        {Namespace: "x", Kind: recorder.Message, ID: "a b"},
	} {
		if err := r.Record(i); !fault.Is(err, fault.Invalid) || fault.As(err).Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := r.Record(recorder.Interaction{Namespace: "x", Kind: recorder.Message, ID: strings.Repeat("x", 129)}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	r.stop()
	if err := r.Record(call("late")); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	good := recorder.Default()
	if err := good.Validate("recorder"); err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]func(*recorder.Config){
		"recorder.sink":                func(c *recorder.Config) { c.Sink = "mongo" },
		"recorder.max_payload_bytes":   func(c *recorder.Config) { c.MaxPayloadBytes = 2 << 20 },
		"recorder.redact":              func(c *recorder.Config) { c.Redact = []string{"("} },
		"recorder.spool.max_bytes":     func(c *recorder.Config) { c.Spool.MaxBytes = 1 },
		"recorder.spool.alarm_percent": func(c *recorder.Config) { c.Spool.AlarmPercent = 100 },
		"recorder.spool.when_full":     func(c *recorder.Config) { c.Spool.WhenFull = "drop" },
		"recorder.spool.sync_every":    func(c *recorder.Config) { c.Spool.SyncEvery = 0 },
		"recorder.retention.max_age":   func(c *recorder.Config) { c.Retention.MaxAge = time.Second },
		"recorder.retention.max_bytes": func(c *recorder.Config) { c.Retention.MaxBytes = 1 },
		"recorder.postgres.url_file":   func(c *recorder.Config) { c.Sink = recorder.SinkPostgres },
		"recorder.postgres.url":        func(c *recorder.Config) { c.Sink, c.Postgres.URL = recorder.SinkPostgres, "mysql://secret@x" },
		"recorder.postgres.max_conns": func(c *recorder.Config) {
			c.Sink, c.Postgres.URLFile, c.Postgres.MaxConns = recorder.SinkPostgres, "x", 0
		},
		"recorder.postgres.timeout": func(c *recorder.Config) {
			c.Sink, c.Postgres.URLFile, c.Postgres.Timeout = recorder.SinkPostgres, "x", 0
		},
	} {
		c := recorder.Default()
		change(&c)
		err := c.Validate("recorder")
		if e := fault.As(err); e == nil || e.Field != key || strings.Contains(e.Message, "secret") {
			t.Errorf("%s: %v", key, err)
		}
	}
	both := recorder.Default()
	both.Postgres.URLFile = "x"
	if err := both.Validate("recorder"); err == nil {
		t.Error("a database beside SQLite")
	}
}

// How fast Record hands over, and how fast all arrives in SQLite.
func BenchmarkRecorder(b *testing.B) {
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "x.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := config(b.TempDir())
	c.Spool.SyncEvery = recorder.Default().Spool.SyncEvery
	r := serve(b, c, s, nil)
	defer r.stop()
	i := call("")
	i.Request = strings.Repeat(`{"role":"user","content":"move it"},`, 15)
	i.Response = i.Request
	var handed time.Duration
	b.ResetTimer()
	for range b.N {
		begin := time.Now()
		if err := r.Record(i); err != nil {
			b.Fatal(err)
		}
		handed += time.Since(begin)
	}
	if err := r.Drain(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(handed.Nanoseconds())/float64(b.N), "ns/Record")
}
