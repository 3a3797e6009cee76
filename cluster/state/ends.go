// Ends: what becomes of a session whose process ended or whose node was lost.

package state

import (
	"fmt"
	"math"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// end moves a session into a phase that only a rewind leaves. What waits in its mailbox becomes dead letters; results stay. Messages
// that were answered after its last checkpoint are kept as long as the session is, for whoever restores it from there.
func (a *applier) end(old, s *session.Session, phase session.Phase, reason string) {
	s.EndTime = a.meta.time
	s.Captured, s.Left, s.Move, s.RewindTo = nil, false, 0, 0
	a.migrated(s, session.MigrationFailed, "the session ended: "+reason)
	if s.Head() == nil || a.meta.stats.MessageBytes > a.limits.MessageBytes/2 {
		a.release(s.ID, ^uint64(0)) // nothing to restore it from; or what lives needs the room
	}
	a.enter(s, phase, reason)
	a.save(old, s)
	a.buryAll(s, fmt.Sprintf("session ended: %s: %s", phase, s.Reason))
}

// exited is told that the process of a session and its whole tree are gone, and how.
func (a *applier) exited(old *session.Session, e *nodev1.Exited) {
	exit := a.exitOf(pbconv.ExitFromProto(e.GetExit()))
	s := *old
	a.forgive(&s)
	s.PID = 0
	s.OutputLine = max(s.OutputLine, e.GetOutputLine())
	a.takeBack(&s, e.GetOutstanding(), exit)
	how := describe(exit)
	if a.waits(old, &s, e.GetUnreachable(), how) || a.wentOn(old, &s, exit, how) {
		return
	}
	if s.Phase == session.Terminating {
		exit.Cause = s.StopCause
		s.Exit = &exit
		a.endWith(old, &s, session.Ended, s.Reason+"; "+how)
		return
	}
	s.Exit = &exit
	clean := exit.Cause == session.CauseCompleted
	again := s.Spec.Restart == session.RestartAlways || s.Spec.Restart == session.RestartOnFailure && !clean
	row := s.RestartsInRow()
	switch {
	case again && row < s.Spec.MaxRestarts:
		s.Restarts++
		delay := session.RestartDelay(row + 1)
		s.NotBefore = a.meta.time + int64(delay)
		a.retry(old, &s, fmt.Sprintf("%s; restart %d of %d in %s", how, row+1, s.Spec.MaxRestarts, delay))
	case clean && again:
		a.endWith(old, &s, session.Complete, fmt.Sprintf("%s; its %d restarts are used up", how, row))
	case clean:
		a.endWith(old, &s, session.Complete, how)
	case again:
		a.endWith(old, &s, session.Fail, fmt.Sprintf("%s; its %d restarts are used up", how, row))
	default:
		a.endWith(old, &s, session.Fail, how)
	}
}

// forgive counts the restarts of a session, not shared yet, anew when the epoch that ends was a healthy run. One that moves or
// pauses is one, too.
func (a *applier) forgive(s *session.Session) {
	ran := s.Phase != session.Starting && s.Phase != session.Restoring // else StartTime is of an epoch before
	if ran && a.meta.time-s.StartTime >= int64(session.HealthyRun) {
		s.RestartsForgiven = s.Restarts
	}
}

// lost is told that the node of a session is gone, and so is its process. It is not counted as a restart: the session
// has no part in it.
func (a *applier) lost(old *session.Session, node, reason string) {
	exit := session.Exit{Code: -1, Cause: session.CauseLost, Message: a.reason("node " + node + " was lost: " + reason)}
	s := *old
	a.forgive(&s)
	s.PID = 0
	a.takeBack(&s, 0, exit)
	if s.Phase == session.Terminating {
		exit.Cause = s.StopCause
		s.Exit = &exit
		a.endWith(old, &s, session.Ended, s.Reason+"; "+exit.Message)
		return
	}
	if a.wentOn(old, &s, exit, exit.Message) {
		return
	}
	s.Exit = &exit
	if s.Spec.Restart == session.RestartNever {
		a.endWith(old, &s, session.Fail, exit.Message)
		return
	}
	s.NotBefore = a.meta.time
	a.retry(old, &s, exit.Message+"; starting again")
}

// waits has a session tried again, for as long as it takes, that could not be restored because the chunk store was out of reach: it
// is none the worse for that.
func (a *applier) waits(old, s *session.Session, unreachable bool, how string) bool {
	if s.Phase != session.Restoring || !unreachable {
		return false
	}
	a.migrated(s, session.MigrationFailed, "it could not be restored on its target: "+how)
	s.RestoreFailures = min(s.RestoreFailures, math.MaxUint16-1) + 1
	s.NotBefore = a.meta.time + int64(session.RestartDelay(uint32(s.RestoreFailures)))
	a.retry(old, s, fmt.Sprintf("could not be restored yet (attempt %d): %s", s.RestoreFailures, how))
	return true
}

// wentOn brings a session on whose process was ended for the sake of the next epoch, or whose restore failed; false when
// the end is one of its own.
func (a *applier) wentOn(old, s *session.Session, exit session.Exit, how string) bool {
	switch {
	case s.Phase == session.Terminating:
		return false
	case s.Left:
		a.arrive(old, s)
		return true
	case s.Phase == session.Pausing && s.RewindTo != 0:
		from := s.Checkpoint(s.RewindTo)
		if from == nil {
			from = s.Head()
		}
		a.rewound(s, from)
		s.NotBefore = a.meta.time
		a.retry(old, s, s.Reason)
		return true
	}
	a.migrated(s, session.MigrationFailed, "the session's process ended: "+how)
	if s.RestoreFailures >= restoreAttempts { // those were of a store that was out of reach
		s.RestoreFailures = 0
	}
	unrestored := s.Phase == session.Restoring && (exit.Cause == session.CauseStartFailed || exit.Cause == session.CauseLost)
	if unrestored && s.RestoreFailures+1 < restoreAttempts {
		s.RestoreFailures++
		s.NotBefore = a.meta.time
		if exit.Cause == session.CauseStartFailed {
			s.NotBefore += int64(session.RestartDelay(uint32(s.RestoreFailures)))
		}
		a.retry(old, s, fmt.Sprintf("could not be restored (%d of %d attempts): %s", s.RestoreFailures, restoreAttempts, how))
		return true
	}
	s.Move, s.RewindTo = 0, 0
	return false
}

func (a *applier) endWith(old, s *session.Session, event session.Event, reason string) {
	if to, ok := session.Next(s.Phase, event); ok {
		a.end(old, s, to, reason)
	}
}

func (a *applier) retry(old, s *session.Session, reason string) {
	if to, ok := session.Next(s.Phase, session.Retry); ok {
		a.goBack(s)
		a.enter(s, to, reason)
		a.save(old, s)
	}
}

// describe says in a few words how a process ended.
func describe(e session.Exit) string {
	how := fmt.Sprintf("%s: exit code %d", e.Cause, e.Code)
	if e.Signal != "" {
		how = fmt.Sprintf("%s: %s", e.Cause, e.Signal)
	}
	if e.Message != "" {
		how += " (" + e.Message + ")"
	}
	return how
}

// exitOf turns what a node says of an end into one of the causes that there are.
func (a *applier) exitOf(e *session.Exit) session.Exit {
	if e == nil {
		return session.Exit{Code: -1, Cause: session.CauseFailed, Message: "the node did not say how it ended"}
	}
	x := session.Exit{Code: e.Code, Signal: a.intern.str(clip(e.Signal, 32)), Message: a.reason(e.Message)}
	switch e.Cause {
	case session.CauseCompleted, session.CauseFailed, session.CauseOOMKilled, session.CauseEvicted, session.CauseLost,
		session.CauseStartFailed, session.CauseTerminated, session.CauseExpired:
		x.Cause = a.intern.str(e.Cause)
	default:
		x.Cause = session.CauseFailed
		if e.Code == 0 && e.Signal == "" {
			x.Cause = session.CauseCompleted
		}
	}
	return x
}
