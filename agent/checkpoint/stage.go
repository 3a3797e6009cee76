// Having ready what a session will be restored from: a tree that is brought up to date, round by round, before its time.

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// stages are the trees that are ready, by session.
type stages struct {
	mu  sync.Mutex
	all map[string]*stage
}

// stage is one session's. Whoever works on it holds its mutex.
type stage struct {
	mu    sync.Mutex
	users int    // that hold it or wait for it; guarded by stages.mu
	dir   string // the session's own place, all of it; empty when there is nothing
	n     int    // counts rounds: each has a directory of its own in dir
	parts map[string]*serializer.Restored
}

// lock returns the session's stage, locked.
func (s *stages) lock(id string) *stage {
	s.mu.Lock()
	if s.all == nil {
		s.all = map[string]*stage{}
	}
	st := s.all[id]
	if st == nil {
		st = &stage{}
		s.all[id] = st
	}
	st.users++
	s.mu.Unlock()
	st.mu.Lock()
	return st
}

// unlock lets go of a stage; one that nobody holds and in which nothing is is forgotten.
func (s *stages) unlock(id string, st *stage) {
	empty := st.dir == ""
	st.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.users--; st.users == 0 && empty {
		delete(s.all, id)
	}
}

func (st *stage) root(name string) string { return filepath.Join(st.dir, fmt.Sprint(st.n), name) }

// part returns what of a root is ready; nil for nothing.
func (st *stage) part(name string) *serializer.Staged {
	if st.dir == "" || st.parts[name] == nil {
		return nil
	}
	return &serializer.Staged{Dir: st.root(name), Restored: st.parts[name]}
}

// clear removes what is ready.
func (st *stage) clear() error {
	dir := st.dir
	st.dir, st.parts = "", nil
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}

// Stage implements Keeper.
func (d *Disk) Stage(ctx context.Context, s Staging) (fetched int64, err error) {
	sessionID, dir := s.SessionID, s.Dir
	src := d.source(s.Peer)
	defer src.close()
	m, _, err := serializer.LoadManifest(ctx, src, chunk.ID(s.Manifest))
	if err != nil {
		return 0, err
	}
	st := d.staged.lock(sessionID)
	defer d.staged.unlock(sessionID, st)
	defer func() {
		if err != nil {
			err = errors.Join(err, st.clear())
		}
	}()
	next := &stage{dir: dir, n: st.n + 1, parts: map[string]*serializer.Restored{}}
	if err := os.MkdirAll(filepath.Dir(next.root(Workspace)), 0o700); err != nil {
		return 0, fmt.Errorf("checkpoint: make the place to have session %s ready in: %w", sessionID, err)
	}
	old := filepath.Dir(st.root(Workspace))
	had := st.dir != ""
	far := roots{tell: s.Progress}
	for _, root := range []string{Workspace, Log} {
		if m.Root(root) == nil {
			continue
		}
		part, err := serializer.Restore(ctx, src, m, root, next.root(root), serializer.RestoreOptions{
			Parallel: d.o.Parallel, NoSync: true, Staged: st.part(root), Progress: far.next(),
		})
		if err != nil {
			st.dir = dir // all of it goes
			return src.fetched(), err
		}
		next.parts[root] = part
	}
	st.dir, st.n, st.parts = next.dir, next.n, next.parts
	if had {
		return src.fetched(), os.RemoveAll(old)
	}
	return src.fetched(), nil
}

// Unstage implements Keeper.
func (d *Disk) Unstage(sessionID string) error {
	st := d.staged.lock(sessionID)
	defer d.staged.unlock(sessionID, st)
	return st.clear()
}
