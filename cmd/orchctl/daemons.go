// What runs in the servers beside the calls.

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func (a *app) daemonsCommand() *cobra.Command {
	return a.group("daemons", "See what runs in the servers beside the calls", a.listDaemonsCommand())
}

func (a *app) daemonKind() kind[*apiv1.Daemon] {
	return kind[*apiv1.Daemon]{
		noun:    "daemons",
		columns: []string{"SERVER", "NAME", "STATE", "FOR", "RESTARTS", "QUEUE", "LAST-ERROR", "+GOROUTINES", "+SERVER-MEMORY"},
		row: func(d *apiv1.Daemon) []string {
			return []string{
				d.GetServer(), d.GetName(), d.GetState().String(), a.age(d.GetStateTime()), number(d.GetRestarts()), queueText(d), d.GetLastError(),
				number(d.GetGoroutines()), bytesText(int64(d.GetProcessMemoryBytes())),
			}
		},
		name: func(d *apiv1.Daemon) string { return "daemon/" + d.GetServer() + "/" + d.GetName() },
	}
}

// queueText is what waits for a daemon; empty where nothing does.
func queueText(d *apiv1.Daemon) string {
	if d.GetQueueLimit() == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", d.GetQueueDepth(), d.GetQueueLimit())
}

func (a *app) listDaemonsCommand() *cobra.Command {
	var l listFlags
	c := a.command("list", "List the daemons of all servers, with their restarts and their last errors", exactly(0), brief, func(ctx context.Context, _ []string) error {
		match, err := parseTerms(l.filter, "server", "name", "state")
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		answer := &apiv1.ListDaemonsResponse{}
		fetch := func() ([]*apiv1.Daemon, error) {
			r, err := cl.Cluster.ListDaemons(ctx, &apiv1.ListDaemonsRequest{})
			for _, id := range slices.Sorted(maps.Keys(r.GetMissing())) {
				a.note(fmt.Sprintf("%s did not answer: %s", id, r.GetMissing()[id]))
			}
			answer.Missing = r.GetMissing()
			answer.Daemons = keep(r.GetDaemons(), l.limit, func(d *apiv1.Daemon) bool {
				return match.match(map[string]string{"server": d.GetServer(), "name": d.GetName(), "state": d.GetState().String()})
			})
			return answer.Daemons, err
		}
		return show(ctx, a, a.daemonKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: server=ID, name=NAME, state=FAILING; != negates")
	return c
}
