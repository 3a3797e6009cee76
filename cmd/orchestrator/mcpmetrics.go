// What a server tells Prometheus of its clients of the Model Context Protocol. Their connections and calls are among those of all clients.

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/gateway/mcp"
)

var (
	descMCPSessions      = desc("mcp_sessions", "Sessions of MCP, over HTTP and WebSockets.")
	descMCPConns         = desc("mcp_connections", "WebSockets of MCP, which count among those of clients.")
	descMCPSubscriptions = desc("mcp_subscriptions", "Logs that clients of MCP want to hear of.")
)

// mcpMetrics collects from MCP.
type mcpMetrics struct{ handler *mcp.Handler }

// Describe implements prometheus.Collector.
func (m mcpMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m mcpMetrics) Collect(ch chan<- prometheus.Metric) {
	t, st := samples{ch}, m.handler.Stats()
	t.gauge(descMCPSessions, float64(st.Sessions))
	t.gauge(descMCPConns, float64(st.WebSockets))
	t.gauge(descMCPSubscriptions, float64(st.Subscriptions))
}
