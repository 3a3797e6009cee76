// Captures of what is awkward: links, sockets, files that change, stamps that lie, stores that fail.

package serializer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/serializer/serializertest"
)

func TestWhatIsLeftOut(t *testing.T) {
	dir, store := t.TempDir(), &serializertest.Store{}
	for _, d := range []string{"d", "out", "out/deep"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	for name, target := range map[string]string{
		"d/inside": "../file", "d/same": "./inside", "dangling": "nothing/here", "abs": dir + "/file", "d/up": dir + "//d/../../etc", "d/abs": dir + "/out//deep/.", "d/top": dir, "abroad": "/etc/passwd", "near": dir + "-not/file", "escape": "../x", "d/escape": "../../x", "round": "d/../../x",
	} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644))
	must(t, os.Chmod(filepath.Join(dir, "file"), 0o755|os.ModeSetuid|os.ModeSetgid|os.ModeSticky))
	must(t, os.WriteFile(filepath.Join(dir, "out/deep/file"), []byte("x"), 0o644))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	must(t, err)
	defer l.Close()
	c, err := serializer.Capture(t.Context(), store, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: dir, Exclude: []string{"out/deep"}}}})
	must(t, err)
	var paths, skipped []string
	for _, e := range c.Roots[0].Entries {
		paths = append(paths, e.Path)
		if want, ok := map[string]string{"abs": "file", "d/abs": "../out/deep", "d/top": ".."}[e.Path]; ok && e.Target != want {
			t.Errorf("%s leads to %q, want %q", e.Path, e.Target, want)
		}
		if e.Path == "file" && e.Mode != 0o755 {
			t.Errorf("mode %#o", e.Mode)
		}
	}
	for _, s := range c.Stats.Skipped {
		skipped = append(skipped, s.Path+": "+string(s.Reason))
	}
	if want := []string{".", "abs", "d", "d/abs", "d/inside", "d/same", "d/top", "dangling", "file", "out"}; !slices.Equal(paths, want) {
		t.Errorf("kept %q, want %q", paths, want)
	}
	link, special := string(serializer.SkipLink), string(serializer.SkipSpecial)
	if want := []string{"abroad: " + link, "d/escape: " + link, "d/up: " + link, "escape: " + link, "fifo: " + special, "near: " + link, "round: " + link, "sock: " + special}; !slices.Equal(skipped, want) || c.Stats.SkippedTotal != 8 || c.Stats.Unreadable != 0 || c.Stats.LinksOut != 6 {
		t.Errorf("left out %q, want %q", skipped, want)
	}
}

// A directory that is swapped for a link while it is captured must not lead the reading elsewhere.
func TestLinksAreNotFollowed(t *testing.T) {
	base := t.TempDir()
	secret, dir := filepath.Join(base, "secret"), filepath.Join(base, "work")
	must(t, os.MkdirAll(filepath.Join(dir, "d"), 0o755))
	must(t, os.Mkdir(secret, 0o755))
	must(t, os.WriteFile(filepath.Join(secret, "f"), []byte("secret"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "d/f"), []byte("public"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "g"), []byte("public"), 0o644))
	_, first := checkpoint(t, &serializertest.Store{}, dir, nil)
	// Between the walk and the reading the store is asked about the index's chunks: the moment to swap.
	swap := &serializertest.Store{OnMissing: func([]chunk.ID) error {
		_ = os.RemoveAll(filepath.Join(dir, "d"))
		_ = os.Symlink(secret, filepath.Join(dir, "d"))
		_ = os.Remove(filepath.Join(dir, "g"))
		_ = os.Symlink(filepath.Join(secret, "f"), filepath.Join(dir, "g"))
		return nil
	}}
	_, c := checkpoint(t, swap, dir, first.Index)
	for _, e := range c.Roots[0].Entries {
		if e.Type == serializer.File {
			t.Errorf("%q was read with %d bytes", e.Path, e.Size)
		}
	}
}

