// Package session holds the nouns of the product and the rules that belong to them alone.
//
// A session is a spec (what to run, what it needs), a mailbox (the ordered, durable queue of messages to it),
// a chain of checkpoints, and an epoch: a number that is raised each time the session is started anywhere. Whoever
// holds an older epoch may have no effect. What a session's phase may become is one table, in lifecycle.go.
//
// Nothing here does I/O, reads a clock or knows how a noun is stored or sent.
package session
