// Restoring a tree: everything is built in a temporary directory beside the place it is for, and renamed when all of it is there.
//
//	check ─► (begin with a staged tree) ─► directories, links, frames of files ─► chunks, each fetched once ─► directories' times ─► sync ─► rename
//
// The work is ordered by chunks, not by files: a chunk is fetched and verified once, and every stretch of a file that it holds
// is written. A file is finished by whoever writes its last stretch.

package serializer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const defaultRestoreParallel = 4 // chunks fetched and written at a time, each with up to 2 MiB of memory

// RestoreOptions says how to restore.
type RestoreOptions struct {
	// Progress is told how many bytes of content were written so far, of how many that have to be; one call at a time, from several
	// goroutines. May be nil.
	Progress func(done, total int64)
	// Parallel is how many chunks are fetched at a time; 4 when 0.
	Parallel int
	// MaxEntries and MaxBytes bound what the tree may have; the limits of the format when 0. Bytes are those of all files,
	// holes counted.
	MaxEntries int
	MaxBytes   int64
	// Staged is a tree that was restored from an earlier manifest and that nobody has used since. The restore begins with it, and it is
	// gone afterwards, also when the restore fails. It lies in the file system of the destination.
	Staged *Staged
	// NoSync leaves it to the kernel when bytes reach the disk. For those who can restore again after a power failure.
	NoSync bool
}

// Staged is a restored tree that waits for the next manifest.
type Staged struct {
	Dir      string
	Restored *Restored // of that tree
}

// Restored is what a restore did, and what is known of the files since.
type Restored struct {
	Root          string
	Entries       int
	Bytes         int64 // of all files, holes counted
	Written       int64 // bytes of content
	ChunksFetched int
	FilesKept     int // of the staged tree
	chunks        []ChunkRef
	files         []indexFile
}

// RestoredIndex returns what the next capture of the restored trees may rely on. All must come from the same manifest.
func RestoredIndex(parts ...*Restored) *Index {
	x := &Index{}
	for _, p := range parts {
		x.chunks = p.chunks
		x.roots = append(x.roots, indexRoot{name: p.Root, files: p.files})
	}
	return x
}

// Restore makes the directory dir, which must not exist or be empty, hold the root of that name. Every byte is verified before it is written. When
// it fails, dir is as it was, and nothing is left beside it.
func Restore(ctx context.Context, src Source, m *Manifest, root, dir string, opts RestoreOptions) (*Restored, error) {
	out, err := restoreRoot(ctx, src, m, root, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("restore %s of %s to %s: %w", root, m.SessionID, dir, err)
	}
	return out, nil
}

func restoreRoot(ctx context.Context, src Source, m *Manifest, root, dir string, opts RestoreOptions) (*Restored, error) {
	staged := ""
	if opts.Staged != nil {
		staged = opts.Staged.Dir
		if filepath.Clean(staged) == filepath.Clean(dir) {
			return nil, fault.New(fault.Invalid, "the staged tree is the destination; move it aside")
		}
	}
	tmp := filepath.Join(filepath.Dir(dir), ".restore-"+rand.Text())
	clean := func(err error) error {
		for _, d := range []string{tmp, staged} {
			if d != "" {
				err = errors.Join(err, removeTree(d))
			}
		}
		return err
	}
	tree, err := checkRestore(m, root, dir, &opts)
	if err == nil {
		if staged != "" {
			err = os.Rename(staged, tmp)
		} else {
			err = os.Mkdir(tmp, 0o700)
		}
	}
	if err != nil {
		return nil, clean(err)
	}
	r := &restore{src: src, m: m, tree: tree, opts: opts, done: make([]indexFile, len(tree.Entries)), todo: make([]int32, len(tree.Entries))}
	if err := r.run(ctx, tmp); err != nil {
		return nil, clean(err)
	}
	if err := r.publish(tmp, dir); err != nil {
		return nil, clean(err)
	}
	return r.result(), nil
}

// checkRestore refuses what cannot be done before anything is written.
func checkRestore(m *Manifest, root, dir string, opts *RestoreOptions) (*Tree, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	tree := m.Root(root)
	if tree == nil {
		return nil, fault.New(fault.NotFound, "the checkpoint has no root of that name")
	}
	if n := len(tree.Entries); opts.MaxEntries > 0 && n > opts.MaxEntries {
		return nil, fault.New(fault.Exhausted, "%d entries, at most %d here", n, opts.MaxEntries)
	}
	var bytes int64
	for i := range tree.Entries {
		bytes += tree.Entries[i].Size
	}
	if opts.MaxBytes > 0 && bytes > opts.MaxBytes {
		return nil, fault.New(fault.Exhausted, "%d bytes, at most %d here", bytes, opts.MaxBytes)
	}
	switch names, err := os.ReadDir(dir); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case len(names) > 0:
		return nil, fault.New(fault.AlreadyExists, "there is something already; move it away or choose another place")
	}
	if opts.Parallel <= 0 {
		opts.Parallel = defaultRestoreParallel
	}
	return tree, nil
}

