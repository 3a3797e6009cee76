// Package queue holds the nouns of calls that clients were promised an answer to, and the rules of what becomes of them: what a call may
// become, in which order calls run, which failures are tried again and when. It is pure: the replicated state (cluster/state)
// applies it, and package dispatch runs calls by it on each server. docs/decisions/0005-calls.md says why it is so.
//
//	           begin             end
//	QUEUED ───────────► RUNNING ─────────► ENDED ──────────┐
//	 ▲  ▲   ◄───────────    │   └────────► DEAD ─┐         │
//	 │  │    defer, assign  │     give up         │ retry   │ submit, when the outcome was one that passes
//	 │  └───────────────────┴─────────────────────┘         │
//	 └──────────────────────────────────────────────────────┘
//
// What waits can end, too, without having begun.
package queue