func TestFilesThatDoNotHoldStill(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "busy")
	must(t, os.WriteFile(path, noise(1, 3<<20), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "calm"), []byte("calm"), 0o644))
	// Reading waits for the store, as there are few buffers: whatever is put, the file was changed before it was read to its end.
	var mu sync.Mutex
	n := byte(0)
	store := &serializertest.Store{OnPut: func(chunk.ID, []byte) error {
		mu.Lock()
		defer mu.Unlock()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		n++
		for at := int64(0); at < 3<<20; at += 16 << 10 {
			if _, err := f.WriteAt([]byte{n}, at); err != nil {
				return err
			}
		}
		return nil
	}}
	opts := serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: dir}}}
	_, err := serializer.Capture(t.Context(), store, opts)
	if !fault.Is(err, fault.Aborted) || !strings.Contains(err.Error(), "busy") {
		t.Error(err)
	}
	opts.Live = true
	c, err := serializer.Capture(t.Context(), store, opts)
	must(t, err)
	store.OnPut = nil
	if c.Stats.Torn != 1 || c.Index.Files() != 1 {
		t.Errorf("%+v; the index knows %d files", c.Stats, c.Index.Files())
	}
	// The last round finds it at rest, and reads it.
	opts.Live, opts.Previous = false, c.Index
	c, err = serializer.Capture(t.Context(), store, opts)
	must(t, err)
	out := filepath.Join(t.TempDir(), "out")
	_, err = serializer.Restore(t.Context(), store, manifest(c), "workspace", out, serializer.RestoreOptions{})
	must(t, err)
	same(t, look(t, out), look(t, dir))
}

// Where stamps lie, the files that are verified show it, and all are read.
func TestIndexIsNotTrustedBlindly(t *testing.T) {
	dir, store := t.TempDir(), &serializertest.Store{}
	for i := range 100 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%03d", i)), noise(uint64(i), 500), 0o644))
	}
	must(t, os.WriteFile(filepath.Join(dir, "large"), noise(200, 1<<20), 0o644))
	settle(t, dir)
	_, c := checkpoint(t, store, dir, nil)
	// An index that says of each file what is true of the one before it is what lying stamps would give.
	lying := c.Index.Lie()
	seenAll := 0
	for range 10 {
		_, next := checkpoint(t, store, dir, c.Index)
		seenAll += next.Stats.Verified
		if next.Stats.Distrusted || next.Stats.FilesRead > 0 {
			t.Fatalf("%+v", next.Stats)
		}
		c = next
	}
	if seenAll < 100 {
		t.Errorf("%d files verified in ten rounds", seenAll)
	}
	_, c = checkpoint(t, store, dir, lying)
	if !c.Stats.Distrusted || c.Stats.FilesRead != 101 {
		t.Errorf("%+v", c.Stats)
	}
	out := filepath.Join(t.TempDir(), "out")
	_, err := serializer.Restore(t.Context(), store, manifest(c), "workspace", out, serializer.RestoreOptions{})
	must(t, err)
	same(t, look(t, out), look(t, dir))
}

func TestIndexFile(t *testing.T) {
	dir, store := workspace(t, 50, 2000), &serializertest.Store{}
	c := capture(t, store, dir, nil)
	path := filepath.Join(t.TempDir(), "index")
	if _, err := serializer.LoadIndex(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	must(t, c.Index.Save(path))
	must(t, c.Index.Save(path)) // over the old one
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Error(info.Mode())
	}
	x, err := serializer.LoadIndex(path)
	if err != nil || !reflect.DeepEqual(x, c.Index) {
		t.Error(err)
	}
	data, err := os.ReadFile(path)
	must(t, err)
	for i := 0; i < len(data); i += 7 {
		data[i] ^= 4
		if x, err := serializer.DecodeIndex(data); x != nil || !errors.Is(err, serializer.ErrCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
		data[i] ^= 4
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Error("left behind:", left)
	}
}

// A store that fails ends the capture with its error, and everything it started.
func TestCaptureEndsWithTheStore(t *testing.T) {
	dir, broken := workspace(t, 100, 40_000), errors.New("disk full")
	c := capture(t, &serializertest.Store{}, dir, nil)
	n := 0
	var mu sync.Mutex
	for name, store := range map[string]*serializertest.Store{
		"put": {OnPut: func(chunk.ID, []byte) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; n > 2 {
				return broken
			}
			return nil
		}},
		"missing": {OnMissing: func([]chunk.ID) error { return broken }},
	} {
		for _, index := range []*serializer.Index{nil, c.Index} {
			_, err := serializer.Capture(t.Context(), store, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: dir}}, Previous: index})
			if !errors.Is(err, broken) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	store := &serializertest.Store{OnPut: func(chunk.ID, []byte) error { cancel(); return nil }}
	if _, err := serializer.Capture(ctx, store, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: dir}}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, roots := range [][]serializer.Root{{{Name: "Up", Dir: dir}}, {{Name: "a", Dir: dir}, {Name: "a", Dir: dir}}, {{Name: "a", Dir: dir + "/nowhere"}}} {
		if _, err := serializer.Capture(t.Context(), store, serializer.CaptureOptions{Roots: roots}); err == nil {
			t.Error("captured", roots)
		}
	}
}

