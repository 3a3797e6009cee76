// Command orchestrator is a server of the control plane, and a whole cluster on one machine for development.
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

	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/telemetry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "orchestrator",
		Short: "A server of the control plane for agent sessions",
		Long: `orchestrator runs a server of the control plane. One, three or five of them agree on what sessions there are and
where they run; node-agent runs the sessions, and orchctl talks to any server.

For a whole cluster on this machine, for trying and developing: orchestrator dev`,
		Version:       telemetry.ThisBuild().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fault.New(fault.Invalid, "%w", err) })
	root.SetArgs(args)
	root.AddCommand(serveCommand(stderr), devCommand(stdout, stderr), configCommand(), caCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "orchestrator: %s\n", strings.Join(strings.Fields(err.Error()), " "))
		return exitcode.Of(err)
	}
	return exitcode.Done
}

func serveCommand(stderr io.Writer) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a server",
		Long: `serve runs a server until it is told to stop (SIGINT, SIGTERM); it then hands over and ends within 10 seconds.

Settings come from a YAML file, from the environment (ORCH_ and the path with _, such as ORCH_LINK_LEASE=12s) and from
flags, in rising order of precedence. orchestrator config print shows what is in force and where it comes from.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "YAML file with settings")
	if err := config.Flags(cmd.Flags(), defaults()); err != nil {
		panic(err) // a setting that cannot be a flag: a defect that the first test finds
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := config.Load(defaults(), config.Options{File: file, Flags: cmd.Flags()})
		if err != nil {
			return err
		}
		level, err := logLevel(loaded.Config.Log.Level)
		if err != nil {
			return err
		}
		log := telemetry.NewLogger(stderr, loaded.Config.Log.Format, level)
		for _, w := range loaded.Warnings {
			log.Warn(w)
		}
		s, err := newServer(cmd.Context(), loaded.Config, log)
		if err != nil {
			return err
		}
		return s.run(cmd.Context())
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
	show.Flags().StringVarP(&file, "config", "c", "", "YAML file with settings")
	if err := config.Flags(show.Flags(), defaults()); err != nil {
		panic(err)
	}
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := config.Load(defaults(), config.Options{File: file, Flags: cmd.Flags()})
		if err != nil {
			return err
		}
		return loaded.Print(cmd.OutOrStdout())
	}
	cmd.AddCommand(show)
	return cmd
}
