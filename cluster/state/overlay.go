// The overlay: rows that an entry has changed and not written yet.
//
// memdb copies the path to a row once per transaction, unless the transaction is read in between: then it starts to copy
// anew. So commands read the state before the entry and this overlay, and write each row once, at the end. What needs to
// walk a table has the overlay flushed first.

package state

import "github.com/hashicorp/go-memdb"

type cell[T any] struct {
	row   *T // nil: removed
	dirty bool
}

// overlay holds the changed rows of one table. Its order is that of the first changes.
type overlay[K comparable, T any] struct {
	table string
	key   func(K) []byte
	cells map[K]cell[T]
	order []K // every key that the entry has touched
	dirty []K // those not written yet
	added bool
	size  int // how many changes to make room for at the first
}

func newOverlay[K comparable, T any](table string, key func(K) []byte, size int) overlay[K, T] {
	return overlay[K, T]{table: table, key: key, size: size}
}

// get returns the row as it is now; nil when there is none.
func (o *overlay[K, T]) get(base *memdb.Txn, k K) *T {
	if c, ok := o.cells[k]; ok {
		return c.row
	}
	return first[T](base, o.table, byID, o.key(k))
}

// own is get, and reports whether the row was put by this entry and is not written yet: nobody else has it then.
func (o *overlay[K, T]) own(base *memdb.Txn, k K) (row *T, own bool) {
	if c, ok := o.cells[k]; ok {
		return c.row, c.dirty && c.row != nil
	}
	return first[T](base, o.table, byID, o.key(k)), false
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
		if c.row != nil {
			must(w.Insert(o.table, c.row))
		} else if old := first[T](base, o.table, byID, o.key(k)); old != nil {
			must(w.Delete(o.table, old))
		}
		o.cells[k] = cell[T]{c.row, false}
	}
	o.dirty = o.dirty[:0]
	o.added = false
}