// Bundles of which little is left are packed anew, so that a checkpoint does not hold on to what was deleted long ago.
func TestOldBundlesAreLetGo(t *testing.T) {
	dir, store := t.TempDir(), &serializertest.Store{}
	for i := range 200 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%03d", i)), noise(uint64(i), 10_000), 0o644))
	}
	settle(t, dir)
	_, c := checkpoint(t, store, dir, nil)
	for i := range 200 {
		if i%10 != 0 {
			must(t, os.Remove(filepath.Join(dir, fmt.Sprintf("f%03d", i))))
		}
	}
	for range 3 {
		_, c = checkpoint(t, store, dir, c.Index)
	}
	if s := c.Stats; s.ChunkBytes > s.Bytes*3/2 || s.FilesRead != 0 {
		t.Errorf("%d bytes of files hold %d bytes of chunks; %+v", s.Bytes, s.ChunkBytes, s)
	}
}

// heap samples the memory in use, in bytes.
func heap() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() + s[1].Value.Uint64())
}

// onDisk keeps frames in one file: a store in memory would be what is measured.
type onDisk struct {
	mu     sync.Mutex
	f      *os.File
	at     map[chunk.ID][2]int64
	end    int64
	peak   int64
	nobody bool // keep nothing, be asked for nothing
}

func (s *onDisk) Missing(_ context.Context, ids []chunk.ID) (missing []chunk.ID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if _, ok := s.at[id]; !ok {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

func (s *onDisk) Put(_ context.Context, id chunk.ID, frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nobody {
		if s.end++; s.end%500 == 0 {
			s.peak = max(s.peak, heap())
		}
		return nil
	}
	s.peak = max(s.peak, heap())
	_, err := s.f.WriteAt(frame, s.end)
	s.at[id] = [2]int64{s.end, int64(len(frame))}
	s.end += int64(len(frame))
	return err
}

func (s *onDisk) Get(_ context.Context, id chunk.ID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peak = max(s.peak, heap())
	frame := make([]byte, s.at[id][1])
	_, err := s.f.ReadAt(frame, s.at[id][0])
	return frame, err
}

const maxMemory = 64 << 20 // bytes, whatever the size of the workspace

// A file much larger than the memory, with holes between what cannot be compressed, goes there and back.
func TestMemoryOfLargeFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 128 MiB, twice")
	}
	base := t.TempDir()
	dir := filepath.Join(base, "work")
	must(t, os.Mkdir(dir, 0o755))
	f, err := os.Create(filepath.Join(dir, "large"))
	must(t, err)
	const stretches, stretch = 64, 2 << 20
	block := noise(1, stretch)
	for i := range stretches {
		for j := 0; j < len(block); j += 512 {
			block[j], block[j+1] = byte(i), byte(j>>9)
		}
		_, err := f.WriteAt(block, int64(i)*(160<<20)) // 10 GiB from the first to the last
		must(t, err)
	}
	must(t, f.Close())
	store := &onDisk{at: map[chunk.ID][2]int64{}}
	store.f, err = os.Create(filepath.Join(base, "store"))
	must(t, err)
	defer store.f.Close()
	before := heap()
	c := capture(t, store, dir, nil)
	if c.Stats.ContentSent != stretches*stretch || c.Stats.Bytes < 10_000_000_000 {
		t.Errorf("%+v", c.Stats)
	}
	captured := store.peak - before
	store.peak = 0
	out := filepath.Join(base, "out")
	_, err = serializer.Restore(t.Context(), store, manifest(c), "workspace", out, serializer.RestoreOptions{NoSync: true})
	must(t, err)
	restored := store.peak - before
	t.Logf("capture: %d MiB; restore: %d MiB", captured>>20, restored>>20)
	if captured > maxMemory || restored > maxMemory {
		t.Errorf("%d and %d bytes of memory, at most %d", captured, restored, maxMemory)
	}
	g, err := os.Open(filepath.Join(out, "large"))
	must(t, err)
	defer g.Close()
	var st unix.Stat_t
	must(t, unix.Fstat(int(g.Fd()), &st))
	if st.Blocks*512 > 2*stretches*stretch {
		t.Errorf("the holes are gone: %d bytes on disk", st.Blocks*512)
	}
	must(t, err)
	for i := range stretches {
		got, want := make([]byte, stretch), block
		for j := 0; j < len(want); j += 512 {
			want[j] = byte(i)
		}
		if _, err := g.ReadAt(got, int64(i)*(160<<20)); err != nil || !slices.Equal(got, want) {
			t.Fatalf("stretch %d: %v", i, err)
		}
	}
}

