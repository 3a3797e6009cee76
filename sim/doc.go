// Package sim runs a whole cluster in one process under simulated time, and does it harm.
//
// Servers, leaders, hubs, agents and the client are the real ones; raft, relays and node links go over a network in memory
// that can be cut, slowed and made unreliable; sessions run on machines in memory (agent/driver/fake) whose observer sees
// every process tree begin and end. Everything runs in a testing/synctest bubble: an hour passes in a moment, and a step
// ends when nothing moves any more.
//
// Stories (testdata/*.txt) are scripts of operations and faults, with what is expected of them; random stories are made
// from a seed. After every step the invariants of the design are checked: one owner, acknowledged is durable, messages in
// order and once, no ghosts, no orphans. A failing run prints one line that tells the same story again. Inside a bubble the
// order of goroutines is not fixed: the line repeats the faults and operations, not the interleaving.
package sim
