// Package testbed starts what is measured, and what measures it, as processes of their own: clusters of real servers,
// real node agents, and helpers, which are this program again in another role.
//
// Whoever starts a process ends it; the kernel does when this process dies first. A helper is spoken to in lines of
// JSON over its standard input and output, one question at a time, and ends with its input.
package testbed
