// What a server tells Prometheus of chunks: what its stores do, what is swept, and what is repaired.

package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/chunks"
)

// Of each store, by name: directory, and bucket where there is one.
var (
	descChunkGets     = desc("chunk_gets_total", "Chunks that a store gave.", "store")
	descChunkGetBytes = desc("chunk_get_bytes_total", "Bytes of them.", "store")
	descChunkPuts     = desc("chunk_puts_total", "Chunks that a store took.", "store")
	descChunkPutBytes = desc("chunk_put_bytes_total", "Bytes of them.", "store")
	descChunkPresent  = desc("chunk_puts_present_total", "Puts of chunks that were there already.", "store")
	descChunkRefused  = desc("chunk_puts_refused_total", "Puts for which there was no room.", "store")
	descChunkNotFound = desc("chunk_not_found_total", "Gets of chunks that were not there.", "store")
	descChunkDamaged  = desc("chunk_damaged_total", "Chunks that were found damaged and put aside.", "store")
	descChunkBytes    = desc("chunk_directory_bytes", "Bytes of chunks in this server's directory.")
	descChunkCount    = desc("chunk_directory_chunks", "Chunks in this server's directory.")

	descSweeps       = desc("chunk_sweeps_total", "Sweeps by this server that went through.", "store")
	descSweepsFailed = desc("chunk_sweeps_failed_total", "Sweeps by this server that failed.", "store")
	descSweptLive    = desc("chunk_sweep_live_chunks", "Chunks that the last sweep found needed.", "store")
	descSweptYoung   = desc("chunk_sweep_young_chunks", "Chunks that nobody needs, which the last sweep found too young to go.", "store")
	descSweptGone    = desc("chunk_swept_total", "Chunks that sweeps deleted.", "store")
	descSweptBytes   = desc("chunk_swept_bytes_total", "Bytes of chunks that sweeps deleted.", "store")
	descSweepTime    = desc("chunk_sweep_last_timestamp_seconds", "When the last sweep ended, in seconds since 1970; 0 for none.", "store")
	descSweepTook    = desc("chunk_sweep_last_duration_seconds", "How long it took.", "store")

	descRepairs       = desc("chunk_repair_rounds_total", "Rounds of repair by this server that went through.")
	descRepairsFailed = desc("chunk_repair_rounds_failed_total", "Rounds of repair that were cut off.")
	descRepairChecked = desc("chunk_repair_checked_total", "Chunks that servers were asked about.")
	descRepairCopied  = desc("chunk_repair_copies_total", "Copies that repair made.")
	descRepairBytes   = desc("chunk_repair_copied_bytes_total", "Bytes of them.")
	descCopiesFailed  = desc("chunk_repair_copies_failed_total", "Copies that repair could not make.")
	descRepairLost    = desc("chunk_repair_lost_chunks", "Chunks that a checkpoint names and no server has, as the last round found.")
	descRepairTime    = desc("chunk_repair_last_timestamp_seconds", "When the last round ended, in seconds since 1970; 0 for none.")
)

// chunkMetrics collects from the stores and the upkeep.
type chunkMetrics struct {
	chunks *chunkStore
	upkeep *upkeep
}

// Describe implements prometheus.Collector.
func (m chunkMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m chunkMetrics) Collect(ch chan<- prometheus.Metric) {
	t := samples{ch}
	bytes, count := m.chunks.local.Usage()
	t.gauge(descChunkBytes, float64(bytes))
	t.gauge(descChunkCount, float64(count))
	st := m.upkeep.Stats()
	t.store("directory", m.chunks.local.Counters(), &st.dir)
	if m.chunks.bucket != nil {
		t.store("bucket", m.chunks.bucket.Counters(), &st.bucket)
		return
	}
	r := &st.repair
	t.counter(descRepairs, r.rounds)
	t.counter(descRepairsFailed, r.failed)
	t.counter(descRepairChecked, r.checked)
	t.counter(descRepairCopied, r.copied)
	t.counter(descRepairBytes, r.copiedBytes)
	t.counter(descCopiesFailed, r.copiesFailed)
	t.gauge(descRepairLost, float64(r.lost))
	t.gauge(descRepairTime, stampSeconds(r.lastTime))
}

// samples is where metrics go.
type samples struct{ ch chan<- prometheus.Metric }

func (t samples) gauge(d *prometheus.Desc, v float64, labels ...string) {
	t.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (t samples) counter(d *prometheus.Desc, v int64, labels ...string) {
	t.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (t samples) store(name string, c *chunks.Counters, s *sweepStats) {
	t.counter(descChunkGets, c.Gets.Load(), name)
	t.counter(descChunkGetBytes, c.GetBytes.Load(), name)
	t.counter(descChunkPuts, c.Puts.Load(), name)
	t.counter(descChunkPutBytes, c.PutBytes.Load(), name)
	t.counter(descChunkPresent, c.Present.Load(), name)
	t.counter(descChunkRefused, c.Refused.Load(), name)
	t.counter(descChunkNotFound, c.NotFound.Load(), name)
	t.counter(descChunkDamaged, c.Damaged.Load(), name)
	t.counter(descSweeps, s.sweeps, name)
	t.counter(descSweepsFailed, s.failed, name)
	t.gauge(descSweptLive, float64(s.last.Live), name)
	t.gauge(descSweptYoung, float64(s.last.Young), name)
	t.counter(descSweptGone, s.deleted, name)
	t.counter(descSweptBytes, s.deletedBytes, name)
	t.gauge(descSweepTime, stampSeconds(s.lastTime), name)
	t.gauge(descSweepTook, s.lastTook.Seconds(), name)
}

// stampSeconds is a time as Prometheus has it.
func stampSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
