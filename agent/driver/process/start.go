// Starting a session.

package process

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// flushIdleMax is after how long a terminal's line without a newline is logged; sooner when turns end sooner.
const flushIdleMax = 100 * time.Millisecond

// Start starts the session beside a new shim.
func (d *Driver) Start(ctx context.Context, s driver.Start) (driver.Process, error) {
	if err := check(&s); err != nil {
		return nil, err
	}
	for _, dir := range []string{workspace(&s), LogDir(s.Dir)} {
		if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
			return nil, fault.New(fault.Internal, "process: start %s: %w", s.SessionID, err)
		}
	}
	path, err := lookPath(s.Spec.Command[0], s.Env, workspace(&s))
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "process: start %s: %w", s.SessionID, err)
	}
	lock, err := shim.TryLock(s.Dir)
	if errors.Is(err, shim.ErrLives) {
		return nil, fault.New(fault.AlreadyExists, "process: start %s: an earlier epoch of it still lives here; adopt it, or kill it first", s.SessionID)
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "process: start %s: %w", s.SessionID, err)
	}
	if err := clearEarlier(ctx, &s); err != nil {
		shim.Unlock(lock)
		return nil, fault.New(fault.Unavailable, "process: start %s: %w", s.SessionID, err)
	}
	g, err := d.cgroups.make(groupName(&s), s.Spec.MemoryBytes)
	if err != nil {
		shim.Unlock(lock)
		return nil, fault.New(fault.Internal, "process: start %s: %w", s.SessionID, err)
	}
	p := d.params(&s, path, g)
	l, err := shim.Launch(ctx, d.opt.Shim, s.Dir, lock, p, [3]*os.File{})
	if err != nil {
		d.afterFailedStart(&s, g)
		return nil, kind(err)
	}
	pr, err := d.newProc(s, l.Client, l.Status, g)
	if err != nil {
		l.Status.Shim.Kill()
		l.Client.Close()
		_, _ = l.Process.Wait() // it was killed; how it ended says nothing more
		d.afterFailedStart(&s, g)
		return nil, err
	}
	pr.shim = l.Process
	pr.begin()
	return pr, nil
}

func check(s *driver.Start) error {
	switch {
	case s.SessionID == "" || strings.ContainsAny(s.SessionID, "/\x00") || s.SessionID == "." || s.SessionID == "..":
		return fault.New(fault.Invalid, "process: %q is not a session id", s.SessionID)
	case s.Spec == nil || len(s.Spec.Command) == 0 || s.Spec.Command[0] == "":
		return fault.New(fault.Invalid, "process: session %s has no command", s.SessionID)
	case !filepath.IsAbs(s.Dir):
		return fault.New(fault.Invalid, "process: session %s: its directory %q is not an absolute path", s.SessionID, s.Dir)
	case s.LeaseFile == "":
		return fault.New(fault.Invalid, "process: session %s: no lease file is given", s.SessionID)
	}
	return nil
}

func (d *Driver) params(s *driver.Start, path string, g group) *shim.Params {
	return &shim.Params{
		Session: s.SessionID, Epoch: s.Epoch, Args: append([]string{path}, s.Spec.Command[1:]...), Env: environment(s),
		Dir: workspace(s), LogDir: LogDir(s.Dir), Lease: s.LeaseFile, StartBy: s.StartBy, Base: s.OutputBase,
		Terminal: s.Spec.Protocol == session.ProtocolRaw, FlushIdle: min(flushIdleMax, turnIdle(s.Spec)/2),
		SegmentBytes: d.opt.LogSegmentBytes, TotalBytes: d.opt.LogTotalBytes, Cgroup2: g.v2, Cgroup1: g.v1,
	}
}

func turnIdle(s *session.Spec) time.Duration {
	if s.TurnIdle <= 0 {
		return session.DefaultTurnIdle
	}
	return s.TurnIdle
}

func groupName(s *driver.Start) string {
	return s.SessionID + "-" + strconv.FormatUint(uint64(s.Epoch), 10)
}

// environment is the process's; it always names the session, because that is how a lost tree is found again.
func environment(s *driver.Start) []string {
	env := append([]string(nil), s.Env...)
	for k, v := range map[string]string{"ORCH_SESSION_ID": s.SessionID, "ORCH_SESSION_EPOCH": strconv.FormatUint(uint64(s.Epoch), 10)} {
		if _, ok := lookup(env, k); !ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

func lookup(env []string, key string) (string, bool) {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(env[i], "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// lookPath finds a program as the session itself would: by the PATH of its environment, from its workspace.
func lookPath(name string, env []string, dir string) (string, error) {
	executable := func(p string) bool {
		st, err := os.Stat(p)
		return err == nil && st.Mode().IsRegular() && unix.Access(p, unix.X_OK) == nil
	}
	if strings.Contains(name, "/") {
		p := name
		if !filepath.IsAbs(p) {
			p = filepath.Join(dir, p)
		}
		if !executable(p) {
			return "", errors.New(name + " is not an executable file here")
		}
		return p, nil
	}
	path, ok := lookup(env, "PATH")
	if !ok {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		if p := filepath.Join(d, name); executable(p) {
			return p, nil
		}
	}
	return "", errors.New("no program " + name + " is in PATH (" + path + ") on this node")
}

// clearEarlier makes sure that nothing of an earlier epoch lives, whose shim was killed and whose end nobody saw.
func clearEarlier(ctx context.Context, s *driver.Start) error {
	if _, err := shim.ReadExit(s.Dir); err == nil {
		return nil
	}
	run, err := shim.ReadRun(s.Dir)
	if err != nil {
		return nil // it is the first here
	}
	return sweep(ctx, run)
}

// sweep kills what a session left without a shim, and its cgroups; of another boot there is nothing.
func sweep(ctx context.Context, run *shim.Run) error {
	if sameBoot(run.Boot) {
		if err := shim.Sweep(ctx, run); err != nil {
			return err
		}
	}
	group{v2: run.Cgroup2, v1: run.Cgroup1}.remove()
	return nil
}

// afterFailedStart leaves nothing of a session whose start failed half-way.
func (d *Driver) afterFailedStart(s *driver.Start, g group) {
	run, err := shim.ReadRun(s.Dir)
	if err != nil {
		run = &shim.Run{Session: s.SessionID, Epoch: s.Epoch, Cgroup2: g.v2, Cgroup1: g.v1}
		if len(members(g)) == 0 {
			g.remove()
			return
		}
	}
	if err := shim.Sweep(context.Background(), run); err != nil {
		d.log.Error("a session that did not start could not be swept", "session", s.SessionID, "error", err)
	}
	g.remove()
}

func members(g group) []byte {
	var all []byte
	for _, dir := range append([]string{g.v2}, g.v1...) {
		if b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); dir != "" && err == nil {
			all = append(all, b...)
		}
	}
	return all
}
