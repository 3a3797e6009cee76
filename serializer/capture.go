// Capturing directories: walk, find what is known already, read the rest, name every chunk.
//
//	walk ─► match with the index ─► verify a few ─► read what is left ─► seal and put ─► tree
//	          one goroutine ...................................┘  └─ bounded workers
//
// The one goroutine owns all tables; content leaves it in buffers of which there are few, so that a slow store slows the reading
// down instead of filling the memory.

package serializer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Sizes and bounds of a capture.
const (
	packedBytes       = 64 << 10  // shorter files are packed together
	bundleBytes       = 512 << 10 // into chunks of up to so many bytes
	windowBytes       = 1 << 20   // of a large file that is being cut
	maxSkipsListed    = 100
	missingBatch      = 4096 // ids asked about at a time
	readAttempts      = 3    // of a file that changes while it is read
	verifiedFiles     = 16   // looked at in each capture though they seem unchanged
	staleRatio        = 4    // a bundle of which less than 1/4 is still in use is not used any longer
	racyWindow        = 100 * time.Millisecond
	defaultParallel   = 8
	mergedHoleBytes   = 64 << 10 // shorter holes are read as the zeros that they are
	maxSealsAtOnce    = 4        // each compressor has megabytes of its own
	buffersPerCapture = 4        // beside one for each upload
)

// Root is a directory to capture.
type Root struct {
	Name string // by which a restore finds it: lower-case letters, digits and dashes
	Dir  string
	// Exclude are paths within it that are left out with all that is below them.
	Exclude []string
}

// CaptureOptions says what to capture and how.
type CaptureOptions struct {
	Roots []Root
	// Previous is what is known of these directories; nil when nothing is.
	Previous *Index
	// Live says that somebody writes meanwhile and that this is one round of several: a file that does not hold still is taken
	// as it was read, counted in Stats.Torn, and read again by the next round. Otherwise such a file ends the capture with an error of kind
	// fault.Aborted.
	Live bool
	// Parallel is how many chunks are put at a time; 8 when 0.
	Parallel int
	// Progress is told, now and then and from one goroutine, how many of the bytes that have to be read were read. May be nil.
	Progress func(done, total int64)
}

// Stats is what a capture did. Bytes are those of content unless the name says otherwise.
type Stats struct {
	Files, Dirs, Links int
	Bytes              int64 // of all files, holes counted
	FilesRead          int   // because they seemed new or changed
	BytesRead          int64
	FilesChanged       int   // of those read, the ones whose content was in fact not what the index knew
	BytesChanged       int64 // of content that no earlier capture and no other file had: how much was written since the last round
	ChunksTotal        int   // that the trees name
	ChunkBytes         int64 // of these
	ChunksSent         int
	ContentSent        int64 // of the chunks that were sent
	BytesSent          int64 // of their frames
	BytesReused        int64 // of files, that did not have to be sent
	Verified           int   // unchanged files that were looked at all the same
	Torn               int   // files that changed while they were read
	Distrusted         bool  // an unchanged file had other content: the index was not used
	Skipped            []Skip
	SkippedTotal       int // Skipped lists the first 100
	Unreadable         int // of those: files and directories that the session would miss
	LinksOut           int // of those: links that lead out of the tree
}

// Dirty returns how much was written between the capture before and this one, in bytes. When a round's is not much smaller than that of the round
// before, another will not help.
func (s Stats) Dirty() int64 { return s.BytesChanged }

// Captured is the part of a manifest that a capture makes.
type Captured struct {
	Roots  []Tree
	Chunks []ChunkRef
	// Index is for the next capture.
	Index *Index
	Stats Stats
}

