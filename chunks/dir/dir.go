// The store: opening, closing, and what it does for each call.

package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// The bounds of a store.
const (
	// WritersMax is how many puts write at a time; more wait.
	WritersMax = 64
	// QuarantineMax is how many damaged frames are kept.
	QuarantineMax = 64
	// RetryAfterFull is when somebody may come back whose put found no room: collection makes some.
	RetryAfterFull = 30 * time.Second
)

// Options are how to open a store.
type Options struct {
	// MaxBytes is how long all frames together may be; 0 leaves the bound to the file system.
	MaxBytes int64
	// Volatile leaves syncs out: what was put last may be lost with the power, and found damaged. For caches.
	Volatile bool
	// Prepared makes all directories when the store is opened, so that no put waits for one and its sync; else they come as they are needed.
	Prepared bool
	// Logger hears of damaged chunks and failing disks; nil is silence.
	Logger *slog.Logger

	// failing is asked before each step on the file system; tests let steps fail.
	failing func(step string) error
}

// Store is a directory of chunks. It implements chunks.Store and chunks.Collectable.
type Store struct {
	opts     Options
	log      *slog.Logger
	root     *os.Root
	lock     *os.File
	opened   time.Time // nothing counts as older; zero when volatile
	counters chunks.Counters
	bytes    atomic.Int64 // of frames, those being written included
	count    atomic.Int64 // chunks
	temps    atomic.Uint64
	failed   atomic.Pointer[error] // why nothing can be promised any more
	writers  chan struct{}
	commits  chan *commit
	settled  chan struct{} // closed when the committer has ended

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
	busy   map[chunk.ID]chan struct{} // chunks of which somebody is changing the file; closed when done
}

// Counters are what the store did since it was opened.
func (s *Store) Counters() *chunks.Counters { return &s.counters }

// Usage returns how long all frames are together, and how many.
func (s *Store) Usage() (bytes, count int64) { return s.bytes.Load(), s.count.Load() }

// Close waits for the calls that are under way, and lets go of the directory.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.calls.Wait()
	close(s.commits)
	<-s.settled
	return errors.Join(s.root.Close(), s.lock.Close())
}

// begin is the start of each call; its end is s.calls.Done.
func (s *Store) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fault.New(fault.Unavailable, "chunks: the store in %s is closed", s.root.Name())
	}
	s.calls.Add(1)
	return nil
}

