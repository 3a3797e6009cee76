// Package load is a client that asks much of a cluster: it spawns sessions and sends messages through the public API,
// by the project's own Go client, from a process of its own.
package load
