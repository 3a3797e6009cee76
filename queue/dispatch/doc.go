// Package dispatch runs the calls of one server: it takes them, has them begun in order and within bounds, tries again what may be
// tried again, ends them, and hands results to whoever waits for them. What is promised about a call is in the replicated state; here is
// only what can be made again from there. docs/decisions/0005-calls.md says why it is so.
//
//	Submit ─► owner ──commands──► Log ──► raft (here, or at the leader)
//	            ▲ │                            │
//	            │ └─ run ─► Runner             ▼
//	            └────── rows of calls ◄── the state's feed, and the answers of the Log
//
// One goroutine, the owner, has all of it: what it knows of each call is the newest row that it has seen, whoever told it, and
// what it has under way itself. From these two it concludes what to do next (see entry.reconcile); so it does not matter whether the answer of the log or the
// feed comes first, whether either comes twice, and whether the server was started anew in between.
//
// A call that reads only is run while its submission is on its way to the log, with a head start: when it is done within that,
// submission and end are one entry of the log.
//
// Results of a client come to its Sink in the order that the state gave them, also those of calls that other servers run. Large
// arguments and results are in the chunk store (blob.go).
package dispatch