// own waits until nobody else changes the file of a chunk, and keeps others from it until the release.
func (s *Store) own(ctx context.Context, id chunk.ID) (release func(), err error) {
	for {
		s.mu.Lock()
		done, taken := s.busy[id]
		if !taken {
			done = make(chan struct{})
			s.busy[id] = done
		}
		s.mu.Unlock()
		if !taken {
			return func() {
				s.mu.Lock()
				delete(s.busy, id)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Missing implements chunks.Store.
func (s *Store) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.calls.Done()
	if err := s.usable(); err != nil {
		return nil, err
	}
	var missing []chunk.ID
	for _, id := range ids {
		there, err := s.refresh(ctx, id)
		if err != nil {
			return nil, err
		}
		if !there {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// refresh makes a chunk young again, and reports whether it is there.
func (s *Store) refresh(ctx context.Context, id chunk.ID) (bool, error) {
	release, err := s.own(ctx, id)
	if err != nil {
		return false, err
	}
	defer release()
	err = s.root.Chtimes(pathOf(id), time.Time{}, time.Now())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, s.broken("touch", id, err)
	}
	return true, nil
}

// Get implements chunks.Store.
func (s *Store) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.calls.Done()
	frame, err := s.read(id)
	switch {
	case err == nil:
		s.counters.Gets.Add(1)
		s.counters.GetBytes.Add(int64(len(frame)))
		return frame, nil
	case errors.Is(err, fs.ErrNotExist):
		s.counters.NotFound.Add(1)
		return nil, chunks.NotFound(id, s.root.Name())
	case errors.Is(err, chunk.ErrCorrupt):
		return s.getAgain(ctx, id)
	default:
		return nil, s.broken("read", id, err)
	}
}

// getAgain reads a chunk that was damaged once more, as somebody may have mended it; if nobody did, it is put aside.
func (s *Store) getAgain(ctx context.Context, id chunk.ID) ([]byte, error) {
	release, err := s.own(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	frame, err := s.read(id)
	switch {
	case err == nil:
		return frame, nil
	case errors.Is(err, chunk.ErrCorrupt):
		if aside := s.quarantine(id); aside != nil {
			return nil, s.broken("put aside the damaged", id, aside)
		}
		return nil, chunks.Damaged(id, s.root.Name(), err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, chunks.NotFound(id, s.root.Name())
	default:
		return nil, s.broken("read", id, err)
	}
}

// read returns a chunk's frame, verified.
func (s *Store) read(id chunk.ID) ([]byte, error) {
	if err := s.fails("read"); err != nil {
		return nil, err
	}
	f, err := s.root.Open(pathOf(id))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if n := info.Size(); !info.Mode().IsRegular() || n < chunk.HeaderBytes || n > chunk.MaxFrameBytes {
		return nil, fmt.Errorf("%w: %s of %d bytes", chunk.ErrCorrupt, info.Mode(), n)
	}
	frame := make([]byte, info.Size())
	if _, err := io.ReadFull(f, frame); errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it ended early", chunk.ErrCorrupt)
	} else if errors.Is(err, syscall.EIO) {
		return nil, fmt.Errorf("%w: %w", chunk.ErrCorrupt, err) // a bad block: another store may have the chunk
	} else if err != nil {
		return nil, err
	}
	return frame, chunks.Verify(id, frame)
}

// Walk implements chunks.Collectable.
func (s *Store) Walk(ctx context.Context, after chunk.ID, fn func(id chunk.ID, bytes int64, modified time.Time) error) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.calls.Done()
	return s.walk(ctx, after, func(id chunk.ID, info fs.FileInfo) error {
		modified := info.ModTime()
		if modified.Before(s.opened) {
			modified = s.opened
		}
		return fn(id, info.Size(), modified)
	})
}

// Delete implements chunks.Collectable.
func (s *Store) Delete(ctx context.Context, id chunk.ID, unmodifiedSince time.Time) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.calls.Done()
	return s.remove(ctx, id, func(modified time.Time) bool {
		return !modified.After(unmodifiedSince) && !s.opened.After(unmodifiedSince)
	})
}

// Evict deletes a chunk however young it is; for caches, which nobody relies on.
func (s *Store) Evict(ctx context.Context, id chunk.ID) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.calls.Done()
	return s.remove(ctx, id, func(time.Time) bool { return true })
}

func (s *Store) remove(ctx context.Context, id chunk.ID, may func(modified time.Time) bool) error {
	release, err := s.own(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	info, err := s.root.Lstat(pathOf(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return s.broken("look for", id, err)
	}
	if !may(info.ModTime()) {
		return fault.New(fault.FailedPrecondition, "chunks: chunk %s was used lately and stays", id)
	}
	if err := s.root.Remove(pathOf(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.broken("delete", id, err)
	}
	// Without a sync: a chunk that comes back with a loss of power is collected again.
	s.forget(info.Size())
	s.counters.Deleted.Add(1)
	s.counters.DeletedBytes.Add(info.Size())
	return nil
}

func (s *Store) forget(bytes int64) {
	s.bytes.Add(-bytes)
	s.count.Add(-1)
}

// usable returns an error once a sync of a directory has failed: what is on the disk is not known from then on.
func (s *Store) usable() error {
	if err := s.failed.Load(); err != nil {
		return fault.New(fault.Unavailable, "chunks: the store in %s promises nothing since a sync failed; look at the disk and restart: %w", s.root.Name(), *err)
	}
	return nil
}

// fails asks the tests.
func (s *Store) fails(step string) error {
	if s.opts.failing == nil {
		return nil
	}
	return s.opts.failing(step)
}

// broken gives an error of the file system its kind: full, or unavailable.
func (s *Store) broken(verb string, id chunk.ID, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		s.counters.Refused.Add(1)
		return fault.New(fault.Exhausted, "chunks: %s chunk %s: the disk of %s is full: %w", verb, id, s.root.Name(), err).WithRetry(RetryAfterFull)
	}
	return fault.New(fault.Unavailable, "chunks: %s chunk %s in %s: %w", verb, id, s.root.Name(), err)
}
