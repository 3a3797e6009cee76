// What a server tells Prometheus of its clients.

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/telemetry"
)

var (
	descClientConns     = desc("client_connections", "WebSockets of clients that this server holds.")
	descClients         = desc("client_sessions", "Sessions of clients, connected or not, that this server keeps.")
	descClientInFlight  = desc("client_calls_in_flight", "Calls of tools in flight.")
	descClientKept      = desc("client_kept_bytes", "Bytes of results that are kept, and of messages that wait for clients.")
	descClientAccepted  = desc("client_connections_accepted_total", "WebSockets that were accepted.")
	descClientRefused   = desc("client_connections_refused_total", "Connections that were refused: by a limit, or for want of a good hello.")
	descClientResumed   = desc("client_sessions_resumed_total", "Hellos with a session that was known.")
	descClientCalls     = desc("client_calls_total", "Calls of tools that were begun.")
	descClientJoined    = desc("client_calls_joined_total", "Repeated calls that joined one in flight.")
	descClientCached    = desc("client_calls_cached_total", "Repeated calls that got a kept result.")
	descClientCancelled = desc("client_calls_cancelled_total", "Calls that their client cancelled.")
	descClientFull      = desc("client_over_capacity_total", "Refusals because a limit was reached.")
	descClientMalformed = desc("client_malformed_total", "Messages that were refused because they were wrong.")
	descClientEvicted   = desc("client_results_evicted_total", "Delivered results that were dropped early, for want of room.")
	descClientTruncated = desc("client_streams_truncated_total", "Streams of which parts were left out, because their client was away and its queue full.")
	descClientFramesIn  = desc("client_frames_received_total", "Messages from clients.")
	descClientFramesOut = desc("client_frames_sent_total", "Messages to clients.")
	descClientBytesIn   = desc("client_received_bytes_total", "Bytes of messages from clients.")
	descClientBytesOut  = desc("client_sent_bytes_total", "Bytes of messages to clients.")
)

// collectClients tells of the client gateway.
func (s *server) collectClients(ch chan<- prometheus.Metric) {
	st := s.gateway.Stats()
	telemetry.Gauge(ch, descClientConns, st.Connections)
	telemetry.Gauge(ch, descClients, st.Clients)
	telemetry.Gauge(ch, descClientInFlight, st.InFlight)
	telemetry.Gauge(ch, descClientKept, st.KeptBytes)
	telemetry.Counter(ch, descClientAccepted, st.Accepted)
	telemetry.Counter(ch, descClientRefused, st.Refused)
	telemetry.Counter(ch, descClientResumed, st.Resumed)
	telemetry.Counter(ch, descClientCalls, st.Calls)
	telemetry.Counter(ch, descClientJoined, st.Joined)
	telemetry.Counter(ch, descClientCached, st.Cached)
	telemetry.Counter(ch, descClientCancelled, st.Cancelled)
	telemetry.Counter(ch, descClientFull, st.OverCapacity)
	telemetry.Counter(ch, descClientMalformed, st.Malformed)
	telemetry.Counter(ch, descClientEvicted, st.Evicted)
	telemetry.Counter(ch, descClientTruncated, st.Truncated)
	telemetry.Counter(ch, descClientFramesIn, st.FramesReceived)
	telemetry.Counter(ch, descClientFramesOut, st.FramesSent)
	telemetry.Counter(ch, descClientBytesIn, st.Received)
	telemetry.Counter(ch, descClientBytesOut, st.Written)
}

var (
	descCallsWaiting   = desc("calls_waiting", "Durable calls of this server that wait for their turn.")
	descCallsRunning   = desc("calls_running", "Durable calls that this server runs.")
	descCallsProposed  = desc("calls_commands_queued", "Commands about durable calls that wait for the log.")
	descCallsSubmitted = desc("calls_submitted_total", "Durable calls that were taken by this server.")
	descCallsKnown     = desc("calls_known_total", "Durable calls that were asked for again.")
	descCallsRefused   = desc("calls_refused_total", "Durable calls that were not taken: by a bound, by a mistake, or because nobody led.")
	descCallsEnded     = desc("calls_ended_total", "Attempts of this server that ended their call.")
	descCallsDeferred  = desc("calls_deferred_total", "Attempts of this server that failed in a way that may pass, and are followed by another.")
	descCallsDead      = desc("calls_dead_total", "Calls that this server gave up: they are dead letters.")
	descCallsOutdated  = desc("calls_outdated_total", "Attempts of this server whose call another server has by now.")
	descCallsOrphans   = desc("calls_orphans_total", "Calls that this server ran when it was stopped, and found again when it was started.")
	descCallsCancelled = desc("calls_cancelled_total", "Attempts of this server that were cancelled.")
	descCallsFast      = desc("calls_fast_total", "Durable calls that were taken and ended by one entry of the log.")
	descCallsResumed   = desc("calls_resumed_total", "Results that clients were given on coming back.")
	descCallsFetched   = desc("calls_fetched_total", "Results that were fetched from the chunk store.")
)

// collectDispatch tells of the durable calls of this server.
func (s *server) collectDispatch(ch chan<- prometheus.Metric) {
	st := s.calls.Stats()
	telemetry.Gauge(ch, descCallsWaiting, st.Waiting)
	telemetry.Gauge(ch, descCallsRunning, st.Running)
	telemetry.Gauge(ch, descCallsProposed, s.callLog.Queued())
	telemetry.Counter(ch, descCallsSubmitted, st.Submitted)
	telemetry.Counter(ch, descCallsKnown, st.Known)
	telemetry.Counter(ch, descCallsRefused, st.Refused)
	telemetry.Counter(ch, descCallsEnded, st.Ended)
	telemetry.Counter(ch, descCallsDeferred, st.Deferred)
	telemetry.Counter(ch, descCallsDead, st.Dead)
	telemetry.Counter(ch, descCallsOutdated, st.Outdated)
	telemetry.Counter(ch, descCallsOrphans, st.Orphans)
	telemetry.Counter(ch, descCallsCancelled, st.Cancelled)
	telemetry.Counter(ch, descCallsFast, st.Fast)
	telemetry.Counter(ch, descCallsResumed, st.Resumed)
	telemetry.Counter(ch, descCallsFetched, st.Fetched)
}

var (
	descMCPSessions      = desc("mcp_sessions", "Sessions of MCP, over HTTP and WebSockets.")
	descMCPConns         = desc("mcp_connections", "WebSockets of MCP, which count among those of clients.")
	descMCPSubscriptions = desc("mcp_subscriptions", "Logs that clients of MCP want to hear of.")
)

// collectMCP tells of the Model Context Protocol. The connections and calls of its clients are among those of all clients.
func (s *server) collectMCP(ch chan<- prometheus.Metric) {
	st := s.mcp.Stats()
	telemetry.Gauge(ch, descMCPSessions, st.Sessions)
	telemetry.Gauge(ch, descMCPConns, st.WebSockets)
	telemetry.Gauge(ch, descMCPSubscriptions, st.Subscriptions)
}
