// Messages through the whole API: client, TLS, gRPC, leader, raft with fsync on a majority, state machine. A message
// counts when its client was told that it is durable. The sessions wait for a place, so that nothing is delivered: that
// is what bare raft, the limit, does too.

package suite

import (
	"context"
	"fmt"
	"slices"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/bench/load"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/rawraft"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	messageBytes = 256
	sendSessions = 64
	// sendConnections is how many connections the callers of one process share.
	sendConnections = 2
	rawName         = "raft + raft-wal, same callers"
)

// sendCase is one way of sending.
type sendCase struct {
	name     string
	callers  int
	form     string
	plain    bool
	follower bool
}

var sendCases = []sendCase{
	{"1 caller, unary", 1, load.Unary, false, false},
	{"64 callers, unary", 64, load.Unary, false, false},
	{"256 callers, unary", 256, load.Unary, false, false},
	{"256 callers, client.Sender", 256, load.Sender, false, false},
	{"64 callers, unary, through a follower", 64, load.Unary, false, true},
	{"1 caller, unary, plain text", 1, load.Unary, true, false},
	{"64 callers, unary, plain text", 64, load.Unary, true, false},
	{"256 callers, client.Sender, plain text", 256, load.Sender, true, false},
}

// sendFigures are the figures of one case.
type sendFigures struct {
	rate, latency           measure.Figure
	servers, generator, raw measure.Series // processor time a message, in microseconds
	batch                   measure.Series // messages in one entry of the log
	note                    string
}

// Send measures sending, beside bare raft.
func (b *Bench) Send(ctx context.Context) ([]*measure.Figure, error) {
	figures := make([]*sendFigures, len(sendCases))
	for i, c := range sendCases {
		figures[i] = &sendFigures{
			rate:    measure.Figure{Part: "send", Name: c.name, Unit: "/s", RawName: rawName},
			latency: measure.Figure{Part: "send", Name: c.name + ": p50", Unit: "ms", RawName: rawName},
		}
	}
	for run := range b.o.Runs {
		b.logf("send: run %d of %d", run+1, b.o.Runs)
		if err := b.sendRun(ctx, figures); err != nil {
			return nil, err
		}
	}
	var out []*measure.Figure
	for i, c := range sendCases {
		f := figures[i]
		if !b.wanted(c.name) {
			continue
		}
		f.rate.Note = fmt.Sprintf("processor time a message: %.0f µs in the three servers and %.0f µs in the load generator; raft %.0f µs; %.0f messages an entry of the log%s",
			f.servers.Median(), f.generator.Median(), f.raw.Median(), f.batch.Median(), f.note)
		if c.callers == 1 {
			if !c.plain {
				f.latency.WantAboveRawAtMost(1)
			}
			f.latency.Note, f.latency.P99, f.latency.RawP99 = f.rate.Note, f.rate.P99, f.rate.RawP99
			out = append(out, &f.latency)
			continue
		}
		if !c.plain && !c.follower && (c.callers == 64 || c.form == load.Sender) {
			f.rate.WantRatio(0.5)
		}
		out = append(out, &f.rate)
	}
	return out, nil
}

