// What differs between two checkpoints, told from their manifests alone.

package serializer

import "slices"

// Change is an entry that two manifests do not have alike.
type Change struct {
	Root string
	// Old and New are the entry before and after; one of them is nil where there is none.
	Old, New *Entry
	// Touched says that only the mode or the time differs.
	Touched bool
}

// Path is the entry's, relative to its root.
func (c *Change) Path() string {
	if c.New != nil {
		return c.New.Path
	}
	return c.Old.Path
}

// Diff calls emit with each entry that differs from the manifest a to the manifest b, in the order of the names of their roots and,
// in each, of a walk. It ends with the first error of emit. Both manifests must be valid.
//
// Files are compared by where their content is, in the chunks, and not by their bytes: a file whose content was stored once more elsewhere
// is told as changed though it is not. Of directories only the mode counts, since the time of each changes with what is in it.
func Diff(a, b *Manifest, emit func(Change) error) error {
	names := make([]string, 0, len(a.Roots)+len(b.Roots))
	for _, m := range []*Manifest{a, b} {
		for i := range m.Roots {
			names = append(names, m.Roots[i].Name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		d := differ{root: name, old: a, new: b, emit: emit}
		if err := d.run(entriesOf(a, name), entriesOf(b, name)); err != nil {
			return err
		}
	}
	return nil
}

func entriesOf(m *Manifest, root string) []Entry {
	if t := m.Root(root); t != nil {
		return t.Entries
	}
	return nil
}

// differ compares one root of two manifests.
type differ struct {
	root     string
	old, new *Manifest
	emit     func(Change) error
}

// run joins two walks, which are in one order.
func (d *differ) run(old, now []Entry) error {
	for len(old) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(now) == 0:
			order = -1
		default:
			order = comparePaths(old[0].Path, now[0].Path)
		}
		c := Change{Root: d.root}
		if order <= 0 {
			c.Old, old = &old[0], old[1:]
		}
		if order >= 0 {
			c.New, now = &now[0], now[1:]
		}
		if order == 0 && !d.differ(&c) {
			continue
		}
		if err := d.emit(c); err != nil {
			return err
		}
	}
	return nil
}

// differ reports whether two entries of one path differ, and notes whether only their marks do.
func (d *differ) differ(c *Change) bool {
	a, b := c.Old, c.New
	if a.Type != b.Type || a.Target != b.Target || a.Type == File && !d.sameContent(a, b) {
		return true
	}
	c.Touched = a.Mode != b.Mode || a.Type == File && a.ModTime != b.ModTime
	return c.Touched
}

// sameContent reports whether two files are the same stretches of the same chunks, however these are cut into extents.
func (d *differ) sameContent(a, b *Entry) bool {
	if a.Size != b.Size {
		return false
	}
	xs, ys := a.Extents, b.Extents
	var x, y Extent // what is left of the first of each
	for {
		if x.Length == 0 && len(xs) > 0 {
			x, xs = xs[0], xs[1:]
		}
		if y.Length == 0 && len(ys) > 0 {
			y, ys = ys[0], ys[1:]
		}
		if x.Length == 0 || y.Length == 0 {
			return x.Length == y.Length
		}
		switch {
		case x.IsHole() != y.IsHole():
			return false
		case !x.IsHole() && (x.Offset != y.Offset || d.old.Chunks[x.Chunk].ID != d.new.Chunks[y.Chunk].ID):
			return false
		}
		n := min(x.Length, y.Length)
		x, y = x.rest(n), y.rest(n)
	}
}

// rest is the extent without its first n bytes.
func (e Extent) rest(n int64) Extent {
	if !e.IsHole() {
		e.Offset += uint32(n)
	}
	e.Length -= n
	return e
}
