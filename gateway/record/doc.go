// Package record watches what passes through a server and hands it to the recorder: calls of tools as they end (Tools), and messages, answers and
// session events as the log has them (Feed). Calls of models are recorded by the API itself, which makes them.
//
// # Who records what
//
// A call is recorded by the server that ran it, and by no other: only that one knows it.
//
// What is in the log every server knows, and the leader records it. An id is made of what the log holds (a message's session, number and time), so
// two servers that record the same thing record it under one id: a database keeps it once, and where each server has a database of its own, the
// list shows it once. That makes a change of leaders simple. Each server that does not lead remembers the last things that it would have recorded,
// bounded in number and bytes, as the log has them; the one that comes to lead records these first, and then goes on. So what its predecessor had read from the log
// and not made durable, some milliseconds' worth, is recorded by the successor, without the two knowing of each other. A server that is killed and
// starts again replays its log, and remembers likewise. What both had is repeated, and there once.
//
// It was considered that all servers record everything: simpler still, and three times the work for the same record. And a position in raft, from
// which the next leader goes on: exact, and a commit more for each batch, where some thousand repetitions at a change of leaders do as well.
//
// Who sent a message is not in the log. The API tells the feed of the server that accepted it (Sent), and the feed waits a tenth of a second for that,
// since it may have read the message before the API has its answer; then the message is recorded without.
//
// # When the record is full
//
// With the policy block a call waits for room before anything is done. The log cannot wait: what is in it has happened. So the API waits before it
// accepts a message, and the feed waits with what follows from those that were accepted; when it falls so far behind that the
// state does not hold the changes any more, they are counted as missed, and the log says so.
package record
