// Reading files that are not known: small ones into bundles, large ones cut where their content says, holes left out.

package serializer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// errGone says that a file is no longer there, or no longer a file.
var errGone = errors.New("gone")

func statFile(fd int) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

// readAt fills p from an offset on and returns how much there was.
func readAt(fd int, p []byte, at int64) (n int, err error) {
	for n < len(p) {
		var got int
		if err := retry(func() (err error) { got, err = unix.Pread(fd, p[n:], at+int64(n)); return err }); err != nil {
			return n, err
		}
		if got == 0 {
			break
		}
		n += got
	}
	return n, nil
}

// readRoot fills in the files of a root.
func (c *capture) readRoot(r *planned) error {
	o, err := newOpener(r.Dir)
	if err != nil {
		return err
	}
	defer o.close()
	for i := range r.found {
		f := &r.found[i]
		if f.Type != File {
			continue
		}
		if same := r.same[i]; same != nil {
			r.file[i] = *same
			continue
		}
		if err := c.ctx.Err(); err != nil {
			return err
		}
		size := f.Size
		switch err := c.readFile(o, f, &r.file[i]); {
		case errors.Is(err, errGone):
			r.gone[i] = true
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			r.gone[i] = true
			c.skip(r.Name, f.Path, SkipUnreadable, "")
		case err != nil:
			return fmt.Errorf("read %q: %w", f.Path, err)
		}
		if c.stats.FilesRead++; r.was[i] == nil || !sameExtents(r.was[i].extents, r.file[i].extents) {
			c.stats.FilesChanged++
		}
		c.done += size
		c.tell(0)
	}
	return nil
}

// tell tells how far the reading is, within bytes into the file that is being read.
func (c *capture) tell(within int64) {
	if c.opts.Progress != nil {
		c.told = max(c.told, min(c.done+within, c.total)) // a file may be read again
		c.opts.Progress(c.told, c.total)
	}
}

func sameExtents(a, b []Extent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// readFile reads one file until it held still, or readAttempts times.
func (c *capture) readFile(o *opener, f *found, to *indexFile) error {
	for attempt := 1; ; attempt++ {
		stable, err := c.readOnce(o, f, to)
		switch {
		case err != nil:
			return err
		case stable:
			return nil
		case attempt < readAttempts:
		case !c.opts.Live:
			return fault.New(fault.Aborted, "it changed %d times while it was read; let the session rest, or capture it live", attempt)
		default:
			c.stats.Torn++
			to.path = "" // the index does not know it
			return nil
		}
	}
}

// readOnce reads a file and reports whether it stayed the same meanwhile. The entry is what was read in any case.
func (c *capture) readOnce(o *opener, f *found, to *indexFile) (stable bool, err error) {
	file, err := o.open(f.Path)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO):
		return false, errGone
	case err != nil:
		return false, err
	}
	defer unix.Close(file)
	st, err := statFile(file)
	if err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, errGone
	}
	before, began := stampOf(st), time.Now()
	*to = indexFile{path: f.Path, stamp: before}
	if before.size < packedBytes {
		err = c.readSmall(file, before.size, to)
	} else {
		err = c.readLarge(file, before.size, st.Blocks*512 < st.Size, to)
	}
	if err != nil {
		return false, err
	}
	if st, err = statFile(file); err != nil {
		return false, err
	}
	after := stampOf(st)
	// A write within the clock's tick of the last one leaves the same stamp: such a file is read again next time.
	to.racy = max(before.mtime, before.ctime) >= began.Add(-racyWindow).UnixNano()
	f.Size, f.Mode, f.ModTime = 0, after.mode&MaxPerm, after.mtime
	for _, x := range to.extents {
		f.Size += x.Length
	}
	c.stats.BytesRead += f.Size
	return before == after && f.Size == before.size, nil
}

// readSmall reads a file that is shorter than packedBytes and finds it a place, in an old bundle when its content is there.
func (c *capture) readSmall(file int, size int64, to *indexFile) error {
	if c.small == nil {
		c.small = make([]byte, packedBytes)
	}
	n, err := readAt(file, c.small[:size], 0)
	if err != nil {
		return err
	}
	content := c.small[:n]
	if n == 0 {
		return nil
	}
	if c.packed == nil {
		c.packed = map[chunk.ID]Extent{}
		for _, r := range c.old.roots {
			for i := range r.files {
				if f := &r.files[i]; f.hash != (chunk.ID{}) && c.allUsable(f.extents) {
					c.packed[f.hash] = f.extents[0]
				}
			}
		}
	}
	to.hash = chunk.Sum(content)
	x, ok := c.packed[to.hash]
	if !ok {
		if x, err = c.pack(content); err != nil {
			return err
		}
		c.packed[to.hash] = x
		c.stats.BytesChanged += int64(n)
	}
	to.extents = []Extent{x}
	return nil
}

