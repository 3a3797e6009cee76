// What the recorder counts.

package recorder

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the recorder's, by their names in Prometheus.
type metrics struct {
	records, dropped, truncated, redacted prometheus.Counter
	blockedSeconds                        prometheus.Counter
	spoolFailures, damagedBytes           prometheus.Counter
	shipped, repeated, rejected, pruned   prometheus.Counter
	sinkFailures                          prometheus.Counter
	syncSeconds, sinkSeconds              prometheus.Histogram
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "orchestrator", Subsystem: "recorder", Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "orchestrator", Subsystem: "recorder", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)})
	}
	return &metrics{
		records:        counter("records_total", "Interactions that were taken."),
		dropped:        counter("dropped_records_total", "Interactions that were not taken because the spool was full."),
		truncated:      counter("truncated_payloads_total", "Requests and responses of which only the beginning was kept."),
		redacted:       counter("redactions_total", "Secrets that were taken out."),
		blockedSeconds: counter("blocked_seconds_total", "Time for which the work waited because the spool was full."),
		spoolFailures:  counter("spool_failures_total", "Writes to the spool that failed; each is tried again."),
		damagedBytes:   counter("spool_damaged_bytes_total", "Bytes of the spool that could not be read and were skipped."),
		shipped:        counter("shipped_records_total", "Interactions that the sink confirmed."),
		repeated:       counter("repeated_records_total", "Interactions that the sink had already, after a crash or a lost answer."),
		rejected:       counter("rejected_records_total", "Interactions that the sink can never keep; they are in the spool's directory."),
		pruned:         counter("pruned_records_total", "Interactions that were too old or too much."),
		sinkFailures:   counter("sink_failures_total", "Writes to the sink that failed; each is tried again."),
		syncSeconds:    histogram("spool_sync_seconds", "Time to make the spool durable."),
		sinkSeconds:    histogram("sink_write_seconds", "Time of a batch's write to the sink."),
	}
}

// register registers the metrics, with those that are read off the recorder.
func (m *metrics) register(reg prometheus.Registerer, r *Recorder) error {
	if reg == nil {
		return nil
	}
	read := func(name, help string, value func(State) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "orchestrator", Subsystem: "recorder", Name: name, Help: help}, func() float64 { return value(r.State()) })
	}
	for _, c := range []prometheus.Collector{
		m.records, m.dropped, m.truncated, m.redacted, m.blockedSeconds, m.spoolFailures, m.damagedBytes, m.shipped, m.repeated, m.rejected, m.pruned,
		m.sinkFailures, m.syncSeconds, m.sinkSeconds,
		read("spool_bytes", "Bytes that wait for the sink, on disk.", func(s State) float64 { return float64(s.SpoolBytes) }),
		read("spool_max_bytes", "Bytes that may wait for the sink.", func(s State) float64 { return float64(s.SpoolMaxBytes) }),
		read("queue_bytes", "Bytes that wait for the spool, in memory.", func(s State) float64 { return float64(s.QueueBytes) }),
		read("spool_alarm", "1 while the spool is fuller than it should be.", func(s State) float64 { return one(s.Alarm) }),
		read("sink_up", "1 unless the last write to the sink failed.", func(s State) float64 { return one(s.SinkError == "") }),
		read("lag_seconds", "Age of the oldest interaction that the sink has not confirmed, as far as it was tried.", func(s State) float64 {
			if s.Oldest.IsZero() {
				return 0
			}
			return max(time.Since(s.Oldest).Seconds(), 0)
		}),
	} {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
