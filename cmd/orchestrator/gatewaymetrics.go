// What a server tells Prometheus of its clients.

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/queue/dispatch"
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

// gatewayMetrics collects from the client gateway.
type gatewayMetrics struct{ hub *socket.Hub }

// Describe implements prometheus.Collector.
func (m gatewayMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m gatewayMetrics) Collect(ch chan<- prometheus.Metric) {
	t, st := samples{ch}, m.hub.Stats()
	t.gauge(descClientConns, float64(st.Connections))
	t.gauge(descClients, float64(st.Clients))
	t.gauge(descClientInFlight, float64(st.InFlight))
	t.gauge(descClientKept, float64(st.KeptBytes))
	for _, c := range []struct {
		desc  *prometheus.Desc
		value uint64
	}{
		{descClientAccepted, st.Accepted}, {descClientRefused, st.Refused}, {descClientResumed, st.Resumed}, {descClientCalls, st.Calls},
		{descClientJoined, st.Joined}, {descClientCached, st.Cached}, {descClientCancelled, st.Cancelled}, {descClientFull, st.OverCapacity},
		{descClientMalformed, st.Malformed}, {descClientEvicted, st.Evicted}, {descClientTruncated, st.Truncated}, {descClientFramesIn, st.FramesReceived},
		{descClientFramesOut, st.FramesSent}, {descClientBytesIn, st.Received}, {descClientBytesOut, st.Written},
	} {
		t.counter(c.desc, int64(c.value))
	}
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

// dispatchMetrics collects from the queue of durable calls.
type dispatchMetrics struct {
	calls *dispatch.Dispatcher
	log   *dispatch.ClusterLog
}

// Describe implements prometheus.Collector.
func (m dispatchMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m dispatchMetrics) Collect(ch chan<- prometheus.Metric) {
	t, st := samples{ch}, m.calls.Stats()
	t.gauge(descCallsWaiting, float64(st.Waiting))
	t.gauge(descCallsRunning, float64(st.Running))
	t.gauge(descCallsProposed, float64(m.log.Queued()))
	for _, c := range []struct {
		desc  *prometheus.Desc
		value uint64
	}{
		{descCallsSubmitted, st.Submitted}, {descCallsKnown, st.Known}, {descCallsRefused, st.Refused}, {descCallsEnded, st.Ended},
		{descCallsDeferred, st.Deferred}, {descCallsDead, st.Dead}, {descCallsOutdated, st.Outdated}, {descCallsOrphans, st.Orphans},
		{descCallsCancelled, st.Cancelled}, {descCallsFast, st.Fast}, {descCallsResumed, st.Resumed}, {descCallsFetched, st.Fetched},
	} {
		t.counter(c.desc, int64(c.value))
	}
}
