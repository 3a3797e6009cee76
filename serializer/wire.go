// The small words of the format: numbers and strings, read with bounds.

package serializer

import (
	"encoding/binary"
	"math"

	"github.com/neolith/orchestrator/serializer/chunk"
)

// writer appends.
type writer struct{ b []byte }

func (w *writer) uvarint(n uint64) { w.b = binary.AppendUvarint(w.b, n) }
func (w *writer) fixed64(n int64)  { w.b = binary.BigEndian.AppendUint64(w.b, uint64(n)) }
func (w *writer) bytes(p []byte)   { w.uvarint(uint64(len(p))); w.b = append(w.b, p...) }
func (w *writer) string(s string)  { w.uvarint(uint64(len(s))); w.b = append(w.b, s...) }

// delta writes the difference of two numbers modulo 2^64, small ones of either sign in few bytes.
func (w *writer) delta(from, to int64) {
	d := int64(uint64(to) - uint64(from))
	w.uvarint(uint64(d)<<1 ^ uint64(d>>63))
}

// section writes what fill appends, behind a tag and its length.
func (w *writer) section(tag uint64, fill func(*writer)) {
	var inner writer
	fill(&inner)
	w.uvarint(tag)
	w.bytes(inner.b)
}

// reader takes from the front; after the first error everything it gives is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = corrupt(format, args...)
	}
	r.b = nil
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || (size > 1 && r.b[size-1] == 0) { // one number has one form
		r.fail("a number is cut off, too large or too long")
		return 0
	}
	r.b = r.b[size:]
	return n
}

// upTo reads a number that must not be larger than limit.
func (r *reader) upTo(limit int64, what string) int64 {
	n := r.uvarint()
	if n > uint64(limit) {
		r.fail("%s: %d, at most %d", what, n, limit)
		return 0
	}
	return int64(n)
}

// count reads how many things follow that take at least size bytes each: no more are believed than there is room for.
func (r *reader) count(limit, size int, what string) int {
	n := int(r.upTo(int64(limit), what))
	if n > len(r.b)/size {
		r.fail("%s: %d are said to follow in %d bytes", what, n, len(r.b))
		return 0
	}
	return n
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail("cut off: %d bytes are missing", n-len(r.b))
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) byte() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) fixed64() int64 {
	if p := r.take(8); p != nil {
		return int64(binary.BigEndian.Uint64(p))
	}
	return 0
}

func (r *reader) bytes(limit int, what string) []byte { return r.take(int(r.upTo(int64(limit), what))) }

func (r *reader) string(limit int, what string) string { return string(r.bytes(limit, what)) }

func (r *reader) id() (id chunk.ID) {
	copy(id[:], r.take(len(id)))
	return id
}

func (r *reader) delta(from int64) int64 {
	z := r.uvarint()
	return int64(uint64(from) + (z>>1 ^ -(z & 1)))
}

// path reads a path that shares its beginning with the one before.
func (r *reader) path(last string) string {
	shared := r.upTo(int64(len(last)), "bytes of a path that are as before")
	rest := r.bytes(MaxPathBytes, "bytes of a path")
	if r.err != nil || int(shared) > len(last) {
		return ""
	}
	return last[:shared] + string(rest)
}

func (w *writer) path(last, p string) {
	n := 0
	for n < min(len(last), len(p)) && last[n] == p[n] {
		n++
	}
	w.uvarint(uint64(n))
	w.string(p[n:])
}

// extents writes where a file's content is. A hole is chunk 0; others are one more than their index.
func (w *writer) extents(xs []Extent) {
	w.uvarint(uint64(len(xs)))
	for _, x := range xs {
		if x.IsHole() {
			w.uvarint(0)
		} else {
			w.uvarint(uint64(x.Chunk) + 1)
			w.uvarint(uint64(x.Offset))
		}
		w.uvarint(uint64(x.Length))
	}
}

// extents reads what writer.extents writes; *left is how many more the manifest may have.
func (r *reader) extents(left *int) []Extent {
	n := r.count(*left, 2, "extents")
	if n == 0 {
		return nil
	}
	*left -= n
	xs := make([]Extent, n)
	for i := range xs {
		x := &xs[i]
		if c := r.upTo(MaxChunks, "a chunk's number"); c == 0 {
			x.Chunk = hole
		} else {
			x.Chunk, x.Offset = uint32(c-1), uint32(r.upTo(chunk.MaxContentBytes, "an offset in a chunk"))
		}
		x.Length = r.upTo(math.MaxInt64, "the length of an extent")
	}
	return xs
}

// chunks writes a table of chunks.
func (w *writer) chunks(refs []ChunkRef) {
	w.uvarint(uint64(len(refs)))
	for _, c := range refs {
		w.b = append(w.b, c.ID[:]...)
		w.uvarint(uint64(c.Bytes))
	}
}

func (r *reader) chunks() []ChunkRef {
	n := r.count(MaxChunks, len(chunk.ID{})+1, "chunks")
	if n == 0 {
		return nil
	}
	refs := make([]ChunkRef, n)
	for i := range refs {
		refs[i] = ChunkRef{ID: r.id(), Bytes: uint32(r.upTo(chunk.MaxContentBytes, "a chunk's length"))}
	}
	return refs
}
