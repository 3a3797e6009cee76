// Package toolclient calls the cluster's tools through the client gateway, and does not lose an answer.
//
// docs/protocol/client-gateway.md is the protocol, docs/guides/clients.md shows how to use this package. A Client is given the
// addresses of some servers, any of which will do, and holds one WebSocket to one of them, over which any number of
// goroutines call tools:
//
//	c, err := toolclient.New(toolclient.Config{Addresses: []string{"127.0.0.1:8079"}, Token: toolclient.StaticToken(token)})
//	r, err := c.Call(ctx, "session_send", map[string]any{"id": "abc", "message": "hello"})
//
// What happens below is the Client's business, and its callers notice only the time that it takes:
//
//	    ┌───────────── connecting ◄── New
//	    ▼                   │
//	connected ──lost──► reconnecting ──3 attempts failed──► fallback (HTTP), which goes on trying the WebSocket
//	    ▲                   │                                   │
//	    └───────────────────┴───────────────────────────────────┘
//
// No call is lost on the way:
//
//   - Each attempt goes to the next address, after a pause of full jitter between 0 and a bound that doubles from 1 s to 30 s; after
//     10 in a row it goes on every 30 s to 5 min. A circuit breaker for each address and way spares those that keep failing.
//   - The session is the same on every connection. What is in flight is asked for again by its request_id, which has no second
//     effect, whichever server is asked; results that come twice are handed out once.
//   - OVER_CAPACITY and SERVICE_UNAVAILABLE are waited out within the call's deadline, and a server that is full is asked less often.
//   - A context that is cancelled cancels the call at the server, whichever way it went and goes by then.
//
// Over HTTP there is all of this but streams, progress, Health and RotateToken: calls, cancelling, ListTools, and the same errors.
//
// Owner: one goroutine (owner.go; overhttp.go for the fallback) has the calls, the connection and the clock to itself. Everything else sends it events and
// never shares its state: the connection's reader, the attempts to connect, the HTTP requests, and the callers.
//
//	callers ──► inbox ──► owner ──► conn: queue ──► writer ──► socket
//	               ▲                                               │
//	               └──────────────── reader ◄──────────────────────┘
//
// Bounds: calls (MaxInFlight at the server, MaxWaiting here), frames to be written, chunks that nobody takes, answers. What is full
// is an error of kind fault.Exhausted; a stream that nobody takes is cut, and its result says so.
package toolclient
