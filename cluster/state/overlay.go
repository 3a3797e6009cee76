// The overlay: rows that an entry has changed and not written yet.
//
// A table copies the path to a row once per entry, unless it is read in between: then it starts to copy anew. So commands read the state
// before the entry and this overlay, and write each row once, at the end. What needs to walk a table has the overlay flushed first.

package state

import (
	"github.com/hashicorp/go-memdb"

	"github.com/neolith/orchestrator/session"
)

// cell is a row that the entry has touched.
type cell[K comparable, T any] struct {
	key   K
	row   *T // nil: removed
	dirty bool
}

// maxScratchCells is how many cells of one entry are kept room for, for the next one.
const maxScratchCells = 1024

// scratch is the room that the overlay of one entry leaves to that of the next.
type scratch[K comparable, T any] struct {
	at    map[K]int
	cells []cell[K, T]
	dirty []int
}

// reuse takes the room back, with nothing in it; nothing that was handed out refers to it.
func (s *scratch[K, T]) reuse(from *scratch[K, T]) {
	if len(from.cells) > maxScratchCells {
		*s = scratch[K, T]{}
		return
	}
	clear(from.at)
	clear(from.cells)
	*s = scratch[K, T]{from.at, from.cells[:0], from.dirty[:0]}
}

// rows is a table under an overlay: a tree, or a table of memdb.
type rows[K comparable, T any] interface {
	// find returns the row as of the last flush; nil when there is none.
	find(base *memdb.Txn, k K) *T
	// write replaces or removes (nil) a row. base must be what w was before.
	write(base, w *memdb.Txn, k K, row *T)
}

// memRows is a table of memdb.
type memRows[K comparable, T any] struct {
	table string
	key   func(K) []byte
}

func (m memRows[K, T]) find(base *memdb.Txn, k K) *T { return first[T](base, m.table, byID, m.key(k)) }

func (m memRows[K, T]) write(base, w *memdb.Txn, k K, row *T) {
	if row != nil {
		must(w.Insert(m.table, row))
	} else if old := m.find(base, k); old != nil {
		must(w.Delete(m.table, old))
	}
}

// overlay holds the changed rows of one table, in the order of their first changes; at says where each is, and dirty which of them are
// not written yet.
type overlay[K comparable, T any] struct {
	under rows[K, T]
	scratch[K, T]
	size int // how many changes to make room for at the first
}

func newOverlay[K comparable, T any](table string, key func(K) []byte, size int) overlay[K, T] {
	return overlay[K, T]{under: memRows[K, T]{table, key}, size: size}
}

// overTree is the overlay of a tree.
func overTree[T any](t tree[T], room scratch[string, T], size int) overlay[string, T] {
	return overlay[string, T]{under: t, scratch: room, size: size}
}

// get returns the row as it is now; nil when there is none.
func (o *overlay[K, T]) get(base *memdb.Txn, k K) *T {
	if i, ok := o.at[k]; ok {
		return o.cells[i].row
	}
	return o.under.find(base, k)
}

// own is get, and reports whether the row was put by this entry and is not written yet: nobody else has it then.
func (o *overlay[K, T]) own(base *memdb.Txn, k K) (row *T, own bool) {
	if i, ok := o.at[k]; ok {
		c := &o.cells[i]
		return c.row, c.dirty && c.row != nil
	}
	return o.under.find(base, k), false
}

// put replaces or removes (nil) a row.
func (o *overlay[K, T]) put(k K, row *T) {
	i, ok := o.at[k]
	if !ok {
		if o.at == nil {
			o.at = make(map[K]int, o.size)
		}
		i = len(o.cells)
		o.at[k] = i
		o.cells = append(o.cells, cell[K, T]{key: k})
	}
	c := &o.cells[i]
	if !c.dirty {
		o.dirty = append(o.dirty, i)
	}
	c.row, c.dirty = row, true
}

// flush writes what is dirty. base must be what w was before.
func (o *overlay[K, T]) flush(base, w *memdb.Txn) {
	for _, i := range o.dirty {
		c := &o.cells[i]
		o.under.write(base, w, c.key, c.row)
		c.dirty = false
	}
	o.dirty = o.dirty[:0]
}

// room is what appliers leave to one another, of the tables that change most.
type room struct {
	sessions  scratch[string, session.Session]
	mailboxes scratch[string, mailboxRow]
	nodes     scratch[string, Node]
}

// reuse takes back the room of an applier that is done.
func (r *room) reuse(a *applier) {
	r.sessions.reuse(&a.sessions.scratch)
	r.mailboxes.reuse(&a.mailboxes.scratch)
	r.nodes.reuse(&a.nodes.scratch)
}
