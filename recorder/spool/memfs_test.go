// A directory in memory that forgets, when its power is taken, what was not synced.

package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
)

var errPower = errors.New("the power is gone")

// memFS is a filesystem whose power goes, or which fails, at some operation.
type memFS struct {
	names  map[string]*memFile // as a running machine sees them
	synced map[string]*memFile // as a machine that lost power finds them
	ops    int                 // that change something, so far
	dieAt  int                 // the operation at which the power goes, half done; 0 never
	failAt int                 // the operation that fails, half done, as on a full or broken disk; 0 none
	failed bool                // something failed that was not the power
	dead   bool
	chance func(n int) int // 0 to n-1: what a half-done operation did, and what of the unsynced is kept
}

type memFile struct {
	fs      *memFS
	data    []byte
	kept    []byte // what was synced
	suspect bool   // a sync failed: the next one succeeds and does nothing, as on Linux
}

func newMemFS(chance func(int) int) *memFS {
	return &memFS{names: map[string]*memFile{}, synced: map[string]*memFile{}, chance: chance}
}

// step counts an operation; it returns an error for one that is only half done, or not at all.
func (m *memFS) step() error {
	if m.dead {
		return errPower
	}
	m.ops++
	switch m.ops {
	case m.dieAt:
		m.dead = true
		return errPower
	case m.failAt:
		return errors.New("input/output error")
	}
	return nil
}

// restart is the machine, or with power only the process, starting again.
func (m *memFS) restart(powerLost bool) {
	m.dead, m.dieAt, m.failAt, m.ops = false, 0, 0, 0
	if !powerLost {
		return
	}
	// A name that was not synced is there or not; so is one that was removed.
	now := map[string]*memFile{}
	for _, from := range []map[string]*memFile{m.synced, m.names} {
		for _, name := range slices.Sorted(maps.Keys(from)) { // chances are drawn in an order that a story can be told again in
			f := from[name]
			inBoth := m.synced[name] == f && m.names[name] == f
			if inBoth || m.chance(2) == 0 {
				now[name] = f
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		f := now[name]
		keep := append([]byte(nil), f.kept...)
		// Of what was not synced a part is kept; the last bytes of it may be anything.
		if n := len(f.data) - len(keep); n > 0 {
			part := f.data[len(keep) : len(keep)+m.chance(n+1)]
			keep = append(keep, part...)
			for i := len(keep) - min(m.chance(64), len(part)); i < len(keep); i++ {
				keep[i] = byte(m.chance(256))
			}
		}
		f.data, f.kept, f.suspect = keep, append([]byte(nil), keep...), false
	}
	m.names, m.synced = now, maps.Clone(now)
}

func (m *memFS) Create(name string) (file, error) {
	if err := m.step(); err != nil {
		return nil, err
	}
	if m.names[name] != nil {
		return nil, fmt.Errorf("create %s: %w", name, fs.ErrExist)
	}
	f := &memFile{fs: m}
	m.names[name] = f
	return f, nil
}

func (m *memFS) Open(name string) (file, error) {
	if m.dead {
		return nil, errPower
	}
	if f := m.names[name]; f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
}

func (m *memFS) Remove(name string) error {
	if err := m.step(); err != nil {
		return err
	}
	delete(m.names, name)
	return nil
}

func (m *memFS) Rename(from, to string) error {
	if err := m.step(); err != nil {
		return err
	}
	m.names[to] = m.names[from]
	delete(m.names, from)
	return nil
}

func (m *memFS) List() (map[string]int64, error) {
	if m.dead {
		return nil, errPower
	}
	all := map[string]int64{}
	for name, f := range m.names {
		all[name] = int64(len(f.data))
	}
	return all, nil
}

func (m *memFS) Sync() error {
	if err := m.step(); err != nil {
		return err
	}
	m.synced = maps.Clone(m.names)
	return nil
}

func (m *memFS) Close() error { return nil }

func (f *memFile) ReadAt(b []byte, at int64) (int, error) {
	if f.fs.dead {
		return 0, errPower
	}
	if at >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.data[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, at int64) (int, error) {
	if f.fs.dead {
		return 0, errPower
	}
	err := f.fs.step()
	if err != nil {
		b = b[:f.fs.chance(len(b)+1)] // a part of it was written
	}
	if more := int(at) + len(b) - len(f.data); more > 0 && len(b) > 0 {
		f.data = append(f.data, make([]byte, more)...)
	}
	copy(f.data[min(int(at), len(f.data)):], b)
	if n := int(at); n < len(f.kept) { // overwriting what was synced: the slots of the position; either of both may be found
		if f.fs.chance(2) == 0 {
			f.kept = append([]byte(nil), f.data...)
		}
	}
	return len(b), err
}

func (f *memFile) Sync() error {
	if err := f.fs.step(); err != nil {
		f.suspect = !f.fs.dead
		return err
	}
	if f.suspect {
		return nil // what a failed sync threw away is not missed by the next one
	}
	f.kept = append([]byte(nil), f.data...)
	return nil
}

func (f *memFile) Truncate(size int64) error {
	if err := f.fs.step(); err != nil {
		return err
	}
	f.data = append([]byte(nil), f.data[:min(int(size), len(f.data))]...)
	f.kept = f.kept[:min(int(size), len(f.kept))]
	return nil
}

func (f *memFile) Close() error { return nil }
