// Package cluster makes several servers one: raft for the truth, gossip for finding each other, and a proposer that
// turns many callers' commands into few log entries.
//
// Node owns the raft instance. Its parts:
//
//	propose.go     commands → batches → raft entries → results
//	verify.go      "do I still lead?", asked of a quorum once for all who wonder at the same time
//	fsm.go         the thin shell between raft and cluster/state
//	leadership.go  runs the leader's duties while this server leads, and ends them before it may lead again
//	discovery.go   memberlist: who is there, and under which addresses
//	bootstrap.go   the first configuration, made by all expected servers alike
//	autopilot.go   promotion of new servers, removal of dead ones
//	stall.go       a disk that hangs costs the leadership, not the cluster
//	datadir.go     whose data this is, and whether it may be opened
//
// Raft's election time-outs decide how long the cluster is without a leader after a crash; see Timings.
package cluster
