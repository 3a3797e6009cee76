// Package socket is the client gateway: one WebSocket by which a program calls tools and never loses an answer.
//
// docs/protocol/client-gateway.md is the specification. The parts:
//
//	WebSocket ──► conn ──┐ frames       ┌─► call ──► keeper: memory, or the cluster ──► tools ──► the public API, as the caller
//	                     ├──► client ───┤     │        (memory.go)   (durable.go)
//	POST /v1/… ──► http ─┘              └─► queue of frames ◄─┘ ack, progress, chunks, result
//
// A conn is a connection and lives as long as its socket. A client is who is behind it: a session_id that belongs to one
// caller. Calls and the frames that answer them belong to the client, so they outlive the connection: whoever comes back with
// the session_id is sent what it missed, in order and once. A call is known by its request_id; a repeated one joins the call
// in flight or gets the kept result.
//
// Who keeps a call is its keeper. The cluster does, unless it was asked not to: package queue/dispatch has the call committed, run at one
// server and answered at whichever the client is by then (resume.go). A client that is away is not queued for: its results are in the state. What the
// memory of this server keeps is lost with it; it is asked again elsewhere, and as the request_id becomes the idempotency key of what a call changes,
// that has no second effect.
//
// Bounds: everything here is bounded by Limits, and what is full is answered with OVER_CAPACITY and a time to come back.
package socket
