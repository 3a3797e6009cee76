// Package mcp tries the gateway with clients that others wrote: the official inspector's command line and the official TypeScript SDKs
// of the Model Context Protocol, against a real cluster. `make mcp-test` installs them, as package-lock.json pins them, and runs it.
package mcp
