// Package stories tells how the programs behave, as scripts: what a person types, and what they get. Each file in
// testdata is one story, run against the real programs, which are built first.
//
// Beside testscript's own commands (exec, stdout, stderr, grep, cmp …) a story may use
//
//	dev [FLAG…]               start `orchestrator dev` on free ports and $WORK/dev, wait until it is ready, point orchctl at it
//	ports                     find five free ports: $GOSSIP $RAFT $GRPC $LINK $CLIENT, and $GOSSIP_PORT …
//	server NAME [FLAG…]       start one server on those ports and $WORK/NAME, without TLS unless told, wait until it is ready, point orchctl at it
//	agent NAME [FLAG…]        start a node agent of that server and wait until it is linked
//	start NAME PROGRAM ARG…   start a program in the background
//	signal NAME SIGNAL        send a signal to what was started under a name: INT, TERM, KILL, STOP, CONT
//	ended NAME CODE           wait until it has ended, with that exit code (-1: by a signal)
//	exits CODE PROGRAM ARG…   run a program; it must end with that exit code, within a minute
//	until PATTERN PROGRAM ARG…  run a program again and again until its output matches
//	json PATH[=VALUE|~PATTERN]…  look into the JSON of the last standard output: a.b.0.c is there, is, or matches
//	save VAR [PATH]           keep the last standard output, or a part of its JSON, as a variable
//	free DIR                  wait until no process has anything to do with a directory
//	get STATUS URL            ask over HTTP; the answer is the standard output
//	good-metrics              hold the last standard output against the rules of Prometheus
//	rpc health                what the gRPC port says of its health
//	rpc services [TOKENFILE]  the services that it has, by reflection, or why it does not say
//	call SERVICE/METHOD JSON  make a call of the gRPC API with $ORCHCTL_TOKEN_FILE; JSON may be a file; prints the answer, or the
//	                          error and its details, one a line
//	link TOKENFILE SUBPROTOCOL STEP…  speak on the node link; a STEP is a text to send, <TYPE to wait for, or <close
//	strangers VAR             a directory that others may look into and not change
//	nobody CODE PROGRAM ARG…  run a program as a user who may do little; it must end with the code, and one line
//	letters FILE BYTES        make a file of that many letters
//
// What was started writes to $WORK/NAME.log, and is ended when the story ends.
package stories
