// The sessions' directories: what each session was started with, so that a later agent can take it up again.

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// The layout below the data directory:
//
//	node.json            who the node is
//	lock                 held by the running agent
//	sessions/ID/         one session, 0700
//	    session.json     its record: spec, epoch, output base, and how it ended
//	    workspace/       its working directory
//	    log/             its numbered output
//	restoring/ID/        one that is being restored, and takes its place when it is whole
//	staged/ID/           ready for a session that is about to move here
//	spool/               captured and not stored yet (package checkpoint)
//	damaged/             directories whose record could not be read, for a person to look at
//	trash/               directories on their way out
const (
	sessionsDir  = "sessions"
	damagedDir   = "damaged"
	trashDir     = "trash"
	restoringDir = "restoring"
	stagedDir    = "staged"
	recordFile   = "session.json"
	workspaceDir = "workspace"
	logDir       = "log"

	recordVersion = 1
	// maxDamagedDirs bounds damaged/; the oldest go first.
	maxDamagedDirs = 16
	// maxRecordBytes is more than any spec makes.
	maxRecordBytes = 4 << 20
)

// record is the content of session.json.
//
// It is replaced by rename, so that a reader sees one version or the next, and it is not synced: it matters only while
// the session's process lives, and no process outlives a loss of power. An fsync would cost a spawn more than its fork.
//
// History of its version: 1, the first.
type record struct {
	Version    int             `json:"version"`
	SessionID  string          `json:"sessionId"`
	Epoch      uint32          `json:"epoch"`
	Spec       json.RawMessage `json:"spec"` // protojson of orchestrator.v1.SessionSpec
	OutputBase uint64          `json:"outputBase,omitempty"`
	TurnBase   uint64          `json:"turnBase,omitempty"` // turns before this epoch, by the checkpoint that it began with
	CreateTime time.Time       `json:"createTime"`
	Ended      *ending         `json:"ended,omitempty"`
}

// ending is how a session's process ended, and what the cluster is told of it.
type ending struct {
	Exit        session.Exit `json:"exit"`
	OutputLine  uint64       `json:"outputLine"`
	Outstanding uint64       `json:"outstanding,omitempty"`
	Unreachable bool         `json:"unreachable,omitempty"` // what it was to be restored from
	Time        time.Time    `json:"time"`
}

func (r *record) spec() (*apiv1.SessionSpec, error) {
	var s apiv1.SessionSpec
	// Fields of a newer release are passed over: the process was started with them and runs.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r.Spec, &s); err != nil {
		return nil, fmt.Errorf("agent: read the spec of session %s: %w", r.SessionID, err)
	}
	return &s, nil
}

// store reads and writes the sessions' directories. Everything goes through an os.Root, so that no session id and no
// link that a session made leads out of the data directory. Its methods may be called from several goroutines, for
// different sessions.
type store struct {
	root *os.Root // the data directory
	path string   // the same, absolute
}

func newStore(root *os.Root, path string) (*store, error) {
	for _, dir := range []string{sessionsDir, restoringDir, stagedDir, damagedDir, trashDir} {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fault.New(fault.Invalid, "agent: make %s: %w", filepath.Join(path, dir), err)
		}
	}
	s := &store{root: root, path: path}
	return s, s.clearRestoring()
}

var sessionIDRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// checkSessionID refuses what cannot be the name of a directory.
func checkSessionID(id string) error {
	if !sessionIDRE.MatchString(id) {
		return fault.New(fault.Invalid, "session id %q: must be 1–128 of letters, digits, '.', '_' and '-', beginning with a letter or digit", clip(id))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// dir is the session's own directory, absolute.
func (s *store) dir(id string) string { return filepath.Join(s.path, sessionsDir, id) }

// prepare makes the session's directories and writes its record; what an earlier epoch left in them stays, but with fresh for
// its output: a session that is checkpointed and has no checkpoint begins anew, and is given all its messages again.
func (s *store) prepare(r *record, fresh bool) error {
	base := filepath.Join(sessionsDir, r.SessionID)
	if fresh {
		if err := s.discardTree(filepath.Join(base, workspaceDir), r.SessionID); err != nil {
			return err
		}
	}
	for _, dir := range []string{base, filepath.Join(base, workspaceDir), filepath.Join(base, logDir)} {
		if err := s.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("agent: make the directory of session %s: %w", r.SessionID, err)
		}
	}
	return s.write(r)
}

// write replaces the session's record.
func (s *store) write(r *record) error { return s.writeTo(filepath.Join(sessionsDir, r.SessionID), r) }

func (s *store) writeTo(dir string, r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("agent: write the record of session %s: %w", r.SessionID, err)
	}
	name := filepath.Join(dir, recordFile)
	if err := s.root.WriteFile(name+".new", b, 0o600); err != nil {
		return fmt.Errorf("agent: write the record of session %s: %w", r.SessionID, err)
	}
	if err := s.root.Rename(name+".new", name); err != nil {
		return fmt.Errorf("agent: write the record of session %s: %w", r.SessionID, err)
	}
	return nil
}