// restore is one restore on its way.
type restore struct {
	src  Source
	m    *Manifest
	tree *Tree
	opts RestoreOptions
	tmp  *os.Root

	keep    []bool      // files that the staged tree has
	done    []indexFile // by entry, each written by whoever finishes the file
	todo    []int32     // stretches of a file that are not written; atomically
	total   int64       // bytes to write
	written int64       // bytes; guarded by progress
	fetched int
	kept    int

	progress sync.Mutex
}

func (r *restore) run(ctx context.Context, tmp string) (err error) {
	if r.tmp, err = os.OpenRoot(tmp); err != nil {
		return err
	}
	defer r.tmp.Close()
	r.keep = make([]bool, len(r.tree.Entries))
	if r.opts.Staged != nil {
		if err := r.beginWith(ctx, tmp, r.opts.Staged.Restored); err != nil {
			return fmt.Errorf("begin with the tree in %s: %w", r.opts.Staged.Dir, err)
		}
	}
	stretches, err := r.layOut(ctx)
	if err != nil {
		return err
	}
	for _, s := range stretches {
		r.total += int64(s.length)
	}
	if err := r.fill(ctx, stretches); err != nil {
		return err
	}
	return r.finishDirs()
}

// stretch is a piece of a file that a chunk holds.
type stretch struct {
	chunk, offset, length uint32
	entry                 uint32
	at                    int64 // in the file
}

// layOut makes directories, links and files that no chunk has a part in, and returns what chunks have to fill in, sorted
// by chunks.
func (r *restore) layOut(ctx context.Context) (all []stretch, err error) {
	var d dirs
	defer d.close()
	for i := range r.tree.Entries {
		e := &r.tree.Entries[i]
		if i == 0 || r.keep[i] {
			continue
		}
		if i%256 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if e.Type == File {
			var at int64
			for _, x := range e.Extents {
				if !x.IsHole() {
					all = append(all, stretch{chunk: x.Chunk, offset: x.Offset, length: uint32(x.Length), entry: uint32(i), at: at})
					r.todo[i]++
				}
				at += x.Length
			}
			if len(e.Extents) == 1 && r.todo[i] == 1 {
				continue // made when it is written
			}
		}
		if err := r.make(&d, i); err != nil {
			return nil, fmt.Errorf("make %q: %w", e.Path, err)
		}
	}
	slices.SortStableFunc(all, func(a, b stretch) int { return int(a.chunk) - int(b.chunk) })
	return all, nil
}

// make makes one entry, a file with its size and nothing in it.
func (r *restore) make(d *dirs, i int) error {
	e := &r.tree.Entries[i]
	if err := d.enter(r.tmp, parentOf(e.Path)); err != nil {
		return err
	}
	switch name := baseOf(e.Path); e.Type {
	case Dir:
		return d.root.Mkdir(name, 0o700) // its mode comes last
	case Symlink:
		if err := d.root.Symlink(e.Target, name); err != nil {
			return err
		}
		return setTime(d.fd(), name, e.ModTime)
	default:
		f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		err = f.Truncate(e.Size)
		if err == nil && r.todo[i] == 0 {
			err = r.finishFile(d, f, i, chunk.ID{})
		}
		return errors.Join(err, f.Close())
	}
}

