// Package sim runs a whole cluster in one process, in simulated time, and lets everything happen to it.
//
// # What is real
//
// Servers are what `orchestrator serve` builds: cluster.Node with raft, state.Store, leader.Leader, router.Router,
// nodelink.Hub, gateway.Operations. Nodes are agent.Agent with its directory on disk. What is not real is what they stand
// on: raft's requests, node links, the relays between servers and the ways to the chunk store go through network, which cuts, delays,
// breaks, doubles and reorders; the servers' disks are memory that outlives a process, and so is the chunk store, which keeps what
// processes have seen instead of files (package serializer has coders that several bubbles would share); processes are those of agent/driver/fake, on a Machine
// that goes on when its agent is killed or stopped, and that holds the node's lease as shims do.
//
// All of it lives in one testing/synctest bubble: time moves only when nothing else can, so that hours pass in seconds. What
// runs at one instant runs in an order that the Go scheduler chooses. So a story told twice is the same story, with the same
// faults at the same times, and not the same interleaving: a failure may need to be told a few times before it is seen again.
//
// # Stories
//
// What happens is a story, one thing a line; story.go has the words. testdata holds those that somebody thought of. Random
// ones are made from a seed (random.go), and a failure prints the one line that tells the same story again:
//
//	SIM_SEED=17 SIM_STEPS=60 go test -count=1 -run 'TestRandom$' ./sim
//
//	SIM_RUNS=1000         so many random stories, from SIM_SEED on
//	SIM_STEPS=120         longer ones
//	SIM_KEEP_GOING=1      also after a failure
//	SIM_SHOW=1            print the story that failed
//	SIM_LOG=1             print all that the parts say, with simulated times
//	SIM_TABLE=all         TestTable with all its stories: every step of a move, pause, rewind, fork, failover with every fault;
//	                      SIM_TABLE=pause/ or part of another name for those, and an ordinary test takes a sample
//
// # What is checked
//
// The observer (watch.go) is told of every process tree that starts or ends and of every message that a process takes, at that
// instant: two trees of one session never live at once, an epoch is started once, a process is given a message once, and never
// one that is acked or that the checkpoint has seen from which the process began, in order within its priority. After every step, and all the time while the story waits, the leader's
// state is compared with what clients were told (check.go): an acknowledged session, message or termination is there, and as it
// was; no request took effect twice; each message is in one place; what is acked is what the session's process or its head has seen,
// and the answers are those of that history, but for what somebody went back behind; the lag is what is told; nothing runs on a node that is called lost; what is not
// desired is gone after a sync, or with the lease. When all is quiet, the servers' states are the same bytes, and exactly
// what is desired runs, its output has each answer once, moves have an end with a reason, and nothing is left over on any node. README.md lists the defects that were planted to see whether anybody notices.
package sim
