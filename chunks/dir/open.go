// Opening a directory, walking through it, and putting damaged files aside.

package dir

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	formatFile = "format"
	formatText = "orchestrator chunks 1\n"
	lockFile   = "lock"
)

// Open opens the store in a directory, which is made when it is not there (mode 0700). It removes what a crash left half
// written, and adds up what is there: about a second for every 300,000 chunks. A directory that another process has open, or that is
// of another format, is refused with FailedPrecondition.
func Open(path string, o Options) (*Store, error) {
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, fmt.Errorf("chunks: open %s: %w", path, err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("chunks: open %s: %w", path, err)
	}
	s := &Store{
		opts: o, log: o.Logger, root: root,
		writers: make(chan struct{}, WritersMax), commits: make(chan *commit, commitsMax), settled: make(chan struct{}),
		busy: make(map[chunk.ID]chan struct{}),
	}
	if !o.Volatile {
		s.opened = time.Now()
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.prepare(); err != nil {
		root.Close()
		if s.lock != nil {
			s.lock.Close()
		}
		if fault.As(err) == nil {
			err = fmt.Errorf("chunks: open %s: %w", path, err)
		}
		return nil, err
	}
	go s.committer()
	return s, nil
}

// prepare takes the directory, cleans it and adds it up.
func (s *Store) prepare() (err error) {
	if s.lock, err = s.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, fileMode); err != nil {
		return err
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fault.New(fault.FailedPrecondition, "chunks: open %s: another process has it open: %w", s.root.Name(), err)
	}
	if err := s.checkFormat(); err != nil {
		return err
	}
	if err := s.root.RemoveAll(tmpDir); err != nil {
		return err
	}
	for _, d := range []string{tmpDir, asideDir} {
		if err := s.root.MkdirAll(d, dirMode); err != nil {
			return err
		}
	}
	made := map[string]struct{}{".": {}}
	if s.opts.Prepared {
		if err := s.makeLeaves(made); err != nil {
			return err
		}
	}
	if err := s.syncDirs(made); err != nil {
		return err
	}
	return s.walk(context.Background(), chunk.ID{}, func(_ chunk.ID, info fs.FileInfo) error {
		s.bytes.Add(info.Size())
		s.count.Add(1)
		return nil
	})
}

// makeLeaves makes the directories that chunks lie in, and notes those that changed.
func (s *Store) makeLeaves(changed map[string]struct{}) error {
	const digits = "0123456789abcdef"
	for _, outer := range digits {
		for _, inner := range digits {
			leaf := string(outer) + "/" + string(inner)
			if _, err := s.root.Lstat(leaf); err == nil {
				continue
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := s.root.MkdirAll(leaf, dirMode); err != nil {
				return err
			}
			changed[string(outer)] = struct{}{}
		}
	}
	return nil
}

// checkFormat refuses a directory of another layout, and marks a new one.
func (s *Store) checkFormat() error {
	text, err := s.root.ReadFile(formatFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(text) < len(formatText) && strings.HasPrefix(formatText, string(text)):
		// New, or a crash cut its marking short.
		f, err := s.root.OpenFile(formatFile, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
		if err != nil {
			return err
		}
		_, err = f.WriteString(formatText)
		return errors.Join(err, f.Sync(), f.Close())
	case err != nil:
		return err
	case string(text) != formatText:
		return fault.New(fault.FailedPrecondition, "chunks: open %s: its format is %.40q, this release reads %q", s.root.Name(), text, formatText)
	}
	return nil
}

// walk calls fn for the file of each chunk after an id, in the order of ids.
func (s *Store) walk(ctx context.Context, after chunk.ID, fn func(id chunk.ID, info fs.FileInfo) error) error {
	from := ""
	if after != (chunk.ID{}) {
		from = after.String()
	}
	return s.walkDirs(".", from, 1, func(first string) error {
		return s.walkDirs(first, from, 2, func(leaf string) error {
			return s.walkLeaf(ctx, leaf, from, fn)
		})
	})
}

// walkDirs calls fn for each directory of chunks in dir that may hold names after from; prefix is how many digits of
// their names the directories stand for together.
func (s *Store) walkDirs(dir, from string, prefix int, fn func(dir string) error) error {
	entries, err := s.list(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		sub := path.Join(dir, e.Name())
		digits := strings.ReplaceAll(sub, "/", "")
		if !e.IsDir() || len(digits) != prefix || !isHex(digits) || from != "" && digits < from[:prefix] {
			continue
		}
		if err := fn(sub); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) walkLeaf(ctx context.Context, leaf, from string, fn func(id chunk.ID, info fs.FileInfo) error) error {
	entries, err := s.list(leaf)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := chunk.Parse(e.Name())
		if err != nil || e.Name() <= from || pathOf(id) != path.Join(leaf, e.Name()) {
			continue // nothing of ours
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := s.root.Lstat(pathOf(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return s.broken("look at", id, err)
		}
		if err := fn(id, info); err != nil {
			return err
		}
	}
	return nil
}

// list returns what is in a directory, by name; nothing when there is none.
func (s *Store) list(name string) ([]fs.DirEntry, error) {
	d, err := s.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fault.New(fault.Unavailable, "chunks: list %s: %w", name, err)
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "chunks: list %s: %w", name, err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return entries, nil
}

func isHex(s string) bool {
	return len(bytes.Trim([]byte(s), "0123456789abcdef")) == 0
}

// quarantine puts a damaged chunk's file aside, and drops the oldest when there are too many. The caller owns the chunk.
func (s *Store) quarantine(id chunk.ID) error {
	info, err := s.root.Lstat(pathOf(id))
	if err != nil {
		return err
	}
	// The time comes first in the name, so that the names' order is that of age.
	aside := path.Join(asideDir, fmt.Sprintf("%016x-%s", time.Now().UnixNano(), id))
	if err := s.root.Rename(pathOf(id), aside); err != nil {
		return err
	}
	s.forget(info.Size())
	s.counters.Damaged.Add(1)
	s.log.Warn("chunks: a damaged chunk was put aside", "chunk", id.String(), "file", path.Join(s.root.Name(), aside))
	entries, err := s.list(asideDir)
	if err != nil {
		return err
	}
	for i := range len(entries) - QuarantineMax {
		if err := s.root.Remove(path.Join(asideDir, entries[i].Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
