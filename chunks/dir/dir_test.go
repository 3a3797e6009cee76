// The suite of all stores, and what only a directory has: crashes, full disks, failing syncs.

package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustOpen(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// flip changes a byte of a chunk's file.
func flip(t testing.TB, state string, id chunk.ID) {
	t.Helper()
	name := filepath.Join(state, pathOf(id))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x40
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	for name, volatile := range map[string]bool{"durable": false, "volatile": true} {
		t.Run(name, func(t *testing.T) {
			chunkstest.Run(t, chunkstest.Harness{
				Open: func(t testing.TB, state string, maxBytes int64) chunks.Store {
					return mustOpen(t, state, Options{MaxBytes: maxBytes, Volatile: volatile})
				},
				Bounded: true, Damage: flip,
			})
		})
	}
}

func files(t testing.TB, root string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode() != 0o600 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		rel, _ := filepath.Rel(root, path)
		all = append(all, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestLayout(t *testing.T) {
	root := filepath.Join(t.TempDir(), "new")
	s := mustOpen(t, root, Options{})
	f := chunkstest.Chunk(1, 100)
	if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
		t.Fatal(err)
	}
	name := f.ID.String()
	want := []string{name[:1] + "/" + name[1:2] + "/" + name, "format", "lock"}
	if got := files(t, root); !slices.Equal(got, want) {
		t.Errorf("got files %v, want %v", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(root, want[0])); err != nil || !bytes.Equal(b, f.Bytes) {
		t.Error("the file is not the frame:", err)
	}
	if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o700 {
		t.Error("the directory:", info.Mode(), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	root := t.TempDir()
	s := mustOpen(t, root, Options{})
	if _, err := Open(root, Options{}); !fault.Is(err, fault.FailedPrecondition) {
		t.Error("opened twice:", err)
	}
	s.Close()
	if err := os.WriteFile(filepath.Join(root, formatFile), []byte("orchestrator chunks 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root, Options{}); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(fmt.Sprint(err), "chunks 2") {
		t.Error("another format:", err)
	}
	if err := os.WriteFile(filepath.Join(root, formatFile), []byte(formatText[:7]), 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, root, Options{}) // a crash while it was marked
}

// What a process leaves that dies at any point: files in tmp/, and, if the disk lied about a sync, torn chunks.
func TestAfterACrash(t *testing.T) {
	root := t.TempDir()
	s := mustOpen(t, root, Options{})
	good, torn, empty := chunkstest.Chunk(1, 40_000), chunkstest.Chunk(2, 40_000), chunkstest.Chunk(3, 40_000)
	for _, f := range []chunks.Frame{good, torn, empty} {
		if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	for name, content := range map[string][]byte{
		"tmp/1": torn.Bytes, "tmp/zz": nil, "tmp/other": []byte("?"), pathOf(torn.ID): torn.Bytes[:1000], pathOf(empty.ID): nil, "a/b/notes.txt": []byte("a stranger's"),
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = mustOpen(t, root, Options{})
	for _, name := range files(t, root) {
		if strings.HasPrefix(name, "tmp/") {
			t.Errorf("%s was left behind", name)
		}
	}
	if n, count := s.Usage(); count != 3 || n != int64(len(good.Bytes)+1000) {
		t.Errorf("%d bytes of %d chunks", n, count)
	}
	if _, err := s.Get(context.Background(), good.ID); err != nil {
		t.Error("a good chunk:", err)
	}
	for _, f := range []chunks.Frame{torn, empty} {
		if _, err := s.Get(context.Background(), f.ID); !errors.Is(err, chunk.ErrCorrupt) {
			t.Error("a torn chunk:", err)
		}
		if _, err := s.Get(context.Background(), f.ID); !fault.Is(err, fault.NotFound) {
			t.Error("a torn chunk that was put aside:", err)
		}
		if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
			t.Error(err)
		}
	}
	if d := s.Counters().Damaged.Load(); d != 2 {
		t.Errorf("%d damaged chunks were counted", d)
	}
	if aside, _ := filepath.Glob(filepath.Join(root, asideDir, "*")); len(aside) != 2 {
		t.Errorf("put aside: %v", aside)
	}
	if n, count := s.Usage(); count != 3 || n != int64(3*len(good.Bytes)) {
		t.Errorf("%d bytes of %d chunks", n, count)
	}
}

func TestQuarantineIsBounded(t *testing.T) {
	root := t.TempDir()
	s := mustOpen(t, root, Options{Volatile: true})
	for i := range uint64(QuarantineMax + 5) {
		f := chunkstest.Chunk(i, 100)
		if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
			t.Fatal(err)
		}
		flip(t, root, f.ID)
		if _, err := s.Get(context.Background(), f.ID); !errors.Is(err, chunk.ErrCorrupt) {
			t.Fatal(err)
		}
	}
	if aside, _ := filepath.Glob(filepath.Join(root, asideDir, "*")); len(aside) != QuarantineMax {
		t.Errorf("%d files were kept", len(aside))
	}
}

// A full disk is said to be full, whichever step meets it; nothing is left behind, and room that comes back is used.
func TestFullDisk(t *testing.T) {
	for _, step := range []string{"create", "write", "sync file", "rename"} {
		for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO} {
			t.Run(fmt.Sprint(step, " ", errno), func(t *testing.T) {
				var full atomic.Bool
				root := t.TempDir()
				s := mustOpen(t, root, Options{failing: func(at string) error {
					if at == step && full.Load() {
						return &os.PathError{Op: "write", Path: "x", Err: errno}
					}
					return nil
				}})
				full.Store(true)
				f := chunkstest.Chunk(1, 40_000)
				err := s.Put(context.Background(), f.ID, f.Bytes)
				want := fault.Exhausted
				if errno == syscall.EIO {
					want = fault.Unavailable
				}
				if e := fault.As(err); e == nil || e.Kind != want || want == fault.Exhausted && e.RetryAfter <= 0 || !errors.Is(err, errno) {
					t.Errorf("put: %v", err)
				}
				if got := files(t, root); !slices.Equal(got, []string{"format", "lock"}) {
					t.Errorf("files were left behind: %v", got)
				}
				if n, count := s.Usage(); n != 0 || count != 0 {
					t.Errorf("usage is %d bytes, %d chunks", n, count)
				}
				full.Store(false)
				if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
					t.Error("with room again:", err)
				}
			})
		}
	}
}

// After a directory's sync failed, what is on the disk is unknown: nothing is promised until a restart.
func TestFailingSyncOfADirectory(t *testing.T) {
	var failing atomic.Bool
	root := t.TempDir()
	s := mustOpen(t, root, Options{failing: func(at string) error {
		if at == "sync dir" && failing.Load() {
			return syscall.EIO
		}
		return nil
	}})
	a, b := chunkstest.Chunk(1, 100), chunkstest.Chunk(2, 100)
	if err := s.Put(context.Background(), a.ID, a.Bytes); err != nil {
		t.Fatal(err)
	}
	failing.Store(true)
	if err := s.Put(context.Background(), b.ID, b.Bytes); !fault.Is(err, fault.Unavailable) {
		t.Error("put:", err)
	}
	failing.Store(false)
	if err := s.Put(context.Background(), b.ID, b.Bytes); !fault.Is(err, fault.Unavailable) {
		t.Error("put afterwards:", err)
	}
	if _, err := s.Missing(context.Background(), []chunk.ID{a.ID}); !fault.Is(err, fault.Unavailable) {
		t.Error("missing afterwards:", err)
	}
	if _, err := s.Get(context.Background(), a.ID); err != nil {
		t.Error("get afterwards:", err)
	}
	s.Close()
	s = mustOpen(t, root, Options{})
	if got, err := s.Missing(context.Background(), []chunk.ID{a.ID, b.ID}); err != nil || !slices.Equal(got, []chunk.ID{b.ID}) {
		t.Errorf("after a restart: missing %v, %v", got, err)
	}
}

// Nobody hears that a chunk is there before it is durable, and concurrent puts share syncs.
func TestPutsShareSyncs(t *testing.T) {
	const puts = 50
	entered, release := make(chan struct{}, 1), make(chan struct{})
	var opened atomic.Bool
	s := mustOpen(t, t.TempDir(), Options{failing: func(at string) error {
		if at == "sync dir" && opened.Load() {
			select {
			case entered <- struct{}{}:
			default:
			}
			<-release
		}
		return nil
	}})
	opened.Store(true)
	var all sync.WaitGroup
	first := chunkstest.Chunk(1000, 100)
	all.Go(func() {
		if err := s.Put(context.Background(), first.ID, first.Bytes); err != nil {
			t.Error(err)
		}
	})
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if got, err := s.Missing(ctx, []chunk.ID{first.ID}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("somebody was told of a chunk that is not durable: missing %v, %v", got, err)
	}
	for i := range uint64(puts) {
		f := chunkstest.Chunk(i, 100)
		all.Go(func() {
			if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
				t.Error(err)
			}
		})
	}
	for len(s.commits) < puts { // the committer is held, so they gather
		runtime.Gosched()
	}
	close(release)
	all.Wait()
	if n := s.Counters().Syncs.Load(); n != 2 {
		t.Errorf("%d puts were synced in %d batches, want 2", puts+1, n)
	}
}

// A chunk is as old as its last put or question, and never older than the opening.
func TestAge(t *testing.T) {
	root := t.TempDir()
	s := mustOpen(t, root, Options{})
	put, asked, left := chunkstest.Chunk(1, 100), chunkstest.Chunk(2, 100), chunkstest.Chunk(3, 100)
	all := []chunks.Frame{put, asked, left}
	age := func() {
		for _, f := range all {
			old := time.Now().Add(-48 * time.Hour)
			if err := os.Chtimes(filepath.Join(root, pathOf(f.ID)), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, f := range all {
		if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	age()
	if err := s.Delete(context.Background(), left.ID, time.Now().Add(-time.Hour)); !fault.Is(err, fault.FailedPrecondition) {
		t.Error("a chunk that may have been used before the opening:", err)
	}
	s.opened = time.Now().Add(-24 * time.Hour)
	if err := s.Put(context.Background(), put.ID, put.Bytes); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Missing(context.Background(), []chunk.ID{asked.ID}); len(got) > 0 || err != nil {
		t.Fatal(got, err)
	}
	for _, f := range all {
		err := s.Delete(context.Background(), f.ID, time.Now().Add(-time.Hour))
		if young := f.ID != left.ID; young != fault.Is(err, fault.FailedPrecondition) || !young && err != nil {
			t.Error("delete:", err)
		}
	}
}

func TestClosed(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{})
	s.Close()
	f := chunkstest.Chunk(1, 100)
	if err := s.Put(context.Background(), f.ID, f.Bytes); !fault.Is(err, fault.Unavailable) {
		t.Error("put:", err)
	}
	if _, err := s.Get(context.Background(), f.ID); !fault.Is(err, fault.Unavailable) {
		t.Error("get:", err)
	}
	if err := s.Close(); err != nil {
		t.Error("closed twice:", err)
	}
}

func BenchmarkPut(b *testing.B) {
	for _, kib := range []int{64, 128, 256, 512} {
		for _, writers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%dKiB/writers=%d", kib, writers), func(b *testing.B) {
				s := mustOpen(b, b.TempDir(), Options{})
				frames := make([]chunks.Frame, b.N)
				for i := range frames {
					frames[i] = chunkstest.Chunk(uint64(i), kib<<10)
				}
				b.SetBytes(int64(kib) << 10)
				b.ResetTimer()
				for _, err := range chunks.PutBatch(context.Background(), s, frames, writers) {
					if err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(s.Counters().Syncs.Load())/float64(b.N), "syncs/op")
			})
		}
	}
}

// TestPrepared: all directories are there before the first put, also those that somebody took away.
func TestPrepared(t *testing.T) {
	path := t.TempDir()
	for range 2 {
		s, err := Open(path, Options{Prepared: true})
		if err != nil {
			t.Fatal(err)
		}
		leaves, err := filepath.Glob(filepath.Join(path, "[0-9a-f]", "[0-9a-f]"))
		if err != nil || len(leaves) != 256 {
			t.Errorf("%d directories for chunks, %v", len(leaves), err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(path, "a")); err != nil {
			t.Fatal(err)
		}
	}
}
