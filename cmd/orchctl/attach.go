// sessions attach and sessions exec: a terminal here, a process there.

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// endNews is how long to wait for the news that a session has ended.
const endNews = time.Second

// errDetached ends an attachment that its user left.
var errDetached = errors.New("detached")

func (a *app) attachCommand() *cobra.Command {
	c := a.command("attach SESSION", "Join a session's terminal; Ctrl-P Ctrl-Q leaves it running", exactly(1), streams, func(ctx context.Context, args []string) error {
		s, err := a.findSession(ctx, args[0])
		if err != nil {
			return err
		}
		return a.attach(ctx, s)
	})
	c.Long = `Join a running session's terminal. Ctrl-P Ctrl-Q leaves the session running.

A session of protocol raw has a terminal of its own, and every key goes to it. Any other reads lines: what is typed can
be corrected until Enter sends it, Ctrl-C leaves as Ctrl-P Ctrl-Q does, and Ctrl-D ends the input.`
	c.ValidArgsFunction = a.completeSessions
	return c
}

func (a *app) attach(ctx context.Context, s *apiv1.Session) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	raw := s.GetSpec().GetProtocol() == session.ProtocolRaw
	if isTerminal(a.stdin) {
		a.note("attached to session/" + s.GetId() + "; Ctrl-P Ctrl-Q leaves it running")
	}
	keys := &keys{detach: func() { cancel(errDetached) }}
	t, err := a.openTerminal(ctx, keys, true)
	if err != nil {
		return err
	}
	defer t.close()
	out := a.out()
	if !raw && t.raw() {
		screen := &screen{w: out}
		keys.line, out = &lineEditor{echo: screen}, screen
	}
	t.start(a.stdin)
	exit, err := a.client.Attach(ctx, &apiv1.AttachSessionRequest_Open{Namespace: s.GetNamespace(), SessionId: s.GetId()},
		client.Terminal{Input: t.input, Resize: t.resize, Size: t.size, Stdout: out, Reconnected: func() { t.say("reconnected") }})
	t.close()
	what := "ended"
	if ctx.Err() == nil {
		what, exit, err = a.howItEnded(ctx, s, exit, err)
	}
	switch {
	case errors.Is(context.Cause(ctx), errDetached):
		a.note("detached from session/" + s.GetId() + "; it goes on")
		return nil
	case err != nil:
		return err
	case exit == nil:
		return nil // the input ended, and the session goes on
	case exit.GetCause() == session.CauseCompleted || exit.GetCause() == session.CauseTerminated:
		a.note("session/" + s.GetId() + " " + what + ": " + exitText(exit))
		return nil
	default:
		return &exitError{exitcode.Failed, fmt.Errorf("the session %s: %s; see 'orchctl sessions history %s'", what, exitText(exit), s.GetId())}
	}
}

// howItEnded makes the best of what an attachment ended with: what the session did, and how its process ended.
func (a *app) howItEnded(ctx context.Context, s *apiv1.Session, exit *apiv1.Session_Exit, err error) (string, *apiv1.Session_Exit, error) {
	refused := fault.Is(err, fault.FailedPrecondition) && !session.Phase(s.GetPhase()).Ended()
	switch {
	case exit == nil && (err == nil || refused):
		// Its terminal was closed, or it ended while the attachment was interrupted.
		if last := a.ended(ctx, s); last != nil {
			return "ended", last, nil
		}
	case exit != nil && s.GetSpec().GetRestart() != string(session.RestartNever):
		last := a.ended(ctx, s)
		if last == nil {
			return "is started again, for its process ended", exit, err
		}
		exit = last
	}
	return "ended", exit, err
}

// ended is how a session ended whose terminal was closed; nil when it goes on. The news of an end may come a little after
// the last output.
func (a *app) ended(ctx context.Context, s *apiv1.Session) *apiv1.Session_Exit {
	ctx, cancel := context.WithTimeout(ctx, endNews)
	defer cancel()
	s, err := a.findSession(ctx, s.GetId())
	if err != nil {
		return nil
	}
	if s, err = a.await(ctx, s, func(p session.Phase) bool { return p.Ended() }); err != nil {
		return nil
	}
	return s.GetExit()
}

func (a *app) execCommand() *cobra.Command {
	var tty, stdin bool
	c := a.command("exec SESSION -- COMMAND...", "Run a further command beside a session; exits with the command's code", atLeast(2), streams,
		func(ctx context.Context, args []string) error {
			s, err := a.findSession(ctx, args[0])
			if err != nil {
				return err
			}
			return a.exec(ctx, &apiv1.ExecSessionRequest_Open{Namespace: s.GetNamespace(), SessionId: s.GetId(), Command: args[1:], Tty: tty}, stdin)
		})
	c.Long = `Run a further command beside a running session, in its workspace and with its environment.

The exit code is the command's, and 128 plus the signal's number when a signal ended it. When the command could not be
run at all, a line on standard error that begins with "orchctl:" says why, and the code is orchctl's own.`
	c.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input to the command")
	c.ValidArgsFunction = a.completeSessions
	return c
}

func (a *app) exec(ctx context.Context, open *apiv1.ExecSessionRequest_Open, stdin bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	terminal := client.Terminal{Stdout: a.out(), Stderr: a.stderr}
	if stdin || open.GetTty() {
		t, err := a.openTerminal(ctx, nil, open.GetTty() && stdin)
		if err != nil {
			return err
		}
		defer t.close()
		terminal.Size, terminal.Resize = t.size, t.resize
		if stdin {
			terminal.Input = t.input
			t.start(a.stdin)
		}
	}
	exit, err := a.client.Exec(ctx, open, terminal)
	switch {
	case err != nil:
		return err
	case exit.GetSignal() != "":
		return &exitError{code: 128 + int(unix.SignalNum("SIG"+strings.TrimPrefix(exit.GetSignal(), "SIG")))}
	case exit.GetCause() == session.CauseStartFailed:
		return fault.New(fault.FailedPrecondition, "the command could not be started: %s; check its name and the session's workspace", exitText(exit))
	case exit.GetCode() != 0:
		return &exitError{code: int(exit.GetCode()) & 0xff}
	default:
		return nil
	}
}
