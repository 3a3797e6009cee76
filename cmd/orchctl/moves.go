// What moves sessions besides migrate: checkpoint, checkpoints, pause, resume, fork, rewind, restore.

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// forksMax is how many sessions one command forks.
const forksMax = 1000

// spreadStrategy is how several forks are placed: who forks many wants many machines at work.
const spreadStrategy = "spread"

// verbFlags are the flags that the verbs share.
type verbFlags struct {
	key, reason string
	wait        bool
}

// verb makes a command that does something to each of several sessions.
func (a *app) verb(use, short, wait string, f *verbFlags, do func(ctx context.Context, s *apiv1.Session) error) *cobra.Command {
	c := a.command(use+" SESSION...", short, atLeast(1), brief, nil)
	c.Flags().BoolVar(&f.wait, "wait", false, wait)
	keyFlag(c, &f.key, "is the same request; for one session")
	c.ValidArgsFunction = a.completeSessions
	c.RunE = a.runner(brief, func(ctx context.Context, args []string) (err error) {
		if f.key != "" && len(args) > 1 {
			return fault.New(fault.Invalid, "--idempotency-key is for one session, not %d; leave it out, or name one", len(args))
		}
		for _, ref := range args {
			// The whole id first: a prefix or a name may mean another session by the time of a repetition.
			s, one := a.findSession(ctx, ref)
			if one == nil {
				one = do(ctx, s)
			}
			err = a.firstError(err, one, ref)
		}
		return err
	})
	return c
}

func (a *app) checkpointCommand() *cobra.Command {
	var f verbFlags
	c := a.verb("checkpoint", "Have a checkpoint made at the end of the current turn", "wait until it is made", &f, func(ctx context.Context, s *apiv1.Session) error {
		r, err := a.client.Sessions.CheckpointSession(ctx, &apiv1.CheckpointSessionRequest{
			Namespace: s.GetNamespace(), Id: s.GetId(), IdempotencyKey: f.key, Wait: f.wait,
		})
		if err != nil {
			return err
		}
		s = r.GetSession()
		sentence := "session/" + s.GetId() + " is asked for a checkpoint"
		if f.wait {
			sentence = "session/" + s.GetId() + " " + checkpointText(s.GetCheckpoint())
		}
		return a.printDone(s, s.GetId(), sentence)
	})
	c.Long = `Have a checkpoint made of a session: its files, its output and the position of its mailbox, at the end of the current turn.
The session works on meanwhile. From its checkpoints a session is restored after a loss of its node, and rewound, forked and moved.`
	return c
}

// checkpointText is a checkpoint in a few words.
func checkpointText(k *apiv1.Session_Checkpoint) string {
	if k == nil {
		return "has no checkpoint"
	}
	return fmt.Sprintf("checkpoint %d: turn %d, %s in %s, %s sent", k.GetSequence(), k.GetTurn(), bytesText(k.GetBytes()), several(k.GetChunks(), "chunk"), bytesText(k.GetBytesSent()))
}

// headText is the head of a session's checkpoints in a few words; empty when there is none.
func (a *app) headText(k *apiv1.Session_Checkpoint) string {
	if k == nil {
		return ""
	}
	return fmt.Sprintf("%d, epoch %d, turn %d, %s in %s (%s ago)", k.GetSequence(), k.GetEpoch(), k.GetTurn(), bytesText(k.GetBytes()), several(k.GetChunks(), "chunk"), a.age(k.GetCreateTime()))
}

// keepsText is what a checkpoint keeps of a session, or what one does keep.
func keepsText(k interface{ GetKeeps() []string }) string { return strings.Join(k.GetKeeps(), " · ") }

// lagText is what a loss of the session's node would cost now; empty when nothing.
func lagText(l *apiv1.Session_Lag) string {
	var parts []string
	if l.GetTurns() > 0 {
		parts = append(parts, several(l.GetTurns(), "turn"))
	}
	if l.GetMessages() > 0 {
		parts = append(parts, several(l.GetMessages(), "message"))
	}
	if l.GetSeconds() > 0 {
		parts = append(parts, millisText(l.GetSeconds()*1000))
	}
	return strings.Join(parts, ", ")
}

