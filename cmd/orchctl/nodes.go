// nodes: the machines that run sessions.

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func (a *app) nodesCommand() *cobra.Command {
	g := a.group("nodes", "See the machines that run sessions, keep sessions away from them, forget them",
		a.nodesListCommand(), a.nodesGetCommand(),
		a.nodeChange("cordon", "Keep new sessions away from nodes; those they have stay", "cordoned", func(ctx context.Context, n *apiv1.Node) (*apiv1.Node, error) {
			r, err := a.client.Nodes.CordonNode(ctx, &apiv1.CordonNodeRequest{Id: n.GetId()})
			return r.GetNode(), err
		}),
		a.nodeChange("uncordon", "Let new sessions onto nodes again", "uncordoned", func(ctx context.Context, n *apiv1.Node) (*apiv1.Node, error) {
			r, err := a.client.Nodes.UncordonNode(ctx, &apiv1.UncordonNodeRequest{Id: n.GetId()})
			return r.GetNode(), err
		}),
		a.nodeChange("remove", "Forget nodes that are offline and hold no session", "removed", func(ctx context.Context, n *apiv1.Node) (*apiv1.Node, error) {
			_, err := a.client.Nodes.RemoveNode(ctx, &apiv1.RemoveNodeRequest{Id: n.GetId()})
			return n, err
		}),
		a.drainCommand(),
	)
	g.Aliases = []string{"node"}
	return g
}

func (a *app) nodeKind() kind[*apiv1.Node] {
	return kind[*apiv1.Node]{
		noun:    "nodes",
		columns: []string{"NAME", "STATUS", "SCHEDULABLE", "SESSIONS", "CPU", "MEMORY", "HEARTBEAT", "AGE", "+ID", "+ADDRESS", "+CONNECTION", "+SERVER", "+VERSION", "+PID", "+LABELS", "+REASON"},
		row: func(n *apiv1.Node) []string {
			h := n.GetHealth()
			return []string{
				n.GetName(), n.GetStatus().String(), schedulableText(n), sessionsOf(n), fmt.Sprintf("%.0f%%", h.GetCpuUsage()),
				fmt.Sprintf("%.0f%%", h.GetMemoryUsage()), a.age(h.GetLastHeartbeat()), a.age(n.GetCreateTime()), n.GetId(), n.GetAddress(),
				n.GetConnection(), n.GetServer(), n.GetVersion(), some(n.GetPid()), pairsText(n.GetLabels()), n.GetReason(),
			}
		},
		name:    (*apiv1.Node).GetName,
		watched: map[string]int{"STATUS": len("UNHEALTHY"), "SCHEDULABLE": len("drain incomplete"), "CPU": len("100%")},
	}
}

// schedulableText says whether sessions may be placed on a node, or how far it is with getting rid of those that it has.
func schedulableText(n *apiv1.Node) string {
	switch n.GetDrain().GetState() {
	case apiv1.Drain_DRAINING:
		return "draining"
	case apiv1.Drain_DRAINED:
		return "drained"
	case apiv1.Drain_INCOMPLETE:
		return "drain incomplete"
	default:
		return fmt.Sprint(n.GetSchedulable())
	}
}

// sessionsOf is how many sessions a node has, and may have.
func sessionsOf(n *apiv1.Node) string {
	if most := n.GetCapabilities().GetMaxConcurrentSessions(); most > 0 {
		return fmt.Sprintf("%d/%d", n.GetSessions(), most)
	}
	return number(n.GetSessions())
}

func (a *app) nodesListCommand() *cobra.Command {
	var l listFlags
	c := a.command("list", "List nodes", exactly(0), brief, func(ctx context.Context, _ []string) error {
		cl, err := a.connect(ctx)
		if err := errors.Join(err, l.check()); err != nil {
			return err
		}
		answer := &apiv1.ListNodesResponse{}
		fetch := func() (_ []*apiv1.Node, err error) {
			answer.Nodes, answer.NextPageToken, err = pages(l.limit, func(size int32, token string) ([]*apiv1.Node, string, error) {
				r, err := cl.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{Filter: l.filter, PageSize: size, PageToken: token})
				return r.GetNodes(), r.GetNextPageToken(), err
			})
			return answer.Nodes, err
		}
		if l.watch {
			return poll(ctx, a, a.nodeKind(), fetch)
		}
		if _, err := fetch(); err != nil {
			return err
		}
		if err := printList(a, a.nodeKind(), answer.Nodes, answer); err != nil {
			return err
		}
		a.cutNote(len(answer.Nodes), answer.NextPageToken, 0)
		return nil
	})
	c.Aliases = []string{"ls"}
	l.add(c, "terms joined by commas: status=HEALTHY, name=PREFIX*, schedulable=true, label.KEY=VALUE; != negates")
	return c
}

