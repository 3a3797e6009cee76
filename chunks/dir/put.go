// Putting a chunk: its own file first, then the committer, who makes many durable together.

package dir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	commitsMax  = 256 // files that are renamed and synced together
	dirSyncsMax = 8   // directories synced at a time
	tmpDir      = "tmp"
	asideDir    = "quarantine"
	fileMode    = 0o600
	dirMode     = 0o700
)

// pathOf returns where a chunk's file is.
func pathOf(id chunk.ID) string {
	name := id.String()
	return name[:1] + "/" + name[1:2] + "/" + name
}

// Put implements chunks.Store.
func (s *Store) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.calls.Done()
	if err := chunks.VerifyPut(id, frame); err != nil {
		return err
	}
	if err := s.usable(); err != nil {
		return err
	}
	release, err := s.own(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if there, err := s.keep(id); err != nil || there {
		return err
	}
	select {
	case s.writers <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.writers }()
	return s.store(id, frame)
}

// keep makes a chunk that is there young again, or puts it aside when it is damaged. It reports whether it is there.
func (s *Store) keep(id chunk.ID) (bool, error) {
	switch _, err := s.read(id); {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, chunk.ErrCorrupt):
		if err := s.quarantine(id); err != nil {
			return false, s.broken("put aside the damaged", id, err)
		}
		return false, nil
	case err != nil:
		return false, s.broken("read", id, err)
	}
	if err := s.root.Chtimes(pathOf(id), time.Time{}, time.Now()); err != nil {
		return false, s.broken("touch", id, err)
	}
	s.counters.Present.Add(1)
	return true, nil
}

// store writes a chunk that is not there.
func (s *Store) store(id chunk.ID, frame []byte) (err error) {
	n := int64(len(frame))
	if used := s.bytes.Add(n); s.opts.MaxBytes > 0 && used > s.opts.MaxBytes {
		s.bytes.Add(-n)
		s.counters.Refused.Add(1)
		return fault.New(fault.Exhausted, "chunks: the store in %s holds %d of at most %d bytes, and %d more do not fit; raise its bound, or wait for the collection",
			s.root.Name(), used-n, s.opts.MaxBytes, n).WithRetry(RetryAfterFull)
	}
	defer func() {
		if err != nil {
			s.bytes.Add(-n)
		}
	}()
	tmp := path.Join(tmpDir, strconv.FormatUint(s.temps.Add(1), 36))
	if err := s.write(tmp, frame); err != nil {
		_ = s.root.Remove(tmp) // the next opening does
		return s.broken("write", id, err)
	}
	c := &commit{tmp: tmp, path: pathOf(id), done: make(chan error, 1)}
	s.commits <- c // the committer lives until no call is under way
	if err := <-c.done; err != nil {
		_ = s.root.Remove(tmp) // as above
		return s.broken("commit", id, err)
	}
	s.count.Add(1)
	s.counters.Puts.Add(1)
	s.counters.PutBytes.Add(n)
	return nil
}

// write writes a file and syncs it.
func (s *Store) write(name string, data []byte) (err error) {
	if err := s.fails("create"); err != nil {
		return err
	}
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := s.fails("write"); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if s.opts.Volatile {
		return nil
	}
	writeBack(f)
	if err := s.fails("sync file"); err != nil {
		return err
	}
	return f.Sync()
}

// commit is a file that waits for its name.
type commit struct {
	tmp, path string
	done      chan error // one error, nil when it has its name durably
}

// committer gives files their names, all those that wait together. It ends when commits is closed.
func (s *Store) committer() {
	defer close(s.settled)
	for c := range s.commits {
		batch := []*commit{c}
		for more := true; more && len(batch) < commitsMax; {
			select {
			case c, more = <-s.commits:
				if more {
					batch = append(batch, c)
				}
			default:
				more = false
			}
		}
		s.settle(batch)
	}
}

// settle renames files, syncs the directories, and answers.
func (s *Store) settle(batch []*commit) {
	dirs := make(map[string]struct{})
	renamed := batch[:0]
	for _, c := range batch {
		if err := s.rename(c, dirs); err != nil {
			c.done <- err
			continue
		}
		renamed = append(renamed, c)
	}
	err := s.usable()
	if err == nil && !s.opts.Volatile {
		if err = s.syncDirs(dirs); err != nil {
			s.failed.CompareAndSwap(nil, &err)
			s.log.Error("chunks: a directory could not be synced; nothing is stored until a restart", "dir", s.root.Name(), "error", err)
		}
		s.counters.Syncs.Add(1)
	}
	for _, c := range renamed {
		if err != nil {
			_ = s.root.Remove(c.path) // nobody was told of it, and nobody is while the store is broken
		}
		c.done <- err
	}
}

// rename gives a file its name, and notes the directories that changed.
func (s *Store) rename(c *commit, dirs map[string]struct{}) error {
	if err := s.fails("rename"); err != nil {
		return err
	}
	leaf := path.Dir(c.path)
	err := s.root.Rename(c.tmp, c.path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.root.MkdirAll(leaf, dirMode); err != nil {
			return err
		}
		dirs["."], dirs[path.Dir(leaf)] = struct{}{}, struct{}{}
		err = s.root.Rename(c.tmp, c.path)
	}
	if err == nil {
		dirs[leaf] = struct{}{}
	}
	return err
}

func (s *Store) syncDirs(dirs map[string]struct{}) error {
	var g errgroup.Group
	g.SetLimit(dirSyncsMax)
	for name := range dirs {
		g.Go(func() error {
			if err := s.fails("sync dir"); err != nil {
				return err
			}
			d, err := s.root.Open(name)
			if err != nil {
				return err
			}
			defer d.Close()
			return d.Sync()
		})
	}
	return g.Wait()
}
