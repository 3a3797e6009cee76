// What is known of files that were captured or restored: by their stamps the next capture sees which need no reading.

package serializer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Index remembers the files of a checkpoint as they were on this machine. It speeds up the next capture and is never needed: a nil
// Index knows nothing. It is immutable, and of use to captures of the same directories only.
type Index struct {
	round  uint64 // counts captures: each looks at other files, to see whether stamps can be trusted
	chunks []ChunkRef
	roots  []indexRoot
}

type indexRoot struct {
	name  string
	files []indexFile // in the order of a walk
}

// indexFile is a file whose content is known.
type indexFile struct {
	path  string
	stamp stamp
	// racy says that it was written so shortly before it was read that another write might have left the same stamp.
	racy    bool
	hash    chunk.ID // of a packed file's content; zero of others
	extents []Extent // of the index's chunks
}

const (
	indexMagic    = "ORCI"
	indexVersion  = 1
	maxIndexBytes = 2 << 30
)

// Files returns how many files it knows.
func (x *Index) Files() (n int) {
	if x != nil {
		for _, r := range x.roots {
			n += len(r.files)
		}
	}
	return n
}

func (x *Index) root(name string) []indexFile {
	if x != nil {
		for _, r := range x.roots {
			if r.name == name {
				return r.files
			}
		}
	}
	return nil
}

// Encode returns the index's binary form. It stays on its machine, and a release that does not know it does without: it is no part of
// the protocol.
func (x *Index) Encode() []byte {
	w := writer{b: make([]byte, 0, 64+40*len(x.chunks)+96*x.Files())}
	w.b = append(w.b, indexMagic...)
	w.b = append(w.b, indexVersion)
	w.uvarint(x.round)
	w.chunks(x.chunks)
	w.uvarint(uint64(len(x.roots)))
	for _, r := range x.roots {
		w.string(r.name)
		w.uvarint(uint64(len(r.files)))
		var last indexFile
		for _, f := range r.files {
			w.path(last.path, f.path)
			w.uvarint(uint64(f.stamp.size))
			w.delta(last.stamp.mtime, f.stamp.mtime)
			w.delta(last.stamp.ctime, f.stamp.ctime)
			w.uvarint(f.stamp.ino)
			w.uvarint(uint64(f.stamp.mode))
			flags := byte(0)
			if f.racy {
				flags |= 1
			}
			if f.hash != (chunk.ID{}) {
				flags |= 2
			}
			if w.b = append(w.b, flags); flags&2 != 0 {
				w.b = append(w.b, f.hash[:]...)
			}
			w.extents(f.extents)
			last = f
		}
	}
	sum := blake3.Sum256(w.b)
	return append(w.b, sum[:]...)
}

// DecodeIndex is the inverse of Encode. An error, which matches ErrCorrupt, means that there is no index, and no harm in that.
func DecodeIndex(data []byte) (*Index, error) {
	end := len(data) - trailerBytes
	if end < len(indexMagic)+1 || string(data[:4]) != indexMagic || data[4] != indexVersion {
		return nil, corrupt("not an index of version %d", indexVersion)
	}
	if blake3.Sum256(data[:end]) != [32]byte(data[end:]) {
		return nil, corrupt("the index's checksum is wrong")
	}
	r := reader{b: data[5:end]}
	x := &Index{round: r.uvarint(), chunks: r.chunks()}
	entries, extents := MaxEntries, MaxExtents
	for range r.count(MaxRoots, 2, "roots") {
		root := indexRoot{name: r.string(64, "a root's name")}
		n := r.count(entries, 9, "files")
		entries -= n
		root.files = make([]indexFile, n)
		var last indexFile
		for i := range root.files {
			last = r.indexFile(last, x.chunks, &extents)
			if r.err == nil && i > 0 && comparePaths(root.files[i-1].path, last.path) >= 0 {
				r.fail("its files are out of order")
			}
			if r.err != nil {
				return nil, r.err
			}
			root.files[i] = last
		}
		x.roots = append(x.roots, root)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes too many in the index", len(r.b))
	}
	if r.err != nil {
		return nil, r.err
	}
	return x, nil
}

// indexFile reads one file and checks that it is one that a manifest could hold.
func (r *reader) indexFile(last indexFile, chunks []ChunkRef, extents *int) (f indexFile) {
	f.path = r.path(last.path)
	f.stamp.size = r.upTo(MaxTreeBytes, "bytes of a file")
	f.stamp.mtime = r.delta(last.stamp.mtime)
	f.stamp.ctime = r.delta(last.stamp.ctime)
	f.stamp.ino = r.uvarint()
	f.stamp.mode = uint32(r.upTo(1<<32-1, "a mode"))
	flags := r.byte()
	f.racy = flags&1 != 0
	if flags&2 != 0 {
		f.hash = r.id()
	}
	f.extents = r.extents(extents)
	if r.err != nil {
		return indexFile{}
	}
	if err := validPath(f.path); err != nil {
		r.fail("the path %.200q %w", f.path, err)
	}
	e := Entry{Path: f.path, Type: File, Size: f.stamp.size, Extents: f.extents}
	if err := e.validate(chunks, &budget{extents: MaxExtents, bytes: MaxTreeBytes}); err != nil {
		r.fail("the file %.200q: %w", f.path, err)
	}
	if f.hash != (chunk.ID{}) && len(f.extents) != 1 {
		r.fail("the file %.200q is not packed and has a hash", f.path)
	}
	return f
}

// LoadIndex reads an index from a file. An error says why there is none, which is for the log: go on with nil.
func LoadIndex(path string) (*Index, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("load the index: %w", err)
	}
	if info.Size() > maxIndexBytes {
		return nil, fmt.Errorf("load the index %s: %w", path, corrupt("%d bytes, at most %d", info.Size(), int64(maxIndexBytes)))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load the index: %w", err)
	}
	x, err := DecodeIndex(data)
	if err != nil {
		return nil, fmt.Errorf("load the index %s: %w", path, err)
	}
	return x, nil
}

// Save writes the index to a file that its owner alone may read, in place of what is there. It does not wait for the disk: an index that a power
// failure spoils has a wrong checksum.
func (x *Index) Save(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".index-*") // 0600
	if err != nil {
		return fault.New(fault.Internal, "save the index: %w", err)
	}
	_, err = f.Write(x.Encode())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fault.New(fault.Internal, "save the index: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
