// sessions migrate: a running session to another node, with what happens shown while it happens.

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
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
	keyFlag(c, &f.key, "is the same move")
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

// What an interrupt asks, and what is shown of its answer.
const (
	questionText = "go on in the [b]ackground, [r]oll back, or keep [w]atching?"
	rollingBack  = "rolling back …"
)

// ongoingMove is a move that is shown.
type ongoingMove struct {
	*migrationView
	namespace, id string    // of its session
	start         time.Time // of the move, which tells it from a later one
}

// followMigration shows the move that a session is in until it has ended, and returns the session as it is then.
func (a *app) followMigration(ctx context.Context, s *apiv1.Session) (*apiv1.Session, error) {
	m := &ongoingMove{migrationView: a.newMigrationView(s), namespace: s.GetNamespace(), id: s.GetId(), start: s.GetMigration().GetStartTime().AsTime()}
	err := lookOn(ctx, m, question{show: &m.live, text: questionText, key: 'r', ending: rollingBack})
	return m.s, err
}

// watch passes on what the session becomes.
func (m *ongoingMove) watch(ctx context.Context, seen func(*apiv1.Session) error) error {
	return m.a.client.WatchSessions(ctx, &apiv1.WatchSessionsRequest{Namespace: m.namespace, Id: m.id}, func(r *apiv1.WatchSessionsResponse) error {
		switch {
		case r.GetRemoved():
			return fault.New(fault.NotFound, "the session was removed; see 'orchctl events'")
		case r.GetSession() == nil:
			return nil
		}
		return seen(r.GetSession())
	})
}

func (m *ongoingMove) update(s *apiv1.Session) error {
	m.take(s)
	return nil
}

// over reports whether the move has ended. When the session has been moved again since, the figures are those of the later move.
func (m *ongoingMove) over() bool {
	now := m.s.GetMigration()
	return !underWay(now) || !now.GetStartTime().AsTime().Equal(m.start) || session.Phase(m.s.GetPhase()).Ended()
}

// end asks for the move to be cancelled. What it is answered tells whether it can be.
func (m *ongoingMove) end(ctx context.Context) error {
	_, err := m.a.client.Sessions.CancelMigration(ctx, &apiv1.CancelMigrationRequest{Namespace: m.namespace, Id: m.id})
	return err
}

func (m *ongoingMove) left() error {
	return &exitError{exitcode.Failed, fmt.Errorf("interrupted; the move to %s goes on, see 'orchctl sessions get %s', or end it with 'orchctl sessions migrate %s --cancel'",
		m.s.GetMigration().GetTarget(), m.id, m.id)}
}

func (m *ongoingMove) late() error {
	return fault.New(fault.Timeout, "the move to %s is still %s; it goes on, see 'orchctl sessions get %s'", m.s.GetMigration().GetTarget(), m.phase(), m.id)
}
