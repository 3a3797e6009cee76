// Command node-agent runs the sessions of one machine.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/agent"
	"github.com/neolith/orchestrator/agent/capability"
	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/driver/process"
	"github.com/neolith/orchestrator/agent/health"
	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/agent/shim/embed"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry"
)

// The exit codes of all programs.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	shim.MainIfRequested() // this program is also the shim, where none is built into it
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "node-agent",
		Short: "Runs the agent sessions of one machine",
		Long: `node-agent links a machine to a cluster and runs the sessions that the cluster places on it. Sessions outlive the
agent: it may be restarted or upgraded, and takes them up again, as long as it is back before the node's lease ends.`,
		Version:       telemetry.ThisBuild().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fault.New(fault.Invalid, "%w", err) })
	root.SetArgs(args)
	root.AddCommand(runCommand(stderr), configCommand())
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitDone
	case fault.Is(err, fault.Invalid), fault.As(err) == nil && cobraComplains(err.Error()):
		fmt.Fprintf(stderr, "node-agent: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "node-agent: %v\n", err)
		return exitFailed
	}
}

// cobraComplains recognizes wrong usage by the beginnings of cobra's messages, which have no type.
func cobraComplains(msg string) bool {
	for _, p := range []string{"unknown command", "unknown flag", "unknown shorthand", "accepts ", "flag needs an argument"} {
		if strings.HasPrefix(msg, p) {
			return true
		}
	}
	return false
}

// load reads the settings of a command.
func load(cmd *cobra.Command, file *string) func() (*config.Loaded[Config], error) {
	cmd.Flags().StringVarP(file, "config", "c", "", "YAML file with settings")
	if err := config.Flags(cmd.Flags(), defaults()); err != nil {
		panic(err) // a setting that cannot be a flag: a defect that the first test finds
	}
	return func() (*config.Loaded[Config], error) {
		return config.Load(defaults(), config.Options{File: *file, Flags: cmd.Flags()})
	}
}

func runCommand(stderr io.Writer) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the node",
		Long: `run runs the node until it is told to stop (SIGINT, SIGTERM). Sessions go on then, and the next agent takes them up.

Settings come from a YAML file, from the environment (ORCH_ and the path with _, such as ORCH_DATA_DIR=/data) and from
flags, in rising order of precedence. node-agent config print shows what is in force and where it comes from.`,
		Args: cobra.NoArgs,
	}
	settings := load(cmd, &file)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := settings()
		if err != nil {
			return err
		}
		var level slog.Level
		if err := level.UnmarshalText([]byte(loaded.Config.Log.Level)); err != nil {
			return fault.New(fault.Invalid, "log.level: %q is not a level; use debug, info, warn or error", loaded.Config.Log.Level)
		}
		log := telemetry.NewLogger(stderr, loaded.Config.Log.Format, level)
		for _, w := range loaded.Warnings {
			log.Warn(w)
		}
		return runNode(cmd.Context(), loaded.Config, log)
	}
	return cmd
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at settings", Args: cobra.NoArgs}
	var file string
	show := &cobra.Command{
		Use:   "print",
		Short: "Show the effective settings and where each comes from; secrets are masked",
		Args:  cobra.NoArgs,
	}
	settings := load(show, &file)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := settings()
		if err != nil {
			return err
		}
		return loaded.Print(cmd.OutOrStdout())
	}
	cmd.AddCommand(show)
	return cmd
}

