// The command tree and what all commands share: flags, the connection, the running of one command.

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/kube"
)

// app is one run of the program.
type app struct {
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
	refresh        time.Duration // between two looks at what cannot be watched
	patience       time.Duration // before progress is shown

	flags   globals
	target  *target        // where to go; nil until it is needed
	client  *client.Client // nil until it is needed
	release *kube.Reach    // nil unless the way there is that of a release on Kubernetes
	busy    *progress      // shown while nothing else is; nil when not
}

// globals are the flags of every command.
type globals struct {
	namespace, output, context                                    string
	addr, token, tokenFile, tlsCA, tlsCert, tlsKey, tlsServerName string
	timeout                                                       time.Duration
	gateway, session                                              string // of tools
	quiet, insecure                                               bool
	kube                                                          kubeFlags
	set                                                           func(string) bool // whether a flag was given
}

func newApp(environ []string, stdin io.Reader, stdout, stderr io.Writer) *app {
	env := make(map[string]string, len(environ))
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	return &app{
		getenv: func(k string) string { return env[k] }, stdin: stdin, stdout: stdout, stderr: stderr,
		now: time.Now, refresh: 2 * time.Second, patience: progressAfter,
	}
}

// execute runs the command line and returns the exit code.
func (a *app) execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	a.busy.stop()
	if a.client != nil {
		_ = a.client.Close() // it has no error
	}
	if a.release != nil {
		a.release.Close()
	}
	return a.report(cmd, err)
}

func (a *app) root() *cobra.Command {
	root := a.group("orchctl", "Run, talk to and look after agent sessions on a cluster",
		a.sessionsCommand(), a.nodesCommand(), a.clusterCommand(), a.queueCommand(), a.dlqCommand(), a.tokensCommand(),
		a.daemonsCommand(), a.providersCommand(), a.conversationsCommand(), a.toolsCommand(), a.eventsCommand(), a.interactionsCommand(), a.topCommand(), a.doctorCommand(), a.contextCommand(),
		a.versionCommand(),
	)
	root.Long = rootHelp
	root.Version = version()
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%v", err) })
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	a.globalFlags(root)
	return root
}

const rootHelp = `orchctl runs, talks to and looks after agent sessions on a cluster.

Where it goes, in this order: --addr or --kube-release, ORCHCTL_ADDR or ORCHCTL_KUBE_RELEASE, the context given with --context
or made current with 'orchctl context use', 127.0.0.1:8077. A release on Kubernetes is reached through its API server, with
the release's own admin token and authority. An address that a context lists is reached with that context's token and TLS
files, unless others are given (--token-file, --tls-ca, … or ORCHCTL_TOKEN_FILE, ORCHCTL_TLS_CA, …).

Exit codes: 0 done; 1 it failed; 2 wrong usage or bad configuration; 3 not found; 4 refused (permission, conflict, no
capacity, a bound reached); 5 timed out or unreachable. 'sessions exec' exits with its command's code.`

func (a *app) globalFlags(root *cobra.Command) {
	f, g := root.PersistentFlags(), &a.flags
	f.StringVarP(&g.namespace, "namespace", "n", "", "the namespace to work in (ORCHCTL_NAMESPACE, the context's, or default)")
	f.StringVarP(&g.output, "output", "o", "table", "table, wide, json, yaml or name")
	f.DurationVar(&g.timeout, "timeout", client.DefaultTimeout, "how long a command may take; commands that follow or wait have no limit unless it is given")
	f.StringVar(&g.context, "context", "", "the context to use instead of the current one")
	f.BoolVar(&g.quiet, "quiet", false, "no progress and no notes on standard error")
	f.StringVar(&g.addr, "addr", "", "server addresses as host:port, separated by commas; any will do (ORCHCTL_ADDR)")
	f.StringVar(&g.token, "token", "", "the token to send (ORCHCTL_TOKEN); a file keeps it out of the process list")
	f.StringVar(&g.tokenFile, "token-file", "", "a file that holds the token (ORCHCTL_TOKEN_FILE)")
	f.StringVar(&g.tlsCA, "tls-ca", "", "a PEM file with the cluster's certificate authority (ORCHCTL_TLS_CA)")
	f.StringVar(&g.tlsCert, "tls-cert", "", "a PEM file with the client's certificate (ORCHCTL_TLS_CERT)")
	f.StringVar(&g.tlsKey, "tls-key", "", "a PEM file with the key of --tls-cert (ORCHCTL_TLS_KEY)")
	f.StringVar(&g.tlsServerName, "tls-server-name", "", "the name in the servers' certificates, when it is not the address (ORCHCTL_TLS_SERVER_NAME)")
	g.kube.add(f)
	f.BoolVar(&g.insecure, "insecure", false, "connect in plain text, without a token, also beyond this machine")
	g.set = f.Changed
	a.complete(root, "output", "table", "wide", "json", "yaml", "name")
	_ = root.RegisterFlagCompletionFunc("context", a.completeContexts) // it only refuses unknown flags
}

