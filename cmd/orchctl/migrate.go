// sessions migrate: a running session to another node, with what happens shown while it happens.

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// The modes of a migration.
const (
	modeLive = "live"
	modeCold = "cold"
)

// migrateFlags are the flags as they were typed.
type migrateFlags struct {
	to, mode, key string
	wait, cancel  bool
}

func (a *app) migrateCommand() *cobra.Command {
	var f migrateFlags
	c := a.command("migrate SESSION", "Move a running session to another node; it works on while it is copied", exactly(1), streams, nil)
	c.Long = `Move a running session to another node.

In mode live what the session has is copied while it works, round by round, until little is left; then its messages wait,
the rest is copied at the end of its turn, and it goes on elsewhere. In mode cold it stands still from the beginning.
Messages that are sent meanwhile are answered after the move; 'logs -f' and 'attach' go on across it.

On a terminal the move is waited for and shown. Ctrl-C then asks: let it go on in the background, or roll it back.
The exit code is 0 when it was done, and 1 when it failed or was rolled back: the session then runs where it was, or says
why not in 'orchctl sessions get'.`
	c.Example = `  orchctl sessions migrate ledger --to node-3
  orchctl sessions migrate ledger --mode cold --wait -o json
  orchctl sessions migrate ledger --cancel`
	fl := c.Flags()
	fl.StringVar(&f.to, "to", "", "the node to move to, by name or id (default: one is chosen)")
	fl.StringVar(&f.mode, "mode", modeLive, "live: copied while it works; cold: it stands still meanwhile")
	fl.BoolVar(&f.wait, "wait", false, "wait until it is done and print its figures (default on a terminal)")
	fl.BoolVar(&f.cancel, "cancel", false, "cancel the move that is under way: the session stays where it is")
	fl.StringVar(&f.key, "idempotency-key", "", "a repetition with the same key is the same move")
	a.complete(c, "mode", modeLive+"\tcopied while it works", modeCold+"\tit stands still meanwhile")
	_ = c.RegisterFlagCompletionFunc("to", a.completeTargets) // it only refuses unknown flags
	c.ValidArgsFunction = a.completeSessions
	c.RunE = a.runner(streams, func(ctx context.Context, args []string) error {
		if !fl.Changed("wait") {
			f.wait = isTerminal(a.stdout)
		}
		switch {
		case f.mode != modeLive && f.mode != modeCold:
			return fault.New(fault.Invalid, "--mode: %q is not a way to migrate; use live or cold", f.mode)
		case f.cancel && (f.to != "" || fl.Changed("mode")):
			return fault.New(fault.Invalid, "--cancel ends the move that is under way; leave out --to and --mode")
		case f.cancel:
			return a.cancelMigration(ctx, args[0], f.key)
		}
		return a.migrate(ctx, args[0], &f)
	})
	return c
}

func (a *app) migrate(ctx context.Context, ref string, f *migrateFlags) error {
	s, err := a.findSession(ctx, ref)
	if err != nil {
		return err
	}
	r, err := a.client.Sessions.MigrateSession(ctx, &apiv1.MigrateSessionRequest{
		Namespace: s.GetNamespace(), Id: s.GetId(), Target: f.to, Mode: f.mode, IdempotencyKey: f.key,
	})
	if err != nil {
		return err
	}
	s = r.GetSession()
	m := s.GetMigration()
	if !f.wait {
		return a.printDone(m, s.GetId(), fmt.Sprintf("session/%s is moving from %s to %s; see 'orchctl sessions get %s'", s.GetId(), m.GetSource(), m.GetTarget(), s.GetId()))
	}
	// Watched from here rather than waited for there, so that it can be shown, and left.
	s, err = a.followMigration(ctx, s)
	switch {
	case errors.Is(err, errBackground):
		a.note(fmt.Sprintf("session/%s goes on moving to %s; see 'orchctl sessions get %s'", s.GetId(), m.GetTarget(), s.GetId()))
		return nil
	case err != nil:
		return err
	}
	return a.printMigrated(s)
}

