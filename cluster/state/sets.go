// Sets: the second orders of the tables, as sorted chunks of keys.
//
// A set belongs to a kind and an owner (the sessions of one node, the names of one namespace …) and holds keys with
// values, both strings that rows hold anyway. Its keys lie in chunks of up to chunkMax, a row each: the chunk with the
// lower bound b holds the keys from b up to the next chunk's bound, and a set's first chunk has the bound "". Where the
// bounds lie depends on history and is not part of the state: snapshots do not hold sets, a restore builds them anew.

package state

import (
	"iter"
	"slices"
	"strings"

	"github.com/hashicorp/go-memdb"
)

// chunkMax is how many keys a chunk holds at most: each change copies one chunk.
const chunkMax = 32

// setKind says what a set is for.
type setKind byte

const (
	setNames       setKind = 'n' // owner: namespace; name → id of the session that has it and has not ended
	setNodeNames   setKind = 'm' // name → id of the node; in the nodes' table it would double the cost of every count
	setOnNode      setKind = 'o' // owner: node id; id → "" of the sessions that hold it
	setMovingTo    setKind = 'v' // owner: node id; id → "" of the sessions that are moving to it and still hold another
	setPending     setKind = 'p' // priority, create index, id → id
	setEnded       setKind = 'e' // end time, id → id
	setAging       setKind = 'a' // when a checkpoint goes for its age, id → id of the session
	setEndedNames  setKind = 'l' // owner: namespace; name, NUL, end time, id → id of the sessions that had it and have ended
	setCallsOn     setKind = 'c' // owner: server id; priority, number of the calls that are not over
	setCallsDue    setKind = 'd' // deadline, number of the calls that are not over
	setCallsEnded  setKind = 'f' // end time, number of the calls that have ended and are not dead
	setCallsGiven  setKind = 'g' // the same of those whose results were given to their clients
	setCallsDead   setKind = 'x' // end time, number of the dead calls
	setCallsDeadOf setKind = 'y' // owner: whose they are; the same of one owner
	setClients     setKind = 'k' // time, owner, NUL, session of all clients

	setConversations setKind = 't' // time of the last turn, namespace, NUL, owner, NUL, id of all conversations
)

type setID struct {
	kind  setKind
	owner string
}

type setEntry struct{ key, value string }

// setOp adds or removes one key.
type setOp struct {
	setID
	setEntry
	remove bool
}

// chunk is a row of the table of sets.
type chunk struct {
	setID
	low     string
	entries []setEntry
}

func (c *chunk) bytes() []byte { return c.setID.bytes(c.low) }

func (s setID) bytes(key string) []byte {
	b := make([]byte, 0, 2+len(s.owner)+len(key))
	b = append(b, byte(s.kind))
	b = append(b, s.owner...)
	b = append(b, 0)
	return append(b, key...)
}

// floor returns the chunk that holds the key if the set does; nil when the set is empty.
func (s setID) floor(txn *memdb.Txn, key string) *chunk {
	it, err := txn.ReverseLowerBound(tableSets, byID, s.bytes(key))
	must(err)
	if c, ok := it.Next().(*chunk); ok && c.setID == s {
		return c
	}
	return nil
}

// after returns the chunk that follows the one with the bound; nil when it was the last.
func (s setID) after(txn *memdb.Txn, low string) *chunk {
	it, err := txn.LowerBound(tableSets, byID, append(s.bytes(low), 0))
	must(err)
	if c, ok := it.Next().(*chunk); ok && c.setID == s {
		return c
	}
	return nil
}

// get returns the key's value.
func (s setID) get(txn *memdb.Txn, key string) (string, bool) {
	c := s.floor(txn, key)
	if c == nil {
		return "", false
	}
	i, ok := findEntry(c.entries, key)
	if !ok {
		return "", false
	}
	return c.entries[i].value, true
}

// lastWith returns the value of the greatest key that begins with the prefix.
func (s setID) lastWith(txn *memdb.Txn, prefix string) (string, bool) {
	it, err := txn.ReverseLowerBound(tableSets, byID, s.bytes(prefix+"\xff"))
	must(err)
	for {
		c, ok := it.Next().(*chunk)
		if !ok || c.setID != s {
			return "", false
		}
		// A chunk may have lost the keys at its lower end; then the one before has the greatest.
		if i, _ := findEntry(c.entries, prefix+"\xff"); i > 0 {
			e := c.entries[i-1]
			return e.value, strings.HasPrefix(e.key, prefix)
		}
	}
}

// all yields the set's keys with their values, in order.
func (s setID) all(txn *memdb.Txn) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		it, err := txn.Get(tableSets, byID+"_prefix", s.bytes(""))
		must(err)
		for raw := it.Next(); raw != nil; raw = it.Next() {
			for _, e := range raw.(*chunk).entries {
				if !yield(e.key, e.value) {
					return
				}
			}
		}
	}
}

func findEntry(entries []setEntry, key string) (int, bool) {
	return slices.BinarySearchFunc(entries, key, func(e setEntry, k string) int { return strings.Compare(e.key, k) })
}

func compareOps(a, b setOp) int {
	if a.kind != b.kind {
		return int(a.kind) - int(b.kind)
	}
	if c := strings.Compare(a.owner, b.owner); c != 0 {
		return c
	}
	return strings.Compare(a.key, b.key)
}

// applyOps applies the operations, of which a later one on the same key holds. It reads base and writes to w, which
// must not differ in this table.
func applyOps(base, w *memdb.Txn, ops []setOp) {
	slices.SortStableFunc(ops, compareOps)
	for i := 0; i < len(ops); {
		i = rewrite(base, w, ops, i)
	}
}

// rewrite applies the operations from i on that fall into one chunk, and into those that it swallows as it has become
// small, and returns where it stopped.
func rewrite(base, w *memdb.Txn, ops []setOp, i int) int {
	set := ops[i].setID
	var entries []setEntry
	old := set.floor(base, ops[i].key)
	low := ""
	if old != nil {
		low = old.low
		entries = make([]setEntry, len(old.entries), len(old.entries)+8)
		copy(entries, old.entries)
	}
	next := set.after(base, low)
	var swallowed []*chunk
	for {
		for i < len(ops) && ops[i].setID == set && (next == nil || ops[i].key < next.low) {
			entries = applyOp(entries, ops[i])
			i++
		}
		if next == nil || len(entries) > chunkMax/4 {
			break
		}
		entries = append(entries, next.entries...)
		swallowed = append(swallowed, next)
		next = set.after(base, next.low)
	}
	for _, c := range swallowed {
		must(w.Delete(tableSets, c))
	}
	if len(entries) == 0 {
		if old != nil {
			must(w.Delete(tableSets, old))
		}
		return i
	}
	pieces := (len(entries) + chunkMax - 1) / chunkMax
	for p := range pieces {
		from, to := p*len(entries)/pieces, (p+1)*len(entries)/pieces
		c := &chunk{setID: set, low: low, entries: slices.Clone(entries[from:to])}
		if p > 0 {
			c.low = entries[from].key
		}
		must(w.Insert(tableSets, c))
	}
	return i
}

func applyOp(entries []setEntry, op setOp) []setEntry {
	i, found := findEntry(entries, op.key)
	switch {
	case op.remove && found:
		return slices.Delete(entries, i, i+1)
	case op.remove:
		return entries
	case found:
		entries[i].value = op.value
		return entries
	default:
		return slices.Insert(entries, i, op.setEntry)
	}
}
