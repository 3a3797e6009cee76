// Package mcp offers the tools to clients of the Model Context Protocol, over Streamable HTTP.
//
// The protocol itself is the official SDK's. What is here is what comes before and behind it: who asks is known, and
// allowed to, before a byte of the body is read, for initialize as for everything else; an MCP session belongs to the caller
// who opened it; and a call runs as that caller, with the token of the very request, so that one that was revoked is refused.
//
// Progress is told to clients that ask for it, and cancelling a call really ends it.
package mcp
