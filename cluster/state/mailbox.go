// A mailbox in memory: its messages hang off its row, in the order of delivery.
//
// A table of all messages would cost a memdb entry for each, some 400 bytes and most of the time of a send. A row is
// immutable once it is in a view; what is appended to a list of a later row may share its array, because nobody sees
// more of it than there was.

package state

import (
	"iter"
	"slices"

	"github.com/neolith/orchestrator/session"
)

// mailboxRow is a session's counts with its messages that have not ended, and the results of its last turns in the order
// of their ends. It exists from the first message on.
type mailboxRow struct {
	session.Mailbox
	mail        *mail // nil when there is none
	results     []*session.Result
	resultBytes int
}

// mail is the messages of a mailbox.
type mail struct {
	queued    [session.Low]lane  // by priority
	delivered []*session.Message // with a process: few, by priority and sequence; never changed in place
	kept      []*session.Message // acked, by the numbers of their turns, until a checkpoint has seen them
}

// lane is the queued messages of one priority, by sequence.
type lane struct {
	messages []*session.Message
	taken    int // from the front, since the array was made: it still holds them
}

// keepTaken is how many messages that are gone an array may hold on to, at least.
const keepTaken = 16

func (q *lane) find(sequence uint64) (int, bool) {
	return slices.BinarySearchFunc(q.messages, sequence, func(m *session.Message, s uint64) int {
		switch {
		case m.Sequence < s:
			return -1
		case m.Sequence > s:
			return 1
		default:
			return 0
		}
	})
}

// add puts a message into its place, mostly the end.
func (q *lane) add(m *session.Message) {
	n := len(q.messages)
	if n == 0 || q.messages[n-1].Sequence < m.Sequence {
		q.messages = append(q.messages, m)
		return
	}
	i, _ := q.find(m.Sequence)
	changed := make([]*session.Message, 0, n+1)
	changed = append(append(changed, q.messages[:i]...), m)
	q.messages, q.taken = append(changed, q.messages[i:]...), 0
}

// remove takes a message out, mostly the first one.
func (q *lane) remove(sequence uint64) {
	i, found := q.find(sequence)
	switch {
	case !found:
		return
	case i == 0:
		q.messages = q.messages[1:]
		q.taken++
		if q.taken <= max(keepTaken, len(q.messages)) {
			return
		}
		q.messages = slices.Clone(q.messages)
	default:
		// The last one too is not cut off: what is appended next would overwrite it in views that have it.
		q.messages = slices.Concat(q.messages[:i], q.messages[i+1:])
	}
	q.taken = 0
}

// keep appends an acked message.
func (mb *mailboxRow) keep(m *session.Message) {
	if mb.mail == nil {
		mb.mail = &mail{}
	}
	mb.mail.kept = append(mb.mail.kept, m)
}

// cutKept takes out the acked messages whose turns are not after turn, and returns them.
func (l *mail) cutKept(turn uint64) []*session.Message {
	n := 0
	for n < len(l.kept) && l.kept[n].Turn <= turn {
		n++
	}
	out := l.kept[:n:n]
	l.kept = slices.Clone(l.kept[n:])
	return out
}

// tidy gives up the mail of a mailbox that holds none.
func (mb *mailboxRow) tidy() {
	if mb.Queued+mb.Delivered+mb.Kept == 0 {
		mb.mail = nil
	}
}

// own makes the row's mail one that no view has yet.
func (mb *mailboxRow) own() {
	if mb.mail != nil {
		own := *mb.mail
		mb.mail = &own
	}
}

// put adds a message to those that are queued or delivered, as it says.
func (mb *mailboxRow) put(m *session.Message) {
	if mb.mail == nil {
		mb.mail = &mail{}
	}
	if !m.Delivered {
		mb.mail.queued[m.Priority-1].add(m)
		return
	}
	i, _ := slices.BinarySearchFunc(mb.mail.delivered, m, byDelivery)
	mb.mail.delivered = slices.Insert(slices.Clone(mb.mail.delivered), i, m)
}

// take removes a message from those that are queued or delivered, as it says.
func (mb *mailboxRow) take(m *session.Message) {
	if !m.Delivered {
		mb.mail.queued[m.Priority-1].remove(m.Sequence)
		return
	}
	if i, found := slices.BinarySearchFunc(mb.mail.delivered, m, byDelivery); found {
		mb.mail.delivered = slices.Concat(mb.mail.delivered[:i], mb.mail.delivered[i+1:])
	}
}

// byDelivery orders messages: by priority, then by sequence.
func byDelivery(a, b *session.Message) int {
	switch {
	case a.Priority != b.Priority:
		return int(a.Priority) - int(b.Priority)
	case a.Sequence < b.Sequence:
		return -1
	case a.Sequence > b.Sequence:
		return 1
	default:
		return 0
	}
}

// find returns the message with the sequence; nil when it has ended, or the mailbox is nil.
func (mb *mailboxRow) find(sequence uint64) *session.Message {
	if mb == nil || mb.mail == nil {
		return nil
	}
	for _, m := range mb.mail.delivered {
		if m.Sequence == sequence {
			return m
		}
	}
	for p := range mb.mail.queued {
		q := &mb.mail.queued[p]
		if i, found := q.find(sequence); found {
			return q.messages[i]
		}
	}
	return nil
}

// all yields the messages, queued and delivered, in the order of delivery. The mailbox may be nil.
func (mb *mailboxRow) all() iter.Seq[*session.Message] {
	return func(yield func(*session.Message) bool) {
		if mb == nil || mb.mail == nil {
			return
		}
		with := mb.mail.delivered
		for p := range mb.mail.queued {
			for _, m := range mb.mail.queued[p].messages {
				for ; len(with) > 0 && byDelivery(with[0], m) < 0; with = with[1:] {
					if !yield(with[0]) {
						return
					}
				}
				if !yield(m) {
					return
				}
			}
		}
		for _, m := range with {
			if !yield(m) {
				return
			}
		}
	}
}
