// The spool: what was captured and is not stored yet, one file for each capture.

package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// spool bounds what waits on this node's disk. Nothing in it outlives the agent: a capture that was not stored has never been.
type spool struct {
	dir  string
	max  int64
	used atomic.Int64
	n    atomic.Uint64
}

func openSpool(dir string, maxBytes int64) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.FailedPrecondition, "checkpoint: make the spool: %w", err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "checkpoint: empty the spool: %w", err)
	}
	for _, n := range names {
		if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil {
			return nil, fault.New(fault.FailedPrecondition, "checkpoint: empty the spool: %w", err)
		}
	}
	return &spool{dir: dir, max: maxBytes}, nil
}

// begin makes room for one capture; the file is made when there is something to write.
func (s *spool) begin() *spooled {
	return &spooled{s: s, path: filepath.Join(s.dir, strconv.FormatUint(s.n.Add(1), 10)), at: map[chunk.ID]place{}}
}

// reserve reports whether there is room for n more bytes.
func (s *spool) reserve(n int64) bool {
	if s.used.Add(n) > s.max {
		s.used.Add(-n)
		return false
	}
	return true
}

// spooled is the frames of one capture. Its methods may be called concurrently, close last.
type spooled struct {
	s    *spool
	path string

	mu   sync.Mutex
	f    *os.File // nil before the first frame
	size int64
	at   map[chunk.ID]place
	shut bool
}

type place struct {
	offset int64
	bytes  int
}

func (c *spooled) has(id chunk.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.at[id]
	return ok
}

// bytes is how long a frame is; 0 when it is not here.
func (c *spooled) bytes(id chunk.ID) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[id].bytes
}

// put keeps a frame; false when there is no room.
func (c *spooled) put(id chunk.ID, frame []byte) (bool, error) {
	if !c.s.reserve(int64(len(frame))) {
		return false, nil
	}
	c.mu.Lock()
	if c.f == nil {
		f, err := os.OpenFile(c.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			c.mu.Unlock()
			c.s.used.Add(-int64(len(frame)))
			return false, fmt.Errorf("checkpoint: spool: %w", err)
		}
		c.f = f
	}
	p := place{offset: c.size, bytes: len(frame)}
	c.size += int64(len(frame))
	c.mu.Unlock()
	if _, err := c.f.WriteAt(frame, p.offset); err != nil {
		return false, fmt.Errorf("checkpoint: spool: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at[id] = p
	return true, nil
}

// get returns a frame; false when it is not here.
func (c *spooled) get(id chunk.ID) ([]byte, bool, error) {
	c.mu.Lock()
	p, ok := c.at[id]
	f := c.f
	c.mu.Unlock()
	if !ok {
		return nil, false, nil
	}
	frame := make([]byte, p.bytes)
	if _, err := f.ReadAt(frame, p.offset); err != nil {
		return nil, false, fmt.Errorf("checkpoint: read the spool: %w", err)
	}
	return frame, true, nil
}

// close frees what the capture took. It is idempotent.
func (c *spooled) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut {
		return
	}
	c.shut = true
	c.s.used.Add(-c.size)
	if c.f != nil {
		_ = errors.Join(c.f.Close(), os.Remove(c.path)) // what stays is removed with the next agent
	}
}