// Capture reads the directories into trees and puts the chunks that the sink is missing. When it returns, all chunks that the trees name are
// stored. It opens nothing through a link.
func Capture(ctx context.Context, sink Sink, opts CaptureOptions) (*Captured, error) {
	for i, r := range opts.Roots {
		if !validRootName(r.Name) || len(opts.Roots) > MaxRoots {
			return nil, fault.New(fault.Invalid, "capture: root %d is called %q: want at most %d roots, and lower-case letters, digits and dashes", i, r.Name, MaxRoots)
		}
		for j := range i {
			if opts.Roots[j].Name == r.Name {
				return nil, fault.New(fault.Invalid, "capture: two roots are called %s", r.Name)
			}
		}
	}
	if opts.Parallel <= 0 {
		opts.Parallel = defaultParallel
	}
	c := &capture{sink: sink, opts: opts, old: opts.Previous}
	if c.old == nil {
		c.old = &Index{}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The workers' context ends with their first error, and reading with it; and they end when reading fails.
	c.up, c.ctx = newUploader(ctx, sink, opts.Parallel)
	err := c.run()
	if err != nil {
		cancel()
	}
	if upErr := c.up.wait(); upErr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = upErr // what ended the reading, too
	}
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	return c.finish()
}

// capture is one capture. All of it belongs to the goroutine that called Capture.
type capture struct {
	ctx  context.Context
	sink Sink
	opts CaptureOptions
	old  *Index
	up   *uploader

	roots []planned
	// table begins with the index's chunks, so that extents of unchanged files hold as they are; finish leaves out what is not
	// named in the end.
	table  []ChunkRef
	known  map[uint64]uint32   // the chunks that may be named, by the beginnings of their ids; made when the first is looked up
	usable []bool              // of the index's chunks: those that are stored and worth keeping
	alias  map[uint32]uint32   // bundles that turned out to be chunks that are known
	packed map[chunk.ID]Extent // the packed files' contents, by hash; made when the first is looked up

	bundle      []byte // being filled; nil when none is
	bundleIndex uint32
	window      []byte
	small       []byte
	total, done int64
	told        int64 // of done, by Progress
	stats       Stats
}

// planned is a root on its way: what the walk met, and for each the index's file that it seems to be.
type planned struct {
	Root
	found []found
	same  []*indexFile
	was   []*indexFile // at that path, whatever its stamp
	file  []indexFile  // the result, for files
	gone  []bool
}

func (c *capture) run() error {
	if err := c.walk(); err != nil {
		return err
	}
	if err := c.askUsable(); err != nil {
		return err
	}
	c.match()
	if err := c.verify(); err != nil {
		return err
	}
	for i := range c.roots {
		r := &c.roots[i]
		for j := range r.found {
			if r.found[j].Type == File && r.same[j] == nil {
				c.total += r.found[j].Size
			}
		}
	}
	for i := range c.roots {
		if err := c.readRoot(&c.roots[i]); err != nil {
			return fmt.Errorf("root %s: %w", c.roots[i].Name, err)
		}
	}
	return c.flush()
}

func (c *capture) skip(root, path string, why SkipReason, detail string) {
	if c.stats.SkippedTotal++; len(c.stats.Skipped) < maxSkipsListed {
		c.stats.Skipped = append(c.stats.Skipped, Skip{Root: root, Path: path, Reason: why, Detail: detail})
	}
	if why == SkipUnreadable || why == SkipPath {
		c.stats.Unreadable++
	}
	if why == SkipLink {
		c.stats.LinksOut++
	}
}

func (c *capture) walk() error {
	for _, root := range c.opts.Roots {
		omit := make(map[string]bool, len(root.Exclude))
		for _, p := range root.Exclude {
			omit[p] = true
		}
		w := walker{ctx: c.ctx, omit: omit, tops: topsOf(root.Dir), skip: func(path string, why SkipReason, detail string) { c.skip(root.Name, path, why, detail) }}
		all, err := w.walk(root.Dir)
		if err != nil {
			return fmt.Errorf("root %s: %w", root.Name, err)
		}
		c.roots = append(c.roots, planned{Root: root, found: all, same: make([]*indexFile, len(all)), was: make([]*indexFile, len(all)),
			file: make([]indexFile, len(all)), gone: make([]bool, len(all))})
	}
	return nil
}

