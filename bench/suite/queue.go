// Messages from the send to the ack: durable when sent, delivered, durable when acked, and the sender told. Beside it what other durable
// queues do with as many callers, in the same run; see bench/peers. The recorder is off: the peers keep no record either.

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

	"github.com/neolith/orchestrator/bench/load"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/simnode"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	queueSessions = 256
	queueNodes    = 8
	queueRate     = 15_000
	queueP99      = 25 // milliseconds
	// modestCallers are few enough that nothing waits for a processor for long, so that the latency is that of the way.
	modestCallers = 64
	peersProgram  = "peers"
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
	peers := map[string]*measure.Figure{}
	for run := range b.o.Runs {
		b.logf("queue: run %d of %d", run+1, b.o.Runs)
		if err := b.queueRun(ctx, rate, tail); err != nil {
			return nil, err
		}
		for _, p := range queuePeers {
			if err := b.queuePeer(ctx, p, peers); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	rate.WantAtLeast(queueRate)
	tail.WantAtMost(queueP99)
	rate.Note = "three servers, every commit synced on two; both the message and the end of its turn are commits; the caller is told of the end" + rate.Note
	out := []*measure.Figure{rate, tail}
	for _, p := range queuePeers {
		for _, f := range []*measure.Figure{peers[p.name], peers[p.name+": p99"]} {
			if f != nil {
				out = append(out, f)
			}
		}
	}
	return out, nil
}

func (b *Bench) queueRun(ctx context.Context, rate, tail *measure.Figure) error {
	return b.withCluster(ctx, testbed.ClusterOptions{Servers: 3, Settings: map[string]any{"recorder": map[string]string{"sink": "none"}}}, func(c *testbed.Cluster) error {
		return helper(simnode.Role, func(nodes *testbed.Helper) error {
			return helper(load.Role, func(h *testbed.Helper) error { return b.queueOnce(ctx, c, nodes, h, rate, tail) })
		})
	})
}

func (b *Bench) queueOnce(ctx context.Context, c *testbed.Cluster, nodes, h *testbed.Helper, rate, tail *measure.Figure) error {
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
	for _, callers := range []int{modestCallers, queueSessions} {
		args := load.SendArgs{Sessions: spawned.IDs, Callers: callers, Bytes: messageBytes, Warm: b.o.Warm, Length: b.o.Length, Form: load.Ask, Profile: b.profile(fmt.Sprintf("queue-%d-generator", callers))}
		var s measure.Summary
		var m, n *cpuMeter
		before, err := applied(ctx, c)
		if err != nil {
			return err
		}
		err = b.profiled(ctx, c, fmt.Sprintf("queue-%d", callers), b.o.Warm+b.o.Length, func() error {
			m, n = meter(serverPIDs(c)), meter([]int{nodes.PID()})
			return b.nodesProfiled(ctx, nodes, fmt.Sprintf("queue-%d-nodes", callers), func() error { return h.Ask(ctx, "send", args, &s) })
		})
		if err != nil {
			return err
		}
		servers, sim := m.cores(), n.cores()
		after, err := applied(ctx, c)
		if err != nil {
			return err
		}
		used := fmt.Sprintf("processor time a message: %.0f µs in the three servers, %.0f µs in the nodes, %.0f µs in the generator; %.1f messages an entry of the log",
			perOperation(servers, s), perOperation(sim, s), perOperation(s.CPU, s), s.PerSecond*(b.o.Warm+b.o.Length).Seconds()/float64(max(after-before, 1)))
		b.logf("  %d callers: %s; %s", callers, brief(s), used)
		if callers == modestCallers {
			tail.Runs = append(tail.Runs, s.P99)
			tail.Note = fmt.Sprintf("%s a second in the last run, p50 %.1f ms", measure.Amount(s.PerSecond, ""), s.P50)
			continue
		}
		rate.AddRun(s.PerSecond, s.P99)
		rate.Note = "; " + used + ", in the last run"
		if failed := failedNote(s); failed != "" {
			rate.Note += "; " + failed
		}
	}
	return nil
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