// findNode returns the node of an id, a unique prefix of one, or a name.
func (a *app) findNode(ctx context.Context, ref string) (*apiv1.Node, error) {
	cl, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	r, err := cl.Nodes.GetNode(ctx, &apiv1.GetNodeRequest{Id: ref})
	return r.GetNode(), err
}

func (a *app) nodesGetCommand() *cobra.Command {
	c := a.command("get NODE", "Show one node: its health, what it can run, what it has", exactly(1), brief, func(ctx context.Context, args []string) error {
		n, err := a.findNode(ctx, args[0])
		if err != nil {
			return err
		}
		return printOne(a, a.nodeKind(), n, a.nodeFields(n))
	})
	c.ValidArgsFunction = a.completeNodes
	return c
}

func (a *app) nodeFields(n *apiv1.Node) []field {
	h, c := n.GetHealth(), n.GetCapabilities()
	return []field{
		{label: "ID", value: n.GetId()}, {label: "Name", value: n.GetName()}, {label: "Address", value: n.GetAddress()},
		{label: "Status", value: n.GetStatus().String()}, {label: "Reason", value: n.GetReason()}, {label: "Schedulable", value: fmt.Sprint(n.GetSchedulable())},
		{label: "Drain", value: a.drainText(n.GetDrain())},
		{label: "Connection", value: n.GetConnection()}, {label: "Server", value: n.GetServer()}, {label: "Heartbeat", value: a.at(h.GetLastHeartbeat())},
		{label: "Round trip", value: fmt.Sprintf("%.1f ms", h.GetResponseTimeMs())}, {label: "CPU", value: fmt.Sprintf("%.1f%%", h.GetCpuUsage())},
		{label: "Memory", value: fmt.Sprintf("%.1f%%", h.GetMemoryUsage())}, {label: "Sessions", value: sessionsOf(n)},
		{label: "Reserved", value: fmt.Sprintf("%dm of %dm CPU, %s of %s memory", n.GetReservedCpuMilli(), c.GetCpuMilli(), bytesText(n.GetReservedMemoryBytes()), bytesText(c.GetMemoryBytes()))},
		{label: "Types", value: strings.Join(c.GetSupportedSessionTypes(), ",")}, {label: "Capabilities", value: capabilityText(c)},
		{label: "Absent", value: absentText(c)},
		{label: "Labels", value: pairsText(n.GetLabels())}, {label: "Created", value: a.at(n.GetCreateTime())},
		{label: "Version", value: n.GetVersion(), wide: true}, {label: "PID", value: some(n.GetPid()), wide: true},
		{label: "Uptime", value: fmt.Sprintf("%.0f s", h.GetUptimeSeconds()), wide: true},
	}
}

// capabilityText is what a session may --require of a node.
func capabilityText(c *apiv1.Capabilities) string {
	m := map[string]bool{}
	for k, v := range c.GetCustomCapabilities() {
		m[k] = v
	}
	if c.GetHasGpuAccess() {
		m["gpu"] = true
	}
	if c.GetHasHighMemory() {
		m["high-memory"] = true
	}
	return pairsText(m)
}

// absentText is why the node lacks capabilities that it could have.
func absentText(c *apiv1.Capabilities) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(c.GetAbsent())) {
		out = append(out, key+": "+c.GetAbsent()[key])
	}
	return strings.Join(out, "; ")
}

// nodeChange makes a command that does something to each node that is named.
func (a *app) nodeChange(verb, short, done string, change func(context.Context, *apiv1.Node) (*apiv1.Node, error)) *cobra.Command {
	c := a.command(verb+" NODE...", short, atLeast(1), brief, func(ctx context.Context, args []string) (err error) {
		one := func(ref string) error {
			n, err := a.findNode(ctx, ref)
			if err != nil {
				return err
			}
			if n, err = change(ctx, n); err != nil {
				return err
			}
			return a.printDone(n, n.GetName(), "node/"+n.GetName()+" "+done)
		}
		for _, ref := range args {
			err = a.firstError(err, one(ref), ref)
		}
		return err
	})
	c.ValidArgsFunction = a.completeNodes
	return c
}
