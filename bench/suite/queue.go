// Messages from the send to the ack: durable when sent, delivered, durable when acked, and the sender told. Beside it what other durable
// queues do with as many callers, in the same run; see bench/peers. Beside the peers, which keep no record, the recorder is off; what it costs
// is measured with a second cluster in the same run.

package suite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/neolith/orchestrator/bench/load"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/simnode"
	"github.com/neolith/orchestrator/bench/testbed"
	"github.com/neolith/orchestrator/recorder"
)

const (
	queueSessions = 256
	queueNodes    = 8
	queueRate     = 15_000
	queueP99      = 25 // milliseconds
	// modestCallers are few enough that nothing waits for a processor for long, so that the latency is that of the way.
	modestCallers = 64
	peersProgram  = "peers"
	withoutRecord = "the same without the record"
	recordedShare = 0.95
)

// queuePeer is another durable queue.
type queuePeer struct{ name, command, guarantee string }

var queuePeers = []queuePeer{
	{"NATS JetStream, 3 servers", "nats", "a stream of 3 replicas in files, synced at every write; the publisher waits for its ack, the consumer for the ack of its ack"},
	{"RabbitMQ, 3 nodes", "rabbitmq", "a quorum queue of 3 members, which sync their logs; the publisher waits for its confirm; the consumer's ack is sent, and not confirmed to it"},
}

