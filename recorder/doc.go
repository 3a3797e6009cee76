// Package recorder keeps what happened: each tool call, model call, message, answer and session event, as an Interaction.
//
// It works beside the work, never in its way. Record hands an interaction over in memory, in a microsecond or so. From there it goes
//
//	Record ──► queue ──► redacted, cut, encoded ──► spool ──► sink
//	           memory    (package redact)           disk      SQLite, Postgres
//
// through two goroutines, of which Serve has one each: one writes the spool and syncs it every SyncEvery, one gives the sink what is synced and
// confirms it. The sink may be slow or away; the spool holds what it has not confirmed, through restarts and crashes. Each interaction has
// an id, and a sink ignores one that it has, so that whatever is sent again after a crash is there once.
//
// What was handed over and not yet written, some milliseconds' worth, is lost with a process that is killed, and up to SyncEvery more with a machine that
// loses power; Flush waits until all is on disk.
//
// The spool is bounded. From AlarmPercent on there is an alarm: a line in the log, a metric, and Health. When it is full, the policy
// decides: Block makes Record wait until there is room, so that nothing is lost and the work waits; DropAndCount lets the work go on, and counts
// what is not recorded.
//
// Sinks are in packages sqlite and postgres, and sinks opens the one that is configured. sinktest holds what all of them promise.
package recorder
