// Package gateway is what clients may do, and the ways of saying it.
//
// Operations do the work: they check, resolve names, place, propose, and wait. The gRPC services translate. Every call is
// authenticated and checked against the table of methods before anything else, and a call that needs the leader is
// forwarded there as it came, with the caller's own token.
package gateway
