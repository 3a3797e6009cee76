// Looking into a checkpoint without restoring it: what a directory holds, and the bytes of a file.

package serializer

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/neolith/orchestrator/serializer/chunk"
)

// Entry returns the entry of that path, nil when there is none; "." is the directory that the tree is.
func (t *Tree) Entry(path string) *Entry {
	for i := range t.Entries {
		if t.Entries[i].Path == path {
			return &t.Entries[i]
		}
	}
	return nil
}

// Children returns what lies directly in a directory, in the order of the bytes of their names.
func (t *Tree) Children(dir string) iter.Seq[*Entry] {
	prefix := dir + "/"
	if dir == "." {
		prefix = ""
	}
	return func(yield func(*Entry) bool) {
		inside := false
		for i := range t.Entries {
			e := &t.Entries[i]
			rest, under := strings.CutPrefix(e.Path, prefix)
			switch {
			case e.Path == ".":
			case under:
				inside = true
				if !strings.Contains(rest, "/") && !yield(e) {
					return
				}
			case inside:
				return // what is in a directory follows it without a gap
			}
		}
	}
}

// Stretch is a part of a file's content: so many bytes of a chunk from an offset on, or of zeros.
type Stretch struct {
	Chunk  chunk.ID
	Offset int64
	Length int64
	Hole   bool
}

// Stretches returns where a part of a file's content is; what lies beyond the file's end is left out.
func (m *Manifest) Stretches(e *Entry, offset, length int64) []Stretch {
	var out []Stretch
	for _, x := range e.Extents {
		if length <= 0 {
			break
		}
		if offset >= x.Length {
			offset -= x.Length
			continue
		}
		s := Stretch{Length: min(x.Length-offset, length), Hole: x.IsHole()}
		if !s.Hole {
			s.Chunk, s.Offset = m.Chunks[x.Chunk].ID, int64(x.Offset)+offset
		}
		out, offset, length = append(out, s), 0, length-s.Length
	}
	return out
}

// ReadStretches returns their bytes, one after the other, verified. They are all in memory: who asks bounds them.
func ReadStretches(ctx context.Context, src Source, stretches []Stretch) ([]byte, error) {
	total := int64(0)
	for _, s := range stretches {
		total += s.Length
	}
	out := make([]byte, 0, total)
	var last chunk.ID
	var content []byte // of the last chunk: neighbours lie in one
	for _, s := range stretches {
		if s.Hole {
			out = slices.Grow(out, int(s.Length))
			clear(out[len(out) : len(out)+int(s.Length)])
			out = out[:len(out)+int(s.Length)]
			continue
		}
		if content == nil || s.Chunk != last {
			var err error
			if content, err = fetch(ctx, src, content[:0], s.Chunk); err != nil {
				return nil, err
			}
			last = s.Chunk
		}
		if s.Offset+s.Length > int64(len(content)) {
			return nil, corrupt("chunk %s has %d bytes, and a file has %d of them from %d on", s.Chunk, len(content), s.Length, s.Offset)
		}
		out = append(out, content[s.Offset:s.Offset+s.Length]...)
	}
	return out, nil
}
