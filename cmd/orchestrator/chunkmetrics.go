// What a server tells Prometheus of chunks: what its stores do, what is swept, and what is repaired.

package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/telemetry"
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

// collect tells of the stores and of what is done for them.
func (u *upkeep) collect(ch chan<- prometheus.Metric) {
	bytes, count := u.chunks.local.Usage()
	telemetry.Gauge(ch, descChunkBytes, bytes)
	telemetry.Gauge(ch, descChunkCount, count)
	st := u.Stats()
	collectStore(ch, "directory", u.chunks.local.Counters(), &st.dir)
	if u.chunks.bucket != nil {
		collectStore(ch, "bucket", u.chunks.bucket.Counters(), &st.bucket)
		return
	}
	r := &st.repair
	telemetry.Counter(ch, descRepairs, r.rounds)
	telemetry.Counter(ch, descRepairsFailed, r.failed)
	telemetry.Counter(ch, descRepairChecked, r.checked)
	telemetry.Counter(ch, descRepairCopied, r.copied)
	telemetry.Counter(ch, descRepairBytes, r.copiedBytes)
	telemetry.Counter(ch, descCopiesFailed, r.copiesFailed)
	telemetry.Gauge(ch, descRepairLost, r.lost)
	telemetry.Gauge(ch, descRepairTime, stampSeconds(r.lastTime))
}

// collectStore tells of one store.
func collectStore(ch chan<- prometheus.Metric, name string, c *chunks.Counters, s *sweepStats) {
	telemetry.Counter(ch, descChunkGets, c.Gets.Load(), name)
	telemetry.Counter(ch, descChunkGetBytes, c.GetBytes.Load(), name)
	telemetry.Counter(ch, descChunkPuts, c.Puts.Load(), name)
	telemetry.Counter(ch, descChunkPutBytes, c.PutBytes.Load(), name)
	telemetry.Counter(ch, descChunkPresent, c.Present.Load(), name)
	telemetry.Counter(ch, descChunkRefused, c.Refused.Load(), name)
	telemetry.Counter(ch, descChunkNotFound, c.NotFound.Load(), name)
	telemetry.Counter(ch, descChunkDamaged, c.Damaged.Load(), name)
	telemetry.Counter(ch, descSweeps, s.sweeps, name)
	telemetry.Counter(ch, descSweepsFailed, s.failed, name)
	telemetry.Gauge(ch, descSweptLive, s.last.Live, name)
	telemetry.Gauge(ch, descSweptYoung, s.last.Young, name)
	telemetry.Counter(ch, descSweptGone, s.deleted, name)
	telemetry.Counter(ch, descSweptBytes, s.deletedBytes, name)
	telemetry.Gauge(ch, descSweepTime, stampSeconds(s.lastTime), name)
	telemetry.Gauge(ch, descSweepTook, s.lastTook.Seconds(), name)
}

// stampSeconds is a time as Prometheus has it.
func stampSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