// migrationText is a move in a few words.
func (a *app) migrationText(m *apiv1.Session_Migration) string {
	if m == nil {
		return ""
	}
	out := fmt.Sprintf("%s, %s, %s to %s", strings.ToLower(m.GetState().String()), m.GetMode(), m.GetSource(), m.GetTarget())
	if m.GetProgress().GetStep() == stepWaiting {
		out += ", waiting for its turn among other moves"
	}
	if m.GetRounds() > 0 {
		out += fmt.Sprintf(", %s, %s sent, %s saved", several(m.GetRounds(), "round"), bytesText(m.GetBytesSent()), bytesText(m.GetBytesReused()))
	}
	if m.GetState() == apiv1.Session_Migration_DONE {
		out += fmt.Sprintf(", blackout %s of %s", millisText(m.GetBlackoutMs()), millisText(m.GetTotalMs()))
	}
	if m.GetError() != "" {
		out += ": " + m.GetError()
	}
	return out + " (" + a.age(m.GetStartTime()) + " ago)"
}

func (a *app) pauseCommand() *cobra.Command {
	var f verbFlags
	c := a.verb("pause", "Checkpoint sessions and stop them; they hold no node until they are resumed, or sent a message", "wait until nothing of them runs any more", &f,
		func(ctx context.Context, s *apiv1.Session) error {
			r, err := a.client.Sessions.PauseSession(ctx, &apiv1.PauseSessionRequest{Namespace: s.GetNamespace(), Id: s.GetId(), Reason: f.reason, IdempotencyKey: f.key})
			if err != nil {
				return err
			}
			return a.settled(ctx, r.GetSession(), f.wait, func(s *apiv1.Session) bool {
				return s.GetPhase() != apiv1.Session_PAUSING
			}, apiv1.Session_PAUSED)
		})
	c.Flags().StringVar(&f.reason, "reason", "", "why, for the history")
	return c
}

func (a *app) resumeCommand() *cobra.Command {
	var f verbFlags
	return a.verb("resume", "Have paused sessions go on, from their last checkpoints", "wait until they run", &f, func(ctx context.Context, s *apiv1.Session) error {
		r, err := a.client.Sessions.ResumeSession(ctx, &apiv1.ResumeSessionRequest{Namespace: s.GetNamespace(), Id: s.GetId(), IdempotencyKey: f.key})
		if err != nil {
			return err
		}
		return a.settled(ctx, r.GetSession(), f.wait, runsOrEnded, apiv1.Session_RUNNING)
	})
}

// runsOrEnded reports whether a session that is to run does, or never will.
func runsOrEnded(s *apiv1.Session) bool {
	return s.GetPhase() == apiv1.Session_RUNNING || session.Phase(s.GetPhase()).Ended()
}

// settled waits, when asked to, until ready says so, and says what has become of the session. A failure is what comes to
// another phase than was wanted.
func (a *app) settled(ctx context.Context, s *apiv1.Session, wait bool, ready func(*apiv1.Session) bool, want apiv1.Session_Phase) error {
	if wait {
		var err error
		if s, err = a.awaitSession(ctx, s, ready); err != nil {
			return err
		}
	}
	sentence := "session/" + s.GetId() + " is " + s.GetPhase().String()
	if s.GetNode() != "" {
		sentence += " on " + s.GetNode()
	}
	if s.GetReason() != "" {
		sentence += ": " + s.GetReason()
	}
	if err := a.printDone(s, s.GetId(), sentence); err != nil {
		return err
	}
	if wait && s.GetPhase() != want && s.GetPhase() != apiv1.Session_COMPLETED {
		return &exitError{exitcode.Failed, fmt.Errorf("the session is %s, not %s: %s; see 'orchctl sessions history %s'",
			s.GetPhase(), want, first(exitText(s.GetExit()), s.GetReason(), "no reason given"), s.GetId())}
	}
	return nil
}

