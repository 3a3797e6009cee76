// Command node-agent runs sessions on a machine, as the control plane desires.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/telemetry"
)

func main() {
	shim.MainIfRequested() // a build that carries no shim is its own
	os.Exit(run(untilSignal(), os.Args[1:], os.Stdout, os.Stderr))
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. The second ends the process at once; not by the kernel's
// default, which does nothing to the first process of a container.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // for as long as the process lasts
		<-signals
		cancel()
		second := <-signals
		fmt.Fprintf(os.Stderr, "node-agent: stopping at once, for a second signal came (%s)\n", second)
		os.Exit(exitcode.Failed)
	}()
	return ctx
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "node-agent",
		Short: "Runs agent sessions on this machine",
		Long: `node-agent links this machine to a cluster and runs the sessions that the cluster places on it. Sessions live beside
the agent: it may be stopped, killed or replaced, and takes them up again when it comes back within the lease.`,
		Version:       telemetry.ThisBuild().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fault.New(fault.Invalid, "%w", err) })
	root.SetArgs(args)
	root.AddCommand(runCommand(stderr), configCommand(), echoCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "node-agent: %s\n", strings.Join(strings.Fields(err.Error()), " "))
		return exitcode.Of(err)
	}
	return exitcode.Done
}

// settings adds the settings' flags to a command and returns what loads them.
func settings(cmd *cobra.Command) func() (*config.Loaded[Config], error) {
	file := cmd.Flags().StringP("config", "c", "", "YAML file with settings")
	if err := config.Flags(cmd.Flags(), defaults()); err != nil {
		panic(err) // a setting that cannot be a flag: a defect that the first test finds
	}
	return func() (*config.Loaded[Config], error) {
		return config.Load(defaults(), config.Options{File: *file, Flags: cmd.Flags()})
	}
}

func runCommand(stderr io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: `run runs the agent until it is told to stop (SIGINT, SIGTERM); it then ends within 10 seconds, and its sessions go on
for as long as the node's lease lasts, for the next agent to take up. With sessions.drain_on_stop they are moved to other
nodes first, for as long as it says. A second signal ends the agent at once.

Settings come from a YAML file, from the environment (ORCH_ and the path with _, such as ORCH_DATA_DIR) and from flags,
in rising order of precedence. node-agent config print shows what is in force and where it comes from.`,
		Example: "  node-agent run --config /etc/node-agent.yaml\n  node-agent run --data-dir /tmp/node-1 --name node-1 --servers 127.0.0.1:8078",
		Args:    cobra.NoArgs,
	}
	load := settings(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := load()
		if err != nil {
			return err
		}
		log := telemetry.NewLogger(stderr, loaded.Config.Log.Format, loaded.Config.Log.Level)
		for _, w := range loaded.Warnings {
			log.Warn(w)
		}
		n, err := newNode(cmd.Context(), loaded.Config, log)
		if err != nil {
			return err
		}
		return n.run(cmd.Context())
	}
	return cmd
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Look at settings", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }, // without it, cobra lets any argument pass
	}
	show := &cobra.Command{
		Use:   "print",
		Short: "Show the effective settings and where each comes from; secrets are masked",
		Args:  cobra.NoArgs,
	}
	load := settings(show)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := load()
		if err != nil {
			return err
		}
		return loaded.Print(cmd.OutOrStdout())
	}
	cmd.AddCommand(show)
	return cmd
}
