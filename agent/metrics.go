// What the agent counts.
package agent

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the agent's, by their names in Prometheus.
type metrics struct {
	startSeconds      prometheus.Histogram
	startFailures     prometheus.Counter
	messagesDelivered prometheus.Counter
	messagesRefused   prometheus.Counter
	turns             prometheus.Counter
	lapses            prometheus.Counter
	damaged           prometheus.Counter
	roundTrip         prometheus.Histogram
	streams           prometheus.Gauge
	sessions          prometheus.Gauge
	factsUnacked      prometheus.Gauge
	leaseSeconds      prometheus.GaugeFunc
	linked            prometheus.Gauge
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "node_agent", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "node_agent", Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "node_agent", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)})
	}
	return &metrics{
		startSeconds:      histogram("session_start_seconds", "Time to start a session's process, from a free start slot on."),
		startFailures:     counter("session_start_failures_total", "Sessions whose process could not be started."),
		messagesDelivered: counter("messages_delivered_total", "Messages written to sessions."),
		messagesRefused:   counter("messages_refused_total", "Messages that a session could never take."),
		turns:             counter("turns_total", "Turns that ended."),
		lapses:            counter("lease_lapses_total", "Times the node's lease lapsed."),
		damaged:           counter("damaged_sessions_total", "Session directories set aside because their record was damaged."),
		roundTrip:         histogram("heartbeat_round_trip_seconds", "Time from a heartbeat to its answer."),
		streams:           gauge("streams", "Log readers, terminals and commands being served."),
		sessions:          gauge("sessions", "Sessions that run or are being started or stopped."),
		factsUnacked:      gauge("facts_unacked", "Facts that the control plane has not committed."),
		linked:            gauge("linked", "1 while a server has acknowledged the node link."),
	}
}

// register registers the metrics.
func (m *metrics) register(r prometheus.Registerer, a *Agent) error {
	m.leaseSeconds = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "node_agent", Name: "lease_seconds",
		Help: "What is left of the node's lease; negative after it lapsed, 0 before the first."}, func() float64 {
		if !a.host.lease.ever() {
			return 0
		}
		return a.host.lease.remaining().Seconds()
	})
	for _, c := range []prometheus.Collector{m.startSeconds, m.startFailures, m.messagesDelivered, m.messagesRefused, m.turns, m.lapses,
		m.damaged, m.roundTrip, m.streams, m.sessions, m.factsUnacked, m.leaseSeconds, m.linked} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
