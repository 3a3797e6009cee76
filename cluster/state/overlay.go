// The overlay: rows that an entry has changed and not written yet.
//
// A table copies the path to a row once per entry, unless it is read in between: then it starts to copy anew. So commands read the state
// before the entry and this overlay, and write each row once, at the end. What needs to walk a table has the overlay flushed first.

package state

import "github.com/hashicorp/go-memdb"

type cell[T any] struct {
	row   *T // nil: removed
	dirty bool
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

// overlay holds the changed rows of one table. Its order is that of the first changes.
type overlay[K comparable, T any] struct {
	under rows[K, T]
	cells map[K]cell[T]
	order []K // every key that the entry has touched
	dirty []K // those not written yet
	added bool
	size  int // how many changes to make room for at the first
}

func newOverlay[K comparable, T any](table string, key func(K) []byte, size int) overlay[K, T] {
	return overlay[K, T]{under: memRows[K, T]{table, key}, size: size}
}

// overTree is the overlay of a tree, for an entry of about so many changes.
func overTree[T any](t tree[T], size int) overlay[string, T] {
	return overlay[string, T]{under: t, size: size}
}

// get returns the row as it is now; nil when there is none.
func (o *overlay[K, T]) get(base *memdb.Txn, k K) *T {
	if c, ok := o.cells[k]; ok {
		return c.row
	}
	return o.under.find(base, k)
}

// own is get, and reports whether the row was put by this entry and is not written yet: nobody else has it then.
func (o *overlay[K, T]) own(base *memdb.Txn, k K) (row *T, own bool) {
	if c, ok := o.cells[k]; ok {
		return c.row, c.dirty && c.row != nil
	}
	return o.under.find(base, k), false
}

// put replaces or removes (nil) a row.
func (o *overlay[K, T]) put(k K, row *T) {
	c, ok := o.cells[k]
	if !ok {
		if o.cells == nil {
			o.cells = make(map[K]cell[T], o.size)
		}
		o.order = append(o.order, k)
	}
	if !c.dirty {
		o.dirty = append(o.dirty, k)
	}
	o.cells[k] = cell[T]{row, true}
}

// add is put for a row that is new: a walk over the table would not see it before a flush.
func (o *overlay[K, T]) add(k K, row *T) {
	o.put(k, row)
	o.added = true
}

// flush writes what is dirty. base must be what w was before.
func (o *overlay[K, T]) flush(base, w *memdb.Txn) {
	for _, k := range o.dirty {
		c := o.cells[k]
		o.under.write(base, w, k, c.row)
		o.cells[k] = cell[T]{c.row, false}
	}
	o.dirty = o.dirty[:0]
	o.added = false
}
