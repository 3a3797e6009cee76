// Metrics of the calls that the cluster keeps: the same on every server that has applied the log. What a server does with them is
// counted beside what clients do.

package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

var (
	descCallRows     = desc("calls", "Calls in the state, by status and priority.", "status", "priority")
	descCallOldest   = desc("calls_oldest_seconds", "How long ago the oldest call was taken that has not ended; 0 for none.")
	descCallBytes    = desc("calls_bytes", "Bytes of arguments and results in the state.")
	descCallClients  = desc("calls_clients", "Sessions of clients that the state knows.")
	descCallsDropped = desc("calls_dead_dropped_total", "Dead calls dropped for want of room.")
)

// callMetrics collects from the state.
type callMetrics struct {
	view func() *state.View
	now  func() time.Time
}

// Describe implements prometheus.Collector.
func (m callMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector. It looks at the calls that have not ended, of which there are at most 10,000.
func (m callMetrics) Collect(ch chan<- prometheus.Metric) {
	t, v := samples{ch}, m.view()
	st := v.Stats()
	for status := queue.Queued; status <= queue.Dead; status++ {
		for p := session.Critical; p <= session.Low; p++ {
			t.gauge(descCallRows, float64(st.Calls[status][p]), status.String(), p.String())
		}
	}
	oldest := int64(0)
	for c := range v.CallsDue() {
		if oldest == 0 || c.CreateTime < oldest {
			oldest = c.CreateTime
		}
	}
	age := 0.0
	if oldest != 0 {
		age = max(0, m.now().Sub(time.Unix(0, oldest)).Seconds())
	}
	t.gauge(descCallOldest, age)
	t.gauge(descCallBytes, float64(st.CallBytes+st.DeadCallBytes))
	t.gauge(descCallClients, float64(st.Clients))
	t.counter(descCallsDropped, int64(st.DeadCallsDropped))
}
