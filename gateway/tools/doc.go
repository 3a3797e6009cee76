// Package tools is what the client gateway offers to agents and programs: tools with a name, a description and a JSON Schema.
//
// A tool is a call of the public API, or a few, in the shape that language models and small clients find easy: flat arguments,
// JSON text as the answer. Whoever speaks to clients (gateway/socket, gateway/mcp) checks arguments against the schema with
// Check, and has the tool run with Call. Tools know nothing of authentication: the context that they are called with carries
// the caller, and the API answers as it would have answered that caller.
//
// Calls of one ID have one effect, however often they are made and at whichever server: the ID becomes the API's idempotency
// key. So a tool may, and does, ask again when a server or the leader went away under it.
package tools
