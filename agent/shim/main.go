// The shim's process: from its first frame to its exit code.

package shim

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/outputlog"
)

// HiddenArg as the first argument makes a program that calls MainIfRequested a shim.
const HiddenArg = "__shim"

// controlFD is a socket to the agent that launched the shim. Its standard error is the state file, locked.
const controlFD = 3

// MainIfRequested turns the calling program into a shim when its first argument is HiddenArg, and then does not return.
// It must be the first thing that main does.
func MainIfRequested() {
	if len(os.Args) > 1 && os.Args[1] == HiddenArg {
		os.Exit(Main())
	}
}

// Main is a shim from start to end; it returns the exit code of its process. The agent launches it with Launch.
func Main() int {
	// This thread forks the main process and lives as long as the shim: the process dies with it.
	runtime.LockOSThread()
	unix.CloseOnExec(controlFD)
	if err := unix.SetNonblock(controlFD, true); err != nil {
		fmt.Fprintln(os.Stderr, "shim: this program is started by a node agent, not by hand")
		return 2
	}
	control := newConn(os.NewFile(controlFD, "control"))
	control.control = true
	first, err := readFrame(control.f)
	if err != nil || first.typ != typeStart {
		fmt.Fprintln(os.Stderr, "shim: no parameters came:", err)
		return 2
	}
	s, refusal := setUp(control, first)
	if refusal != nil {
		var f fields
		f.num(tagErrorCode, uint64(refusal.Code))
		f.str(tagMessage, refusal.Message)
		_, _ = control.f.Write(encodeFrame(typeError, first.request, f)) // the agent sees the end if not this
		return 1
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.run()
	}()
	s.reap()
	<-ended
	return 0
}

// setUp does everything that can fail before the session runs, starts it, and answers.
func setUp(control *conn, first frame) (*session, *Error) {
	p, err := decodeParams(first.payload)
	if err != nil {
		return nil, refuse(CodeInvalid, "parameters: %v", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, refuse(CodeInternal, "become the reaper of descendants: %v", err)
	}
	watch, err := lease.NewWatch(p.Lease)
	if err != nil {
		return nil, refuse(CodeInternal, "%v", err)
	}
	if err := watch.Held(); err != nil {
		return nil, refuse(CodeLapsed, "%v", err)
	}
	boot := watch.Boot()
	s := newSession(p, control, watch)
	s.run0 = Run{Session: p.Session, Epoch: p.Epoch, Boot: string(boot[:]), Cgroup2: p.Cgroup2, Cgroup1: p.Cgroup1}
	if !p.Exec {
		s.log, err = outputlog.Open(p.LogDir, outputlog.Options{Epoch: p.Epoch, Base: p.Base, SegmentBytes: p.SegmentBytes, TotalBytes: p.TotalBytes})
		if err != nil {
			return nil, refuse(CodeLog, "%v", err)
		}
		s.run0.FirstLine = s.log.Last() + 1
	}
	// A lease that the node was given since was not given for this start: the session may be elsewhere by now.
	if p.StartBy != 0 && lease.Now() >= p.StartBy {
		return nil, refuse(CodeLapsed, "the lease under which the start was ordered has ended")
	}
	if s.child, err = startChild(p); err != nil {
		return nil, refuse(CodeStartFailed, "%v", err)
	}
	if err := s.recordRun(); err != nil {
		killAndReap()
		return nil, refuse(CodeInternal, "%v", err)
	}
	control.subscribed = true
	_, _ = control.f.Write(encodeFrame(typeOK, first.request, s.started())) // an agent that is gone will come back by the socket
	return s, nil
}

// killAndReap leaves nothing below the shim, for a session that could not be set up after its process had started.
func killAndReap() {
	for {
		killDescendants()
		if _, err := unix.Wait4(-1, nil, unix.WALL, nil); err == unix.ECHILD {
			return
		}
	}
}

// recordRun writes down what a sweep needs, should the shim be killed.
func (s *session) recordRun() (err error) {
	r := &s.run0
	r.Started = time.Now().UnixNano()
	if r.Process, err = Identify(s.child.pid); err != nil {
		return err
	}
	if r.Shim, err = Identify(os.Getpid()); err != nil {
		return err
	}
	if s.p.Exec {
		return nil
	}
	if err := writeRecord(".", slotRun, r.encode(), false); err != nil {
		return fmt.Errorf("write the run record: %w", err)
	}
	return nil
}

func (s *session) started() fields {
	var f fields
	f.num(tagPID, uint64(s.run0.Process.PID))
	f.num(tagStartTime, s.run0.Process.Start)
	f.num(tagStarted, uint64(s.run0.Started))
	f.num(tagLine, s.lastLine())
	f.num(tagFirstLine, s.run0.FirstLine)
	f.num(tagShimPID, uint64(s.run0.Shim.PID))
	f.num(tagShimStart, s.run0.Shim.Start)
	return f
}

// reap collects every descendant that ends, on the shim's main thread, and returns when there is none left.
func (s *session) reap() {
	defer close(s.none)
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // ECHILD: nothing lives below the shim
			return
		case pid == s.child.pid && (ws.Exited() || ws.Signaled()):
			s.mainEnded <- ws // has room for the one
		}
	}
}
