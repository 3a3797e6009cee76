// The tables as memdb sees them: their rows, and how a row's key is written.

package state

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

// The tables.
const (
	tableMeta       = "meta"
	tableDead       = "dead-letters"
	tableTokens     = "tokens"
	tableEvents     = "events"
	tableSets       = "sets"
	tableCalls      = "calls"
	tableClients    = "clients"
	tableOrders     = "order-keys"
	tableDeadOwners = "dead-call-owners"

	tableConversations = "conversations"
	tableTalkers       = "conversation-owners"
)

// The names of trees, which are no tables of memdb.
const (
	tableSessions  = "sessions"
	tableMailboxes = "mailboxes"
	tableNodes     = "nodes"
)

// trees are the tables that are not in memdb, by id.
type trees struct {
	sessions  tree[session.Session]
	mailboxes tree[mailboxRow]
	nodes     tree[Node]
}

func newTrees() trees {
	return trees{newTree[session.Session](), newTree[mailboxRow](), newTree[Node]()}
}

// view returns the trees as they are now, for good.
func (t trees) view() trees { return trees{t.sessions.view(), t.mailboxes.view(), t.nodes.view()} }

// The indexes; every table has the first, dead letters and calls have the second too.
const (
	byID     = "id"
	byNumber = "number"
)

// meta is the one row about the state as a whole.
type meta struct {
	clusterID string
	index     uint64
	time      int64
	event     uint64 // the last event's number
	// The last number given to a dead letter. It only says which is older, and is given anew by a restore.
	dead  uint64
	call  uint64 // the last number given to a call
	keys  keyQueue
	stats Stats
}

// LetterKey names a dead letter.
type LetterKey struct {
	SessionID string
	Sequence  uint64
}

// deadRow is a dead letter with its age among all of them.
type deadRow struct {
	letter *session.DeadLetter
	number uint64
}

// eventsRow is all events of one log entry.
type eventsRow struct {
	index  uint64
	events []*Event
}

func idBytes(id string) []byte { return []byte(id) }

// mailboxPrefix is the prefix of the keys of a session's dead letters.
func mailboxPrefix(sessionID string) []byte {
	b := make([]byte, 0, len(sessionID)+1)
	return append(append(b, sessionID...), 0)
}

func (k LetterKey) bytes() []byte {
	return binary.BigEndian.AppendUint64(mailboxPrefix(k.SessionID), k.Sequence)
}

func letterKey(d *session.DeadLetter) LetterKey { return LetterKey{d.SessionID, d.Sequence} }

func numberBytes(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 0, 8), n) }

// index is a memdb index over rows of one type. Arguments are the key itself, as bytes: the callers write keys.
type index[T any] struct{ key func(*T) []byte }

// FromObject returns the row's key.
func (x index[T]) FromObject(o any) (bool, []byte, error) { return true, x.key(o.(*T)), nil }

// FromArgs returns the key that was given.
func (x index[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if b, ok := args[0].([]byte); ok {
			return b, nil
		}
	}
	return nil, fmt.Errorf("state: an index takes one key, not %d arguments", len(args))
}

// PrefixFromArgs returns the key's beginning that was given.
func (x index[T]) PrefixFromArgs(args ...any) ([]byte, error) { return x.FromArgs(args...) }

func one[T any](name string, key func(*T) []byte) *memdb.TableSchema {
	return &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{
		byID: {Name: byID, Unique: true, Indexer: index[T]{key}},
	}}
}

func two[T any](name string, key func(*T) []byte, second string, key2 func(*T) []byte) *memdb.TableSchema {
	t := one(name, key)
	t.Indexes[second] = &memdb.IndexSchema{Name: second, Unique: true, Indexer: index[T]{key2}}
	return t
}

// newDB returns empty tables.
func newDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableMeta: one(tableMeta, func(*meta) []byte { return []byte{1} }),
		tableDead: two(tableDead, func(d *deadRow) []byte { return letterKey(d.letter).bytes() },
			byNumber, func(d *deadRow) []byte { return numberBytes(d.number) }),
		tableTokens: one(tableTokens, func(t *Token) []byte { return idBytes(t.ID) }),
		tableEvents: one(tableEvents, func(r *eventsRow) []byte { return numberBytes(r.index) }),
		tableSets:   one(tableSets, func(c *chunk) []byte { return c.bytes() }),
		tableCalls: two(tableCalls, func(c *queue.Call) []byte { return callKeyBytes(c.Key) },
			byNumber, func(c *queue.Call) []byte { return numberBytes(c.Number) }),
		tableClients:    one(tableClients, func(c *clientRow) []byte { return clientKeyBytes(c.ClientKey, 0) }),
		tableOrders:     one(tableOrders, func(r *orderRow) []byte { return idBytes(r.key) }),
		tableDeadOwners: one(tableDeadOwners, func(r *deadOwnerRow) []byte { return idBytes(r.owner) }),

		tableConversations: one(tableConversations, func(c *Conversation) []byte { return c.bytes() }),
		tableTalkers:       one(tableTalkers, func(r *talkerRow) []byte { return idBytes(r.key()) }),
	}})
	if err != nil {
		panic(fmt.Sprintf("state: the schema is wrong: %v", err)) // a defect of this file
	}
	// A snapshot is a database of its own, but one that keeps no account of whom to wake: nobody watches rows here, and
	// the account would cost a map entry for each node of a tree that a transaction touches.
	return db.Snapshot()
}

// first returns the row with the key, nil when there is none.
func first[T any](txn *memdb.Txn, table, index string, key []byte) *T {
	raw, err := txn.First(table, index, key)
	if err != nil {
		panic(fmt.Sprintf("state: read %s by %s: %v", table, index, err)) // a defect: table and index are constants
	}
	row, _ := raw.(*T)
	return row
}

// must panics on an error of memdb, which says that a constant of this package is wrong.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("state: %v", err))
	}
}

// prefixed calls f with each row whose key begins so, in order, until f returns false.
func prefixed[T any](txn *memdb.Txn, table string, prefix []byte, f func(*T) bool) {
	it, err := txn.Get(table, byID+"_prefix", prefix)
	must(err)
	for raw := it.Next(); raw != nil; raw = it.Next() {
		if !f(raw.(*T)) {
			return
		}
	}
}

// from calls f with each row whose key is not less, in order, until f returns false.
func from[T any](txn *memdb.Txn, table, index string, key []byte, f func(*T) bool) {
	it, err := txn.LowerBound(table, index, key)
	must(err)
	for raw := it.Next(); raw != nil; raw = it.Next() {
		if !f(raw.(*T)) {
			return
		}
	}
}
