// Completion of what only the cluster knows: sessions, nodes, members. The shells' scripts are 'orchctl completion SHELL'.

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	clientcontext "github.com/neolith/orchestrator/client/context"
)

const (
	completionTimeout = 2 * time.Second
	completionMax     = 200
)

// complete gives a flag its fixed values.
func (a *app) complete(c *cobra.Command, flag string, values ...string) {
	// It only refuses flags that are not there, which a test would see.
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// ask runs a look-up for a completion; what fails completes nothing.
func (a *app) ask(cmd *cobra.Command, look func(ctx context.Context) ([]cobra.Completion, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	if _, err := a.connect(ctx); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, err := look(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// takesMany are the commands that take several sessions.
var takesMany = map[string]bool{"terminate": true, "pause": true, "resume": true, "restore": true, "checkpoint": true}

// completeTargets offers the nodes that a session may move to.
func (a *app) completeTargets(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.ask(cmd, func(ctx context.Context) (out []cobra.Completion, err error) {
		r, err := a.client.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{PageSize: completionMax, Consistency: apiv1.Consistency_STALE})
		for _, n := range r.GetNodes() {
			if n.GetSchedulable() && n.GetStatus() != apiv1.Node_OFFLINE {
				out = append(out, cobra.CompletionWithDesc(n.GetName(), fmt.Sprintf("%s, %d sessions", n.GetStatus(), n.GetSessions())))
			}
		}
		return out, err
	})
}

// completeCheckpoints offers the checkpoints of the session that is the first argument, the newest first.
func (a *app) completeCheckpoints(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, d := a.ask(cmd, func(ctx context.Context) (out []cobra.Completion, err error) {
		r, err := a.client.Sessions.ListCheckpoints(ctx, &apiv1.ListCheckpointsRequest{Namespace: a.namespace(), Id: args[0], Consistency: apiv1.Consistency_STALE})
		for _, k := range slices.Backward(r.GetCheckpoints()) {
			out = append(out, cobra.CompletionWithDesc(number(k.GetSequence()), fmt.Sprintf("%s ago, turn %d", a.age(k.GetCreateTime()), k.GetTurn())))
		}
		return out, err
	})
	return found, d | cobra.ShellCompDirectiveKeepOrder
}

// completeSessions offers names and ids of sessions, for the first argument.
func (a *app) completeSessions(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 && !takesMany[cmd.Name()] {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(cmd, func(ctx context.Context) (out []cobra.Completion, err error) {
		r, err := a.client.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{Namespace: a.namespace(), PageSize: completionMax, Consistency: apiv1.Consistency_STALE})
		for _, s := range r.GetSessions() {
			what := s.GetPhase().String()
			if s.GetNode() != "" {
				what += " on " + s.GetNode()
			}
			if s.GetName() != "" {
				out = append(out, cobra.CompletionWithDesc(s.GetName(), what))
			}
			out = append(out, cobra.CompletionWithDesc(s.GetId(), what))
		}
		return out, err
	})
}

func (a *app) completeNodes(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() == "get" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(cmd, func(ctx context.Context) (out []cobra.Completion, err error) {
		r, err := a.client.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{PageSize: completionMax, Consistency: apiv1.Consistency_STALE})
		for _, n := range r.GetNodes() {
			out = append(out, cobra.CompletionWithDesc(n.GetName(), n.GetStatus().String()))
		}
		return out, err
	})
}

func (a *app) completeMembers(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(cmd, func(ctx context.Context) (out []cobra.Completion, err error) {
		r, err := a.client.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
		for _, m := range r.GetMembers() {
			out = append(out, cobra.CompletionWithDesc(m.GetId(), m.GetRole().String()))
		}
		return out, err
	})
}

func (a *app) completeContexts(_ *cobra.Command, args []string, _ string) (out []cobra.Completion, d cobra.ShellCompDirective) {
	d = cobra.ShellCompDirectiveNoFileComp
	path, err := clientcontext.DefaultPath(a.getenv)
	if err != nil || len(args) > 0 {
		return nil, d
	}
	f, err := clientcontext.Load(path)
	if err != nil {
		return nil, d
	}
	for _, c := range f.Contexts {
		out = append(out, c.Name)
	}
	return out, d
}
