// Package state is the replicated state machine: the tables that every server holds, and the one way they change.
//
// # What is in it
//
// Sessions, their mailboxes (counts, kept results and waiting messages), dead letters, nodes, tokens, idempotency keys
// and the last events. Heartbeats, health and connections are not: only what must survive a server is.
//
// # How it changes
//
// Raft hands one [clusterv1.Batch] at a time to [Store.Apply]. A batch is applied in one transaction, and each of its
// commands has its whole effect or none: every command first checks, then writes. A refused command is an answer (a
// *fault.Error in its [Result]), never a reason to stop. Applying reads nothing but the command and the state: no clock,
// no randomness, no map order, no I/O (a test of this package refuses them). So the same log gives the same bytes on
// every server, and [Limits], which decide what is refused, must be the same on all servers too.
//
// Time is the largest proposer's clock seen so far; it never goes back.
//
// # How it is read
//
// [Store.View] is an immutable snapshot of everything at one index; taking one costs an allocation, holding one costs
// the memory of what changed since. Rows are shared between views: nobody may write to them.
// [Store.Subscribe] gives a view and, from exactly there on, every change in order.
//
// # How it lies in memory
//
// Sessions, mailboxes and nodes, which nearly every command touches, lie in B-trees that views share (tree.go), at 32 bytes an entry. All
// other rows live in hashicorp/go-memdb, one index per table: an entry of such an index costs some 400 bytes, as each node of
// its radix tree carries a channel. What needs a second order (names, the sessions of a node, those that wait, those
// that ended) is kept in sorted chunks of up to 32 keys, one row each (sets.go), at some 60 bytes a key. The watch
// channels of memdb are switched off, for the feed says more: what changed, not only that something did.
//
// What comes and goes at the highest rates has no entry of its own: messages hang off their mailbox's row (mailbox.go),
// and idempotency keys lie in a queue with an index beside it (keys.go).
//
//	command ─► applier ─► overlay of changed rows ─► trees, one memdb transaction ─► View
//	                 └──► Change ─► feed (bounded) ─► Subscription
package state
