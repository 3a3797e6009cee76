// Trees: the tables that nearly every command touches, as B-trees that views share.
//
// A row of memdb costs a node of a radix tree, with a channel, and a change of it looks for the row first and takes a list and a map to
// remember which nodes are new. With messages that was half of what applying them cost. Here a change costs a search, and a copy of the
// few nodes above it that the last view has too; an entry costs 32 bytes and not 400.

package state

import (
	"strings"

	"github.com/google/btree"
	"github.com/hashicorp/go-memdb"
)

// treeDegree bounds the entries of one node, at twice that: each first change of a node copies it.
const treeDegree = 16

// entry is a row with its key, so that a search does not touch the rows on its way.
type entry[T any] struct {
	key string
	row *T
}

// tree is a table by one key. One goroutine changes it; a view of it may be read by many meanwhile.
type tree[T any] struct{ b *btree.BTreeG[entry[T]] }

func newTree[T any]() tree[T] {
	return tree[T]{btree.NewG(treeDegree, func(a, b entry[T]) bool { return a.key < b.key })}
}

// view returns the tree as it is now, for good.
func (t tree[T]) view() tree[T] { return tree[T]{t.b.Clone()} }

// get returns the row with the key; nil when there is none.
func (t tree[T]) get(key string) *T {
	e, _ := t.b.Get(entry[T]{key: key})
	return e.row
}

// put replaces or removes (nil) a row.
func (t tree[T]) put(key string, row *T) {
	if row == nil {
		t.b.Delete(entry[T]{key: key})
		return
	}
	t.b.ReplaceOrInsert(entry[T]{key, row})
}

// from calls f with each row whose key is not less, in order, until f returns false.
func (t tree[T]) from(key string, f func(*T) bool) {
	t.b.AscendGreaterOrEqual(entry[T]{key: key}, func(e entry[T]) bool { return f(e.row) })
}

// prefixed calls f with each row whose key begins so, in order, until f returns false.
func (t tree[T]) prefixed(prefix string, f func(*T) bool) {
	t.b.AscendGreaterOrEqual(entry[T]{key: prefix}, func(e entry[T]) bool { return strings.HasPrefix(e.key, prefix) && f(e.row) })
}

// find and write implement rows.
func (t tree[T]) find(_ *memdb.Txn, key string) *T { return t.get(key) }

func (t tree[T]) write(_, _ *memdb.Txn, key string, row *T) { t.put(key, row) }