// What is remembered of 10 GB in chunks of 64 KiB fits, too.
func TestMemoryOfManyChunks(t *testing.T) {
	if testing.Short() {
		t.Skip("seals 160,000 chunks")
	}
	store := &onDisk{nobody: true}
	before := heap()
	c, err := serializer.CaptureManyChunks(t.Context(), store, 160_000)
	must(t, err)
	if used := max(store.peak, heap()) - before; used > maxMemory || len(c.Chunks) != 160_000 {
		t.Errorf("%d chunks took %d bytes of memory, at most %d", len(c.Chunks), used, maxMemory)
	} else {
		t.Logf("%d MiB", used>>20)
	}
}

// A session has several trees; one manifest holds them, and one index knows them all, here and where they are restored.
func TestSeveralRoots(t *testing.T) {
	base, store := t.TempDir(), &serializertest.Store{}
	roots := []serializer.Root{{Name: "workspace", Dir: workspace(t, 60, 20_000)}, {Name: "state", Dir: workspace(t, 10, 5000)}, {Name: "log", Dir: filepath.Join(base, "empty")}}
	must(t, os.Mkdir(roots[2].Dir, 0o750))
	must(t, os.WriteFile(filepath.Join(roots[1].Dir, "large"), noise(9, 400_000), 0o600))
	var last, total int64
	c, err := serializer.Capture(t.Context(), store, serializer.CaptureOptions{Roots: roots, Progress: func(done, of int64) {
		if done < last || done > of {
			t.Errorf("progress: %d of %d after %d", done, of, last)
		}
		last, total = done, of
	}})
	must(t, err)
	if last != total || total != c.Stats.Bytes {
		t.Errorf("progress ended at %d of %d, %d bytes", last, total, c.Stats.Bytes)
	}
	var parts []*serializer.Restored
	moved := slices.Clone(roots)
	for i, r := range roots {
		moved[i].Dir = filepath.Join(base, r.Name)
		part, err := serializer.Restore(t.Context(), store, manifest(c), r.Name, moved[i].Dir, serializer.RestoreOptions{})
		must(t, err)
		parts = append(parts, part)
		same(t, look(t, moved[i].Dir), look(t, r.Dir))
	}
	next, err := serializer.Capture(t.Context(), store, serializer.CaptureOptions{Roots: moved, Previous: serializer.RestoredIndex(parts...)})
	must(t, err)
	if s := next.Stats; s.FilesRead != 0 || s.ChunksSent != 0 || s.Files != 71 || !reflect.DeepEqual(next.Roots, c.Roots) {
		t.Errorf("%+v", s)
	}
}
