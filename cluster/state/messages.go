// Messages: a session's mailbox from the send to the ack.

package state

import (
	"fmt"
	"slices"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// sendMessage puts a message into a session's mailbox.
func (a *applier) sendMessage(c *clusterv1.SendMessage) Result {
	key := idempotencyKey{keySend, c.GetSessionId(), c.GetIdempotencyKey()}
	if known, err := a.seen(key, c.GetRequestHash()); err != nil {
		return Result{Err: err}
	} else if known != nil {
		return Result{Session: a.sessions.get(a.base, known.sessionID), Sequence: known.sequence, Duplicate: true}
	}
	s := a.sessions.get(a.base, c.GetSessionId())
	if s == nil {
		return Result{Err: noSession(c.GetSessionId())}
	}
	priority := session.Priority(c.GetPriority())
	if c.GetPriority() == apiv1.Priority_PRIORITY_UNSPECIFIED {
		priority = session.Normal
	}
	mb := a.openMailbox(s.ID)
	if err := a.checkSend(s, mb, c, priority); err != nil {
		return Result{Err: err}
	}
	m := &session.Message{
		SessionID: s.ID, Sequence: mb.NextSequence, Priority: priority, Text: c.GetText(),
		CreateTime: a.meta.time, Deadline: c.GetDeadline(),
	}
	mb.NextSequence++
	a.enqueue(mb, m)
	a.mailboxes.put(s.ID, mb)
	key.owner = s.ID // the one that is shared
	a.remember(key, c.GetRequestHash(), s.ID, m.Sequence)
	if s.Phase == session.Paused {
		awake := *s
		a.wake(&awake, fmt.Sprintf("woken by message %d", m.Sequence), "")
		a.save(s, &awake)
		s = &awake
	}
	return Result{Session: s, Sequence: m.Sequence}
}

func (a *applier) checkSend(s *session.Session, mb *mailboxRow, c *clusterv1.SendMessage, priority session.Priority) error {
	switch {
	case s.Phase.Ended():
		return fault.New(fault.FailedPrecondition, "send: session %s has ended: %s: %s", s.ID, s.Phase, s.Reason)
	case s.Phase == session.Terminating:
		return fault.New(fault.FailedPrecondition, "send: session %s is ending: %s", s.ID, s.Reason)
	case priority < session.Critical || priority > session.Low:
		return fault.New(fault.Invalid, "send: %d is not a priority; use critical, high, normal or low", c.GetPriority()).WithField("priority")
	case c.GetDeadline() != 0 && c.GetDeadline() <= a.meta.time:
		return fault.New(fault.Timeout, "send: the message's deadline has passed; it was not accepted")
	}
	if err := s.Spec.ValidateMessage(c.GetText()); err != nil {
		return err
	}
	if err := a.room(mb, 1, uint64(len(c.GetText()))); err != nil {
		return err
	}
	return a.roomForKey(c.GetIdempotencyKey())
}

// room says why so many more messages and bytes would not fit; nil when they do.
func (a *applier) room(mb *mailboxRow, messages int, bytes uint64) error {
	waiting := int(mb.Queued) + int(mb.Delivered) + int(mb.Kept)
	full := func(format string, args ...any) error {
		return fault.New(fault.Exhausted, format, args...).WithRetry(a.limits.RetryAfter)
	}
	switch {
	case waiting+messages > a.limits.MailboxMessages:
		return full("send: the mailbox of session %s holds %d messages, its limit is %d; wait until some are answered", mb.SessionID, waiting, a.limits.MailboxMessages)
	case mb.Bytes+bytes > a.limits.MailboxBytes:
		return full("send: the mailbox of session %s holds %d bytes, its limit is %d; wait until some are answered", mb.SessionID, mb.Bytes, a.limits.MailboxBytes)
	case a.meta.stats.MessageBytes+bytes > a.limits.MessageBytes:
		return full("send: the cluster's mailboxes hold %d bytes, their limit is %d", a.meta.stats.MessageBytes, a.limits.MessageBytes)
	}
	return nil
}

// openMailbox returns a session's mailbox to be changed and put back: a copy, or the one that this entry has put already.
func (a *applier) openMailbox(id string) *mailboxRow {
	old, own := a.mailboxes.own(a.base, id)
	if own {
		return old
	}
	if old != nil {
		mb := *old
		mb.own()
		return &mb
	}
	return &mailboxRow{Mailbox: session.Mailbox{SessionID: id, NextSequence: 1}}
}

// enqueue adds a message, not shared yet, to the queue.
func (a *applier) enqueue(mb *mailboxRow, m *session.Message) {
	mb.Queued++
	mb.Bytes += uint64(len(m.Text))
	a.meta.stats.Messages++
	a.meta.stats.MessageBytes += uint64(len(m.Text))
	mb.put(m)
	a.queued = append(a.queued, m)
}

// unlist takes a message out of the mailbox.
func (a *applier) unlist(mb *mailboxRow, m *session.Message) {
	a.left = true
	if m.Delivered {
		mb.Delivered--
	} else {
		mb.Queued--
	}
	mb.Bytes -= uint64(len(m.Text))
	a.meta.stats.Messages--
	a.meta.stats.MessageBytes -= uint64(len(m.Text))
	mb.take(m)
	mb.tidy()
}

// message returns the message with the sequence; nil when it has ended.
func (a *applier) message(id string, sequence uint64) *session.Message {
	return a.mailboxes.get(a.base, id).find(sequence)
}

// messagesOf returns a session's messages in the order of delivery.
func (a *applier) messagesOf(id string) []*session.Message {
	return slices.Collect(a.mailboxes.get(a.base, id).all())
}

// handOver marks a message as handed to the session's process.
func (a *applier) handOver(mb *mailboxRow, s *session.Session, m *session.Message) {
	a.left = true
	d := *m
	d.Delivered, d.DeliveredEpoch = true, s.Epoch
	d.Attempts++
	mb.Queued--
	mb.Delivered++
	mb.take(m)
	mb.put(&d)
}

// delivered is told that a message was written to the process.
func (a *applier) delivered(s *session.Session, sequence uint64) {
	m := a.message(s.ID, sequence)
	if m == nil || m.Delivered {
		return
	}
	mb := a.openMailbox(s.ID)
	a.handOver(mb, s, m)
	a.mailboxes.put(s.ID, mb)
}

// turnEnded acks a message and keeps its result.
func (a *applier) turnEnded(old *session.Session, t *nodev1.TurnEnded) {
	s := *old
	s.OutputLine = max(s.OutputLine, t.GetOutputLine())
	m := a.message(old.ID, t.GetSequence())
	if m == nil { // acked before, or given up
		if s.OutputLine != old.OutputLine {
			a.save(old, &s)
		}
		return
	}
	s.Turns++
	if s.UnsavedSince == 0 {
		s.UnsavedSince = a.meta.time // also where no checkpoint will be made: then all of it is at stake
	}
	mb, attempts := a.openMailbox(old.ID), m.Attempts
	if !m.Delivered {
		attempts++ // the fact of the delivery did not come
	}
	a.unlist(mb, m)
	mb.Acked++
	if s.Saves() || s.Captured != nil { // the first checkpoint, once it is stored, will not have seen this turn
		a.keepAcked(&s, mb, m, attempts)
	}
	a.save(old, &s)
	mb.LastAckTime = a.meta.time
	text, truncated := t.GetResult(), t.GetResultTruncated()
	if len(text) > session.MaxResultBytes {
		text, truncated = text[:session.MaxResultBytes:session.MaxResultBytes], true
	}
	a.keepResult(mb, &session.Result{
		SessionID: old.ID, Sequence: m.Sequence, Text: text, Truncated: truncated, EndTime: a.meta.time, Attempts: attempts,
	})
	a.mailboxes.put(old.ID, mb)
}

// spareResults is how many results a mailbox's array has room for, beyond those that it holds: so many that are gone it may hold on to.
const spareResults = 8

// keepResult appends a result and lets the oldest go.
func (a *applier) keepResult(mb *mailboxRow, r *session.Result) {
	keep := mb.results
	bytes := mb.resultBytes + len(r.Text)
	for len(keep) > 0 && (len(keep) >= a.limits.ResultsPerSession || bytes > a.limits.ResultBytesPerSession) {
		bytes -= len(keep[0].Text)
		keep = keep[1:]
	}
	if len(keep) == cap(keep) {
		keep = append(make([]*session.Result, 0, len(keep)+spareResults), keep...)
	}
	mb.results, mb.resultBytes = append(keep, r), bytes // no view sees more of the array than there was
	a.results = append(a.results, r)
}

// takeBack makes what a process had not finished wait for the next one, or gives it up after too many attempts.
// outstanding names a message that the process had, in case the fact of its delivery did not come.
func (a *applier) takeBack(s *session.Session, outstanding uint64, exit session.Exit) {
	a.delivered(s, outstanding)
	if mb := a.mailboxes.get(a.base, s.ID); mb == nil || mb.Delivered == 0 {
		return
	}
	mb := a.openMailbox(s.ID)
	var spent []*session.Message
	for _, m := range a.messagesOf(s.ID) {
		switch {
		case !m.Delivered:
		case m.Attempts >= a.limits.DeliveryAttempts:
			spent = append(spent, m)
		default:
			q := *m
			q.Delivered = false
			mb.Delivered--
			mb.Queued++
			a.left = true
			mb.take(m)
			mb.put(&q)
			a.queued = append(a.queued, &q)
		}
	}
	a.mailboxes.put(s.ID, mb)
	if len(spent) > 0 {
		a.bury(s, spent, fmt.Sprintf("handed to %d processes, none of which ended its turn; the last one %s", a.limits.DeliveryAttempts, describe(exit)))
	}
}