// group makes a command that only holds others.
func (a *app) group(use, short string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, ValidArgsFunction: cobra.NoFileCompletions}
	g.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			near := ""
			if l := cmd.SuggestionsFor(args[0]); len(l) > 0 {
				near = "did you mean " + strings.Join(l, " or ") + "? "
			}
			return usage(cmd, "there is no command %q; %ssee '%s --help'", args[0], near, cmd.CommandPath())
		}
		if !cmd.HasParent() {
			return cmd.Help()
		}
		var names []string
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				names = append(names, c.Name())
			}
		}
		return usage(cmd, "it needs a command; give one of %s", strings.Join(names, ", "))
	}
	g.SuggestionsMinimumDistance = 2
	g.AddCommand(commands...)
	return g
}

// how says what kind of command is run.
type how uint8

const (
	brief   how = iota // bounded by --timeout
	waits              // may take any time, unless --timeout is given
	streams            // the same, and shows no progress: its output is that
	follow             // goes on until it is interrupted, which is no failure
)

// command makes a command that does something.
func (a *app) command(use, short string, args cobra.PositionalArgs, h how, do func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: cobra.NoFileCompletions, RunE: a.runner(h, do)}
}

// keyFlag adds --idempotency-key; a repetition with the same key does what same says.
func keyFlag(c *cobra.Command, key *string, same string) {
	c.Flags().StringVar(key, "idempotency-key", "", "a repetition with the same key "+same)
}

// runner is what runs a command.
func (a *app) runner(h how, do func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := a.checkGlobals(cmd); err != nil {
			return err
		}
		ctx, kind := cmd.Context(), h
		if w := cmd.Flags().Lookup("wait"); w != nil && w.Changed && kind == brief {
			kind = waits
		}
		if w := cmd.Flags().Lookup("workspace"); w != nil && w.Changed && kind == brief {
			kind = streams // as long as its bytes take; it shows them
		}
		if w := cmd.Flags().Lookup("watch"); w != nil && w.Changed && kind == brief {
			kind = follow
		}
		if kind == brief || cmd.Flags().Changed("timeout") {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, a.flags.timeout)
			defer cancel()
		}
		if kind < streams {
			a.busy = a.newProgress(cmd.CommandPath()[len("orchctl "):], kind == waits)
		}
		err := do(ctx, args)
		a.busy.stop()
		if kind == follow && err != nil && cmd.Context().Err() != nil {
			return nil // it was interrupted, as it is meant to be
		}
		return err
	}
}

func (a *app) checkGlobals(cmd *cobra.Command) error {
	switch a.flags.output {
	case "table", "wide", "json", "yaml", "name":
	default:
		return usage(cmd, "--output: %q is not a form of output; use table, wide, json, yaml or name", a.flags.output)
	}
	if a.flags.timeout <= 0 {
		return usage(cmd, "--timeout: %s is not a time to wait; use something like 30s", a.flags.timeout)
	}
	return nil
}

// out is standard output; what was shown of progress goes away first.
func (a *app) out() io.Writer {
	a.busy.stop()
	return a.stdout
}

// note tells a person something beside the result.
func (a *app) note(text string) {
	if a.flags.quiet {
		return
	}
	a.busy.stop()
	_, _ = io.WriteString(a.stderr, clean(text)+"\n") // there is nowhere left to say that it failed
}

// isTerminal reports whether f is one.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// exactly, between and atLeast check the number of arguments; names are those in Use.
func exactly(n int) cobra.PositionalArgs { return between(n, n) }

func between(lo, hi int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < lo || hi >= 0 && len(args) > hi {
			return usage(cmd, "got %d arguments; write it as '%s'", len(args), cmd.UseLine())
		}
		return nil
	}
}

func atLeast(n int) cobra.PositionalArgs { return between(n, -1) }

// usage is an error of the command line.
func usage(cmd *cobra.Command, format string, args ...any) error {
	f := fault.New(fault.Invalid, format, args...)
	if !strings.Contains(f.Message, "; ") {
		f.Message += "; see '" + cmd.CommandPath() + " --help'"
	}
	return f
}

// firstError keeps the first error and reports the others at once.
func (a *app) firstError(first, err error, subject string) error {
	if err == nil {
		return first
	}
	if first == nil {
		return &about{subject, err}
	}
	a.note("orchctl: " + subject + ": " + err.Error())
	return first
}

// about says what an error is about, when that is not the first argument.
type about struct {
	subject string
	err     error
}

func (e *about) Error() string { return e.err.Error() }
func (e *about) Unwrap() error { return e.err }

func subjectOf(cmd *cobra.Command, err error) string {
	var e *about
	if errors.As(err, &e) {
		return e.subject
	}
	if args := cmd.Flags().Args(); len(args) > 0 && strings.Contains(cmd.Use, " ") && !strings.Contains(cmd.Use, " -- ") {
		return args[0]
	}
	if args := cmd.Flags().Args(); len(args) > 0 && strings.HasPrefix(cmd.Use, "exec") {
		return args[0]
	}
	return ""
}