// sendRun measures every case once: each right after bare raft with as many callers.
func (b *Bench) sendRun(ctx context.Context, figures []*sendFigures) error {
	dir, remove, err := b.dir("raft")
	if err != nil {
		return err
	}
	defer remove()
	raw, err := rawraft.Start(ctx, dir, rawraft.Timings{})
	if err != nil {
		return err
	}
	defer raw.Stop()
	last := map[int]limit{}
	for _, plain := range []bool{false, true} {
		if !slices.ContainsFunc(sendCases, func(sc sendCase) bool { return sc.plain == plain && b.wanted(sc.name) }) {
			continue
		}
		err := b.withCluster(ctx, testbed.ClusterOptions{Servers: 3, Plain: plain}, func(c *testbed.Cluster) error {
			return helper(load.Role, func(h *testbed.Helper) error {
				for i, sc := range sendCases {
					if sc.plain != plain || !b.wanted(sc.name) {
						continue
					}
					l, known := last[sc.callers]
					if !known || plain {
						if l, err = b.rawLoad(ctx, raw, sc.callers); err != nil {
							return err
						}
						last[sc.callers] = l
					}
					if err := b.sendOnce(ctx, c, h, sc, figures[i], l); err != nil {
						return fmt.Errorf("%s: %w", sc.name, err)
					}
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// limit is what bare raft reached.
type limit struct {
	measure.Summary
	micros float64 // of processor time an entry, in all three processes
}

func (b *Bench) rawLoad(ctx context.Context, raw *rawraft.Cluster, callers int) (limit, error) {
	m := meter(raw.PIDs())
	s, err := raw.Load(ctx, rawraft.LoadArgs{Callers: callers, Bytes: messageBytes, Warm: b.o.Warm, Length: b.o.Length})
	l := limit{s, perOperation(m.cores(), s)}
	b.logf("  raft, %d callers: %s; %.0f µs of processor time an entry", callers, brief(s), l.micros)
	return l, err
}

// perOperation turns cores in use into microseconds an operation.
func perOperation(cores float64, s measure.Summary) float64 {
	if s.PerSecond == 0 {
		return 0
	}
	return cores / s.PerSecond * 1e6
}

func (b *Bench) sendOnce(ctx context.Context, c *testbed.Cluster, h *testbed.Helper, sc sendCase, f *sendFigures, l limit) error {
	access, err := c.Access(ctx)
	if err != nil {
		return err
	}
	if sc.follower {
		access.Addresses = append(access.Addresses[1:], access.Addresses[0])
	}
	connections := min(sc.callers, sendConnections)
	if err := h.Ask(ctx, "connect", load.ConnectArgs{Access: access, Connections: connections}, nil); err != nil {
		return err
	}
	var spawned load.SpawnResult
	if err := h.Ask(ctx, "spawn", load.SpawnArgs{Callers: 16, Count: sendSessions, Command: []string{"cat"}}, &spawned); err != nil {
		return err
	}
	if spawned.Summary.Errors > 0 {
		return fmt.Errorf("spawn: %s", spawned.Summary.FirstError)
	}
	var s measure.Summary
	var m *cpuMeter
	before, err := applied(ctx, c)
	if err != nil {
		return err
	}
	err = b.profiled(ctx, c, "send-"+slug(sc.name), b.o.Warm+b.o.Length, func() error {
		m = meter(serverPIDs(c))
		return h.Ask(ctx, "send", load.SendArgs{
			Sessions: spawned.IDs, Callers: sc.callers, Bytes: messageBytes, Warm: b.o.Warm, Length: b.o.Length, Form: sc.form,
			Profile: b.profile("send-" + slug(sc.name) + "-generator"),
		}, &s)
	})
	if err != nil {
		return err
	}
	cores := m.cores()
	after, err := applied(ctx, c)
	if err != nil {
		return err
	}
	f.batch = append(f.batch, s.PerSecond*(b.o.Warm+b.o.Length).Seconds()/float64(max(after-before, 1)))
	servers, generator := perOperation(cores, s), perOperation(s.CPU, s)
	f.servers, f.generator, f.raw = append(f.servers, servers), append(f.generator, generator), append(f.raw, l.micros)
	b.logf("  %s: %s (%.2f of raft); %.0f + %.0f µs of processor time a message, %.0f messages an entry",
		sc.name, brief(s), s.PerSecond/l.PerSecond, servers, generator, f.batch[len(f.batch)-1])
	if s.Errors > 0 {
		f.note = "; " + failedNote(s)
	}
	f.rate.AddRun(s.PerSecond, s.P99)
	f.rate.AddRaw(l.PerSecond, l.P99)
	f.latency.AddRun(s.P50, s.P99)
	f.latency.AddRaw(l.P50, l.P99)
	return nil
}

// applied is the index of the last entry that the leader has applied.
func applied(ctx context.Context, c *testbed.Cluster) (uint64, error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return 0, err
	}
	st, err := leader.Client().Cluster.GetStatus(ctx, &apiv1.GetStatusRequest{})
	return st.GetAppliedIndex(), err
}

// Raw measures bare raft alone.
func (b *Bench) Raw(ctx context.Context) ([]*measure.Figure, error) {
	figures := map[int]*measure.Figure{}
	var out []*measure.Figure
	callers := []int{1, 64, 256}
	for _, n := range callers {
		figures[n] = &measure.Figure{Part: "raw", Name: fmt.Sprintf("raft + raft-wal, %d callers", n), Unit: "/s"}
		out = append(out, figures[n])
	}
	for run := range b.o.Runs {
		b.logf("raw: run %d of %d", run+1, b.o.Runs)
		dir, remove, err := b.dir("raft")
		if err != nil {
			return nil, err
		}
		raw, err := rawraft.Start(ctx, dir, rawraft.Timings{})
		if err != nil {
			return nil, err
		}
		for _, n := range callers {
			s, err := b.rawLoad(ctx, raw, n)
			if err != nil {
				raw.Stop()
				return nil, err
			}
			figures[n].AddRun(s.PerSecond, s.P99)
			figures[n].Note = fmt.Sprintf("p50 %.2f ms, %.0f µs of processor time an entry in the last run", s.P50, s.micros)
		}
		raw.Stop()
		remove()
	}
	return out, nil
}

// brief is a summary in a few words.
func brief(s measure.Summary) string {
	t := fmt.Sprintf("%s, p50 %.2f ms, p99 %.2f ms", measure.Amount(s.PerSecond, "/s"), s.P50, s.P99)
	if n := failedNote(s); n != "" {
		t += "; " + n
	}
	return t
}
