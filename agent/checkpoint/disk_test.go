// Directories to a store and back: what is held, what is sent, what happens when places fail.

package checkpoint

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/agent/outputlog"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/cache"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// faulty is a store that counts, and fails when it is told to.
type faulty struct {
	chunks.Store
	down        atomic.Bool
	calls, puts atomic.Int64
}

func (f *faulty) try() error {
	f.calls.Add(1)
	if f.down.Load() {
		return fault.New(fault.Unavailable, "the store is down")
	}
	return nil
}

func (f *faulty) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	if err := f.try(); err != nil {
		return nil, err
	}
	return f.Store.Missing(ctx, ids)
}

func (f *faulty) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := f.try(); err != nil {
		return err
	}
	f.puts.Add(1)
	return f.Store.Put(ctx, id, frame)
}

func (f *faulty) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	if err := f.try(); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, id)
}

func newFaulty(t testing.TB) *faulty {
	t.Helper()
	s, err := dir.Open(t.TempDir(), dir.Options{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &faulty{Store: s}
}

func newDisk(t testing.TB, store chunks.Store, spoolBytes int64) *Disk {
	t.Helper()
	d, err := New(Options{Store: store, SpoolDir: filepath.Join(t.TempDir(), "spool"), SpoolBytes: spoolBytes, Release: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := d.spool.used.Load(); n != 0 {
			t.Errorf("%d bytes of the spool are still taken", n)
		}
	})
	return d
}

func write(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// newSession is a session's directory with 40 files of 10 kB and a log of 10 lines.
func newSession(t testing.TB) Session {
	t.Helper()
	d := t.TempDir()
	for i := range 40 {
		write(t, filepath.Join(d, Workspace, fmt.Sprint("dir", i%3), fmt.Sprint("file", i)), noise(uint64(i), 10_000))
	}
	if err := os.Mkdir(filepath.Join(d, Log), 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := outputlog.Open(filepath.Join(d, Log), outputlog.Options{Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		w.Line(outputlog.Stdout, fmt.Appendf(nil, "line %d", i+1), false, 1)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return Session{Dir: d, ID: "s", Namespace: "default", Name: "ledger", Spec: []byte("spec"), NodeID: "n", Epoch: 1, Sequence: 1, Turn: 8, OutputLine: 8,
		Keeps: []string{"messages", "workspace"}}
}

func capt(t testing.TB, d *Disk, s Session) Capture {
	t.Helper()
	c, err := d.Capture(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func store(t testing.TB, c Capture) Stored {
	t.Helper()
	st, err := c.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// tree is the files below a directory and what is in them.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		m[strings.TrimPrefix(path, dir)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func sameTree(t testing.TB, got, want string) {
	t.Helper()
	g, w := tree(t, got), tree(t, want)
	for name, content := range w {
		if g[name] != content {
			t.Errorf("%s has %d bytes, want %d", name, len(g[name]), len(content))
		}
	}
	if len(g) != len(w) {
		t.Errorf("%d files, want %d", len(g), len(w))
	}
}

func restore(t testing.TB, d *Disk, st Stored, line uint64, notice string) (string, Restored) {
	t.Helper()
	to := t.TempDir()
	r, err := d.Restore(t.Context(), Restore{Dir: to, SessionID: "s", Manifest: st.Manifest, Epoch: 2, OutputLine: line, Notice: notice})
	if err != nil {
		t.Fatal(err)
	}
	return to, r
}

func TestThereAndBack(t *testing.T) {
	shared := newFaulty(t)
	a, b := newDisk(t, shared, 0), newDisk(t, shared, 0)
	s := newSession(t)
	st := store(t, capt(t, a, s))
	if st.Content < 400_000 || st.Content > 410_000 || st.Bytes != st.Content || st.Chunks == 0 || strings.Join(st.Keeps, " ") != "messages workspace" {
		t.Errorf("%+v", st)
	}
	to, r := restore(t, b, st, 8, "two lines were lost")
	sameTree(t, filepath.Join(to, Workspace), filepath.Join(s.Dir, Workspace))
	if r.Turn != 8 || r.Fetched < 400_000 {
		t.Errorf("%+v", r)
	}
	log, err := outputlog.NewReader(filepath.Join(to, Log), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for n := range uint64(8) {
		if rec, err := log.Next(); err != nil || rec.Number != n+1 || !rec.IsLine() {
			t.Fatalf("%+v, %v", rec, err)
		}
	}
	if rec, err := log.Next(); err != nil || rec.Kind != outputlog.Notice || string(rec.Data) != "two lines were lost" {
		t.Fatalf("%+v, %v", rec, err)
	}
	if rec, err := log.Next(); err == nil {
		t.Fatalf("behind the notice: %+v", rec)
	}
	// What was restored needs not be read or sent again.
	if !b.Warm("s") {
		t.Error("after a restore nothing is known")
	}
	next := s
	next.Dir, next.Sequence = to, 2
	write(t, filepath.Join(to, Workspace, "new"), noise(99, 1000))
	st = store(t, capt(t, b, next))
	if st.Content > 3000 {
		t.Errorf("%d bytes were sent of 1000 that are new, and the log", st.Content)
	}
	again, _ := restore(t, a, st, 8, "")
	sameTree(t, filepath.Join(again, Workspace), filepath.Join(to, Workspace))
}

// While a session is held the store is not asked; when it fails, the capture waits.
func TestHeldSessionDoesNotWaitForTheStore(t *testing.T) {
	shared := newFaulty(t)
	d := newDisk(t, shared, 0)
	s := newSession(t)
	if d.Warm("s") {
		t.Error("of a new session something is known")
	}
	round, err := d.Copy(t.Context(), s, false)
	if err != nil || round.Content < 400_000 || !d.Warm("s") {
		t.Fatalf("%+v, %v", round, err)
	}
	write(t, filepath.Join(s.Dir, Workspace, "dir0", "file0"), noise(1000, 10_000))
	before := shared.calls.Load()
	shared.down.Store(true)
	c := capt(t, d, s)
	if n := shared.calls.Load() - before; n != 0 {
		t.Errorf("the store was asked %d times while the session was held", n)
	}
	want := tree(t, filepath.Join(s.Dir, Workspace))
	write(t, filepath.Join(s.Dir, Workspace, "dir0", "file0"), noise(1001, 10_000)) // the session works on
	if _, err := c.Store(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("got %v", err)
	}
	shared.down.Store(false)
	st := store(t, c)
	if st.Content < 10_000 || st.Content > 14_000 {
		t.Errorf("%d bytes were sent of 10000 that changed, and the log", st.Content)
	}
	to, _ := restore(t, d, st, 10, "")
	if got := tree(t, filepath.Join(to, Workspace)); got["/dir0/file0"] != want["/dir0/file0"] {
		t.Error("the checkpoint does not hold the moment of its capture")
	}
	if st = store(t, capt(t, d, s)); st.Content > 12_000 {
		t.Errorf("the next one sent %d bytes", st.Content)
	}
	if st = store(t, capt(t, d, s)); st.Content != 0 {
		t.Errorf("one without changes sent %d bytes", st.Content)
	}
	capt(t, d, s).Discard()
}

func TestWhatFindsNoRoomInTheSpoolGoesToTheStore(t *testing.T) {
	shared := newFaulty(t)
	d := newDisk(t, shared, 100_000)
	s := newSession(t)
	c := capt(t, d, s)
	if shared.puts.Load() == 0 {
		t.Error("nothing was put into the store")
	}
	if n := d.spool.used.Load(); n > 100_000 {
		t.Errorf("the spool holds %d bytes", n)
	}
	st := store(t, c)
	if st.Content < 400_000 {
		t.Errorf("%d bytes are said to be sent", st.Content)
	}
	to, _ := restore(t, d, st, 10, "")
	sameTree(t, filepath.Join(to, Workspace), filepath.Join(s.Dir, Workspace))
}

// A store that has lost what it had: the checkpoint fails, and the next one brings everything again.
func TestStoreThatForgot(t *testing.T) {
	shared := newFaulty(t)
	d := newDisk(t, shared, 0)
	s := newSession(t)
	store(t, capt(t, d, s))
	shared.Store = newFaulty(t).Store
	c := capt(t, d, s)
	if _, err := c.Store(t.Context()); !fault.Is(err, fault.Aborted) {
		t.Fatalf("got %v", err)
	}
	c.Discard()
	if d.Warm("s") {
		t.Error("it is still taken for known")
	}
	to, _ := restore(t, d, store(t, capt(t, d, s)), 10, "")
	sameTree(t, filepath.Join(to, Workspace), filepath.Join(s.Dir, Workspace))
}

func TestSessionThatWritesWhileItIsHeld(t *testing.T) {
	d := newDisk(t, newFaulty(t), 0)
	s := newSession(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.Create(filepath.Join(s.Dir, Workspace, "busy"))
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		for {
			select {
			case <-stop:
				return
			default:
				fmt.Fprintln(f, time.Now())
			}
		}
	}()
	for range 5 {
		store(t, capt(t, d, s))
	}
	close(stop)
	<-done
}

func TestCacheSparesTheStore(t *testing.T) {
	shared := newFaulty(t)
	kept, err := cache.Open(t.TempDir(), cache.Options{MaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	d, err := New(Options{Store: shared, Cache: kept, SpoolDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(t)
	st := store(t, capt(t, d, s))
	shared.down.Store(true)
	to, r := restore(t, d, st, 10, "")
	sameTree(t, filepath.Join(to, Workspace), filepath.Join(s.Dir, Workspace))
	if r.Fetched != 0 {
		t.Errorf("%d bytes were fetched", r.Fetched)
	}
}

func TestRestoreOfWhatIsNotThere(t *testing.T) {
	d := newDisk(t, newFaulty(t), 0)
	to := t.TempDir()
	_, err := d.Restore(t.Context(), Restore{Dir: to, SessionID: "s", Manifest: [32]byte{1}})
	if !fault.Is(err, fault.NotFound) {
		t.Fatalf("got %v", err)
	}
	if len(tree(t, to)) != 0 {
		t.Error("something was left behind")
	}
}

func TestCancelledCaptureLeavesNothing(t *testing.T) {
	d := newDisk(t, newFaulty(t), 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Capture(ctx, newSession(t)); err == nil {
		t.Fatal("a capture that was cancelled succeeded")
	}
	if left, err := os.ReadDir(d.o.SpoolDir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// What is ready needs not be fetched again, and what is not like it gives way.
func TestStage(t *testing.T) {
	shared := newFaulty(t)
	a, b := newDisk(t, shared, 0), newDisk(t, shared, 0)
	s := newSession(t)
	ready := filepath.Join(t.TempDir(), "staged")
	round := func() Round {
		t.Helper()
		r, err := a.Copy(t.Context(), s, true)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	stage := func(r Round) int64 {
		t.Helper()
		n, err := b.Stage(t.Context(), Staging{SessionID: "s", Dir: ready, Manifest: r.Manifest})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := stage(round()); n < 400_000 {
		t.Errorf("%d bytes were fetched", n)
	}
	write(t, filepath.Join(s.Dir, Workspace, "dir0", "file0"), noise(1000, 10_000))
	if err := os.Remove(filepath.Join(s.Dir, Workspace, "dir1", "file1")); err != nil {
		t.Fatal(err)
	}
	r := round()
	if r.Bytes < 380_000 || r.Content > 30_000 {
		t.Errorf("%+v", r)
	}
	if n := stage(r); n > 40_000 {
		t.Errorf("%d bytes were fetched of 10000 that changed", n)
	}
	write(t, filepath.Join(s.Dir, Workspace, "new"), noise(2000, 5000))
	st := store(t, capt(t, a, s))
	to, got := restore(t, b, st, 8, "")
	sameTree(t, filepath.Join(to, Workspace), filepath.Join(s.Dir, Workspace))
	if got.Fetched > 20_000 {
		t.Errorf("%d bytes were fetched of 5000 that are new", got.Fetched)
	}
	if _, err := os.Stat(ready); !os.IsNotExist(err) {
		t.Errorf("what was ready is still there: %v", err)
	}
	stage(r)
	if err := b.Unstage("s"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ready); !os.IsNotExist(err) {
		t.Errorf("what was let go of is still there: %v", err)
	}
	// Somebody meddled with it.
	stage(r)
	if err := filepath.WalkDir(ready, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			err = os.WriteFile(path, []byte("meddled"), 0o600)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	to, _ = restore(t, b, st, 8, "")
	sameTree(t, filepath.Join(to, Workspace), filepath.Join(s.Dir, Workspace))
	if _, err := b.Stage(t.Context(), Staging{SessionID: "s", Dir: ready, Manifest: [32]byte{1}}); !fault.Is(err, fault.NotFound) {
		t.Errorf("of what is not there: %v", err)
	}
	if n := len(b.staged.all); n != 0 {
		t.Errorf("%d stages are remembered", n)
	}
}
