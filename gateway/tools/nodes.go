// Tools that look at the machines.

package tools

import (
	"context"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func nodeTools() []Tool { return []Tool{nodeListTool()} }

func nodeListTool() Tool {
	return Tool{
		Name: "node_list", ReadOnly: true,
		Description: "List the nodes that run sessions: status, capabilities, health, and how many sessions each has, as JSON. Takes a token that is not bound to a namespace.",
		Schema:      object(nil, map[string]*Schema{"filter": text("such as status=HEALTHY", 4096)}),
		run: func(ctx context.Context, api api, c *Call) ([]Output, error) {
			a, err := decode[struct {
				Filter string `json:"filter"`
			}](c)
			if err != nil {
				return nil, err
			}
			r, err := api.nodes.ListNodes(ctx, &apiv1.ListNodesRequest{Filter: a.Filter})
			if err != nil {
				return nil, err
			}
			return answer(r)
		},
	}
}
