// Idempotency keys in memory: a queue by age that views share, and an index that only the applier has.
//
// Keys come with nearly every send, are looked up once or never, and go in the order in which they came. So they lie in
// arrays to which the applier appends, and not in memdb, whose entry would cost more than the key and the send
// together. A view holds the numbers of the first and the last key that it knows; what lies between never changes.

package state

import (
	"fmt"
	"iter"
	"strings"
)

// keyKind says what a key makes idempotent.
type keyKind byte

const (
	keySend  keyKind = 's' // owner: the session's id
	keySpawn keyKind = 'n' // owner: the namespace
	keyOnce  keyKind = 'o' // owner: the method and whose the key is
)

// String is the kind as snapshots write it.
func (k keyKind) String() string {
	switch k {
	case keySend:
		return "send"
	case keyOnce:
		return "once"
	default:
		return "spawn"
	}
}

// idempotencyKey names what a client's retry repeats.
type idempotencyKey struct {
	kind       keyKind
	owner, key string
}

// scope is the kind and the owner as snapshots write them.
func (k idempotencyKey) scope() string { return k.kind.String() + "/" + k.owner }

// parseScope is the inverse of scope.
func parseScope(scope string) (keyKind, string, error) {
	word, owner, _ := strings.Cut(scope, "/")
	for _, k := range []keyKind{keySend, keySpawn, keyOnce} {
		if k.String() == word {
			return k, owner, nil
		}
	}
	return 0, "", fmt.Errorf("an idempotency key of the scope %q", clip(scope, 64))
}

// idempotencyRow is what a key stood for the first time.
type idempotencyRow struct {
	idempotencyKey
	hash      uint64
	sessionID string // or the id of the node, the token or whatever else it was about
	sequence  uint64 // or how many
	time      int64
	index     uint64
}

// keysPerSegment is how many keys one array holds.
const keysPerSegment = 256

type keySegment [keysPerSegment]idempotencyRow

// keyQueue is the keys that are kept, oldest first. It is a value: a copy goes on knowing what it knew. Only the latest
// copy may be pushed to.
type keyQueue struct {
	segments    []*keySegment // the first holds key number first
	first, next uint64        // the numbers of those kept are in [first, next)
}

func (q *keyQueue) len() uint64 { return q.next - q.first }

// at returns the key with the number.
func (q *keyQueue) at(number uint64) *idempotencyRow {
	return &q.segments[number/keysPerSegment-q.first/keysPerSegment][number%keysPerSegment]
}

// push adds a key, and returns its number.
func (q *keyQueue) push(r idempotencyRow) uint64 {
	number := q.next
	if number%keysPerSegment == 0 || len(q.segments) == 0 {
		q.segments = append(q.segments, new(keySegment))
	}
	q.next++
	*q.at(number) = r
	return number
}

// pop lets the oldest key go.
func (q *keyQueue) pop() {
	q.first++
	if q.first%keysPerSegment == 0 {
		q.segments = q.segments[1:]
	}
}

// all yields the keys, oldest first.
func (q *keyQueue) all() iter.Seq[*idempotencyRow] {
	return func(yield func(*idempotencyRow) bool) {
		for n := q.first; n < q.next; n++ {
			if !yield(q.at(n)) {
				return
			}
		}
	}
}

// keyIndex finds keys by their names; it holds the numbers of those that the latest queue holds.
type keyIndex map[idempotencyKey]uint64
