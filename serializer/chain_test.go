// A chain of captures, restored at every link.

package serializer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/serializer/serializertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// checkpoint captures a directory as the root "workspace" and stores the manifest.
func checkpoint(t testing.TB, store *serializertest.Store, dir string, previous *serializer.Index) (chunk.ID, *serializer.Captured) {
	t.Helper()
	c, err := serializer.Capture(t.Context(), store, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: dir}}, Previous: previous})
	must(t, err)
	stored, err := serializer.StoreManifest(t.Context(), store, manifest(c))
	must(t, err)
	return stored.ID, c
}

// manifest makes a whole manifest of a capture.
func manifest(c *serializer.Captured) *serializer.Manifest {
	return &serializer.Manifest{
		SessionID: "s-1", Namespace: "default", Name: "demo", Spec: []byte{10, 1, 'x'}, SerializedAt: time.Unix(1_800_000_000, 42).UTC(), NodeID: "n-1",
		Release: "v1", Epoch: 3, Sequence: 7, Turn: 11, OutputLine: 99, Memory: []byte(`{"a":1}`), Keeps: serializer.KeepsMessages | serializer.KeepsWorkspace,
		PathMap: []serializer.PathPair{{Source: "/data/s-1/workspace", Root: "workspace"}}, Roots: c.Roots, Chunks: c.Chunks,
	}
}

// restore loads a manifest and restores its workspace into a new directory.
func restore(t testing.TB, store *serializertest.Store, id chunk.ID, dir string, staged *serializer.Staged) *serializer.Restored {
	t.Helper()
	m, _, err := serializer.LoadManifest(t.Context(), store, id)
	must(t, err)
	r, err := serializer.Restore(t.Context(), store, m, "workspace", dir, serializer.RestoreOptions{Staged: staged, NoSync: true})
	must(t, err)
	return r
}

// Whatever happens between captures, each checkpoint restores to exactly what was there; also on top of another one's tree, and by way of an index
// that went through a file.
func TestChain(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		base, err := os.MkdirTemp(t.TempDir(), "")
		must(rt, err)
		defer os.RemoveAll(base)
		dir := filepath.Join(base, "work")
		must(rt, os.Mkdir(dir, 0o755))
		store := &serializertest.Store{}
		var ids []chunk.ID
		var want []map[string]seen
		var index *serializer.Index
		for i := range rapid.IntRange(2, 4).Draw(rt, "links") {
			for range rapid.IntRange(1, 12).Draw(rt, "edits") {
				edit(rt, dir)
			}
			now := look(t, dir)
			for p, s := range now { // sticky and the like do not count
				s.Mode &= 0o777
				now[p] = s
			}
			id, c := checkpoint(t, store, dir, index)
			if index, err = serializer.DecodeIndex(c.Index.Encode()); err != nil {
				rt.Fatal(err)
			}
			ids, want = append(ids, id), append(want, now)
			if rapid.Bool().Draw(rt, "move") { // the session goes on elsewhere
				dir = filepath.Join(base, fmt.Sprint("moved", i))
				index = serializer.RestoredIndex(restore(t, store, id, dir, nil))
			}
		}
		var staged *serializer.Staged
		for i, id := range ids {
			out := filepath.Join(base, fmt.Sprint("out", i))
			restore(t, store, id, out, nil)
			same(t, look(t, out), want[i])
			out = filepath.Join(base, fmt.Sprint("staged", i))
			staged = &serializer.Staged{Dir: out, Restored: restore(t, store, id, out, staged)}
			same(t, look(t, out), want[i])
			if t.Failed() {
				rt.Fatalf("link %d", i)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(base, ".*")); len(left) > 0 {
			rt.Fatal("left behind:", left)
		}
	})
}

// What was not changed is neither read nor sent, what was costs about its size, and the new machine knows it as the old did.
func TestIncremental(t *testing.T) {
	dir, store := filepath.Join(t.TempDir(), "work"), &serializertest.Store{}
	old := time.Now().Add(-time.Hour)
	must(t, os.Mkdir(dir, 0o755))
	write := func(name string, content []byte) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
	}
	for i := range 500 {
		write(fmt.Sprintf("d%d/f%d", i%20, i), noise(uint64(i), 3000))
	}
	write("large", noise(1000, 4<<20))
	settle(t, dir) // what was written just now is read again next time
	_, first := checkpoint(t, store, dir, nil)
	if s := first.Stats; s.Files != 501 || s.FilesRead != 501 || s.ChunksTotal < 20 || s.ChunksTotal > 200 || s.ChunksSent != s.ChunksTotal {
		t.Errorf("first: %+v", s)
	}
	check := func(what string, dir string, index *serializer.Index, read, changed int, atMost int64) *serializer.Captured {
		t.Helper()
		_, c := checkpoint(t, store, dir, index)
		s := c.Stats
		if s.FilesRead != read || s.FilesChanged != changed || s.ContentSent > atMost || s.BytesReused+s.ContentSent < s.Bytes || s.Verified == 0 || s.Dirty() > atMost || s.Distrusted {
			t.Errorf("%s: %+v", what, s)
		}
		return c
	}
	c := check("unchanged", dir, first.Index, 0, 0, 0)
	write("d3/f3", noise(2000, 3000))
	write("large", append([]byte("inserted"), noise(1000, 4<<20)...))
	settle(t, dir) // what was written just now is read again next time
	c = check("changed", dir, c.Index, 2, 2, 3000+2*256<<10)
	must(t, os.Rename(filepath.Join(dir, "d5"), filepath.Join(dir, "renamed")))
	c = check("renamed", dir, c.Index, 25, 25, 0)
	must(t, os.Chtimes(filepath.Join(dir, "d7/f7"), old, old))
	c = check("touched", dir, c.Index, 1, 0, 0)

	id, err := serializer.StoreManifest(t.Context(), store, manifest(c))
	must(t, err)
	moved := filepath.Join(t.TempDir(), "moved")
	r := restore(t, store, id.ID, moved, nil)
	if r.ChunksFetched != c.Stats.ChunksTotal {
		t.Errorf("%d chunks fetched of %d", r.ChunksFetched, c.Stats.ChunksTotal)
	}
	check("moved", moved, serializer.RestoredIndex(r), 0, 0, 0)
	store.Delete(c.Chunks[0].ID)
	_, again := checkpoint(t, store, dir, c.Index)
	if s := again.Stats; s.ChunksSent == 0 || s.FilesRead == 0 || s.FilesRead > 300 {
		t.Errorf("after a chunk was lost: %+v", s)
	}
	same(t, look(t, moved), look(t, dir))
}