// Queue measures messages from the send to the ack.
func (b *Bench) Queue(ctx context.Context) ([]*measure.Figure, error) {
	rate := &measure.Figure{Part: "queue", Name: "256 callers: sent, delivered, acked", Unit: "/s"}
	tail := &measure.Figure{Part: "queue", Name: "64 callers: p99 from the send to the ack", Unit: "ms"}
	recorded := &measure.Figure{Part: "queue", Name: "256 callers, recorded", Unit: "/s", RawName: withoutRecord}
	processor := &measure.Figure{Part: "queue", Name: "256 callers, recorded: processor time a message", Unit: "µs", RawName: withoutRecord}
	peers := map[string]*measure.Figure{}
	for run := range b.o.Runs {
		b.logf("queue: run %d of %d", run+1, b.o.Runs)
		var runs [2]queueRun // without the record, and with it
		for i, sink := range []string{recorder.SinkNone, recorder.SinkSQLite} {
			if err := b.queueRun(ctx, sink, &runs[i]); err != nil {
				return nil, err
			}
		}
		runs[0].report(rate, tail)
		off, on := runs[0].many, runs[1].many
		recorded.AddRun(on.summary.PerSecond, on.summary.P99)
		recorded.AddRaw(off.summary.PerSecond, off.summary.P99)
		processor.Runs, processor.Raw = append(processor.Runs, on.micros), append(processor.Raw, off.micros)
		for _, p := range queuePeers {
			if err := b.queuePeer(ctx, p, peers); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	rate.WantAtLeast(queueRate)
	tail.WantAtMost(queueP99)
	recorded.WantRatio(recordedShare)
	recorded.Note = "each message and each answer is a record in the leader's SQLite"
	rate.Note = "three servers, every commit synced on two; both the message and the end of its turn are commits; the caller is told of the end" + rate.Note
	out := []*measure.Figure{rate, tail, recorded, processor}
	for _, p := range queuePeers {
		for _, f := range []*measure.Figure{peers[p.name], peers[p.name+": p99"]} {
			if f != nil {
				out = append(out, f)
			}
		}
	}
	return out, nil
}

// queueRun is one cluster's run, with its record or without.
type queueRun struct{ few, many queueLoad }

// queueLoad is what one number of callers reached.
type queueLoad struct {
	summary measure.Summary
	// micros is the processor time of servers and nodes, in microseconds a message, until they are at rest again: what the record sends to
	// its database goes on for a while.
	micros float64
}

// report adds the figures of a run without the record.
func (r *queueRun) report(rate, tail *measure.Figure) {
	few, many := &r.few, &r.many
	tail.Runs = append(tail.Runs, few.summary.P99)
	tail.Note = fmt.Sprintf("%s a second in the last run, p50 %.1f ms", measure.Amount(few.summary.PerSecond, ""), few.summary.P50)
	rate.AddRun(many.summary.PerSecond, many.summary.P99)
	rate.Note = fmt.Sprintf("; %.0f µs of processor time a message in servers and nodes, %.0f µs in the generator, in the last run", many.micros, perOperation(many.summary.CPU, many.summary))
	if n := failedNote(many.summary); n != "" {
		rate.Note += "; " + n
	}
}

func (b *Bench) queueRun(ctx context.Context, sink string, r *queueRun) error {
	settings := map[string]any{"recorder": map[string]string{"sink": sink}}
	return b.withCluster(ctx, testbed.ClusterOptions{Servers: 3, Settings: settings}, func(c *testbed.Cluster) error {
		return helper(simnode.Role, func(nodes *testbed.Helper) error {
			return helper(load.Role, func(h *testbed.Helper) error { return b.queueOnce(ctx, c, nodes, h, sink, r) })
		})
	})
}

func (b *Bench) queueOnce(ctx context.Context, c *testbed.Cluster, nodes, h *testbed.Helper, sink string, r *queueRun) error {
	access, err := c.Access(ctx)
	if err != nil {
		return err
	}
	if err := nodes.Ask(ctx, "start", simnode.StartArgs{Access: access, Count: queueNodes, Prefix: "sim", Timeout: linkTimeout, Spread: restHeartbeat}, nil); err != nil {
		return err
	}
	if err := h.Ask(ctx, "connect", load.ConnectArgs{Access: access, Connections: sendConnections}, nil); err != nil {
		return err
	}
	var spawned load.SpawnResult
	if err := h.Ask(ctx, "spawn", load.SpawnArgs{Callers: 16, Count: queueSessions, Command: []string{"cat"}, Wait: true}, &spawned); err != nil {
		return err
	}
	if spawned.Summary.Errors > 0 {
		return fmt.Errorf("spawn: %s", spawned.Summary.FirstError)
	}
	for _, l := range []struct {
		callers int
		into    *queueLoad
	}{{modestCallers, &r.few}, {queueSessions, &r.many}} {
		name := fmt.Sprintf("queue-%d-%s", l.callers, sink)
		args := load.SendArgs{Sessions: spawned.IDs, Callers: l.callers, Bytes: messageBytes, Warm: b.o.Warm, Length: b.o.Length, Form: load.Ask, Profile: b.profile(name + "-generator")}
		pids := append(serverPIDs(c), nodes.PID())
		if err := b.atRest(ctx, pids); err != nil {
			return err
		}
		before, err := applied(ctx, c)
		if err != nil {
			return err
		}
		servers, sim := meter(serverPIDs(c)), meter([]int{nodes.PID()})
		s := &l.into.summary
		err = b.profiled(ctx, c, name, b.o.Warm+b.o.Length, func() error {
			return b.nodesProfiled(ctx, nodes, name+"-nodes", func() error { return h.Ask(ctx, "send", args, s) })
		})
		if err != nil {
			return err
		}
		messages := max(s.PerSecond*(b.o.Warm+b.o.Length).Seconds(), 1)
		during := servers.spent() + sim.spent()
		after, err := applied(ctx, c)
		if err != nil {
			return err
		}
		if err := b.atRest(ctx, pids); err != nil {
			return err
		}
		inServers, inNodes := servers.spent().Seconds()*1e6/messages, sim.spent().Seconds()*1e6/messages
		l.into.micros = inServers + inNodes
		b.logf("  recorder %s, %d callers: %s; processor time a message: %.0f µs in the three servers and %.0f µs in the nodes, %.0f µs of both while messages were sent, %.0f µs in the generator; %.1f messages an entry of the log",
			sink, l.callers, brief(*s), inServers, inNodes, during.Seconds()*1e6/messages, perOperation(s.CPU, *s), messages/float64(max(after-before, 1)))
	}
	return nil
}

const (
	restWindow = 250 * time.Millisecond
	restCores  = 0.1 // that processes at rest use together, with their heartbeats
	restMax    = time.Minute
)

// atRest waits until processes have nothing more to do.
func (b *Bench) atRest(ctx context.Context, pids []int) error {
	ctx, cancel := context.WithTimeout(ctx, restMax)
	defer cancel()
	for {
		m := meter(pids)
		select {
		case <-time.After(restWindow):
		case <-ctx.Done():
			return fmt.Errorf("the cluster does not come to rest: %w", ctx.Err())
		}
		if m.cores() <= restCores {
			return nil
		}
	}
}

// nodesProfiled runs f, and meanwhile profiles the simulated nodes, when profiles are wanted.
func (b *Bench) nodesProfiled(ctx context.Context, nodes *testbed.Helper, name string, f func() error) error {
	file := b.profile(name)
	if file == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		done <- nodes.Ask(ctx, "profile", simnode.ProfileArgs{File: file, Length: b.o.Warm + b.o.Length}, nil)
	}()
	return errors.Join(f(), <-done)
}

// errNoPeer tells that a peer is not on this machine.
var errNoPeer = errors.New("it is not on this machine")

// queuePeer measures a peer; one that is not there is left out, with a line that says so.
func (b *Bench) queuePeer(ctx context.Context, p queuePeer, figures map[string]*measure.Figure) error {
	for _, callers := range []int{modestCallers, queueSessions} {
		s, err := b.askPeer(ctx, p, callers)
		if errors.Is(err, errNoPeer) {
			b.logf("  %s: %v: it is left out", p.name, err)
			return nil
		}
		if err != nil {
			return err
		}
		b.logf("  %s, %d callers: %s", p.name, callers, brief(s))
		if callers == modestCallers {
			f := figureOf(figures, p.name+": p99", "64 callers: p99 with "+p.name, "ms")
			f.Runs, f.Note = append(f.Runs, s.P99), fmt.Sprintf("%s a second in the last run, p50 %.1f ms", measure.Amount(s.PerSecond, ""), s.P50)
			continue
		}
		f := figureOf(figures, p.name, "256 callers: "+p.name, "/s")
		f.AddRun(s.PerSecond, s.P99)
		f.Note = p.guarantee
		if n := failedNote(s); n != "" {
			f.Note += "; " + n
		}
	}
	return nil
}

func figureOf(figures map[string]*measure.Figure, key, name, unit string) *measure.Figure {
	if figures[key] == nil {
		figures[key] = &measure.Figure{Part: "queue", Name: name, Unit: unit}
	}
	return figures[key]
}

// askPeer runs the program of the peers, which writes a summary.
func (b *Bench) askPeer(ctx context.Context, p queuePeer, callers int) (s measure.Summary, err error) {
	program := filepath.Join(b.o.Peers, peersProgram)
	if _, err := os.Stat(program); err != nil {
		return s, fmt.Errorf("%w: %s is missing; make bench-peers builds it", errNoPeer, program)
	}
	dir, remove, err := b.dir("peer")
	if err != nil {
		return s, err
	}
	defer remove()
	cmd := exec.CommandContext(ctx, program, p.command, "-dir", dir, "-callers", strconv.Itoa(callers), "-bytes", strconv.Itoa(messageBytes),
		"-warm", b.o.Warm.String(), "-length", b.o.Length.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == peerMissing:
		return s, errNoPeer
	case err != nil:
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// peerMissing is the exit code of the program of the peers when a peer is not on this machine.
const peerMissing = 3
