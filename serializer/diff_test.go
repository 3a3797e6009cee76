// What is told of the difference between two manifests.

package serializer_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestDiff(t *testing.T) {
	one, two := chunk.Sum([]byte("one")), chunk.Sum([]byte("two"))
	file := func(path string, extents ...serializer.Extent) serializer.Entry {
		e := serializer.Entry{Path: path, Type: serializer.File, Mode: 0o644, ModTime: 1, Extents: extents}
		for _, x := range extents {
			e.Size += x.Length
		}
		return e
	}
	at := func(chunk, offset uint32, length int64) serializer.Extent {
		return serializer.Extent{Chunk: chunk, Offset: offset, Length: length}
	}
	dir := func(path string, mode uint32) serializer.Entry {
		return serializer.Entry{Path: path, Type: serializer.Dir, Mode: mode, ModTime: 7}
	}
	link := func(path, target string) serializer.Entry {
		return serializer.Entry{Path: path, Type: serializer.Symlink, Target: target}
	}
	old := file("old", at(1, 0, 5))
	old.ModTime = 9 // and nothing else
	a := &serializer.Manifest{Chunks: []serializer.ChunkRef{{ID: one, Bytes: 100}, {ID: two, Bytes: 100}}, Roots: []serializer.Tree{
		{Name: "workspace", Entries: []serializer.Entry{dir(".", 0o755), file("cut", at(0, 0, 10), serializer.Hole(8)), dir("d", 0o755), file("d/x", at(1, 0, 4)), file("d-y", at(1, 4, 4)),
			file("hole", serializer.Hole(3)), link("l", "a"), file("moved", at(0, 0, 5)), file("old", at(0, 0, 5)), file("swapped", at(0, 0, 5))}},
		{Name: "gone", Entries: []serializer.Entry{dir(".", 0o700)}},
	}}
	// The same chunks under other numbers, one file cut into other extents.
	b := &serializer.Manifest{Chunks: []serializer.ChunkRef{{ID: two, Bytes: 100}, {ID: one, Bytes: 100}}, Roots: []serializer.Tree{
		{Name: "workspace", Entries: []serializer.Entry{dir(".", 0o755), file("cut", at(1, 0, 3), at(1, 3, 7), serializer.Hole(1), serializer.Hole(7)), dir("d", 0o700), file("d/x", at(0, 0, 4)),
			file("d/z"), file("d-y", at(0, 5, 4)), file("hole", at(0, 0, 3)), link("l", "b"), old, dir("swapped", 0o755)}},
	}}
	var got []string
	tell := func(c serializer.Change) error {
		kind := "modified"
		switch {
		case c.Old == nil:
			kind = "added"
		case c.New == nil:
			kind = "removed"
		case c.Touched:
			kind = "touched"
		}
		got = append(got, fmt.Sprint(c.Root, " ", c.Path(), " ", kind))
		return nil
	}
	if err := serializer.Diff(a, b, tell); err != nil {
		t.Fatal(err)
	}
	want := []string{"gone . removed", "workspace d touched", "workspace d/z added", "workspace d-y modified", "workspace hole modified", "workspace l modified",
		"workspace moved removed", "workspace old touched", "workspace swapped modified"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	for _, m := range []*serializer.Manifest{a, b} {
		got = nil
		if err := serializer.Diff(m, m, tell); err != nil || got != nil {
			t.Errorf("a manifest differs from itself by %q, %v", got, err)
		}
	}
	full := errors.New("full")
	if err := serializer.Diff(a, b, func(serializer.Change) error { return full }); !errors.Is(err, full) {
		t.Error(err)
	}
}
