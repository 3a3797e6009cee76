// Beginning a restore with a tree that is nearly right: the last step of a live migration changes a few files, not all.

package serializer

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// beginWith removes from the staged tree what the manifest does not have or has otherwise, and notes what may stay. A file stays
// when it has the stamp with which it was restored and its content is made of the same stretches of the same chunks.
func (r *restore) beginWith(ctx context.Context, tmp string, was *Restored) error {
	if err := os.Chmod(tmp, 0o700); err != nil {
		return err
	}
	w := walker{ctx: ctx, grant: true}
	var odd []string // sockets and the like: somebody was here
	w.skip = func(path string, _ SkipReason, _ string) { odd = append(odd, path) }
	all, err := w.walk(tmp)
	if err != nil {
		return err
	}
	for _, p := range odd {
		if err := r.tmp.RemoveAll(p); err != nil {
			return err
		}
	}
	var d dirs
	defer d.close()
	known := was.files
	next, gone := 0, "" // gone is the last path that was removed, with all that was below it
	for i := range all[1:] {
		f := &all[i+1]
		if gone != "" && len(f.Path) > len(gone) && f.Path[:len(gone)] == gone && f.Path[len(gone)] == '/' {
			continue
		}
		for next < len(r.tree.Entries) && (next == 0 || comparePaths(r.tree.Entries[next].Path, f.Path) < 0) {
			next++
		}
		for len(known) > 0 && comparePaths(known[0].path, f.Path) < 0 {
			known = known[1:]
		}
		stays := false
		if next < len(r.tree.Entries) && r.tree.Entries[next].Path == f.Path {
			var k *indexFile
			if len(known) > 0 && known[0].path == f.Path {
				k = &known[0]
			}
			if stays, err = r.stays(&d, next, f, k, was.chunks); err != nil {
				return fmt.Errorf("%q: %w", f.Path, err)
			}
		}
		if stays {
			r.keep[next] = true
			continue
		}
		gone = f.Path
		if err := r.tmp.RemoveAll(f.Path); err != nil {
			return err
		}
	}
	return nil
}

// stays reports whether what was found may be the entry, and gives a file its mode and time.
func (r *restore) stays(d *dirs, i int, f *found, k *indexFile, chunks []ChunkRef) (bool, error) {
	e := &r.tree.Entries[i]
	if e.Type != f.Type {
		return false, nil
	}
	switch e.Type {
	case Dir:
		return true, nil // modes and times of directories come last
	case Symlink:
		return e.Target == f.Target && e.ModTime == f.ModTime, nil
	}
	if k == nil || k.stamp != f.stamp || len(k.extents) != len(e.Extents) {
		return false, nil
	}
	for j, x := range e.Extents {
		y := k.extents[j]
		if x.IsHole() != y.IsHole() || x.Offset != y.Offset || x.Length != y.Length || (!x.IsHole() && r.m.Chunks[x.Chunk].ID != chunks[y.Chunk].ID) {
			return false, nil
		}
	}
	r.kept++
	if e.Mode == f.Mode && e.ModTime == f.ModTime {
		r.done[i] = indexFile{path: e.Path, stamp: f.stamp, hash: k.hash, extents: e.Extents}
		return true, nil
	}
	if err := d.enter(r.tmp, parentOf(e.Path)); err != nil {
		return false, err
	}
	file, err := d.root.Open(baseOf(e.Path))
	if errors.Is(err, os.ErrPermission) {
		r.kept--
		return false, nil // its mode forbids it; it is made anew
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	return true, r.finishFile(d, file, i, k.hash)
}
