// Further commands in a session's workspace, each beside a shim of its own that ends with the agent's connection.

package process

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/creack/pty"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// execDrain bounds how long output is read on after the command's whole tree has ended.
const execDrain = time.Second

// execs counts a session's commands, so that its end can end them and wait.
type execs struct {
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	mu     sync.Mutex
	ended  bool
	gone   bool // a shim of one was lost
	wg     sync.WaitGroup
}

func (e *execs) init() { e.ctx, e.cancel = context.WithCancel(context.Background()) }

func (e *execs) begin() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.ended {
		e.wg.Add(1)
	}
	return !e.ended
}

// end ends all and waits; none begins after it.
func (e *execs) end() {
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	e.cancel()
	e.wg.Wait()
}

func (e *execs) lose() { e.mu.Lock(); e.gone = true; e.mu.Unlock() }

func (e *execs) lost() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.gone }

// Exec runs a further command; see driver.Execer.
func (p *proc) Exec(ctx context.Context, e driver.Exec) (session.Exit, error) {
	if len(e.Command) == 0 || e.Command[0] == "" {
		return session.Exit{}, fault.New(fault.Invalid, "process: exec: no command is given")
	}
	if !p.execs.begin() {
		return session.Exit{}, errEnded
	}
	defer p.execs.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.execs.ctx, cancel)()

	env := e.Env
	if env == nil {
		env = environment(&p.s)
	}
	path, err := lookPath(e.Command[0], env, workspace(&p.s))
	if err != nil {
		return session.Exit{}, fault.New(fault.FailedPrecondition, "process: exec: %w", err)
	}
	stdio, theirs, err := openExec(&e)
	if err != nil {
		return session.Exit{}, fault.New(fault.Internal, "process: exec: %w", err)
	}
	params := &shim.Params{
		Session: p.s.SessionID, Epoch: p.s.Epoch, Args: append([]string{path}, e.Command[1:]...), Env: env, Dir: workspace(&p.s),
		Lease: p.s.LeaseFile, Terminal: e.TTY, Exec: true, Cgroup2: p.group.v2, Cgroup1: p.group.v1,
	}
	l, err := shim.Launch(ctx, p.d.opt.Shim, workspace(&p.s), nil, params, theirs)
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		stdio.close()
		return session.Exit{}, kind(err)
	}
	copied := stdio.copy(&e)
	resized := stdio.resize(ctx, e.Resize)
	interrupted := false
	select {
	case <-l.Client.Done():
	case <-ctx.Done():
		interrupted = true
	}
	exit := l.Client.Exit()
	l.Client.Close() // which kills the tree when it still runs
	if _, err := l.Process.Wait(); err != nil {
		p.d.log.Warn("an exec's shim could not be waited for", "session", p.s.SessionID, "error", err)
	}
	cancel()
	<-resized
	select {
	case <-copied:
	case <-time.After(execDrain): // something outside the tree holds the other end
	}
	stdio.close()
	<-copied
	switch {
	case exit != nil:
		return sessionExit(exit), nil
	case p.execs.ctx.Err() != nil:
		return session.Exit{}, errEnded
	case interrupted:
		return session.Exit{}, fault.New(fault.Timeout, "process: exec: the command was killed: %w", context.Canceled)
	}
	p.execs.lose()
	return session.Exit{}, fault.New(fault.Unavailable, "process: exec: its shim was killed, and the command with it")
}

// execIO is this side of a command's stdin, stdout and stderr; one file with a terminal.
type execIO struct {
	in, out, err *os.File
	terminal     bool
}

func openExec(e *driver.Exec) (*execIO, [3]*os.File, error) {
	var theirs [3]*os.File
	if e.TTY {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, theirs, err
		}
		if e.Size != (driver.Size{}) {
			_ = pty.Setsize(master, &pty.Winsize{Cols: e.Size.Columns, Rows: e.Size.Rows}) // the default size does too
		}
		return &execIO{in: master, out: master, terminal: true}, [3]*os.File{slave, slave, slave}, nil
	}
	var x execIO
	var errs [3]error
	theirs[0], x.in, errs[0] = os.Pipe()
	x.out, theirs[1], errs[1] = os.Pipe()
	x.err, theirs[2], errs[2] = os.Pipe()
	if err := errors.Join(errs[:]...); err != nil {
		for _, f := range theirs {
			if f != nil {
				f.Close()
			}
		}
		x.close()
		return nil, theirs, err
	}
	return &x, theirs, nil
}

func (x *execIO) close() {
	for _, f := range []*os.File{x.in, x.out, x.err} {
		if f != nil {
			f.Close() // twice for a terminal, which is harmless
		}
	}
}

// copy pumps until the command's side is closed; the goroutine that reads e.Stdin may stay behind in a Read.
func (x *execIO) copy(e *driver.Exec) (copied <-chan struct{}) {
	go func() {
		if e.Stdin != nil {
			_, _ = io.Copy(x.in, e.Stdin) // the command need not read it all
		}
		if x.terminal {
			if e.Stdin != nil {
				_, _ = x.in.Write([]byte{4})
			}
			return
		}
		x.in.Close()
	}()
	var wg sync.WaitGroup
	pull := func(from *os.File, to io.Writer) {
		if to == nil {
			to = io.Discard
		}
		wg.Go(func() {
			if _, err := io.Copy(to, from); err != nil {
				_, _ = io.Copy(io.Discard, from) // a reader that went away does not stop the command
			}
		})
	}
	pull(x.out, e.Stdout)
	if x.err != nil {
		pull(x.err, e.Stderr)
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	return done
}

// resize follows the sizes until ctx ends.
func (x *execIO) resize(ctx context.Context, sizes <-chan driver.Size) (ended <-chan struct{}) {
	done := make(chan struct{})
	if !x.terminal || sizes == nil {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		for {
			select {
			case s, ok := <-sizes:
				if !ok {
					return
				}
				_ = pty.Setsize(x.out, &pty.Winsize{Cols: s.Columns, Rows: s.Rows}) // a size that cannot be set is the terminal's loss only
			case <-ctx.Done():
				return
			}
		}
	}()
	return done
}