// read returns the session's record.
func (s *store) read(id string) (*record, error) {
	f, err := s.root.Open(filepath.Join(sessionsDir, id, recordFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecordBytes))
	if err != nil {
		return nil, fmt.Errorf("agent: read the record of session %s: %w", id, err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("agent: read the record of session %s: %w", id, err)
	}
	switch {
	case r.Version > recordVersion:
		return nil, fault.New(fault.Invalid, "agent: %s has version %d and this node-agent knows %d; it was written by a newer release: run that one", filepath.Join(s.dir(id), recordFile), r.Version, recordVersion)
	case r.Version < 1 || r.SessionID != id || r.Epoch == 0:
		return nil, fmt.Errorf("agent: the record of session %s is damaged", id)
	}
	if _, err := r.spec(); err != nil {
		return nil, err
	}
	return &r, nil
}

// list returns the records of all sessions, and the ids of directories whose record cannot be used.
func (s *store) list() (records []*record, damaged map[string]error, err error) {
	dir, err := s.root.Open(sessionsDir)
	if err != nil {
		return nil, nil, fmt.Errorf("agent: list the sessions in %s: %w", s.path, err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, nil, fmt.Errorf("agent: list the sessions in %s: %w", s.path, err)
	}
	damaged = map[string]error{}
	for _, e := range entries {
		if !e.IsDir() || checkSessionID(e.Name()) != nil {
			damaged[e.Name()] = errors.New("not a session's directory")
			continue
		}
		r, err := s.read(e.Name())
		if fault.Is(err, fault.Invalid) {
			return nil, nil, err // a newer release's: this agent must not touch what it does not understand
		}
		if err != nil {
			damaged[e.Name()] = err
			continue
		}
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b *record) int { return strings.Compare(a.SessionID, b.SessionID) })
	return records, damaged, nil
}

// setAside moves a directory that cannot be used to damaged/, and returns where it is now.
func (s *store) setAside(name string) (string, error) {
	kept, err := s.names(damagedDir)
	if err != nil {
		return "", err
	}
	for len(kept) >= maxDamagedDirs {
		if err := s.root.RemoveAll(filepath.Join(damagedDir, kept[0])); err != nil {
			return "", fmt.Errorf("agent: remove the oldest of %s: %w", damagedDir, err)
		}
		kept = kept[1:]
	}
	to := filepath.Join(damagedDir, strconv.FormatInt(time.Now().UnixNano(), 10)+"-"+name)
	if err := s.root.Rename(filepath.Join(sessionsDir, name), to); err != nil {
		return "", fmt.Errorf("agent: set the damaged session %s aside: %w", name, err)
	}
	return filepath.Join(s.path, to), nil
}

// names returns the names in a directory, ascending.
func (s *store) names(dir string) ([]string, error) {
	f, err := s.root.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("agent: list %s: %w", dir, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("agent: list %s: %w", dir, err)
	}
	slices.Sort(names)
	return names, nil
}

// discard moves a session's directory to the trash: at once gone from where anybody looks, whatever its size.
func (s *store) discard(id string) error {
	return s.discardTree(filepath.Join(sessionsDir, id), id)
}

func (s *store) discardTree(name, id string) error {
	to := filepath.Join(trashDir, id+"-"+strconv.FormatInt(time.Now().UnixNano(), 10))
	err := s.root.Rename(name, to)
	for n := 1; errors.Is(err, fs.ErrExist) && n <= discardsAtOnce; n++ { // two of a session, at one instant of a coarse clock
		err = s.root.Rename(name, to+"-"+strconv.Itoa(n))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("agent: remove the directory of session %s: %w", id, err)
	}
	return nil
}

// discardsAtOnce is how many directories of one session can be discarded at one instant, beside the first: more than it has.
const discardsAtOnce = 8

// emptyTrash deletes what was discarded, until ctx ends.
func (s *store) emptyTrash(ctx context.Context) error {
	names, err := s.names(trashDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if ctx.Err() != nil {
			return nil // the next agent goes on
		}
		if err := s.removeTree(ctx, filepath.Join(trashDir, n)); err != nil {
			errs = append(errs, fmt.Errorf("agent: empty the trash: %w", err))
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a file or directory entry by entry, so that a large one does not hold up the agent's end. A
// directory that a session made unwritable is opened up first.
func (s *store) removeTree(ctx context.Context, name string) error {
	err := s.root.Remove(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if st, statErr := s.root.Lstat(name); statErr != nil || !st.IsDir() {
		return err
	}
	_ = s.root.Chmod(name, 0o700)
	dir, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		entries, readErr := dir.Readdirnames(256)
		for _, e := range entries {
			if ctx.Err() != nil {
				return nil
			}
			if err := s.removeTree(ctx, filepath.Join(name, e)); err != nil {
				return err
			}
		}
		if errors.Is(readErr, io.EOF) {
			break
		}
		if readErr != nil {
			return readErr
		}
	}
	return s.root.Remove(name)
}