// errBackground ends the showing of a move whose user has left it to itself.
var errBackground = errors.New("in the background")

func (a *app) cancelMigration(ctx context.Context, ref, key string) error {
	s, err := a.findSession(ctx, ref)
	if err != nil {
		return err
	}
	r, err := a.client.Sessions.CancelMigration(ctx, &apiv1.CancelMigrationRequest{Namespace: s.GetNamespace(), Id: s.GetId(), IdempotencyKey: key})
	if err != nil {
		return err
	}
	s = r.GetSession()
	return a.printDone(s.GetMigration(), s.GetId(), fmt.Sprintf("session/%s stays on %s", s.GetId(), first(s.GetNode(), s.GetMigration().GetSource())))
}

// underWay reports whether a move goes on.
func underWay(m *apiv1.Session_Migration) bool {
	return m.GetState() == apiv1.Session_Migration_COPYING || m.GetState() == apiv1.Session_Migration_MOVING
}

// printMigrated prints the figures of a move that has ended; one that was not done is an error.
func (a *app) printMigrated(s *apiv1.Session) error {
	m := s.GetMigration()
	var err error
	switch a.flags.output {
	case "json", "yaml", "name":
		err = a.printDone(m, s.GetId(), "")
	default:
		if m.GetState() == apiv1.Session_Migration_DONE {
			err = a.printFields(migrationFigures(m))
		}
	}
	if err != nil || m.GetState() == apiv1.Session_Migration_DONE {
		return err
	}
	where := "it is " + s.GetPhase().String()
	if s.GetPhase() == apiv1.Session_RUNNING {
		where = "the session goes on on " + s.GetNode()
	}
	what := "the move to " + m.GetTarget() + " failed"
	if m.GetState() == apiv1.Session_Migration_CANCELLED {
		what = "the move to " + m.GetTarget() + " was rolled back"
	}
	if m.GetError() != "" {
		what += " (" + m.GetError() + ")"
	}
	return &exitError{exitcode.Failed, fmt.Errorf("%s; %s; see 'orchctl sessions history %s'", what, where, s.GetId())}
}

// migrationFigures are what a move came to.
func migrationFigures(m *apiv1.Session_Migration) []field {
	return []field{
		{label: "Source", value: m.GetSource()}, {label: "Target", value: m.GetTarget()}, {label: "Mode", value: m.GetMode()},
		{label: "Rounds", value: number(m.GetRounds())}, {label: "Bytes sent", value: bytesText(m.GetBytesSent())}, {label: "Bytes saved", value: savedText(m)},
		{label: "Blackout", value: millisText(m.GetBlackoutMs())}, {label: "Total", value: millisText(m.GetTotalMs())}, {label: "Epoch", value: number(m.GetEpoch())},
	}
}

// savedText is what did not need to be sent, and which part of all that is.
func savedText(m *apiv1.Session_Migration) string {
	all := m.GetBytesSent() + m.GetBytesReused()
	if m.GetBytesReused() == 0 || all == 0 {
		return bytesText(m.GetBytesReused())
	}
	share := math.Floor(1000*float64(m.GetBytesReused())/float64(all)) / 10 // not all, when it is not all
	return bytesText(m.GetBytesReused()) + " (" + strconv.FormatFloat(share, 'f', -1, 64) + "%)"
}

// follower shows a move until it has ended.
type follower struct {
	a     *app
	ctx   context.Context // of the watch and of what is asked meanwhile; an interrupt does not end it
	s     *apiv1.Session  // as it was seen last
	show  *migrationView
	tasks sync.WaitGroup

	updates   chan *apiv1.Session
	watched   chan error // why the watch ended
	cancelled chan error // what a cancellation was answered
	ask       question
}