// runNode builds the node and runs it.
//
//	cluster ◄── WebSocket ── nodelink client ◄── agent ──► driver ──► shim ──► session
//	                                              │                    │
//	                                              └──► lease file ◄────┘
func runNode(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fault.New(fault.Invalid, "data_dir: %w; give it to the user this node runs as, or choose another", err)
	}
	dial, err := dialer(cfg, log)
	if err != nil {
		return err
	}
	program, err := shimProgram(cfg.DataDir, log)
	if err != nil {
		return err
	}
	leasePath := filepath.Join(cfg.DataDir, "lease")
	writer, err := lease.OpenWriter(leasePath)
	if err != nil {
		return err
	}
	defer writer.Close()
	machine, err := capability.Detect(ctx)
	if err != nil {
		return err
	}
	sampler, err := health.NewMachine(ctx, cfg.DataDir)
	if err != nil {
		return err
	}
	build := telemetry.ThisBuild()
	registry := telemetry.NewRegistry(build)
	processes := process.New(process.Options{
		Shim: program, Logger: log, NoCgroups: !cfg.Sessions.Cgroups,
		LogTotalBytes: int64(cfg.Sessions.OutputLog), LogSegmentBytes: min(4<<20, int64(cfg.Sessions.OutputLog)/2),
	})
	a, err := agent.New(agent.Options{
		DataDir: cfg.DataDir, Name: cfg.Name, Labels: cfg.Labels, Version: build.Version, Address: cfg.Address,
		Capabilities: capability.Merge(declared(cfg), machine),
		Drivers:      map[string]driver.Driver{session.TypeProcess: processes},
		Servers:      cfg.Servers, Dial: dial, Lease: writer, LeasePath: leasePath, Sampler: sampler,
		SecretsDir: cfg.SecretsDir, PastLogs: process.ReadLogs,
		MaxEndedKept: cfg.Sessions.EndedKept, Metrics: registry, Logger: log,
	})
	if err != nil {
		return err
	}
	stopHTTP, err := serveMetrics(cfg.Metrics.Listen, registry, log)
	if err != nil {
		return err
	}
	defer stopHTTP()
	log.Info("running", "node", cfg.Name, "servers", cfg.Servers, "tls", cfg.TLS.CAFile != "", "pid", os.Getpid())
	return a.Run(ctx)
}

func declared(cfg Config) capability.Declared {
	c := cfg.Capabilities
	d := capability.Declared{MaxSessions: c.MaxSessions, SessionTypes: c.SessionTypes, CPUMilli: c.CPUMilli, MemoryBytes: int64(c.Memory)}
	if len(c.Custom) > 0 {
		d.Custom = map[string]bool{}
		for k, v := range c.Custom {
			d.Custom[k] = v == "true"
		}
	}
	return d
}

// shimProgram is the small program that is built in, or this one.
func shimProgram(dataDir string, log *slog.Logger) (shim.Program, error) {
	path, err := embed.Extract(dataDir)
	if err != nil {
		return shim.Program{}, fmt.Errorf("unpack the shim: %w", err)
	}
	if path == "" {
		log.Warn("no shim is built in, so this larger program stands beside each session; build with `make build`")
		return shim.Self(), nil
	}
	return shim.Program{Path: path}, nil
}

// dialer opens links, with TLS and a token as far as they are set.
func dialer(cfg Config, log *slog.Logger) (func(context.Context, string) (nodelink.Conn, error), error) {
	o := nodelink.DialOptions{JSON: cfg.Link.Codec == codecJSON}
	if cfg.TLS.CAFile != "" || cfg.TLS.CertFile != "" {
		certs, err := auth.LoadCerts(auth.Files{Cert: cfg.TLS.CertFile, Key: cfg.TLS.KeyFile, CA: cfg.TLS.CAFile}, auth.DefaultRecheck, log, time.Now)
		if err != nil {
			return nil, err
		}
		o.TLS = func() (*tls.Config, error) { return certs.NodeTLS(), nil }
	} else if !cfg.Insecure {
		for _, s := range cfg.Servers {
			if host, _, err := net.SplitHostPort(s); err == nil && !auth.IsLoopback(host) {
				return nil, fault.New(fault.Invalid, "servers: %s is not on this machine and no TLS is configured; give tls.ca_file, or set insecure: true", s)
			}
		}
	}
	if cfg.TokenFile != "" {
		o.Token = func() (string, error) {
			b, err := os.ReadFile(cfg.TokenFile)
			if err != nil {
				return "", fault.New(fault.Invalid, "token_file: %w", err)
			}
			return strings.TrimSpace(string(b)), nil
		}
		if _, err := o.Token(); err != nil {
			return nil, err
		}
	}
	return nodelink.DialWebSocket(o), nil
}

// serveMetrics serves /metrics and /health, when there is an address for them.
func serveMetrics(address string, registry *prometheus.Registry, log *slog.Logger) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fault.New(fault.Invalid, "metrics.listen: %w; choose another address, or end what uses it", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", telemetry.MetricsHandler(registry, log))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"ok"}`+"\n")
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: telemetry.StdLogger(log)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serve metrics", "error", err)
		}
	}()
	return func() { _ = srv.Close(); <-done }, nil
}
