// Package client speaks the public gRPC API (api/proto/orchestrator/v1) the way a careful program should.
//
// A Client is given several addresses, any of which will do. It talks to one of them for as long as that one answers and
// goes on with the next when it does not. A call that failed because nobody could be asked, or that was overtaken, is
// made again until its deadline, with growing pauses and always under the same idempotency key, so that a mutation
// whose answer was lost takes effect once.
//
// The services' generated clients hang off Client (Sessions, Nodes, …). Beside them are the things that take more than
// one call to do well:
//
//	Logs, WatchSessions, WatchEvents   streams that go on after an interruption, without a hole or a double
//	Attach, Exec                       terminals and commands
//	Sender                             many goroutines' messages on one pipelined stream, in batches
//	SaveSnapshot, RestoreSnapshot      the cluster's state as a file
//
// Every error is of a kind from internal/fault, with the server's sentence, the offending field and the time to come
// back, and unwraps to the gRPC status it came from.
package client
