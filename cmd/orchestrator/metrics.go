// What a server tells Prometheus. Names follow its conventions: base units, _total for counters.

package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/neolith/orchestrator/session"
)

// metrics collects from the parts when it is asked, so that counting costs nothing in between.
type metrics struct {
	s     *server
	calls *prometheus.HistogramVec
}

// newMetrics describes the parts in the server's registry.
func newMetrics(s *server) *metrics {
	r := s.registry
	m := &metrics{s: s, calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "orchestrator_grpc_call_duration_seconds", Help: "Time of gRPC calls, streams included, by method and code.",
		Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30},
	}, []string{"method", "code"})}
	r.MustRegister(m.calls, m, chunkMetrics{s.chunks, s.upkeep}, callMetrics{s.store.View, time.Now})
	if s.certs != nil {
		r.MustRegister(s.certs)
	}
	return m
}

func (m *metrics) observeCall(method string, code codes.Code, d time.Duration) {
	m.calls.WithLabelValues(method, code.String()).Observe(d.Seconds())
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("orchestrator_"+name, help, labels, nil)
}

var (
	descLeader      = desc("raft_leader", "1 while this server leads.")
	descTerm        = desc("raft_term", "Raft's term.")
	descApplied     = desc("raft_applied_index", "Last log entry handed to the state machine.")
	descCommit      = desc("raft_commit_index", "Last log entry known to be committed.")
	descEntries     = desc("propose_entries_total", "Log entries that this server proposed.")
	descCommands    = desc("propose_commands_total", "Commands in them.")
	descProposeFull = desc("propose_refused_total", "Proposals refused because the queue was full.")
	descQueued      = desc("propose_queue_length", "Proposals that wait for the log.")
	descWrites      = desc("log_writes_total", "Writes to the log's disk.")
	descWriteTime   = desc("log_write_seconds_total", "Time they took.")
	descSessions    = desc("sessions", "Sessions in the state, by phase.", "phase")
	descNodes       = desc("nodes", "Nodes in the state, by status.", "status")
	descMessages    = desc("mailbox_messages", "Messages in mailboxes, queued or delivered.")
	descMailBytes   = desc("mailbox_bytes", "Bytes of their texts.")
	descDead        = desc("dead_letters", "Dead letters that are kept.")
	descDeadDropped = desc("dead_letters_dropped_total", "Dead letters dropped for want of room.")
	descKeys        = desc("idempotency_keys", "Idempotency keys that are kept.")
	descLinks       = desc("links", "Node links that this server holds.")
	descRelayed     = desc("links_relayed", "Node links of followers, while this server leads.")
	descFramesIn    = desc("link_frames_received_total", "Frames from nodes linked to this server.")
	descDropped     = desc("link_frames_dropped_total", "Frames from nodes that came while nobody led.")
	descOverflow    = desc("link_overflows_total", "Links closed because a bounded queue was full.")
	descHeartbeats  = desc("heartbeats_answered_total", "Heartbeats that this server answered as leader.")
	descFacts       = desc("facts_total", "Facts of nodes that were committed.")
	descLost        = desc("nodes_lost_total", "Nodes whose lease ended.")
	descSent        = desc("messages_sent_total", "Messages sent to nodes.")
	descPlaced      = desc("sessions_placed_total", "Waiting sessions that were given a node.")

	descTalks     = desc("conversations", "Conversations with models that are kept.")
	descTalkBytes = desc("conversation_state_bytes", "Bytes of their texts that are in the state.")

	descExchanges       = desc("exchanges", "Exports, imports and comparisons of checkpoints that this server serves now.", "kind")
	descExchangesTotal  = desc("exchanges_total", "Those that it has served.", "kind")
	descExchangesDenied = desc("exchanges_refused_total", "Those that it refused because too many were under way.", "kind")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descLeader, descTerm, descApplied, descCommit, descEntries, descCommands, descProposeFull, descQueued, descWrites,
		descWriteTime, descSessions, descNodes, descMessages, descMailBytes, descDead, descDeadDropped, descKeys, descLinks,
		descRelayed, descFramesIn, descDropped, descOverflow, descHeartbeats, descFacts, descLost, descSent, descPlaced,
		descTalks, descTalkBytes, descExchanges, descExchangesTotal, descExchangesDenied,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := m.s
	leads := 0.0
	if l, _ := s.node.Leader(); l.Self {
		leads = 1
	}
	gauge(descLeader, leads)
	gauge(descTerm, float64(s.node.Term()))
	gauge(descApplied, float64(s.node.AppliedIndex()))
	gauge(descCommit, float64(s.node.CommitIndex()))
	entries, commands, full, queued := s.node.ProposerStats()
	counter(descEntries, entries)
	counter(descCommands, commands)
	counter(descProposeFull, full)
	gauge(descQueued, float64(queued))
	writes, took := s.node.LogStats()
	counter(descWrites, writes)
	ch <- prometheus.MustNewConstMetric(descWriteTime, prometheus.CounterValue, took.Seconds())

	v := s.store.View()
	st := v.Stats()
	for p := session.Pending; p <= session.Terminated; p++ {
		gauge(descSessions, float64(st.Phases[p]), p.String())
	}
	byStatus := map[string]float64{"HEALTHY": 0, "DEGRADED": 0, "UNHEALTHY": 0, "OFFLINE": 0}
	for n := range v.Nodes() {
		byStatus[n.Status.String()]++
	}
	for status, n := range byStatus {
		gauge(descNodes, n, status)
	}
	gauge(descMessages, float64(st.Messages))
	gauge(descMailBytes, float64(st.MessageBytes))
	gauge(descDead, float64(st.DeadLetters))
	counter(descDeadDropped, st.DeadLettersDropped)
	gauge(descKeys, float64(st.IdempotencyKeys))
	gauge(descTalks, float64(st.Conversations))
	gauge(descTalkBytes, float64(st.ConversationBytes))

	h := s.hub.Stats()
	gauge(descLinks, float64(h.Links))
	gauge(descRelayed, float64(h.RelayedLinks))
	counter(descFramesIn, h.FramesIn)
	counter(descDropped, h.Dropped)
	counter(descOverflow, h.Overflowed)
	l := s.leader.Stats()
	counter(descHeartbeats, l.Heartbeats)
	counter(descFacts, l.Facts)
	counter(descLost, l.NodesLost)
	counter(descSent, l.MessagesSent)
	counter(descPlaced, l.Placed)
	for _, x := range s.ops.ExchangeStats() {
		gauge(descExchanges, float64(x.UnderWay), x.Kind)
		counter(descExchangesTotal, x.Admitted, x.Kind)
		counter(descExchangesDenied, x.Refused, x.Kind)
	}
}
