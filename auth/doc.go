// Package auth says who a caller is and what it may do.
//
// People and programs show tokens (orch_<id>_<secret>), of which the cluster keeps only the id and a hash. A token has a
// role, and may be bound to one namespace. What a role may do is one table (methods.go), by gRPC method; what is not in
// the table is refused to everybody. Servers show each other certificates, which carry a role, too.
//
//	viewer    reads sessions, their output, mailboxes and events, and nodes
//	client    … and spawns, sends, attaches, executes and terminates
//	operator  … and handles nodes, dead letters, the cluster's status and its snapshots
//	admin     … and handles members, tokens and restores: everything
//	node      only the node link
//	server    only what servers ask of each other; no token has it, certificates do
//
// A token that is bound to a namespace reaches what is in it and nothing that belongs to the whole cluster.
//
// The second half is TLS 1.3 for every port: a certificate authority of the cluster's own (ca.go), configurations for
// servers, their peers, nodes and clients (tls.go), and certificates that are read again when their files change
// (certs.go).
//
// Nothing here keeps state of the cluster: records of tokens come through the Tokens interface.
package auth
