// Mailboxes against a plain model, with every earlier row kept and looked at again.

package state

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/session"
)

// TestMailboxesOfEarlierRowsNeverChange: rows share arrays, and must not see what later ones do with them.
func TestMailboxesOfEarlierRowsNeverChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mb := &mailboxRow{}
		var model []*session.Message // in the order of delivery
		type past struct {
			row  *mailboxRow
			want []*session.Message
		}
		var history []past
		next := uint64(1)
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			history = append(history, past{mb, slices.Clone(model)})
			row := *mb
			row.own()
			mb = &row
			pick := func() *session.Message {
				i := 0
				if rapid.IntRange(0, 3).Draw(t, "where") == 0 {
					i = rapid.IntRange(0, len(model)-1).Draw(t, "which")
				}
				return model[i]
			}
			add := func(m *session.Message) {
				mb.put(m)
				i, _ := slices.BinarySearchFunc(model, m, byDelivery)
				model = slices.Insert(slices.Clone(model), i, m)
			}
			take := func(m *session.Message) {
				mb.take(m)
				model = slices.DeleteFunc(slices.Clone(model), func(o *session.Message) bool { return o == m })
			}
			switch op := rapid.IntRange(0, 9).Draw(t, "op"); {
			case op < 5 || len(model) == 0:
				add(&session.Message{Sequence: next, Priority: session.Priority(rapid.IntRange(1, 4).Draw(t, "priority"))})
				next++
			case op < 8:
				take(pick())
			default: // hand it over, or take it back
				m := pick()
				take(m)
				changed := *m
				changed.Delivered = !m.Delivered
				add(&changed)
			}
			if got := slices.Collect(mb.all()); !slices.Equal(got, model) {
				t.Fatalf("the mailbox holds %v, the model %v", got, model)
			}
			for _, m := range model {
				if mb.find(m.Sequence) != m {
					t.Fatalf("message %d is not found", m.Sequence)
				}
			}
		}
		for i, p := range history {
			if got := slices.Collect(p.row.all()); !slices.Equal(got, p.want) {
				t.Fatalf("row %d of %d changed: it holds %v, and held %v", i, len(history), got, p.want)
			}
		}
	})
}

// TestMailboxesLetGoOfWhatIsDone: a queue that is never empty does not hold on to all that went through it.
func TestMailboxesLetGoOfWhatIsDone(t *testing.T) {
	var q lane
	for i := uint64(1); i <= 10_000; i++ {
		q.add(&session.Message{Sequence: i})
		if i > 2 {
			q.remove(i - 2)
		}
		if q.taken > keepTaken+1 || cap(q.messages) > 64 {
			t.Fatalf("after %d messages %d of %d are gone and still held, in an array of %d", i, q.taken, len(q.messages), cap(q.messages))
		}
	}
}
