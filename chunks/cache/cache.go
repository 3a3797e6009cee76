// The bounded directory.

package cache

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// touchEvery is how often the use of a chunk is written down for the next opening.
const touchEvery = time.Minute

// Options are the bounds of a cache.
type Options struct {
	// MaxBytes is how long all frames together may be; it must be given. Damaged frames that were put aside come on top
	// (dir.QuarantineMax of them at most). A tenth of the file system is the bound where that is less.
	MaxBytes int64
	// Logger hears of damaged chunks; nil is silence.
	Logger *slog.Logger
}

// Cache is a bounded directory of chunks. It implements chunks.Store.
type Cache struct {
	kept *dir.Store
	max  int64

	mu      sync.Mutex
	used    int64 // bytes that are kept or about to be
	order   *list.List
	entries map[chunk.ID]*list.Element // of *entry; the front was used last
}

type entry struct {
	id      chunk.ID
	bytes   int64
	touched time.Time
}

// Open opens the cache in a directory. What does not fit its bound any more goes.
func Open(path string, o Options) (*Cache, error) {
	if o.MaxBytes <= 0 {
		return nil, fault.New(fault.Invalid, "chunks: the cache in %s needs a bound", path)
	}
	kept, err := dir.Open(path, dir.Options{Volatile: true, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	c := &Cache{kept: kept, max: min(o.MaxBytes, shareOfDisk(path)), order: list.New(), entries: make(map[chunk.ID]*list.Element)}
	if err := c.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("chunks: open the cache in %s: %w", path, err), kept.Close())
	}
	return c, nil
}

// diskShare is the part of its file system that a cache takes at most: what is there only to save time must not fill a small disk, on which
// the sessions themselves write.
const diskShare = 10

// shareOfDisk is how many bytes a cache in a directory may have by the size of its file system; without a bound where that is not known.
func shareOfDisk(path string) int64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Blocks == 0 {
		return math.MaxInt64
	}
	return int64(fs.Blocks) * fs.Bsize / diskShare
}

// load puts what is there in the order of its use.
func (c *Cache) load() error {
	ctx := context.Background()
	var all []*entry
	err := c.kept.Walk(ctx, chunk.ID{}, func(id chunk.ID, n int64, modified time.Time) error {
		all = append(all, &entry{id, n, modified})
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b *entry) int { return a.touched.Compare(b.touched) })
	for _, e := range all {
		c.entries[e.id] = c.order.PushFront(e)
		c.used += e.bytes
	}
	return c.makeRoom(ctx, 0)
}

// Close closes the directory.
func (c *Cache) Close() error { return c.kept.Close() }

// Counters are what the cache did since it was opened: Gets are hits, NotFound are misses, Deleted were evicted.
func (c *Cache) Counters() *chunks.Counters { return c.kept.Counters() }

// Usage returns how long all frames are together, and how many.
func (c *Cache) Usage() (bytes, count int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used, int64(c.order.Len())
}

// makeRoom evicts what was used least lately until n more bytes fit, and takes them.
func (c *Cache) makeRoom(ctx context.Context, n int64) error {
	if n > c.max {
		return fault.New(fault.Exhausted, "chunks: a chunk of %d bytes does not fit a cache of %d", n, c.max).WithRetry(dir.RetryAfterFull)
	}
	for {
		c.mu.Lock()
		if c.used+n <= c.max || c.order.Len() == 0 {
			c.used += n
			c.mu.Unlock()
			return nil
		}
		e := c.drop(c.order.Back())
		c.mu.Unlock()
		if err := c.kept.Evict(ctx, e.id); err != nil {
			c.use(e.id, e.bytes, false)
			return err
		}
	}
}

// drop forgets an entry; c.mu is held.
func (c *Cache) drop(at *list.Element) *entry {
	e := c.order.Remove(at).(*entry)
	delete(c.entries, e.id)
	c.used -= e.bytes
	return e
}

// use notes that a chunk is there and was used; counted says that its bytes are in used already. It reports whether the use is to be
// written down.
func (c *Cache) use(id chunk.ID, n int64, counted bool) (touch bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, known := c.entries[id]
	if counted && known {
		c.used -= n // another put was faster
	}
	if !known {
		if !counted {
			c.used += n
		}
		c.entries[id] = c.order.PushFront(&entry{id, n, time.Now()})
		return false
	}
	c.order.MoveToFront(at)
	e := at.Value.(*entry)
	if touch = time.Since(e.touched) > touchEvery; touch {
		e.touched = time.Now()
	}
	return touch
}

// lose notes that a chunk is not there.
func (c *Cache) lose(id chunk.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.entries[id]; ok {
		c.drop(at)
	}
}

// Missing implements chunks.Store.
func (c *Cache) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	missing, err := c.kept.Missing(ctx, ids)
	if err != nil {
		return nil, err
	}
	lacks := make(map[chunk.ID]bool, len(missing))
	for _, id := range missing {
		lacks[id] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if at, ok := c.entries[id]; ok && !lacks[id] {
			c.order.MoveToFront(at)
		}
	}
	return missing, nil
}

// Put implements chunks.Store; what was used least lately makes room.
func (c *Cache) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := chunks.VerifyPut(id, frame); err != nil {
		return err
	}
	c.mu.Lock()
	at, known := c.entries[id]
	if known {
		c.order.MoveToFront(at) // it is not to make room for itself
	}
	c.mu.Unlock()
	n := int64(len(frame))
	if !known {
		if err := c.makeRoom(ctx, n); err != nil {
			return err
		}
	}
	if err := c.kept.Put(ctx, id, frame); err != nil {
		if !known {
			c.mu.Lock()
			c.used -= n
			c.mu.Unlock()
		}
		return err
	}
	c.use(id, n, !known)
	return nil
}

// Get implements chunks.Store.
func (c *Cache) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	frame, err := c.kept.Get(ctx, id)
	switch {
	case err == nil:
		if c.use(id, int64(len(frame)), false) {
			_, err = c.kept.Missing(ctx, []chunk.ID{id}) // asking makes it young
		}
		if err != nil && ctx.Err() == nil {
			err = nil // it was read all the same
		}
		return frame, err
	case errors.Is(err, chunk.ErrCorrupt), fault.Is(err, fault.NotFound):
		c.lose(id)
	}
	return nil, err
}
