// Package simnode simulates nodes: real WebSockets and the real protocol of the node link, spoken by the link's own
// client, with nothing behind them. A session that should run is reported started at once, one that should stop as
// ended, and a message's turn ends as soon as it is delivered.
//
// Ten thousand of them live in one process. Each dials from an address of 127.0.0.0/8, so that no single address runs
// out of ports.
package simnode
