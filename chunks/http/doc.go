// Package http serves a store of chunks to nodes and to other servers under /v1/chunks/, and is the client of that.
//
// docs/protocol/chunks.md is the specification. Every request may be repeated: a chunk's name says what it holds, so the client tries
// again what did not get through, and after a batch that broke off it asks what is missing and sends only that. Both
// sides verify what they receive. A frame is at most 1 MiB, so a chunk is the unit of resumption; there are no ranges.
package http
