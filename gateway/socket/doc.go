// Package socket is the client gateway: one WebSocket by which a program calls tools and never loses an answer.
//
// docs/protocol/client-gateway.md is the specification. The parts:
//
//	WebSocket ──► conn ──┐ frames       ┌─► call ──► tools ──► the public API, as the caller
//	                     ├──► client ───┤     │
//	POST /v1/… ──► http ─┘              └─► queue of frames ◄─┘ ack, progress, chunks, result
//
// A conn is a connection and lives as long as its socket. A client is who is behind it: a session_id that belongs to one
// caller. Calls and the frames that answer them belong to the client, so they outlive the connection: whoever comes back with
// the session_id is sent what it missed, in order and once. A call is known by its request_id; a repeated one joins the call
// in flight or gets the kept result.
//
// What is kept is in this server's memory. A client that goes to another server repeats its calls by request_id there: the
// request_id becomes the idempotency key of what the call changes, which the cluster keeps, so that the repeated call has no
// second effect and gets the first one's answer.
//
// Bounds: everything here is bounded by Limits, and what is full is answered with OVER_CAPACITY and a time to come back.
package socket
