// What a server tells Prometheus. Names follow its conventions: base units, _total for counters.

package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry"
)

// registerMetrics has the parts asked when the registry is, so that counting costs nothing in between.
func (s *server) registerMetrics() {
	for _, collect := range []prometheus.CollectorFunc{
		s.collectLog, s.collectState, s.collectLinks, s.collectExchanges, s.upkeep.collect, s.collectClients, s.collectMCP, s.collectDispatch, s.collectDaemons,
	} {
		s.registry.MustRegister(collect)
	}
	if s.certs != nil {
		s.registry.MustRegister(s.certs)
	}
}

// callObserver tells how long gRPC calls take; call it as they end.
func (s *server) callObserver() func(method string, code codes.Code, d time.Duration) {
	calls := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "orchestrator_grpc_call_duration_seconds", Help: "Time of gRPC calls, streams included, by method and code.",
		Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30},
	}, []string{"method", "code"})
	s.registry.MustRegister(calls)
	return func(method string, code codes.Code, d time.Duration) {
		calls.WithLabelValues(method, code.String()).Observe(d.Seconds())
	}
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

// collectLog tells of raft, its disk, and what is proposed.
func (s *server) collectLog(ch chan<- prometheus.Metric) {
	leads := 0
	if l, _ := s.node.Leader(); l.Self {
		leads = 1
	}
	telemetry.Gauge(ch, descLeader, leads)
	telemetry.Gauge(ch, descTerm, s.node.Term())
	telemetry.Gauge(ch, descApplied, s.node.AppliedIndex())
	telemetry.Gauge(ch, descCommit, s.node.CommitIndex())
	entries, commands, full, queued := s.node.ProposerStats()
	telemetry.Counter(ch, descEntries, entries)
	telemetry.Counter(ch, descCommands, commands)
	telemetry.Counter(ch, descProposeFull, full)
	telemetry.Gauge(ch, descQueued, queued)
	writes, took := s.node.LogStats()
	telemetry.Counter(ch, descWrites, writes)
	telemetry.Counter(ch, descWriteTime, took.Seconds())
}

// collectState tells what is in the state: the same on every server that has applied the log.
func (s *server) collectState(ch chan<- prometheus.Metric) {
	v := s.store.View()
	st := v.Stats()
	for p := session.Pending; p <= session.Terminated; p++ {
		telemetry.Gauge(ch, descSessions, st.Phases[p], p.String())
	}
	byStatus := map[string]int{"HEALTHY": 0, "DEGRADED": 0, "UNHEALTHY": 0, "OFFLINE": 0}
	for n := range v.Nodes() {
		byStatus[n.Status.String()]++
	}
	for status, n := range byStatus {
		telemetry.Gauge(ch, descNodes, n, status)
	}
	telemetry.Gauge(ch, descMessages, st.Messages)
	telemetry.Gauge(ch, descMailBytes, st.MessageBytes)
	telemetry.Gauge(ch, descDead, st.DeadLetters)
	telemetry.Counter(ch, descDeadDropped, st.DeadLettersDropped)
	telemetry.Gauge(ch, descKeys, st.IdempotencyKeys)
	telemetry.Gauge(ch, descTalks, st.Conversations)
	telemetry.Gauge(ch, descTalkBytes, st.ConversationBytes)
	collectCalls(ch, v, time.Now())
}

// collectLinks tells of nodes and what goes to them.
func (s *server) collectLinks(ch chan<- prometheus.Metric) {
	h := s.hub.Stats()
	telemetry.Gauge(ch, descLinks, h.Links)
	telemetry.Gauge(ch, descRelayed, h.RelayedLinks)
	telemetry.Counter(ch, descFramesIn, h.FramesIn)
	telemetry.Counter(ch, descDropped, h.Dropped)
	telemetry.Counter(ch, descOverflow, h.Overflowed)
	l := s.leader.Stats()
	telemetry.Counter(ch, descHeartbeats, l.Heartbeats)
	telemetry.Counter(ch, descFacts, l.Facts)
	telemetry.Counter(ch, descLost, l.NodesLost)
	telemetry.Counter(ch, descSent, l.MessagesSent)
	telemetry.Counter(ch, descPlaced, l.Placed)
}

// collectExchanges tells of exports, imports and comparisons.
func (s *server) collectExchanges(ch chan<- prometheus.Metric) {
	for _, x := range s.ops.ExchangeStats() {
		telemetry.Gauge(ch, descExchanges, x.UnderWay, x.Kind)
		telemetry.Counter(ch, descExchangesTotal, x.Admitted, x.Kind)
		telemetry.Counter(ch, descExchangesDenied, x.Refused, x.Kind)
	}
}