func (a *app) forkCommand() *cobra.Command {
	var name, key, from, strategy string
	var count int
	var wait bool
	c := a.command("fork SESSION", "Make new sessions that begin with a checkpoint of another one", exactly(1), brief, func(ctx context.Context, args []string) error {
		if count < 1 || count > forksMax {
			return fault.New(fault.Invalid, "--count: %d is outside 1–%d", count, forksMax)
		}
		s, sequence, err := a.findCheckpoint(ctx, args[0], "--from", from)
		if err != nil {
			return err
		}
		if strategy == "" && count > 1 {
			strategy = spreadStrategy
		}
		for i := range count {
			req := &apiv1.ForkSessionRequest{Namespace: s.GetNamespace(), Id: s.GetId(), Sequence: sequence, Name: name, IdempotencyKey: key, Strategy: strategy}
			if count > 1 {
				req.Name, req.IdempotencyKey = numbered(name, i), numbered(key, i)
			}
			if one := a.fork(ctx, req, wait); one != nil {
				err = a.firstError(err, one, fmt.Sprintf("%s (%d of %d)", args[0], i+1, count))
			}
		}
		return err
	})
	c.Long = `Make new sessions that begin with a checkpoint of another one: with its files, its messages that were not answered then, and its
output. No byte is copied. The other session goes on as it is. Several forks are spread over the nodes, unless --strategy says otherwise.`
	c.Example = `  orchctl sessions checkpoint --wait ledger && orchctl sessions fork ledger --name what-if
  orchctl sessions fork ledger --count 8 --name attempt --from 12    # attempt-1 … attempt-8`
	fl := c.Flags()
	fl.StringVar(&name, "name", "", "the new session's name; with --count NAME-1, NAME-2, …")
	fl.IntVar(&count, "count", 1, "how many")
	fl.StringVar(&strategy, "strategy", "", "the placement strategy of the new sessions (default: that of the other one, and "+spreadStrategy+" with --count above 1)")
	fl.StringVar(&from, "from", "", "the checkpoint: its sequence, a time, or how long ago (default: the last one)")
	keyFlag(c, &key, "is the same fork")
	fl.BoolVar(&wait, "wait", false, "wait until they run")
	_ = c.RegisterFlagCompletionFunc("from", a.completeCheckpoints) // it only refuses unknown flags
	c.ValidArgsFunction = a.completeSessions
	return c
}

// numbered is the text with a number; empty stays empty.
func numbered(s string, i int) string {
	if s == "" {
		return ""
	}
	return fmt.Sprintf("%s-%d", s, i+1)
}

func (a *app) fork(ctx context.Context, req *apiv1.ForkSessionRequest, wait bool) error {
	r, err := a.client.Sessions.ForkSession(ctx, req)
	if err != nil {
		return err
	}
	return a.settled(ctx, r.GetSession(), wait, runsOrEnded, apiv1.Session_RUNNING)
}

// findCheckpoint finds a session, and its checkpoint by sequence, time, or age; an empty text is its head, 0.
func (a *app) findCheckpoint(ctx context.Context, ref, flag, text string) (*apiv1.Session, uint64, error) {
	var at time.Time
	sequence, err := strconv.ParseUint(text, 10, 64)
	switch {
	case text == "":
	case err == nil && sequence > 0:
	default:
		if at, err = a.parseTime(text); err != nil {
			return nil, 0, fault.New(fault.Invalid, "%s: %q is neither a checkpoint's sequence nor a time; use for example 12, 10m, or 2026-01-02T15:04:05Z", flag, text)
		}
	}
	s, err := a.findSession(ctx, ref)
	if err != nil || at.IsZero() {
		return s, sequence, err
	}
	r, err := a.client.Sessions.ListCheckpoints(ctx, &apiv1.ListCheckpointsRequest{Namespace: s.GetNamespace(), Id: s.GetId()})
	if err != nil {
		return nil, 0, err
	}
	for _, k := range r.GetCheckpoints() {
		if !k.GetCreateTime().AsTime().After(at) {
			sequence = k.GetSequence()
		}
	}
	if sequence == 0 {
		return nil, 0, fault.New(fault.NotFound, "no checkpoint is kept from %s or before; see 'orchctl sessions checkpoints %s'", at.UTC().Format(time.RFC3339), s.GetId())
	}
	return s, sequence, nil
}

