// version: of this program, and of the server that answers.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// buildVersion is set by the linker: -X main.buildVersion=1.2.3.
var buildVersion string

// version is what was built: a release, or a commit.
func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}

func (a *app) versionCommand() *cobra.Command {
	var only bool
	c := a.command("version", "Show the versions of this program and of the server", exactly(0), brief, func(ctx context.Context, _ []string) error {
		server := ""
		var failed error
		if !only {
			cl, err := a.connect()
			if err == nil {
				var s *apiv1.GetStatusResponse
				s, err = cl.Cluster.GetStatus(ctx, &apiv1.GetStatusRequest{})
				server = s.GetVersion()
			}
			failed = err
		}
		if o := a.flags.output; o == "json" || o == "yaml" {
			raw, err := json.Marshal(struct {
				Client string `json:"client"`
				Server string `json:"server"`
			}{version(), server})
			if err != nil {
				return fault.New(fault.Internal, "print the versions: %w", err)
			}
			if err := a.printJSON(raw); err != nil {
				return err
			}
			return failed
		}
		if _, err := fmt.Fprintf(a.out(), "client: %s\n", version()); err != nil || only || failed != nil {
			if err != nil {
				return err
			}
			return failed
		}
		_, err := fmt.Fprintf(a.out(), "server: %s\n", clean(server))
		return err
	})
	c.Flags().BoolVar(&only, "client", false, "do not ask a server")
	return c
}
