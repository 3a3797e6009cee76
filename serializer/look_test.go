// Looking into a tree shows what the directory has that it was captured from.
package serializer_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/serializer/serializertest"
)

func TestLookingIntoATree(t *testing.T) {
	dir := t.TempDir()
	large := noise(7, 3<<20)
	for path, content := range map[string][]byte{
		"a": []byte("1"), "a.b": []byte("beside a/"), "d/e/f": []byte("deep"), "d/g": nil, "d-": []byte("before d/"), "large": large,
		"zeros": make([]byte, 1<<20), "d0": []byte("after d/"),
	} {
		path = filepath.Join(dir, path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, content, 0o644))
	}
	must(t, os.Symlink("a", filepath.Join(dir, "link")))
	must(t, os.Truncate(filepath.Join(dir, "zeros"), 3<<20))
	must(t, os.Mkdir(filepath.Join(dir, "none"), 0o755))
	store := &serializertest.Store{}
	c, err := serializer.Capture(t.Context(), store, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: dir}}})
	must(t, err)
	m := &serializer.Manifest{Roots: c.Roots, Chunks: c.Chunks}
	tree := m.Root("workspace")

	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		rel, err := filepath.Rel(dir, path)
		must(t, err)
		e := tree.Entry(rel)
		if e == nil {
			t.Errorf("%s is not there", rel)
			return nil
		}
		if d.IsDir() {
			entries, err := os.ReadDir(path)
			must(t, err)
			var want, got []string
			for _, x := range entries {
				want = append(want, filepath.Join(rel, x.Name()))
			}
			for x := range tree.Children(rel) {
				got = append(got, x.Path)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s holds %q, want %q", rel, got, want)
			}
			for range tree.Children(rel) {
				break // is no reason to go on
			}
			return nil
		}
		if e.Type != serializer.File {
			return nil
		}
		want, err := os.ReadFile(path)
		must(t, err)
		if got, err := serializer.ReadStretches(t.Context(), store, m.Stretches(e, 0, e.Size)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d: %v", rel, len(got), len(want), err)
		}
		rapid.Check(t, func(rt *rapid.T) {
			offset, length := rapid.Int64Range(0, e.Size+10).Draw(rt, "offset"), rapid.Int64Range(0, e.Size+10).Draw(rt, "length")
			from := min(offset, e.Size)
			if got, err := serializer.ReadStretches(t.Context(), store, m.Stretches(e, offset, length)); err != nil || !bytes.Equal(got, want[from:min(from+length, e.Size)]) {
				rt.Fatalf("%s from %d, %d bytes: %d bytes, %v", rel, offset, length, len(got), err)
			}
		})
		return nil
	}))
	for _, path := range []string{"d/e/none", "", "/", "d/", "../a", "b"} {
		if e := tree.Entry(path); e != nil {
			t.Errorf("%q is there: %+v", path, e)
		}
	}
	for e := range tree.Children("a") {
		t.Errorf("a file holds %s", e.Path)
	}
	// What a store gives is not believed.
	e := tree.Entry("a")
	if _, err := serializer.ReadStretches(t.Context(), store, []serializer.Stretch{{Chunk: chunk.Sum([]byte("elsewhere")), Length: 1}}); err == nil {
		t.Error("a chunk that is not stored was read")
	}
	s := m.Stretches(e, 0, e.Size)
	s[0].Offset = chunk.MaxContentBytes
	if _, err := serializer.ReadStretches(t.Context(), store, s); !errors.Is(err, serializer.ErrCorrupt) {
		t.Errorf("beyond a chunk's end: %v", err)
	}
}
