// Restores that fail leave nothing; those that succeed tell what the next capture may rely on.

package serializer_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/serializer/serializertest"
)

// names returns what is in a directory.
func listing(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRestoreLeavesNothingWhenItFails(t *testing.T) {
	work, good := workspace(t, 60, 60_000), &serializertest.Store{}
	must(t, os.WriteFile(filepath.Join(work, "large"), noise(1, 1<<20), 0o600))
	c := capture(t, good, work, nil)
	frames := func() *serializertest.Store {
		s := &serializertest.Store{}
		for _, id := range good.IDs() {
			f, err := good.Get(context.Background(), id)
			must(t, err)
			must(t, s.Put(context.Background(), id, f))
		}
		return s
	}
	last, broken := c.Chunks[len(c.Chunks)-1].ID, errors.New("unplugged")
	for name, test := range map[string]struct {
		change func(*serializertest.Store, *serializer.Manifest, *serializer.RestoreOptions)
		is     func(error) bool
	}{
		"a chunk is missing": {func(s *serializertest.Store, _ *serializer.Manifest, _ *serializer.RestoreOptions) { s.Delete(last) },
			func(err error) bool { return fault.Is(err, fault.NotFound) }},
		"a chunk is another one": {func(s *serializertest.Store, _ *serializer.Manifest, _ *serializer.RestoreOptions) {
			s.Replace(last, chunk.Seal([]byte("other")))
		}, func(err error) bool { return errors.Is(err, serializer.ErrCorrupt) }},
		"a chunk is cut": {func(s *serializertest.Store, _ *serializer.Manifest, _ *serializer.RestoreOptions) {
			f, _ := s.Get(context.Background(), last)
			s.Replace(last, f[:len(f)-1])
		}, func(err error) bool { return errors.Is(err, serializer.ErrCorrupt) }},
		"a chunk has another length": {func(_ *serializertest.Store, m *serializer.Manifest, _ *serializer.RestoreOptions) {
			m.Chunks = slices.Clone(m.Chunks)
			m.Chunks[0].Bytes++
		}, func(err error) bool { return errors.Is(err, serializer.ErrCorrupt) }},
		"the store fails": {func(s *serializertest.Store, _ *serializer.Manifest, _ *serializer.RestoreOptions) {
			s.OnGet = func(id chunk.ID) error {
				if id == last {
					return broken
				}
				return nil
			}
		}, func(err error) bool { return errors.Is(err, broken) }},
		"too many entries": {func(_ *serializertest.Store, m *serializer.Manifest, o *serializer.RestoreOptions) {
			o.MaxEntries = len(m.Roots[0].Entries) - 1
		}, func(err error) bool { return fault.Is(err, fault.Exhausted) }},
		"too many bytes": {func(_ *serializertest.Store, _ *serializer.Manifest, o *serializer.RestoreOptions) {
			o.MaxBytes = c.Stats.Bytes - 1
		},
			func(err error) bool { return fault.Is(err, fault.Exhausted) }},
		"no such root": {func(_ *serializertest.Store, m *serializer.Manifest, _ *serializer.RestoreOptions) {
			m.Roots = []serializer.Tree{{Name: "other", Entries: m.Roots[0].Entries}}
		}, func(err error) bool { return fault.Is(err, fault.NotFound) }},
	} {
		for _, staged := range []bool{false, true} {
			base, s, m, opts := t.TempDir(), frames(), manifest(c), serializer.RestoreOptions{}
			if staged { // from an older, empty tree
				older := capture(t, s, t.TempDir(), nil)
				r, err := serializer.Restore(t.Context(), s, manifest(older), "workspace", filepath.Join(base, "staged"), opts)
				must(t, err)
				opts.Staged = &serializer.Staged{Dir: filepath.Join(base, "staged"), Restored: r}
			}
			test.change(s, m, &opts)
			_, err := serializer.Restore(t.Context(), s, m, "workspace", filepath.Join(base, "out"), opts)
			if err == nil || !test.is(err) {
				t.Errorf("%s: %v", name, err)
			}
			if left := listing(t, base); len(left) > 0 {
				t.Errorf("%s: left behind: %q", name, left)
			}
		}
	}
}

func TestRestoreCanceled(t *testing.T) {
	work, store := workspace(t, 60, 60_000), &serializertest.Store{}
	c, base := capture(t, store, work, nil), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	store.OnGet = func(chunk.ID) error { cancel(); return nil }
	if _, err := serializer.Restore(ctx, store, manifest(c), "workspace", filepath.Join(base, "out"), serializer.RestoreOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left := listing(t, base); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestRestoreReplacesNothing(t *testing.T) {
	work, store, base := workspace(t, 3, 1000), &serializertest.Store{}, t.TempDir()
	m, out := manifest(capture(t, store, work, nil)), filepath.Join(base, "out")
	must(t, os.Mkdir(out, 0o755))
	r, err := serializer.Restore(t.Context(), store, m, "workspace", out, serializer.RestoreOptions{})
	must(t, err) // empty: taken
	before := look(t, out)
	if _, err := serializer.Restore(t.Context(), store, m, "workspace", out, serializer.RestoreOptions{}); !fault.Is(err, fault.AlreadyExists) {
		t.Error(err)
	}
	// Nor may it be the tree to begin with, which would be gone if that failed.
	if _, err := serializer.Restore(t.Context(), store, m, "workspace", out, serializer.RestoreOptions{Staged: &serializer.Staged{Dir: out + "/", Restored: r}}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	same(t, look(t, out), before)
	if left := listing(t, base); len(left) != 1 {
		t.Errorf("there: %q", left)
	}
}

// A restore reports each byte once, fetches each chunk once, and from a staged tree writes only what differs.
func TestRestoreDoesLittle(t *testing.T) {
	work, store, base := workspace(t, 500, 20_000), &serializertest.Store{}, t.TempDir()
	c := capture(t, store, work, nil)
	var reports []int64
	var total int64
	_, before, _ := store.Counts()
	staged, err := serializer.Restore(t.Context(), store, manifest(c), "workspace", filepath.Join(base, "staged"), serializer.RestoreOptions{Progress: func(n, of int64) { reports, total = append(reports, n), of }})
	must(t, err)
	_, after, _ := store.Counts()
	if !slices.IsSorted(reports) || total != c.Stats.Bytes || reports[len(reports)-1] != c.Stats.Bytes || staged.Written != c.Stats.Bytes || after-before != len(c.Chunks) {
		t.Errorf("%d bytes reported, %d written of %d; %d chunks fetched of %d", reports[len(reports)-1], staged.Written, c.Stats.Bytes, after-before, len(c.Chunks))
	}
	must(t, os.WriteFile(filepath.Join(work, "pkg003", "file00160.go"), noise(1, 30_000), 0o600))
	must(t, os.Remove(filepath.Join(work, "pkg003", "file00161.go")))
	must(t, os.Chmod(filepath.Join(work, "pkg003", "file00162.go"), 0o400))
	c = capture(t, store, work, c.Index)
	// Somebody was in the staged tree against the rules: it is put right.
	must(t, os.WriteFile(filepath.Join(base, "staged", "pkg004", "file00200.go"), noise(2, 777), 0o600))
	must(t, os.WriteFile(filepath.Join(base, "staged", "stranger"), nil, 0o600))
	must(t, os.Symlink("/etc", filepath.Join(base, "staged", "pkg004", "etc")))
	must(t, os.Chmod(filepath.Join(base, "staged", "pkg005"), fs.FileMode(0)))
	got, err := serializer.Restore(t.Context(), store, manifest(c), "workspace", filepath.Join(base, "out"),
		serializer.RestoreOptions{Staged: &serializer.Staged{Dir: filepath.Join(base, "staged"), Restored: staged}})
	must(t, err)
	if got.FilesKept != 497 || got.Written > 100_000 {
		t.Errorf("%+v", []any{got.FilesKept, got.Written, got.ChunksFetched})
	}
	same(t, look(t, filepath.Join(base, "out")), look(t, work))
	next := capture(t, store, filepath.Join(base, "out"), serializer.RestoredIndex(got))
	if next.Stats.FilesRead != 0 || next.Stats.ChunksSent != 0 {
		t.Errorf("the next capture: %+v", next.Stats)
	}
	if left := listing(t, base); fmt.Sprint(left) != "[out]" {
		t.Errorf("there: %q", left)
	}
}
