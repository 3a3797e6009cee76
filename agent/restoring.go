// Bringing a session back from a checkpoint, before its process is started.

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/internal/fault"
)

// bringBack restores the run's directory, which takes the place of what an earlier epoch left. It ends early when ctx does,
// or when the run is told to end. After an error, what was there before is there still.
func (r *run) bringBack(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.restoreDir(ctx) }()
	for {
		select {
		case err := <-done:
			signal(r.sweep) // what was replaced, or came to nothing
			return err
		case <-r.wake:
			if r.status().want.strength > orderNone {
				cancel()
			}
		}
	}
}

func (r *run) restoreDir(ctx context.Context) (err error) {
	select {
	case r.restores <- struct{}{}:
		defer func() { <-r.restores }()
	case <-ctx.Done():
		return ctx.Err()
	}
	began := time.Now()
	req := checkpoint.Restore{SessionID: r.id, Epoch: r.epoch, OutputLine: r.restore.GetOutputLine(), Notice: r.lostNotice(), Peer: r.peer}
	tells := newTeller(r.progress, r.id, r.epoch)
	tells.begin(stepRestoring, 0, 0)
	req.Progress = tells.bytes
	if len(r.restore.GetManifest()) != len(req.Manifest) {
		return fault.New(fault.Invalid, "restore checkpoint %d: a manifest's id has %d bytes, not %d", r.restore.GetSequence(), len(req.Manifest), len(r.restore.GetManifest()))
	}
	req.Manifest = [32]byte(r.restore.GetManifest())
	if req.Dir, err = r.store.stage(r.id); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("restore checkpoint %d: %w", r.restore.GetSequence(), err), r.store.unstage(r.id))
		}
	}()
	got, err := r.keeper.Restore(ctx, req)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.rec.TurnBase = got.Turn
	if err := r.store.publish(r.rec); err != nil {
		return err
	}
	r.metrics.restores.Inc()
	r.metrics.restoreSeconds.Observe(time.Since(began).Seconds())
	r.log.Info("session restored", "session", r.id, "epoch", r.epoch, "checkpoint", r.restore.GetSequence(), "bytes", got.Bytes,
		"fetched", got.Fetched, "took", time.Since(began))
	return nil
}

// lostNotice tells of output that the checkpoint has not seen; empty when there was none.
func (r *run) lostNotice() string {
	first, last := r.restore.GetOutputLine()+1, r.restore.GetLostLine()
	if last < first {
		return ""
	}
	lines := fmt.Sprintf("lines %d–%d of epoch %d were", first, last, r.restore.GetLostEpoch())
	if first == last {
		lines = fmt.Sprintf("line %d of epoch %d was", first, r.restore.GetLostEpoch())
	}
	return fmt.Sprintf("restored from checkpoint %d; %s not kept", r.restore.GetSequence(), lines)
}

// stage makes an empty directory for a session that is being restored, and returns its path.
func (s *store) stage(id string) (string, error) {
	if err := s.unstage(id); err != nil {
		return "", err
	}
	name := filepath.Join(restoringDir, id)
	if err := s.root.Mkdir(name, 0o700); err != nil {
		return "", fmt.Errorf("agent: make the directory to restore session %s in: %w", id, err)
	}
	return filepath.Join(s.path, name), nil
}

// unstage throws away what was restored in part.
func (s *store) unstage(id string) error { return s.discardTree(filepath.Join(restoringDir, id), id) }

// publish puts what was restored in the session's place, with its record. The directory that was there goes to the trash; the
// two change places in one step, so that there is always one of them.
func (s *store) publish(r *record) error {
	staged := filepath.Join(restoringDir, r.SessionID)
	for _, dir := range []string{workspaceDir, logDir} {
		if err := s.root.Mkdir(filepath.Join(staged, dir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("agent: make the directory of session %s: %w", r.SessionID, err)
		}
	}
	if err := s.writeTo(staged, r); err != nil {
		return err
	}
	err := s.exchange(restoringDir, sessionsDir, r.SessionID)
	switch {
	case err == nil:
		return s.unstage(r.SessionID)
	case errors.Is(err, fs.ErrNotExist): // there was none
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS): // not with this file system
		if err := s.discard(r.SessionID); err != nil {
			return err
		}
	default:
		return fmt.Errorf("agent: put the restored session %s in its place: %w", r.SessionID, err)
	}
	if err := s.root.Rename(staged, filepath.Join(sessionsDir, r.SessionID)); err != nil {
		return fmt.Errorf("agent: put the restored session %s in its place: %w", r.SessionID, err)
	}
	return nil
}

// exchange makes the entries of one name in two directories change places.
func (s *store) exchange(a, b, name string) error {
	da, err := s.root.Open(a)
	if err != nil {
		return err
	}
	defer da.Close()
	db, err := s.root.Open(b)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := unix.Renameat2(int(da.Fd()), name, int(db.Fd()), name, unix.RENAME_EXCHANGE); err != nil {
		return &os.LinkError{Op: "exchange", Old: filepath.Join(a, name), New: filepath.Join(b, name), Err: err}
	}
	return nil
}

// clearRestoring throws away what an earlier agent had restored in part, or had ready.
func (s *store) clearRestoring() error {
	for _, dir := range []string{restoringDir, stagedDir} {
		names, err := s.names(dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := s.discardTree(filepath.Join(dir, n), n); err != nil {
				return err
			}
		}
	}
	return nil
}
