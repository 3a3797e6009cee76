// Package peer has one node fetch the chunks of a move from another, so that they need not make their way through a server.
//
// A Lender is the source's side: what a session that leaves is made of can be taken from it by whoever shows the token that the
// leader made for the move, from the node's cache, as chunks are served everywhere (docs/protocol/chunks.md; nothing can be put). A
// Borrower is the target's: it is asked before the store, and never instead of it. Nothing that is right depends on either: a chunk is
// what its hash says, whoever sends it, and a chunk that a peer does not give comes from the store.
//
//	source: agent ──Lend, Recall──► Lender ◄── HTTP ──── Borrower ◄──Get── restore :target
//	                                  └─► cache                              └─► store, for what did not come
package peer
