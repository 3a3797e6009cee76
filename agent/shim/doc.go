// Package shim is the small process beside each session's process tree, and the agent's side of talking to it.
//
// A shim owns one session's process, its pipes or terminal, its output log and the node's lease as far as the session
// goes. It outlives the agent: when the agent ends, is killed or replaced, the shim goes on writing the log, and the next
// agent finds it by its socket. It ends when the session has ended.
//
// # What it promises
//
//   - When the session's main process ends, everything that it ever forked is killed at once, before the exit record is
//     written. The shim is the reaper of its descendants (PR_SET_CHILD_SUBREAPER), so whatever forks, detaches or makes
//     sessions of its own stays below it, and wait(2) saying ECHILD is the proof that nothing is left.
//   - When the lease lapses, the whole tree is killed at once, whatever the agent does.
//   - When the shim itself is killed, the main process dies with it (PR_SET_PDEATHSIG); the rest of the tree is swept by
//     the agent, or by the next one: by the session's cgroup where there is one, otherwise by the session's name in each
//     process's environment (see Sweep).
//   - A message is in the log, as an input marker, before its first byte is written to the process; a sequence that was
//     taken once is not written again.
//   - A process that does not read its input blocks nobody but the senders.
//
// # The files
//
// In the session's directory, as few as can be, because making one costs more than all else at a start:
//
//	shim.state  locked (flock) by the shim while it lives: who can lock it knows that there is none. It holds the run
//	            record, the exit record, and what the shim itself had to say, such as a panic: it is its standard error
//	shim.sock   the shim's Unix socket, mode 0600; a peer of another user is refused. It is made when the connection
//	            that the shim was launched with ends, or when the agent asks for it
//
// The run record says what runs: pids with their start times, boot, cgroups, where the epoch's output begins. The exit
// record says how it ended; it is written once and fsynced.
//
// # The protocol, version 1
//
// Agents of any later version speak it with shims of any earlier one, so it only ever grows: a reader skips tags that
// it does not know and answers a request of a type that it does not know with error 4. Both sides send frames:
//
//	offset  bytes  what
//	0       1      'S'
//	1       1      version, 1
//	2       1      type
//	3       1      zero
//	4       4      request number: chosen by the asking side, repeated by the answer; 0 in events
//	8       4      bytes of payload, at most 4 MiB
//	12      n      payload: fields, each tag (1 byte), length (4 bytes), value
//
// Numbers are little-endian; a number in a field has 8 bytes. Files hold the same fields (see record.go).
//
//	type            payload (tags)                       answer
//	1  start        1–16                                 ok: 20–24 46 47. The first frame after the launch, and only there
//	2  status                                            ok: 1 2 20–26 46 47
//	3  input        30 31; 30 is 0 for keystrokes        ok once the process's pipe took all of it: 23
//	4  close stdin                                       ok once it is closed, after all input before it
//	5  signal       32                                   ok. To the main process's group
//	6  stop         33 34 35                             ok. SIGTERM, and after the grace the tree is killed
//	7  kill         34 35                                ok. The tree is killed
//	8  resize       10 11                                ok
//	9  subscribe                                         ok: 23, then events 96 and 97
//	10 attach                                            ok, then events 98 and 99
//	11 listen                                            ok once the socket can be dialled
//	64 ok
//	65 error        35 36
//	96 grew         23; the newest only, for who reads slowly
//	97 exited       50
//	98 output       31; bytes as the process wrote them
//	99 skipped      38; output events that the peer was too slow for
//
//	tag                                 tag
//	1  session id                       24 number of the epoch's first line
//	2  epoch                            25 an input: sequence, last line before it (repeated; newest 1024)
//	3  argument (repeated)              26 bytes that wait for the process to read them
//	4  KEY=VALUE (repeated)             30 sequence
//	5  working directory                31 bytes
//	6  log directory                    32 signal number
//	7  lease file                       33 grace, ns
//	8  output base                      34 cause
//	9  flags: 1 terminal, 2 exec        35 message
//	10 columns                          36 error: 1 internal 2 full 3 ended 4 unsupported 5 start failed
//	11 rows                                6 broken pipe 7 log cannot be written 8 lease lapsed 9 invalid
//	12 idle, ns, after which a          38 bytes skipped
//	   terminal's open line is logged   40 exit code; 128 + signal number when a signal ended it
//	13 segment bytes                    41 signal name
//	14 total bytes of the log           42 ended at, Unix ns
//	15 cgroup v2 directory              43 last line before the oldest input of tag 25
//	16 cgroup v1 directory (repeated)   44 sequence of the last input
//	17 start by, ns of boot time        45 boot id
//	20 main process's pid
//	21 its start time, clock ticks      46 shim's pid
//	   since boot                       47 shim's start time
//	22 started at, Unix ns              50 exit record: fields 1 2 23 24 34 35 40–45
//	23 number of the last line
//
// With the exec flag a shim runs a further command of a session: the command inherits the shim's own stdin, stdout and
// stderr (there is no log and no socket), and its tree dies when the connection that started it ends.
package shim