// fill fetches each chunk once and writes all its stretches.
func (r *restore) fill(ctx context.Context, all []stretch) error {
	group, ctx := errgroup.WithContext(ctx)
	work := make(chan []stretch)
	group.Go(func() error {
		defer close(work)
		for len(all) > 0 {
			n := 1
			for n < len(all) && all[n].chunk == all[0].chunk {
				n++
			}
			select {
			case work <- all[:n]:
				r.fetched++
				all = all[n:]
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range r.opts.Parallel {
		group.Go(func() error {
			var d dirs
			defer d.close()
			var content []byte
			for batch := range work {
				ref := r.m.Chunks[batch[0].chunk]
				var err error
				if content, err = fetch(ctx, r.src, content[:0], ref.ID); err != nil {
					return err
				}
				if len(content) != int(ref.Bytes) {
					return corrupt("chunk %s has %d bytes, the manifest says %d", ref.ID, len(content), ref.Bytes)
				}
				for _, s := range batch {
					if err := r.write(&d, s, content[s.offset:s.offset+s.length]); err != nil {
						return fmt.Errorf("write %q: %w", r.tree.Entries[s.entry].Path, err)
					}
				}
				r.report(batch)
			}
			return nil
		})
	}
	return group.Wait()
}

func (r *restore) report(batch []stretch) {
	r.progress.Lock()
	defer r.progress.Unlock()
	for _, s := range batch {
		r.written += int64(s.length)
	}
	if r.opts.Progress != nil {
		r.opts.Progress(r.written, r.total)
	}
}

// write writes a stretch, and finishes the file when it is the last one.
func (r *restore) write(d *dirs, s stretch, content []byte) error {
	e := &r.tree.Entries[s.entry]
	if err := d.enter(r.tmp, parentOf(e.Path)); err != nil {
		return err
	}
	flags, hash := os.O_WRONLY, chunk.ID{}
	if len(e.Extents) == 1 {
		flags |= os.O_CREATE | os.O_EXCL
		if e.Size < packedBytes {
			hash = chunk.Sum(content)
		}
	}
	f, err := d.root.OpenFile(baseOf(e.Path), flags, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, s.at)
	if err == nil && atomic.AddInt32(&r.todo[s.entry], -1) == 0 {
		err = r.finishFile(d, f, int(s.entry), hash)
	}
	return errors.Join(err, f.Close())
}

// finishFile gives an open file its mode and time and notes its stamp for the index.
func (r *restore) finishFile(d *dirs, f *os.File, i int, hash chunk.ID) error {
	e := &r.tree.Entries[i]
	if err := f.Chmod(os.FileMode(e.Mode)); err != nil {
		return err
	}
	if err := setTime(d.fd(), baseOf(e.Path), e.ModTime); err != nil {
		return err
	}
	st, err := statFile(int(f.Fd()))
	if err != nil {
		return err
	}
	// A session writes to it later, and the stamp's mtime is not the time of now: it is not racy.
	r.done[i] = indexFile{path: e.Path, stamp: stampOf(st), hash: hash, extents: e.Extents}
	return nil
}

// finishDirs gives directories their modes and times, what is deeper first.
func (r *restore) finishDirs() error {
	var d dirs
	defer d.close()
	for i := len(r.tree.Entries) - 1; i >= 0; i-- {
		e := &r.tree.Entries[i]
		if e.Type != Dir {
			continue
		}
		if err := d.enter(r.tmp, parentOf(e.Path)); err != nil {
			return err
		}
		name := e.Path
		if i > 0 {
			name = baseOf(e.Path)
		}
		if err := errors.Join(d.root.Chmod(name, os.FileMode(e.Mode)), setTime(d.fd(), name, e.ModTime)); err != nil {
			return fmt.Errorf("finish %q: %w", e.Path, err)
		}
	}
	return nil
}

// publish makes the tree durable and puts it in its place.
func (r *restore) publish(tmp, dir string) error {
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	if !r.opts.NoSync {
		// One call for all files: a sync of each would wait for the disk thousands of times.
		if err := unix.Syncfs(int(parent.Fd())); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	if err := unix.Rename(tmp, dir); err != nil { // os.Rename does not replace an empty directory
		return &os.LinkError{Op: "rename", Old: tmp, New: dir, Err: err}
	}
	if !r.opts.NoSync {
		if err := parent.Sync(); err != nil {
			return errors.Join(fmt.Errorf("sync: %w", err), removeTree(dir))
		}
	}
	return nil
}

func (r *restore) result() *Restored {
	out := &Restored{Root: r.tree.Name, Entries: len(r.tree.Entries), Written: r.written, ChunksFetched: r.fetched, FilesKept: r.kept, chunks: r.m.Chunks}
	for i := range r.tree.Entries {
		out.Bytes += r.tree.Entries[i].Size
		f := r.done[i]
		// A file that is small but came in pieces, or shares a chunk that is no bundle, is simply read again.
		if f.path != "" && (f.hash != (chunk.ID{}) || f.stamp.size == 0 || f.stamp.size >= packedBytes) {
			out.files = append(out.files, f)
		}
	}
	return out
}

// dirs holds the directory open in which work goes on: entries of one directory mostly come together.
type dirs struct {
	path string
	root *os.Root
	file *os.File
}

func (d *dirs) enter(top *os.Root, path string) (err error) {
	if d.root != nil && d.path == path {
		return nil
	}
	d.close()
	if d.root, err = top.OpenRoot(path); err != nil {
		return err
	}
	if d.file, err = d.root.Open("."); err != nil {
		d.close()
		return err
	}
	d.path = path
	return nil
}

func (d *dirs) fd() int { return int(d.file.Fd()) }

func (d *dirs) close() {
	if d.file != nil {
		d.file.Close()
	}
	if d.root != nil {
		d.root.Close()
	}
	*d = dirs{}
}

// setTime sets when a name in a directory was last changed; of a link, not of what it leads to.
func setTime(dir int, name string, mtime int64) error {
	ts := unix.NsecToTimespec(mtime)
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// removeTree removes a directory whatever the modes in it are; none is no error.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	w := walker{ctx: context.Background(), grant: true, skip: func(string, SkipReason, string) {}}
	_, walkErr := w.walk(dir)
	return errors.Join(walkErr, os.RemoveAll(dir))
}
