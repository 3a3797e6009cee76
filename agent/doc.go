// Package agent runs sessions on one machine, as the control plane desires, and never on its own account.
//
// # What it does
//
// Desired state comes down the node link and facts go up. The agent compares what it should run with what it runs and
// closes the difference: it starts what is missing, stops what should end, kills what nobody named. What happened
// (a process runs, a turn ended, a process is gone) it reports as facts, numbered from 1 in each incarnation of the
// agent and sent again until the control plane has committed them. A lost frame costs time, never truth.
//
//	        frames                     orders, messages
//	link ───────────► supervisor ─────────────────────────► run ───► driver.Process ───► shim ───► the session
//	     ◄───────────     │ ▲   ◄─────────────────────────   │
//	      facts, answers  │ │          facts, its end        └─ one goroutine for each epoch of each session
//	                      ▼ │
//	          lease keeper, janitor, health sampler
//
// One goroutine, the supervisor, owns the table of sessions, the facts, and the lease; it waits for no disk and no
// process. Each epoch of a session is a run: one goroutine, which starts or adopts the process, hands it one message
// at a time (most urgent first), and lasts until nothing of its process tree lives.
//
// # Epochs
//
// The number of a session's epoch is raised each time the control plane has it started anywhere. A run belongs to one
// epoch. Orders of an older epoch have no effect; a newer epoch kills the older run first, waits until its whole tree
// is gone, and only then starts. An epoch is started at most once on a node, whatever is repeated on the link.
//
// # The lease
//
// A node may run sessions only while it holds a lease. The agent sends heartbeats that carry CLOCK_BOOTTIME; an answer
// moves the deadline to the time its heartbeat was sent plus the lease, never backwards. The deadline stands in a file
// that every shim reads too, so that sessions end in time also when the agent is stopped or dead. When the deadline
// passes, the agent kills all sessions at once, and starts nothing before a new lease.
//
// # Checkpoints
//
// A run makes checkpoints of its session (package checkpoint) between turns: it holds messages, has the files read, lets the
// session work on, and reports the checkpoint when the chunk store has it. A store that fails costs checkpoints, never
// the session. An order to leave is the same with an end: copied in rounds while it works, held for the last piece, and killed once that is
// stored. Until then every failure, and the order's being taken back, leave it running here. A node that a session is to move to can be told
// to have ready what was copied so far, and says when it has. An epoch that begins with a checkpoint has its
// directory restored beside the old one, whose place it takes in one step before the process is started.
//
// # What lasts
//
// The agent may be killed and started again at any time: sessions live beside it, in their shims. The data directory
// holds who the node is (node.json) and one directory for each session with what it was started with. A new agent raises
// its incarnation, adopts every session it finds, and reports what it finds out as facts anew: everything that a fact
// says can be read again, so facts themselves are kept in memory only.
//
// # Bounds
//
// Facts that wait for the control plane (Options.MaxFactsUnacked): at the bound sessions are given no more messages
// and no turn's end is taken from them, and nothing is dropped. Messages of a session: maxInboxMessages and maxInboxBytes;
// what does not fit is not acknowledged and comes again. Starts at one time: Options.MaxStarts. Directories of ended
// sessions, which stay for their logs until the cluster forgets them: Options.MaxEndedKept. Log readers, terminals and commands at one time: nodelink.MaxStreams.
package agent