// askUsable finds out which chunks of the index are still stored, and gives up those that hold little but what is
// no longer there.
func (c *capture) askUsable() error {
	c.table = append(c.table, c.old.chunks...)
	c.usable = make([]bool, len(c.table))
	inUse := make([]int64, len(c.table))
	isBundle := make([]bool, len(c.table))
	for _, r := range c.old.roots {
		for i := range r.files {
			for _, x := range r.files[i].extents {
				if !x.IsHole() {
					inUse[x.Chunk] += x.Length
					isBundle[x.Chunk] = isBundle[x.Chunk] || r.files[i].hash != (chunk.ID{})
				}
			}
		}
	}
	ids := make([]chunk.ID, 0, min(len(c.table), missingBatch))
	missing := map[chunk.ID]bool{}
	for start := 0; start < len(c.table); start += missingBatch {
		ids = ids[:0]
		for _, ref := range c.table[start:min(start+missingBatch, len(c.table))] {
			ids = append(ids, ref.ID)
		}
		gone, err := c.sink.Missing(c.ctx, ids)
		if err != nil {
			return fmt.Errorf("ask which chunks are stored: %w", err)
		}
		for _, id := range gone {
			missing[id] = true
		}
	}
	for i, ref := range c.table {
		stale := isBundle[i] && inUse[i]*staleRatio < int64(ref.Bytes)
		c.usable[i] = !stale && !missing[ref.ID]
	}
	return nil
}

// match joins what the walk met with what the index knows; both are in the same order.
func (c *capture) match() {
	for i := range c.roots {
		r := &c.roots[i]
		known := c.old.root(r.Name)
		for j := range r.found {
			f := &r.found[j]
			for len(known) > 0 && comparePaths(known[0].path, f.Path) < 0 {
				known = known[1:]
			}
			if len(known) == 0 {
				break
			}
			if f.Type != File || known[0].path != f.Path {
				continue
			}
			if r.was[j] = &known[0]; known[0].stamp == f.stamp && !known[0].racy && c.allUsable(known[0].extents) {
				r.same[j] = &known[0]
			}
		}
	}
}

func (c *capture) allUsable(xs []Extent) bool {
	for _, x := range xs {
		if !x.IsHole() && !c.usable[x.Chunk] {
			return false
		}
	}
	return true
}

// verify reads a few of the files that seem unchanged, others each time. Where one has other content, stamps mean nothing, and all
// files are read.
func (c *capture) verify() error {
	n := 0
	for i := range c.roots {
		for _, same := range c.roots[i].same {
			if same != nil {
				n++
			}
		}
	}
	stride := max(1, (n+verifiedFiles-1)/verifiedFiles)
	at := n - 1 - int(c.old.round%uint64(stride))
	for i := range c.roots {
		r := &c.roots[i]
		o, err := newOpener(r.Dir)
		if err != nil {
			return err
		}
		for _, same := range r.same {
			if same == nil {
				continue
			}
			if at%stride == 0 && c.stats.Verified < verifiedFiles {
				if c.stats.Verified++; !c.holds(o, same) {
					c.stats.Distrusted = true
				}
			}
			at--
		}
		o.close()
	}
	if c.stats.Distrusted {
		for i := range c.roots {
			clear(c.roots[i].same)
		}
	}
	return c.ctx.Err()
}

