// version: of this program, and of the server that answers.

package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/telemetry"
)

// version is what was built, such as v1.2.3 (4f3c2b1a9d8e, go1.26.8).
func version() string { return telemetry.ThisBuild().String() }

func (a *app) versionCommand() *cobra.Command {
	var only bool
	c := a.command("version", "Show the versions of this program and of the server", exactly(0), brief, func(ctx context.Context, _ []string) error {
		server := ""
		var failed error
		if !only {
			cl, err := a.connect(ctx)
			if err == nil {
				var s *apiv1.GetStatusResponse
				s, err = cl.Cluster.GetStatus(ctx, &apiv1.GetStatusRequest{Consistency: apiv1.Consistency_STALE}) // the asked server's own
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