// followMigration shows the move that a session is in until it has ended, and returns the session as it is then.
func (a *app) followMigration(ctx context.Context, s *apiv1.Session) (*apiv1.Session, error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &follower{
		a: a, ctx: own, s: s, show: a.newMigrationView(s), updates: make(chan *apiv1.Session), watched: make(chan error, 1), cancelled: make(chan error, 1),
	}
	f.ask = question{show: &f.show.live, text: questionText, key: 'r', end: f.rollBack}
	defer func() {
		f.ask.close()
		cancel()
		f.tasks.Wait()
		f.show.s = f.s
		f.show.leave()
	}()
	if errors.Is(ctx.Err(), context.Canceled) && !pending(signals) { // by a signal that came before it was listened for here
		return s, f.left()
	}
	f.tasks.Go(f.watch)
	return f.run(ctx, signals)
}

// pending reports whether a signal waits, or comes at once: those who listen hear of one after the other.
func pending(signals chan os.Signal) bool {
	select {
	case sig := <-signals:
		signals <- sig
		return true
	case <-time.After(signalSkew):
		return false
	}
}

// signalSkew is by how much one listener may hear of a signal before another.
const signalSkew = 50 * time.Millisecond

// watch passes on what the session becomes.
func (f *follower) watch() {
	f.watched <- f.a.client.WatchSessions(f.ctx, &apiv1.WatchSessionsRequest{Namespace: f.s.GetNamespace(), Id: f.s.GetId()}, func(m *apiv1.WatchSessionsResponse) error {
		if m.GetRemoved() {
			return fault.New(fault.NotFound, "the session was removed; see 'orchctl events'")
		}
		if m.GetSession() == nil {
			return nil
		}
		select {
		case f.updates <- m.GetSession():
			return nil
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	})
}

func (f *follower) run(ctx context.Context, signals <-chan os.Signal) (*apiv1.Session, error) {
	began := f.s.GetMigration().GetStartTime().AsTime()
	// The session may have been moved again since; its figures are then those of the later move.
	mine := func() bool { return f.s.GetMigration().GetStartTime().AsTime().Equal(began) }
	expired := ctx.Done()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for underWay(f.s.GetMigration()) && mine() && !session.Phase(f.s.GetPhase()).Ended() {
		select {
		case f.s = <-f.updates:
			f.show.update(f.s)
		case <-tick.C:
			f.show.tick()
		case err := <-f.watched:
			return f.s, err
		case err := <-f.cancelled:
			if err != nil {
				f.show.say(err.Error())
			}
		case sig := <-signals:
			if sig != os.Interrupt || !f.ask.ask(f.ctx) {
				return f.s, f.left()
			}
		case typed := <-f.ask.keys():
			if f.ask.answer(typed) {
				return f.s, errBackground
			}
		case <-expired:
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return f.s, fault.New(fault.Timeout, "the move to %s is still %s; it goes on, see 'orchctl sessions get %s'", f.s.GetMigration().GetTarget(), f.show.phase(), f.s.GetId())
			}
			expired = nil // a signal, which comes by its own channel
		}
	}
	return f.s, nil
}

// left is the error of somebody who was interrupted.
func (f *follower) left() error {
	return &exitError{exitcode.Failed, fmt.Errorf("interrupted; the move to %s goes on, see 'orchctl sessions get %s', or end it with 'orchctl sessions migrate %s --cancel'",
		f.s.GetMigration().GetTarget(), f.s.GetId(), f.s.GetId())}
}

// The answers to what is to become of a move.
const (
	questionText = "go on in the [b]ackground, [r]oll back, or keep [w]atching?"
	rollingBack  = "rolling back …"
)

// rollBack asks for the move to be cancelled. Whether it can be is told by f.cancelled.
func (f *follower) rollBack() {
	f.show.say(rollingBack)
	req := &apiv1.CancelMigrationRequest{Namespace: f.s.GetNamespace(), Id: f.s.GetId()}
	f.tasks.Go(func() {
		_, err := f.a.client.Sessions.CancelMigration(f.ctx, req)
		select {
		case f.cancelled <- err:
		case <-f.ctx.Done():
		}
	})
}
