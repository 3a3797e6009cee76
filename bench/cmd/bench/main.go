// Command bench measures the product beside the raw limits of the machine; see package suite.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/bench/clientload"
	"github.com/neolith/orchestrator/bench/diskload"
	"github.com/neolith/orchestrator/bench/driverload"
	"github.com/neolith/orchestrator/bench/load"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/rawraft"
	"github.com/neolith/orchestrator/bench/simnode"
	"github.com/neolith/orchestrator/bench/stateload"
	"github.com/neolith/orchestrator/bench/suite"
	"github.com/neolith/orchestrator/bench/testbed"
)

func main() {
	shim.MainIfRequested() // a build without the shim in it is its own
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

// part is one subcommand.
type part struct {
	name, short string
	run         func(*suite.Bench, context.Context) ([]*measure.Figure, error)
}

var parts = []part{
	{"send", "messages through the whole API, beside bare raft", (*suite.Bench).Send},
	{"spawn", "sessions to RUNNING, beside the bare driver", (*suite.Bench).Spawn},
	{"checkpoints", "captures of a workspace, beside tar and zstd", (*suite.Bench).Checkpoints},
	{"moves", "sessions that move while they are busy", (*suite.Bench).Moves},
	{"forks", "forks of a large session, and moves of a thousand simulated ones", (*suite.Bench).Forks},
	{"nodeloss", "a node dies with a hundred sessions", (*suite.Bench).NodeLoss},
	{"clients", "what ten thousand idle clients cost a server", (*suite.Bench).Clients},
	{"calls", "calls of a tool over WebSockets, beside a bare echo and a bare commit", (*suite.Bench).Calls},
	{"queue", "messages from the send to the ack, beside NATS JetStream and RabbitMQ", (*suite.Bench).Queue},
	{"nodes", "what ten thousand linked nodes cost a server", (*suite.Bench).Nodes},
	{"state", "a million sessions in the replicated state", (*suite.Bench).State},
	{"failover", "the time without a leader, beside bare raft", (*suite.Bench).Failover},
	{"stability", "elections under full load on a busy disk", (*suite.Bench).Stability},
}

// extra are parts that are not of `all`.
var extra = []part{
	{"raw", "bare raft alone", (*suite.Bench).Raw},
}

// flags are the settings of all parts.
type flags struct {
	suite.Options
	bin, out, doc string
	quick         bool
}

func command() *cobra.Command {
	f := &flags{}
	root := &cobra.Command{
		Use: "bench", Short: "Measure the product beside the raw limits of this machine",
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
	}
	p := root.PersistentFlags()
	p.StringVar(&f.bin, "bin", "bin", "directory with orchestrator and node-agent, as make build leaves it")
	p.StringVar(&f.Root, "root", ".", "the checkout, for parts that build a server with a debug port")
	p.StringVar(&f.Dir, "dir", filepath.Join(os.TempDir(), "orchestrator-bench"), "directory for the clusters' data, on the disk to measure")
	p.StringVar(&f.out, "out", "", "write the report as JSON to this file; bench-PART.json in --dir when empty")
	p.StringVar(&f.doc, "doc", "", "write the report as a document to this file, too")
	p.IntVar(&f.Runs, "runs", 5, "runs of each figure")
	p.DurationVar(&f.Warm, "warm", time.Second, "warm-up of one measurement under load")
	p.DurationVar(&f.Length, "length", 3*time.Second, "length of one measurement under load")
	p.IntVar(&f.Nodes, "nodes", 10_000, "nodes: how many to simulate")
	p.IntVar(&f.Clients, "clients", 10_000, "clients: how many to connect")
	p.StringVar(&f.Peers, "peers", filepath.Join("bench", "peers", "bin"), "queue: directory with the program of the peers, as make bench-peers leaves it")
	p.IntVar(&f.Sessions, "sessions", 1_000_000, "state: how many sessions")
	p.IntVar(&f.Kills, "kills", 30, "failover: how often to kill the leader")
	p.DurationVar(&f.Stability, "stability", 10*time.Minute, "stability: how long")
	p.StringVar(&f.Only, "only", "", "send, spawn, calls, nodes: measure only the cases whose name holds this")
	p.StringVar(&f.Profiles, "profiles", "", "write processor profiles of instrumented servers to this directory; the figures are not comparable then")
	p.BoolVar(&f.quick, "quick", false, "one short run of everything small, to see that it works")

	all := &cobra.Command{Use: "all", Short: "Everything", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return f.measure(cmd, parts) }}
	root.AddCommand(all, roleCommand(), documentCommand())
	for _, p := range append(append([]part{}, parts...), extra...) {
		root.AddCommand(&cobra.Command{Use: p.name, Short: p.short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return f.measure(cmd, []part{p})
		}})
	}
	return root
}

