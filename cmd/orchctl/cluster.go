// cluster: the control plane itself. Its snapshots are in snapshot.go.

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func (a *app) clusterCommand() *cobra.Command {
	return a.group("cluster", "See and change the control plane",
		a.statusCommand(), a.membersCommand(), a.joinCommand(), a.removeMemberCommand(), a.transferCommand(), a.snapshotCommand())
}

func (a *app) memberKind() kind[*apiv1.Member] {
	return kind[*apiv1.Member]{
		noun:    "members",
		columns: []string{"ID", "ROLE", "HEALTHY", "ADDRESS", "CONTACT", "APPLIED", "GOSSIP", "+RAFT-ADDRESS", "+VERSION", "+PID"},
		row: func(m *apiv1.Member) []string {
			contact := fmt.Sprintf("%.1fms", m.GetLastContactMs())
			if m.GetLastContactMs() < 0 {
				contact = "" // the asked server does not know
			}
			return []string{
				m.GetId(), m.GetRole().String(), fmt.Sprint(m.GetHealthy()), m.GetAddress(), contact, number(m.GetAppliedIndex()), m.GetGossip(),
				m.GetRaftAddress(), m.GetVersion(), some(m.GetPid()),
			}
		},
		name: (*apiv1.Member).GetId,
	}
}

func (a *app) statusCommand() *cobra.Command {
	return a.command("status", "Show the leader, the members, and how much there is of what", exactly(0), brief, func(ctx context.Context, _ []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		s, err := cl.Cluster.GetStatus(ctx, &apiv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		switch a.flags.output {
		case "json", "yaml":
			return a.printMessage(s)
		case "name":
			_, err := fmt.Fprintln(a.out(), s.GetClusterId())
			return err
		}
		err = a.printFields([]field{
			{label: "Cluster", value: s.GetClusterId()}, {label: "Leader", value: first(s.GetLeader(), "none")}, {label: "Answered by", value: s.GetServer()},
			{label: "Version", value: s.GetVersion()}, {label: "Term", value: number(s.GetTerm())},
			{label: "Log", value: fmt.Sprintf("applied %d of %d committed", s.GetAppliedIndex(), s.GetCommitIndex())},
			{label: "May fail", value: fmt.Sprintf("%d of %d servers", s.GetFailureTolerance(), len(s.GetMembers()))},
			{label: "Nodes", value: first(pairsText(s.GetNodes()), "none")}, {label: "Sessions", value: first(pairsText(s.GetSessions()), "none")},
		})
		if err != nil || len(s.GetMembers()) == 0 {
			return err
		}
		if _, err := fmt.Fprintln(a.out()); err != nil {
			return err
		}
		return printList(a, a.memberKind(), s.GetMembers(), s)
	})
}

func (a *app) membersCommand() *cobra.Command {
	var l listFlags
	c := a.command("members", "List the servers", exactly(0), brief, func(ctx context.Context, _ []string) error {
		match, err := parseTerms(l.filter, "id", "role", "healthy", "gossip")
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		answer := &apiv1.ListMembersResponse{}
		fetch := func() ([]*apiv1.Member, error) {
			r, err := cl.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
			answer.Members = keep(r.GetMembers(), l.limit, func(m *apiv1.Member) bool {
				return match.match(map[string]string{"id": m.GetId(), "role": m.GetRole().String(), "healthy": fmt.Sprint(m.GetHealthy()), "gossip": m.GetGossip()})
			})
			return answer.Members, err
		}
		return show(ctx, a, a.memberKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: id=ID, role=LEADER, healthy=false, gossip=failed; != negates")
	return c
}

// findMember returns the id of the member that an id, a unique prefix of one, or an address means.
func (a *app) findMember(ctx context.Context, ref string) (string, error) {
	cl, err := a.connect(ctx)
	if err != nil {
		return "", err
	}
	r, err := cl.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		return "", err
	}
	var ids []string
	for _, m := range r.GetMembers() {
		if m.GetId() == ref || m.GetAddress() == ref || m.GetRaftAddress() == ref {
			return m.GetId(), nil
		}
		if strings.HasPrefix(m.GetId(), ref) {
			ids = append(ids, m.GetId())
		}
	}
	return unique("member", "cluster members", ref, ids)
}

func (a *app) joinCommand() *cobra.Command {
	return a.command("join ADDRESS", "Make the asked server gossip with another, at host:port, which makes that known to the cluster", exactly(1), brief,
		func(ctx context.Context, args []string) error {
			cl, err := a.connect(ctx)
			if err != nil {
				return err
			}
			r, err := cl.Cluster.JoinMember(ctx, &apiv1.JoinMemberRequest{Address: args[0]})
			if err != nil {
				return err
			}
			return a.printDone(r, args[0], fmt.Sprintf("reached %d server(s) at %s; 'orchctl cluster members' shows when they have joined", r.GetJoined(), args[0]))
		})
}

func (a *app) removeMemberCommand() *cobra.Command {
	c := a.command("remove MEMBER", "Take a server out of the cluster", exactly(1), brief, func(ctx context.Context, args []string) error {
		id, err := a.findMember(ctx, args[0])
		if err != nil {
			return err
		}
		r, err := a.client.Cluster.RemoveMember(ctx, &apiv1.RemoveMemberRequest{Id: id})
		if err != nil {
			return err
		}
		return a.printDone(r, id, "member/"+id+" removed")
	})
	c.ValidArgsFunction = a.completeMembers
	return c
}

func (a *app) transferCommand() *cobra.Command {
	c := a.command("transfer-leadership [MEMBER]", "Make another server the leader, the most up-to-date one unless it is named", between(0, 1), brief,
		func(ctx context.Context, args []string) (err error) {
			id := ""
			if len(args) == 1 {
				if id, err = a.findMember(ctx, args[0]); err != nil {
					return err
				}
			}
			cl, err := a.connect(ctx)
			if err != nil {
				return err
			}
			r, err := cl.Cluster.TransferLeadership(ctx, &apiv1.TransferLeadershipRequest{Id: id})
			if err != nil {
				return err
			}
			return a.printDone(r, r.GetLeader(), "member/"+r.GetLeader()+" leads")
		})
	c.ValidArgsFunction = a.completeMembers
	return c
}