// holds reports whether a file, or one chunk of it, has the content that the index says, or has changed its stamp meanwhile.
func (c *capture) holds(o *opener, f *indexFile) bool {
	file, err := o.open(f.path)
	if err != nil {
		return true // it has gone
	}
	defer unix.Close(file)
	if before, err := statFile(file); err != nil || stampOf(before) != f.stamp {
		return true
	}
	good := true
	if len(f.extents) > 0 {
		pick := int(c.old.round % uint64(len(f.extents)))
		x := f.extents[pick]
		var at int64
		for _, before := range f.extents[:pick] {
			at += before.Length
		}
		want := f.hash
		if want == (chunk.ID{}) && !x.IsHole() {
			want = c.table[x.Chunk].ID
		}
		if !x.IsHole() && (f.hash != (chunk.ID{}) || x.Length == int64(c.table[x.Chunk].Bytes)) {
			content := make([]byte, x.Length)
			n, _ := readAt(file, content, at) // a short read has another hash
			good = chunk.Sum(content[:n]) == want
		}
	}
	after, err := statFile(file)
	return good || err != nil || stampOf(after) != f.stamp
}

// finish numbers the chunks that are named in the order in which they are, and makes the trees and the index of them.
func (c *capture) finish() (*Captured, error) {
	out := &Captured{Index: &Index{round: c.old.round + 1}, Chunks: make([]ChunkRef, 0, len(c.table))}
	c.known, c.packed = nil, nil // large, and not needed any more
	extents := 0
	for i := range c.roots {
		for j := range c.roots[i].file {
			extents += len(c.roots[i].file[j].extents)
		}
	}
	// One piece of memory for all extents: most files have one.
	slab := make([]Extent, 0, extents)
	number := make([]uint32, len(c.table)) // one more than the final number; 0 for not named yet
	for i := range c.roots {
		r := &c.roots[i]
		tree := Tree{Name: r.Name, Entries: make([]Entry, 0, len(r.found))}
		root := indexRoot{name: r.Name, files: make([]indexFile, 0, len(r.found))}
		for j := range r.found {
			if r.gone[j] {
				continue
			}
			e, start := r.found[j].Entry, len(slab)
			for _, x := range r.file[j].extents {
				if !x.IsHole() {
					if other, ok := c.alias[x.Chunk]; ok {
						x.Chunk = other
					}
					if number[x.Chunk] == 0 {
						out.Chunks = append(out.Chunks, c.table[x.Chunk])
						number[x.Chunk] = uint32(len(out.Chunks))
					}
					x.Chunk = number[x.Chunk] - 1
				}
				slab = append(slab, x)
			}
			if e.Type == File && len(slab) > start {
				e.Extents = slab[start:len(slab):len(slab)]
			}
			tree.Entries = append(tree.Entries, e)
			c.count(&e)
			if f := r.file[j]; e.Type == File && f.path != "" {
				f.extents = e.Extents
				root.files = append(root.files, f)
			}
		}
		out.Roots = append(out.Roots, tree)
		out.Index.roots = append(out.Index.roots, root)
	}
	if len(out.Chunks) == 0 {
		out.Chunks = nil
	}
	out.Index.chunks = out.Chunks
	s := &c.stats
	s.ChunksTotal = len(out.Chunks)
	for _, ref := range out.Chunks {
		s.ChunkBytes += int64(ref.Bytes)
	}
	s.ChunksSent, s.ContentSent, s.BytesSent = c.up.chunks, c.up.content, c.up.frames
	s.BytesReused = max(0, s.BytesReused-s.ContentSent)
	out.Stats = *s
	if err := (&Manifest{SessionID: "-", Roots: out.Roots, Chunks: out.Chunks}).Validate(); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	return out, nil
}

func (c *capture) count(e *Entry) {
	switch e.Type {
	case Dir:
		c.stats.Dirs++
	case Symlink:
		c.stats.Links++
	default:
		c.stats.Files++
		c.stats.Bytes += e.Size
		for _, x := range e.Extents {
			if !x.IsHole() {
				c.stats.BytesReused += x.Length // less what was sent, in the end
			}
		}
	}
}

// sealsAtOnce is how many chunks are compressed at a time.
func sealsAtOnce() int { return min(maxSealsAtOnce, runtime.GOMAXPROCS(0)) }
