// Calls of a tool that has nothing to do, over WebSockets: beside a bare echo of the same library where nothing is kept, and beside a bare
// commit where the call and its result are.

package suite

import (
	"context"
	"fmt"

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
	echo, commit map[int]measure.Summary // by how many callers
	plain        map[string]measure.Summary
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
	r := &callRun{echo: map[int]measure.Summary{}, commit: map[int]measure.Summary{}, plain: map[string]measure.Summary{}}
	if err := b.callLimits(ctx, r); err != nil {
		return err
	}
	for _, recorded := range []bool{false, true} {
		settings := crowdSettings()
		settings["recorder"] = map[string]string{"sink": "none"}
		if recorded {
			settings["recorder"] = map[string]string{"sink": "sqlite"}
		}
		err := b.withCluster(ctx, testbed.ClusterOptions{Servers: 3, Plain: true, Settings: settings}, func(c *testbed.Cluster) error {
			return helper(clientload.Role, func(h *testbed.Helper) error {
				for i, cc := range callCases {
					if cc.recorder != recorded {
						continue
					}
					if err := b.callOnce(ctx, c, h, cc, figures[i], r); err != nil {
						return fmt.Errorf("%s: %w", cc.name, err)
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

// callLimits measures the echo and the commit.
func (b *Bench) callLimits(ctx context.Context, r *callRun) error {
	err := helper(clientload.EchoRole, func(server *testbed.Helper) error {
		var address string
		if err := server.Ask(ctx, "start", struct{}{}, &address); err != nil {
			return err
		}
		return helper(clientload.Role, func(h *testbed.Helper) error {
			for _, n := range []int{1, callClients} {
				var s measure.Summary
				if err := h.Ask(ctx, "echo", clientload.EchoArgs{Address: address, Clients: n, Warm: b.o.Warm, Length: b.o.Length}, &s); err != nil {
					return err
				}
				b.logf("  bare echo, %d clients: %s", n, brief(s))
				r.echo[n] = s
			}
			return nil
		})
	})
	if err != nil {
		return err
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

func (b *Bench) callOnce(ctx context.Context, c *testbed.Cluster, h *testbed.Helper, cc callCase, f *callFigures, r *callRun) error {
	access, err := c.Access(ctx)
	if err != nil {
		return err
	}
	args := clientload.CallArgs{Access: access, Clients: cc.clients, Tool: callTool, Durable: cc.durable, Warm: b.o.Warm, Length: b.o.Length}
	var s measure.Summary
	err = b.profiled(ctx, c, "calls-"+slug(cc.name), b.o.Warm+b.o.Length, func() error { return h.Ask(ctx, "call", args, &s) })
	if err != nil {
		return err
	}
	raw := r.echo[cc.clients]
	if cc.durable {
		raw = r.commit[cc.clients]
	}
	same := fmt.Sprint(cc.clients, cc.durable)
	if cc.recorder {
		raw = r.plain[same]
	} else {
		r.plain[same] = s
	}
	b.logf("  %s: %s (%.2f of %s)", cc.name, brief(s), s.PerSecond/max(raw.PerSecond, 1), f.rate.RawName)
	f.rate.AddRun(s.PerSecond, s.P99)
	f.rate.AddRaw(raw.PerSecond, raw.P99)
	f.latency.AddRun(s.P50, s.P99)
	f.latency.AddRaw(raw.P50, raw.P99)
	f.rate.Note = failedNote(s)
	return nil
}
