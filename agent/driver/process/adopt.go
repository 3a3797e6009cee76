// Adopting a session that an earlier agent started, or saying how it ended.

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// adoptPatience is how long a shim that lives may take to answer: one that has just been launched listens soon.
const adoptPatience = 5 * time.Second

// Adopt connects to the session's shim and reads the log from where turns may not have been reported. The shim can be
// dialled once the agent before has let go of it, or is dead.
func (d *Driver) Adopt(ctx context.Context, s driver.Start) (driver.Process, error) {
	if err := check(&s); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, adoptPatience)
	defer cancel()
	for {
		lock, err := shim.TryLock(s.Dir)
		switch {
		case err == nil:
			defer shim.Unlock(lock)
			return nil, d.gone(&s)
		case errors.Is(err, os.ErrNotExist):
			return nil, neverStarted()
		case !errors.Is(err, shim.ErrLives):
			return nil, fault.New(fault.Internal, "process: adopt %s: %w", s.SessionID, err)
		}
		if run, err := shim.ReadRun(s.Dir); err == nil && (run.Session != s.SessionID || run.Epoch != s.Epoch) {
			return nil, otherRuns(&s, run)
		}
		client, st, err := connect(ctx, s.Dir)
		if err == nil {
			return d.adopted(s, client, st)
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "process: adopt %s: its shim lives and does not answer: %w", s.SessionID, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// connect subscribes first and asks then: what grows in between is told.
func connect(ctx context.Context, dir string) (*shim.Client, shim.Status, error) {
	client, err := shim.Dial(dir)
	if err != nil {
		return nil, shim.Status{}, err
	}
	err = client.Subscribe(ctx)
	var st shim.Status
	if err == nil {
		st, err = client.Status(ctx)
	}
	if err != nil {
		client.Close()
		return nil, shim.Status{}, err
	}
	return client, st, nil
}

func (d *Driver) adopted(s driver.Start, client *shim.Client, st shim.Status) (driver.Process, error) {
	if st.Session != s.SessionID || st.Epoch != s.Epoch {
		client.Close()
		return nil, otherRuns(&s, &st.Run)
	}
	p, err := d.newProc(s, client, st, group{v2: st.Cgroup2, v1: st.Cgroup1})
	if err != nil {
		client.Close()
		return nil, err
	}
	p.begin()
	return p, nil
}

func otherRuns(s *driver.Start, run *shim.Run) error {
	return fault.New(fault.FailedPrecondition, "process: adopt %s epoch %d: epoch %d of session %s runs in its directory", s.SessionID, s.Epoch, run.Epoch, run.Session)
}

func neverStarted() *driver.Gone {
	return &driver.Gone{Exit: session.Exit{Cause: session.CauseStartFailed, Message: "it had not been started when the agent ended"}}
}

// gone says how a session without a shim ended, with the lock held. Whatever is left of it is killed first.
func (d *Driver) gone(s *driver.Start) error {
	exit, err := d.conclude(s, nil)
	if err != nil {
		return fault.New(fault.Internal, "process: adopt %s: %w", s.SessionID, err)
	}
	if exit == nil {
		return neverStarted()
	}
	g := &driver.Gone{Exit: sessionExit(exit), OutputLine: exit.LastLine}
	t, err := newTurns(s, exit.InputsFrom+1, nil)
	if err != nil {
		return fault.New(fault.Internal, "process: adopt %s: read its log: %w", s.SessionID, err)
	}
	defer t.reader.Close()
	if _, err := t.read(); err != nil {
		return fault.New(fault.Internal, "process: adopt %s: read its log: %w", s.SessionID, err)
	}
	t.settle(turnIdle(s.Spec), exit.Ended)
	g.Turns, g.Outstanding = t.take(), t.open
	return g
}

// settle ends a terminal's turn that was idle for long enough before now, in Unix nanoseconds.
func (t *turns) settle(idle time.Duration, now int64) {
	if t.protocol == session.ProtocolRaw && t.open != 0 && now-t.time >= int64(idle) {
		t.end(t.truncated)
	}
}

// conclude returns the exit record of this epoch, with the shim's lock held. When there is none, because the shim was
// killed, it kills what is left of the tree and writes one; wanted is what was asked of the session before, or nil. It
// returns nil when nothing was ever started.
func (d *Driver) conclude(s *driver.Start, wanted *session.Exit) (*shim.Exit, error) {
	dir := s.Dir
	exit, exitErr := shim.ReadExit(dir)
	if exitErr == nil && exit.Session == s.SessionID && exit.Epoch == s.Epoch {
		recordedGroup(dir).remove()
		return exit, nil
	}
	run, err := shim.ReadRun(dir)
	if err != nil || run.Session != s.SessionID || run.Epoch != s.Epoch {
		// Its shim may have been killed between the fork and the record.
		return nil, shim.Sweep(context.Background(), &shim.Run{Session: s.SessionID, Epoch: s.Epoch})
	}
	e := &shim.Exit{
		Session: run.Session, Epoch: run.Epoch, FirstLine: run.FirstLine, InputsFrom: max(run.FirstLine, 1) - 1,
		Boot: run.Boot, Ended: time.Now().UnixNano(),
	}
	if sameBoot(run.Boot) {
		if err := sweep(context.Background(), run); err != nil {
			return nil, err
		}
		e.Code, e.Signal, e.Cause = 137, "SIGKILL", session.CauseFailed
		e.Message = "its shim was killed, and the process with it" + lastWords(dir)
	} else {
		e.Cause, e.Message = session.CauseLost, "the machine was started anew"
	}
	if wanted != nil {
		e.Cause, e.Message = wanted.Cause, wanted.Message
	}
	if e.LastLine, err = lastLine(LogDir(s.Dir), run.FirstLine); err != nil {
		return nil, err
	}
	if err := shim.WriteExit(dir, e); err != nil {
		d.log.Error("an exit record could not be written", "session", s.SessionID, "error", err)
	}
	return e, nil
}

// recordedGroup is where the session's process was started.
func recordedGroup(dir string) group {
	run, err := shim.ReadRun(dir)
	if err != nil {
		return group{}
	}
	return group{v2: run.Cgroup2, v1: run.Cgroup1}
}

func lastWords(dir string) string {
	said := shim.LastWords(dir)
	if said == "" {
		return ""
	}
	return fmt.Sprintf("; it said: %.200s", said)
}

func sameBoot(boot string) bool {
	now, err := lease.Boot()
	return err != nil || boot == string(now[:]) // when in doubt, look for processes
}

func sessionExit(e *shim.Exit) session.Exit {
	return session.Exit{Code: e.Code, Signal: e.Signal, Cause: e.Cause, Message: e.Message}
}
