// Calls of a tool that has nothing to do, over WebSockets: beside a bare echo of the same library where nothing is kept, and beside a bare
// commit where the call and its result are.

package suite

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/neolith/orchestrator/bench/clientload"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/rawraft"
	"github.com/neolith/orchestrator/bench/testbed"
)

// callCase is one way of calling.
type callCase struct {
	name     string
	clients  int
	durable  bool
	recorder bool
}

var callCases = []callCase{
	{"1 client, kept by the server", 1, false, false},
	{"64 clients, kept by the server", callClients, false, false},
	{"64 clients, kept by the server, recorded", callClients, false, true},
	{"1 client, durable", 1, true, false},
	{"64 clients, durable", callClients, true, false},
	{"64 clients, durable, recorded", callClients, true, true},
}

// callFigures are the figures of one case.
type callFigures struct{ rate, latency measure.Figure }

// callRun is what one run measures beside the product.
type callRun struct {
	echo   string                  // the address of the server that echoes
	echoes int                     // its process
	commit map[int]measure.Summary // by how many callers
	plain  map[string]measure.Summary
}

// Calls measures calls of tools.
func (b *Bench) Calls(ctx context.Context) ([]*measure.Figure, error) {
	figures := make([]*callFigures, len(callCases))
	for i, c := range callCases {
		raw := "bare echo, as many clients"
		if c.durable {
			raw = "a bare commit, as many callers"
		}
		figures[i] = &callFigures{
			rate:    measure.Figure{Part: "calls", Name: c.name, Unit: "/s", RawName: raw},
			latency: measure.Figure{Part: "calls", Name: c.name + ": p50", Unit: "ms", RawName: raw},
		}
		if c.recorder {
			figures[i].rate.RawName = "the same without the recorder"
		}
	}
	for run := range b.o.Runs {
		b.logf("calls: run %d of %d", run+1, b.o.Runs)
		if err := b.callsRun(ctx, figures); err != nil {
			return nil, err
		}
	}
	var out []*measure.Figure
	for i, c := range callCases {
		f := figures[i]
		switch {
		case !b.wanted(c.name):
			continue
		case c.clients == 1 && c.durable:
			f.latency.WantAboveRawAtMost(durableExtra)
		case c.clients == 1:
			f.latency.WantAtMost(maxUndurableMillis)
		case c.recorder:
			f.rate.WantRatio(0.95)
		case !c.durable:
			f.rate.WantRatio(echoShare)
		}
		if c.clients == 1 {
			f.latency.P99, f.latency.RawP99 = f.rate.P99, f.rate.RawP99
			out = append(out, &f.latency)
			continue
		}
		out = append(out, &f.rate)
	}
	return out, nil
}

func (b *Bench) callsRun(ctx context.Context, figures []*callFigures) error {
	return helper(clientload.EchoRole, func(echo *testbed.Helper) error {
		r := &callRun{echoes: echo.PID(), commit: map[int]measure.Summary{}, plain: map[string]measure.Summary{}}
		if err := echo.Ask(ctx, "start", struct{}{}, &r.echo); err != nil {
			return err
		}
		if err := b.commits(ctx, r); err != nil {
			return err
		}
		for _, recorded := range []bool{false, true} {
			if !slices.ContainsFunc(callCases, func(c callCase) bool { return c.recorder == recorded && b.wanted(c.name) }) {
				continue
			}
			if err := b.callsOf(ctx, recorded, figures, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// callsOf measures the cases with or without a recorder, in a cluster of their own.
func (b *Bench) callsOf(ctx context.Context, recorded bool, figures []*callFigures, r *callRun) error {
	settings := crowdSettings()
	settings["recorder"] = map[string]string{"sink": "none"}
	if recorded {
		settings["recorder"] = map[string]string{"sink": "sqlite"}
	}
	return b.withCluster(ctx, testbed.ClusterOptions{Servers: 3, Plain: true, Settings: settings}, func(c *testbed.Cluster) error {
		return helper(clientload.Role, func(h *testbed.Helper) error {
			for i, cc := range callCases {
				if cc.recorder != recorded || !b.wanted(cc.name) {
					continue
				}
				if err := b.callOnce(ctx, c, h, cc, figures[i], r); err != nil {
					return fmt.Errorf("%s: %w", cc.name, err)
				}
			}
			return nil
		})
	})
}

// commits measures bare commits, where something is to be compared with them.
func (b *Bench) commits(ctx context.Context, r *callRun) error {
	if !slices.ContainsFunc(callCases, func(c callCase) bool { return c.durable && b.wanted(c.name) }) {
		return nil
	}
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
	for _, n := range []int{1, callClients} {
		l, err := b.rawLoad(ctx, raw, n)
		if err != nil {
			return err
		}
		r.commit[n] = l.Summary
	}
	return nil
}

// echoOnce measures the echo by the same process that makes the calls, just before them.
func (b *Bench) echoOnce(ctx context.Context, h *testbed.Helper, clients int, r *callRun) (s measure.Summary, note string, err error) {
	cpu := meter([]int{r.echoes})
	if err := h.Ask(ctx, "echo", clientload.EchoArgs{Address: r.echo, Clients: clients, Warm: b.o.Warm, Length: b.o.Length}, &s); err != nil {
		return s, "", err
	}
	note = perCall("an echo", cpu, s)
	b.logf("  bare echo, %d clients: %s; %s", clients, brief(s), note)
	return s, note, nil
}

// perCall tells what one operation took of processors, in those who answer and in the clients.
func perCall(what string, answering *cpuMeter, s measure.Summary) string {
	each := func(cores float64) float64 { return cores * 1e6 / max(s.PerSecond, 1) }
	return fmt.Sprintf("%s takes %.1f µs of processor time in the server and %.1f µs in its client", what, each(answering.cores()), each(s.CPU))
}

func (b *Bench) callOnce(ctx context.Context, c *testbed.Cluster, h *testbed.Helper, cc callCase, f *callFigures, r *callRun) error {
	access, err := c.Access(ctx)
	if err != nil {
		return err
	}
	raw, note := r.commit[cc.clients], ""
	if !cc.durable {
		if raw, note, err = b.echoOnce(ctx, h, cc.clients, r); err != nil {
			return err
		}
	}
	args := clientload.CallArgs{Access: access, Clients: cc.clients, Tool: callTool, Durable: cc.durable, Warm: b.o.Warm, Length: b.o.Length}
	var s measure.Summary
	cpu := meter(serverPIDs(c))
	err = b.profiled(ctx, c, "calls-"+slug(cc.name), b.o.Warm+b.o.Length, func() error { return h.Ask(ctx, "call", args, &s) })
	if err != nil {
		return err
	}
	note = joinNotes(perCall("a call", cpu, s), note, failedNote(s))
	same := fmt.Sprint(cc.clients, cc.durable)
	if cc.recorder {
		raw = r.plain[same]
	} else {
		r.plain[same] = s
	}
	b.logf("  %s: %s (%.2f of %s); %s", cc.name, brief(s), s.PerSecond/max(raw.PerSecond, 1), f.rate.RawName, note)
	f.rate.AddRun(s.PerSecond, s.P99)
	f.rate.AddRaw(raw.PerSecond, raw.P99)
	f.latency.AddRun(s.P50, s.P99)
	f.latency.AddRaw(raw.P50, raw.P99)
	f.rate.Note = note
	return nil
}

// joinNotes puts together what there is to say.
func joinNotes(notes ...string) string {
	return strings.Join(slices.DeleteFunc(notes, func(n string) bool { return n == "" }), "; ")
}
