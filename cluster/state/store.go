// The store: the current tables, the one writer, and the way to views and the feed.

package state

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

// Result is what a command gave. Err is a *fault.Error or nil; a command with an error has changed nothing.
type Result struct {
	Err      error
	Session  *session.Session // as it was right after the command
	Sequence uint64           // of the message that was sent
	// Duplicate says that the idempotency key was seen before: the rest is what the first command made. Of a call: it was known, or was
	// so already.
	Duplicate bool
	Node      *Node
	Token     *Token // that was made
	Call      *queue.Call
	// Conversation is the one that a turn was added to.
	Conversation *Conversation
	Subject      string // what a key was remembered with
	Count        uint32 // messages, letters, calls or rows that were moved or removed
}

// Store is the replicated state machine. Apply and Restore belong to one goroutine; everything else may be called from
// any.
type Store struct {
	limits Limits
	db     atomic.Pointer[memdb.MemDB]
	trees  trees // of the goroutine that applies, as is room
	room   room
	view   atomic.Pointer[View] // of what db holds
	intern *interner            // of the goroutine that applies, as is keys
	keys   keyIndex

	// mu makes a commit and its publication one step for those who subscribe.
	mu   sync.Mutex
	feed feed
}

// New returns an empty state. Limits must be the same on every server; see DefaultLimits.
func New(limits Limits) *Store {
	s := &Store{limits: limits, intern: newInterner(), keys: keyIndex{}, trees: newTrees()}
	s.feed.limits(limits.FeedChanges, limits.FeedBytes)
	db := newDB()
	txn := db.Txn(true)
	must(txn.Insert(tableMeta, &meta{}))
	txn.Commit()
	s.publish(db)
	return s
}

// publish makes the tables those that readers see.
func (s *Store) publish(db *memdb.MemDB) {
	s.db.Store(db)
	s.view.Store(newView(db.Txn(false), s.trees.view()))
}

// View returns the state as it is now.
func (s *Store) View() *View { return s.view.Load() }

// Index returns the index of the last entry that was applied, 0 for none.
func (s *Store) Index() uint64 { return s.View().Index() }

// Apply applies one entry of the log and returns one result for each of its commands. The index must be larger than
// that of every entry before: an entry that comes again changes nothing and is refused as a whole.
func (s *Store) Apply(index uint64, b *clusterv1.Batch) []Result {
	results := make([]Result, len(b.GetCommands()))
	db := s.db.Load()
	a := newApplier(&s.limits, s.intern, s.keys, db.Txn(true), s.View(), s.trees, s.room, len(results))
	if index <= a.meta.index {
		a.w.Abort()
		for i := range results {
			results[i].Err = fault.New(fault.Internal, "state: entry %d was already applied; the state is at %d", index, a.meta.index)
		}
		return results
	}
	a.meta.index = index
	a.meta.time = max(a.meta.time, b.GetTime())
	for i, c := range b.GetCommands() {
		results[i] = a.apply(c)
	}
	change := a.finish()
	s.room.reuse(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	a.w.Commit()
	s.publish(db)
	s.feed.publish(change)
	return results
}
