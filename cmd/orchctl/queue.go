// queue: what waits in mailboxes.

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func (a *app) queueCommand() *cobra.Command {
	return a.group("queue", "See what waits in mailboxes", a.queueStatsCommand(), a.queueListCommand())
}

func (a *app) queueStatsCommand() *cobra.Command {
	var all bool
	c := a.command("stats", "Count messages", exactly(0), brief, func(ctx context.Context, _ []string) error {
		cl, err := a.connect()
		if err != nil {
			return err
		}
		r, err := cl.Queues.GetQueueStats(ctx, &apiv1.GetQueueStatsRequest{Namespace: a.scope(all)})
		if err != nil {
			return err
		}
		if o := a.flags.output; o == "json" || o == "yaml" {
			return a.printMessage(r)
		}
		return a.printFields([]field{
			{label: "Queued", value: number(r.GetQueued())}, {label: "Delivered", value: number(r.GetDelivered())}, {label: "Dead", value: number(r.GetDead())},
			{label: "By priority", value: first(pairsText(r.GetByPriority()), "none")}, {label: "Oldest", value: fmt.Sprintf("%.1f s", r.GetOldestSeconds())},
		})
	})
	a.allFlag(c, &all)
	return c
}

func (a *app) allFlag(c *cobra.Command, all *bool) {
	c.Flags().BoolVarP(all, "all-namespaces", "A", false, "of every namespace that the token may see")
}

// scope is the namespace to look into; empty for all.
func (a *app) scope(all bool) string {
	if all {
		return ""
	}
	return a.namespace()
}

func (a *app) messageKind() kind[*apiv1.Message] {
	return kind[*apiv1.Message]{
		noun:    "messages",
		columns: []string{"SESSION", "SEQUENCE", "PRIORITY", "STATUS", "ATTEMPTS", "SIZE", "AGE", "+NAMESPACE", "+TEXT"},
		row: func(m *apiv1.Message) []string {
			return []string{
				m.GetSessionId(), number(m.GetSequence()), priorityText(m.GetPriority()), m.GetStatus().String(), number(m.GetAttempts()),
				bytesText(int64(len(m.GetText()))), a.age(m.GetCreateTime()), m.GetNamespace(), clip(string(m.GetText())),
			}
		},
		name: messageName,
	}
}

func messageName(m *apiv1.Message) string {
	return fmt.Sprintf("%s/%d", m.GetSessionId(), m.GetSequence())
}

// clip is the beginning of a text, for a table.
func clip(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// messageMatch reads a filter of messages.
func messageMatch(filter string) (func(*apiv1.Message) bool, error) {
	t, err := parseTerms(filter, "priority", "status", "cause")
	return func(m *apiv1.Message) bool {
		return t.match(map[string]string{"priority": priorityText(m.GetPriority()), "status": m.GetStatus().String(), "cause": m.GetCause()})
	}, err
}

func (a *app) queueListCommand() *cobra.Command {
	var l listFlags
	var all bool
	c := a.command("list [SESSION]", "List the messages whose turns have not ended, in the order of delivery", between(0, 1), brief, func(ctx context.Context, args []string) error {
		match, err := messageMatch(l.filter)
		cl, err2 := a.connect()
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		id, err := a.optionalSession(ctx, args)
		if err != nil {
			return err
		}
		answer := &apiv1.ListMessagesResponse{}
		fetch := func() (_ []*apiv1.Message, err error) {
			var found []*apiv1.Message
			found, answer.NextPageToken, err = pages(l.limit, func(size int32, token string) ([]*apiv1.Message, string, error) {
				r, err := cl.Queues.ListMessages(ctx, &apiv1.ListMessagesRequest{Namespace: a.scope(all), SessionId: id, PageSize: size, PageToken: token})
				return keep(r.GetMessages(), 0, match), r.GetNextPageToken(), err
			})
			answer.Messages = found
			return found, err
		}
		return show(ctx, a, a.messageKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: priority=high, status=QUEUED; != negates")
	a.allFlag(c, &all)
	c.ValidArgsFunction = a.completeSessions
	return c
}

// optionalSession is the whole id of the session that is named, empty when none is.
func (a *app) optionalSession(ctx context.Context, args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	s, err := a.findSession(ctx, args[0])
	return s.GetId(), err
}