// pack appends content to the bundle that is being filled.
func (c *capture) pack(content []byte) (Extent, error) {
	if len(c.bundle)+len(content) > bundleBytes {
		if err := c.flush(); err != nil {
			return Extent{}, err
		}
	}
	if c.bundle == nil {
		buf, err := c.up.buffer(c.ctx)
		if err != nil {
			return Extent{}, err
		}
		c.bundle, c.bundleIndex = buf[:0], uint32(len(c.table))
		c.table = append(c.table, ChunkRef{}) // its name is known when it is full
	}
	x := Extent{Chunk: c.bundleIndex, Offset: uint32(len(c.bundle)), Length: int64(len(content))}
	c.bundle = append(c.bundle, content...)
	return x, nil
}

// flush names the bundle and sends it.
func (c *capture) flush() error {
	if c.bundle == nil {
		return nil
	}
	ref := ChunkRef{ID: chunk.Sum(c.bundle), Bytes: uint32(len(c.bundle))}
	c.table[c.bundleIndex] = ref
	buf := c.bundle
	c.bundle = nil
	if i, ok := c.lookup(ref.ID); ok {
		if c.alias == nil {
			c.alias = map[uint32]uint32{}
		}
		c.alias[c.bundleIndex] = i
		c.up.release(buf[:bundleBytes])
		return nil
	}
	c.known[prefix(ref.ID)] = c.bundleIndex
	return c.up.send(c.ctx, ref.ID, buf)
}

// lookup finds a chunk that may be named without being sent.
func (c *capture) lookup(id chunk.ID) (uint32, bool) {
	if c.known == nil {
		c.known = make(map[uint64]uint32, len(c.usable))
		for i, ok := range c.usable {
			if ok {
				c.known[prefix(c.table[i].ID)] = uint32(i)
			}
		}
	}
	i, ok := c.known[prefix(id)]
	return i, ok && c.table[i].ID == id
}

// prefix is what a chunk is looked up by: a third of the memory that ids would take. Two chunks that begin alike hide each
// other, and one of them is asked about again.
func prefix(id chunk.ID) uint64 { return binary.BigEndian.Uint64(id[:]) }

// readLarge reads up to size bytes of a file and skips its holes.
func (c *capture) readLarge(file int, size int64, sparse bool, to *indexFile) error {
	if !sparse {
		_, err := c.readRegion(file, 0, size, to)
		return err
	}
	for at := int64(0); at < size; {
		start, end, err := nextData(file, at, size)
		if err != nil {
			return err
		}
		if start > at {
			to.extents = append(to.extents, Hole(start-at))
		}
		if at, err = c.readRegion(file, start, end, to); err != nil {
			return err
		}
		if at < end {
			return nil // it has become shorter
		}
	}
	return nil
}

// nextData returns where the data from at on begin and end; both are size when there are none. Short holes do not end them.
func nextData(fd int, at, size int64) (start, end int64, err error) {
	start, err = unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		return at, size, nil // this file system does not say
	case err != nil:
		return 0, 0, err
	}
	for end = start; end < size; {
		next, err := unix.Seek(fd, end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || (err == nil && end > start && next-end >= mergedHoleBytes) {
			break
		}
		if err == nil {
			end, err = unix.Seek(fd, next, unix.SEEK_HOLE)
		}
		if errors.Is(err, unix.ENXIO) {
			break // it has become shorter; reading finds out
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return min(start, size), min(max(end, start), size), nil
}

// readRegion cuts the file from start to end and returns how far it came: less than end when the file ends before.
func (c *capture) readRegion(file int, start, end int64, to *indexFile) (int64, error) {
	if c.window == nil {
		c.window = make([]byte, windowBytes)
	}
	var held []byte // read and not cut yet, in the window
	for at := start; ; {
		if len(held) < maxCutBytes && at+int64(len(held)) < end {
			n := copy(c.window, held)
			want := min(int64(len(c.window)-n), end-at-int64(n))
			got, err := readAt(file, c.window[n:n+int(want)], at+int64(n))
			if err != nil {
				return at, err
			}
			if held = c.window[:n+got]; int64(got) < want {
				end = at + int64(len(held)) // the file ends here
			}
		}
		if len(held) == 0 {
			return at, nil
		}
		n := cut(held)
		x, err := c.emit(held[:n])
		if err != nil {
			return at, err
		}
		to.extents = append(to.extents, x)
		held = held[n:]
		at += int64(n)
		c.tell(at)
	}
}

// emit names one chunk and sends it unless it is known.
func (c *capture) emit(content []byte) (Extent, error) {
	x := Extent{Length: int64(len(content))}
	id := chunk.Sum(content)
	var ok bool
	if x.Chunk, ok = c.lookup(id); ok {
		return x, nil
	}
	buf, err := c.up.buffer(c.ctx)
	if err != nil {
		return x, err
	}
	x.Chunk = uint32(len(c.table))
	c.table = append(c.table, ChunkRef{ID: id, Bytes: uint32(len(content))})
	c.known[prefix(id)] = x.Chunk
	c.stats.BytesChanged += x.Length
	return x, c.up.send(c.ctx, id, append(buf[:0], content...))
}
