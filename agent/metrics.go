// What the agent counts.

package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the agent's, by their names in Prometheus.
type metrics struct {
	startSeconds      prometheus.Histogram
	startFailures     prometheus.Counter
	messagesDelivered prometheus.Counter
	messagesRefused   prometheus.Counter
	factResends       prometheus.Counter
	turns             prometheus.Counter
	lapses            prometheus.Counter
	damaged           prometheus.Counter
	roundTrip         prometheus.Histogram
	streams           prometheus.Gauge

	checkpoints, checkpointFailures   prometheus.Counter
	checkpointBytes                   prometheus.Counter
	checkpointHold, checkpointSeconds prometheus.Histogram
	restores, restoreFailures         prometheus.Counter
	restoreSeconds                    prometheus.Histogram
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
		factResends:       counter("fact_resends_total", "Times that facts were sent again over the same link because no ack came."),
		turns:             counter("turns_total", "Turns that ended."),
		lapses:            counter("lease_lapses_total", "Times the node's lease lapsed."),
		damaged:           counter("damaged_sessions_total", "Session directories set aside because their record was damaged."),
		roundTrip:         histogram("heartbeat_round_trip_seconds", "Time from a heartbeat to its answer."),
		streams:           gauge("streams", "Log readers, terminals and commands being served."),

		checkpoints:        counter("checkpoints_total", "Checkpoints that were stored."),
		checkpointFailures: counter("checkpoint_failures_total", "Checkpoints that could not be made; each is tried again, or its asker told."),
		checkpointBytes:    counter("checkpoint_sent_bytes_total", "Bytes of chunks sent to the store."),
		checkpointHold:     histogram("checkpoint_hold_seconds", "Time for which messages were held while a session was read."),
		checkpointSeconds:  histogram("checkpoint_seconds", "Time from the moment of a checkpoint until it was stored."),
		restores:           counter("restores_total", "Sessions that were restored from a checkpoint."),
		restoreFailures:    counter("restore_failures_total", "Sessions that could not be restored."),
		restoreSeconds:     histogram("restore_seconds", "Time to restore a session's directory."),
	}
}

// register registers the metrics, with those that are read off the agent.
func (m *metrics) register(r prometheus.Registerer, a *Agent) error {
	read := func(name, help string, value func(Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "node_agent", Name: name, Help: help}, func() float64 { return value(a.Status()) })
	}
	for _, c := range []prometheus.Collector{
		m.startSeconds, m.startFailures, m.messagesDelivered, m.messagesRefused, m.factResends, m.turns, m.lapses, m.damaged, m.roundTrip, m.streams,
		m.checkpoints, m.checkpointFailures, m.checkpointBytes, m.checkpointHold, m.checkpointSeconds, m.restores, m.restoreFailures, m.restoreSeconds,
		read("sessions", "Sessions that run, or are being started or stopped.", func(s Status) float64 { return float64(s.Sessions) }),
		read("facts_unacked", "Facts that the control plane has not committed.", func(s Status) float64 { return float64(s.FactsUnacked) }),
		read("lease_seconds", "What is left of the node's lease; 0 when it has none.", func(s Status) float64 { return s.LeaseLeft.Seconds() }),
		read("linked", "1 while a server has acknowledged the node link.", func(s Status) float64 {
			if s.Linked {
				return 1
			}
			return 0
		}),
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// Status is an agent's state at one instant, for whoever watches it.
type Status struct {
	Linked       bool          // a server has acknowledged the link
	LeaseLeft    time.Duration // 0 when the node has no lease
	Sessions     int           // that run, or are being started or stopped
	FactsUnacked int           // not committed by the control plane
	Leaving      bool          // it was told to stop, and its sessions go elsewhere first
}

// Status may be called from any goroutine, at any time.
func (a *Agent) Status() Status {
	return Status{Linked: a.linked.Load(), LeaseLeft: max(a.host.lease.remaining(), 0), Sessions: int(a.running.Load()),
		FactsUnacked: int(a.host.room.waiting.Load()), Leaving: a.leaves.Load()}
}
