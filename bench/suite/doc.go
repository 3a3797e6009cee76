// Package suite measures what the product promises of its speed, each promise beside the raw limit of the machine.
//
//	send       messages through the whole API, beside bare raft
//	spawn      sessions to RUNNING, beside bare forks through the same driver
//	nodes      what ten thousand linked nodes cost a server
//	state      a million sessions in the replicated state
//	failover   the time without a leader, beside bare raft with the same time-outs
//	stability  elections under full load on a busy disk
//
// Every part starts from nothing in a directory of its own and ends all that it started.
package suite
