// The cluster's own certificate authority.

package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
)

func caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Make the cluster's certificate authority, and certificates",
		Args:  cobra.NoArgs,
	}
	var dir, cluster string
	cmd.PersistentFlags().StringVar(&dir, "dir", "ca", "the authority's directory; keep it away from the servers")
	initCmd := &cobra.Command{
		Use: "init", Short: "Make an authority", Args: cobra.NoArgs,
		Example: "  orchestrator ca init --dir ca --cluster prod",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := auth.InitCA(dir, cluster, time.Now); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "made the authority of cluster %s in %s; keep %s to yourself, give %s to everybody\n", cluster, dir, auth.CAKeyFile, auth.CACertFile)
			return err
		},
	}
	initCmd.Flags().StringVar(&cluster, "cluster", "default", "the cluster's name")
	var role, name, out string
	var hosts []string
	var validity time.Duration
	var replace bool
	issue := &cobra.Command{
		Use: "issue", Short: "Make a certificate for a server, a node or a client", Args: cobra.NoArgs,
		Example: "  orchestrator ca issue --dir ca --role server --name server-1 --host server-1.example.org --host 10.0.0.1 --out server-1-tls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := auth.OpenCA(dir, time.Now)
			if err != nil {
				return err
			}
			issued, err := ca.Issue(auth.CertRequest{Role: auth.Role(role), Name: name, Hosts: hosts, Validity: validity})
			if err != nil {
				return err
			}
			if out == "" {
				out = name + "-tls"
			}
			write := issued.Write
			if replace {
				write = issued.Replace
			}
			files, err := write(out)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s, %s and %s; good until %s\n", files.Cert, files.Key, files.CA, issued.Cert.NotAfter.Format(time.RFC3339))
			return err
		},
	}
	issue.Flags().StringVar(&role, "role", "server", "server, node or client")
	issue.Flags().StringVar(&name, "name", "", "whom it is for")
	issue.Flags().StringArrayVar(&hosts, "host", nil, "a name or address under which a server is reached; may be repeated")
	issue.Flags().DurationVar(&validity, "validity", auth.DefaultLeafValidity, "how long it holds")
	issue.Flags().StringVar(&out, "out", "", "directory for the files; NAME-tls when empty")
	issue.Flags().BoolVar(&replace, "replace", false, "give up a certificate of that name which is in --out already, instead of refusing")
	_ = issue.MarkFlagRequired("name") // the flag is there
	cmd.AddCommand(initCmd, issue)
	return cmd
}

func logLevel(s string) (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return 0, fault.New(fault.Invalid, "log.level: %q is not a level; use debug, info, warn or error", s)
	}
	return l, nil
}
