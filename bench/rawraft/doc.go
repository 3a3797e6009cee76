// Package rawraft is the raw limit: hashicorp/raft over raft-wal and TCP on loopback, three processes, with nothing of
// the product on it. The state machine counts entries. The load comes from callers inside the leader's process, so that
// not even a hop to it is paid.
//
// It is set up as the best that the library gives: batches on the way in, batches to the state machine, 512 entries in
// one append, pipelining. Every entry is synced to disk by a majority before its caller hears of it.
package rawraft
