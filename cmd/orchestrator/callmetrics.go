// Metrics of the calls that the cluster keeps: the same on every server that has applied the log. What a server does with them is
// counted beside what clients do.

package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry"
)

var (
	descCallRows     = desc("calls", "Calls in the state, by status and priority.", "status", "priority")
	descCallOldest   = desc("calls_oldest_seconds", "How long ago the oldest call was taken that has not ended; 0 for none.")
	descCallBytes    = desc("calls_bytes", "Bytes of arguments and results in the state.")
	descCallClients  = desc("calls_clients", "Sessions of clients that the state knows.")
	descCallsDropped = desc("calls_dead_dropped_total", "Dead calls dropped for want of room.")
)

// collectCalls tells of the calls in the state. It looks at those that have not ended, of which there are at most 10,000.
func collectCalls(ch chan<- prometheus.Metric, v *state.View, now time.Time) {
	st := v.Stats()
	for status := queue.Queued; status <= queue.Dead; status++ {
		for p := session.Critical; p <= session.Low; p++ {
			telemetry.Gauge(ch, descCallRows, st.Calls[status][p], status.String(), p.String())
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
		age = max(0, now.Sub(time.Unix(0, oldest)).Seconds())
	}
	telemetry.Gauge(ch, descCallOldest, age)
	telemetry.Gauge(ch, descCallBytes, st.CallBytes+st.DeadCallBytes)
	telemetry.Gauge(ch, descCallClients, st.Clients)
	telemetry.Counter(ch, descCallsDropped, st.DeadCallsDropped)
}