// measure runs parts, and writes the report after each, so that an end half-way loses little.
func (f *flags) measure(cmd *cobra.Command, parts []part) error {
	if f.quick {
		f.makeQuick(cmd)
	}
	f.Program, f.NodeProgram, f.Log = filepath.Join(f.bin, "orchestrator"), filepath.Join(f.bin, "node-agent"), cmd.ErrOrStderr()
	b, err := suite.New(f.Options)
	if err != nil {
		return err
	}
	if f.out == "" {
		f.out = filepath.Join(f.Dir, "bench-"+cmd.Name()+".json")
	}
	if err := os.MkdirAll(filepath.Dir(f.out), 0o755); err != nil {
		return err
	}
	r := &measure.Report{Time: time.Now(), Commit: measure.Commit(), Command: strings.Join(os.Args, " "), Machine: measure.ThisMachine()}
	for _, p := range parts {
		figures, err := p.run(b, cmd.Context())
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		r.Figures, r.LoadAfter = append(r.Figures, figures...), measure.LoadAverage()
		if err := r.WriteFile(f.out); err != nil {
			return err
		}
	}
	r.Table(cmd.OutOrStdout())
	fmt.Fprintf(cmd.OutOrStdout(), "%d of %d targets were missed; the report is in %s\n", r.Missed(), r.Targets(), f.out)
	if f.doc != "" {
		return suite.WriteDocument(r, f.doc)
	}
	return nil
}

// makeQuick shortens what was not asked for.
func (f *flags) makeQuick(cmd *cobra.Command) {
	set := func(name, value string) {
		if fl := cmd.Flags().Lookup(name); !fl.Changed {
			_ = fl.Value.Set(value) // the values are constants below
		}
	}
	set("runs", "1")
	set("warm", "200ms")
	set("length", "1s")
	set("nodes", "200")
	set("clients", "200")
	set("sessions", "20000")
	set("kills", "2")
	set("stability", "10s")
}

// roleCommand runs a helper; see testbed.StartHelper.
func roleCommand() *cobra.Command {
	roles := map[string]func() testbed.Handlers{
		rawraft.Role:    rawraft.Serve,
		load.Role:       load.Serve,
		simnode.Role:    simnode.Serve,
		driverload.Role: driverload.Serve,
		diskload.Role:   diskload.Serve,
		stateload.Role:  stateload.Serve,

		clientload.Role:     clientload.Serve,
		clientload.EchoRole: clientload.ServeEcho,
	}
	return &cobra.Command{
		Use: testbed.RoleCommand + " NAME", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			serve, ok := roles[args[0]]
			if !ok {
				return fmt.Errorf("there is no role %q", args[0])
			}
			return testbed.Serve(cmd.Context(), io.Reader(os.Stdin), os.Stdout, serve())
		},
	}
}

func documentCommand() *cobra.Command {
	return &cobra.Command{
		Use: "document REPORT FILE", Short: "Write the document from a report", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := measure.ReadFile(args[0])
			if err != nil {
				return err
			}
			return suite.WriteDocument(r, args[1])
		},
	}
}