// parseTime reads how long ago, or a time.
func (a *app) parseTime(s string) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return a.now().Add(-d), nil
	}
	return time.Parse(time.RFC3339, s)
}

func (a *app) rewindCommand() *cobra.Command {
	var to, key string
	var wait bool
	c := a.command("rewind SESSION", "Take a session back to one of its checkpoints, under a new epoch", exactly(1), brief, func(ctx context.Context, args []string) error {
		s, sequence, err := a.findCheckpoint(ctx, args[0], "--to", to)
		if err != nil {
			return err
		}
		return a.rewind(ctx, s, sequence, key, wait)
	})
	c.Long = `Take a session back to one of its checkpoints. What runs of it is stopped, and the session goes on from the checkpoint under a new
epoch. What it did since is undone; messages that it has answered since stay answered, and are not delivered again. The
checkpoint becomes the head of the chain once more; later ones are kept, so that a rewind can be taken back by another.`
	fl := c.Flags()
	fl.StringVar(&to, "to", "", "the checkpoint: its sequence, a time, or how long ago (default: the last one)")
	keyFlag(c, &key, "is the same rewind")
	fl.BoolVar(&wait, "wait", false, "wait until it runs")
	_ = c.RegisterFlagCompletionFunc("to", a.completeCheckpoints) // it only refuses unknown flags
	c.ValidArgsFunction = a.completeSessions
	return c
}

func (a *app) rewind(ctx context.Context, s *apiv1.Session, sequence uint64, key string, wait bool) error {
	before := s.GetEpoch()
	r, err := a.client.Sessions.RewindSession(ctx, &apiv1.RewindSessionRequest{Namespace: s.GetNamespace(), Id: s.GetId(), Sequence: sequence, IdempotencyKey: key})
	if err != nil {
		return err
	}
	return a.settled(ctx, r.GetSession(), wait, func(s *apiv1.Session) bool {
		return runsOrEnded(s) && (s.GetEpoch() > before || session.Phase(s.GetPhase()).Ended())
	}, apiv1.Session_RUNNING)
}

func (a *app) restoreSessionCommand() *cobra.Command {
	var f verbFlags
	c := a.verb("restore", "Have sessions that have ended go on from their last checkpoints", "wait until they run", &f, func(ctx context.Context, s *apiv1.Session) error {
		switch {
		case s.GetPhase() == apiv1.Session_PAUSED:
			return fault.New(fault.FailedPrecondition, "the session is paused; 'orchctl sessions resume %s' has it go on", s.GetId())
		case !session.Phase(s.GetPhase()).Ended():
			return fault.New(fault.FailedPrecondition, "the session is %s and has not ended; 'orchctl sessions rewind %s' takes it back to a checkpoint", s.GetPhase(), s.GetId())
		case s.GetCheckpoint() == nil:
			return fault.New(fault.FailedPrecondition, "the session has no checkpoint to go on from; spawn it again, with --checkpoint-every")
		}
		k := s.GetCheckpoint()
		note := fmt.Sprintf("session/%s was %s; it is rewound to checkpoint %d of %s ago, turn %d", s.GetId(), s.GetPhase(), k.GetSequence(), a.age(k.GetCreateTime()), k.GetTurn())
		if n := s.GetLag().GetMessages(); n > 0 {
			note += ", and gets " + several(n, "message") + " again"
		}
		a.note(note)
		return a.rewind(ctx, s, 0, f.key, f.wait)
	})
	c.Long = `Have a session that has ended, failed or not, go on from its last checkpoint, under a new epoch. Messages that it answered after that
checkpoint are delivered again, as after the loss of a node; 'sessions get' shows under Lag how many. Those that it had not answered
became dead letters, and 'dlq retry' sends them.`
	return c
}
