// Package mcp offers the tools, and what sessions write and keep, to clients of the Model Context Protocol: over Streamable HTTP, and
// over WebSockets.
//
// The protocol itself is the official SDK's. What is here is what comes before and behind it: who asks is known, and
// allowed to, before a byte of the body is read and before a WebSocket is made, for initialize as for everything else; an MCP session
// belongs to the caller who opened it; and a call runs as that caller, with the token of the very request, so that one that was revoked
// is refused.
//
//	HTTP ─────► who? ─► SDK ──────────────┐                 ┌─► tools ──────┐
//	                                      ├─► receive ──────┤               ├─► the public API, as the caller
//	WebSocket ► who? ─► wire ─► SDK ──────┘   (who, limits) └─► resources ──┘
//	              └─ its queue, writer, pings                     └─ subscriptions: followers of logs
//
// Progress is told to clients that ask for it, and cancelling a call really ends it. Losing a connection does not undo what a call
// does: nobody waits for it any more.
//
// Resources are session://ID/log and session://ID/workspace/PATH; docs/protocol/client-gateway.md says what they hold. Files come from
// the session's checkpoints in the chunk store, so that they can be read wherever it is, and when it runs nowhere.
package mcp
