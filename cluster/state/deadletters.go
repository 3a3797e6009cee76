// Dead letters: messages that were given up, until somebody retries or purges them.

package state

import (
	"fmt"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// bury makes messages of a session dead letters.
func (a *applier) bury(s *session.Session, messages []*session.Message, cause string) {
	cause = a.reason(cause)
	mb := a.openMailbox(s.ID)
	for _, m := range messages {
		a.unlist(mb, m)
		mb.Dead++
		a.meta.dead++
		a.meta.stats.DeadLetters++
		a.meta.stats.DeadLetterBytes += uint64(len(m.Text))
		d := &session.DeadLetter{Message: *m, Namespace: s.Spec.Namespace, Cause: cause, Time: a.meta.time}
		d.Delivered, d.DeliveredEpoch = false, 0
		a.dead.put(letterKey(d), &deadRow{d, a.meta.dead})
		if a.buried == nil {
			a.buried = make(map[LetterKey]*session.DeadLetter)
		}
		a.buried[letterKey(d)] = d
	}
	a.mailboxes.put(s.ID, mb)
	what := fmt.Sprintf("message %d", messages[0].Sequence)
	if len(messages) > 1 {
		what = fmt.Sprintf("%d messages, message %d first,", len(messages), messages[0].Sequence)
	}
	a.event(Event{
		Type: "message.dead", Namespace: s.Spec.Namespace, SessionID: s.ID, Epoch: s.Epoch,
		Message: what + " became dead letters: " + cause,
	})
}

// buryAll buries whatever a session's mailbox holds.
func (a *applier) buryAll(s *session.Session, cause string) {
	if mb := a.mailboxes.get(a.base, s.ID); mb == nil || mb.Queued+mb.Delivered == 0 {
		return
	}
	a.bury(s, a.messagesOf(s.ID), cause)
}

// buryMessages gives up queued messages. What is with a process, or gone, is left alone.
func (a *applier) buryMessages(c *clusterv1.BuryMessages) (uint32, error) {
	s := a.sessions.get(a.base, c.GetSessionId())
	if s == nil {
		return 0, noSession(c.GetSessionId())
	}
	var found []*session.Message
	named := make(map[uint64]bool, len(c.GetSequences()))
	for _, seq := range c.GetSequences() {
		if m := a.message(s.ID, seq); m != nil && !m.Delivered && !named[seq] {
			named[seq] = true
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		return 0, nil
	}
	cause := c.GetCause()
	if cause == "" {
		cause = "given up"
	}
	a.bury(s, found, cause)
	return uint32(len(found)), nil
}

// dig takes a dead letter out of the table.
func (a *applier) dig(d *deadRow) {
	a.dead.put(letterKey(d.letter), nil)
	a.meta.stats.DeadLetters--
	a.meta.stats.DeadLetterBytes -= uint64(len(d.letter.Text))
	if a.mailboxes.get(a.base, d.letter.SessionID) != nil {
		mb := a.openMailbox(d.letter.SessionID)
		mb.Dead--
		a.mailboxes.put(mb.SessionID, mb)
	}
}

// letters returns the dead letters of a session (empty: all), or the one with the sequence, in order of their keys.
func (a *applier) letters(sessionID string, sequence uint64) []*deadRow {
	if sequence != 0 {
		if d := a.dead.get(a.base, LetterKey{sessionID, sequence}); d != nil {
			return []*deadRow{d}
		}
		return nil
	}
	if len(a.dead.dirty) > 0 {
		a.flush()
	}
	var prefix []byte
	if sessionID != "" {
		prefix = mailboxPrefix(sessionID)
	}
	var all []*deadRow
	prefixed(a.base, tableDead, prefix, func(d *deadRow) bool {
		all = append(all, d)
		return true
	})
	return all
}

// hasLetters reports whether there are dead letters of a session, there or not.
func (a *applier) hasLetters(sessionID string) bool {
	return a.meta.stats.DeadLetters > 0 && len(a.letters(sessionID, 0)) > 0
}

// retryDeadLetters puts dead letters back into the mailbox, with their old places, no deadline and all attempts anew.
// All that are named come back, or none does.
func (a *applier) retryDeadLetters(c *clusterv1.RetryDeadLetters) (uint32, error) {
	s := a.sessions.get(a.base, c.GetSessionId())
	if s == nil {
		return 0, noSession(c.GetSessionId())
	}
	if s.Phase.Ended() || s.Phase == session.Terminating {
		return 0, fault.New(fault.FailedPrecondition, "retry: session %s is %s and takes no messages; purge its dead letters, or send them to another session", s.ID, s.Phase)
	}
	rows := a.letters(s.ID, c.GetSequence())
	if len(rows) == 0 && c.GetSequence() != 0 {
		return 0, fault.New(fault.NotFound, "retry: message %d of session %s is not a dead letter", c.GetSequence(), s.ID)
	}
	var bytes uint64
	for _, d := range rows {
		bytes += uint64(len(d.letter.Text))
	}
	if err := a.room(a.openMailbox(s.ID), len(rows), bytes); err != nil {
		return 0, err
	}
	for _, d := range rows {
		a.dig(d)
		m := d.letter.Message
		m.Attempts, m.Deadline = 0, 0
		mb := a.openMailbox(s.ID)
		a.enqueue(mb, &m)
		a.mailboxes.put(s.ID, mb)
	}
	if len(rows) > 0 {
		a.event(Event{Type: "deadletter.retried", Namespace: s.Spec.Namespace, SessionID: s.ID, Message: fmt.Sprintf("%d dead letters went back into the mailbox", len(rows))})
	}
	return uint32(len(rows)), nil
}

// purgeDeadLetters forgets dead letters: of a namespace (empty: of all), of a session (empty: of all), or one of them.
func (a *applier) purgeDeadLetters(c *clusterv1.PurgeDeadLetters) (uint32, error) {
	if c.GetSequence() != 0 && c.GetSessionId() == "" {
		return 0, fault.New(fault.Invalid, "purge: message %d of which session? give its id", c.GetSequence()).WithField("session_id")
	}
	var n uint32
	for _, d := range a.letters(c.GetSessionId(), c.GetSequence()) {
		if c.GetNamespace() == "" || c.GetNamespace() == d.letter.Namespace {
			a.dig(d)
			n++
		}
	}
	if n == 0 && c.GetSequence() != 0 {
		return 0, fault.New(fault.NotFound, "purge: message %d of session %s is not a dead letter", c.GetSequence(), c.GetSessionId())
	}
	if n > 0 {
		a.event(Event{Type: "deadletter.purged", Namespace: c.GetNamespace(), SessionID: c.GetSessionId(), Message: fmt.Sprintf("%d dead letters were purged", n)})
	}
	return n, nil
}

// boundDeadLetters lets the oldest dead letters go when there are too many, and says so.
func (a *applier) boundDeadLetters() {
	over := func() bool {
		return a.meta.stats.DeadLetters > uint64(a.limits.DeadLetters) || a.meta.stats.DeadLetterBytes > a.limits.DeadLetterBytes
	}
	if !over() {
		return
	}
	a.flush()
	var n uint64
	from(a.base, tableDead, byNumber, numberBytes(0), func(d *deadRow) bool {
		a.dig(d)
		n++
		return over()
	})
	a.meta.stats.DeadLettersDropped += n
	a.event(Event{Type: "deadletter.dropped", Message: fmt.Sprintf("the %d oldest dead letters were dropped to keep within %d letters and %d bytes", n, a.limits.DeadLetters, a.limits.DeadLetterBytes)})
}
