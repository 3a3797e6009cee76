// queue: what waits in mailboxes, and the calls of clients.

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) queueCommand() *cobra.Command {
	return a.group("queue", "See what waits in mailboxes, and the calls of clients",
		a.queueStatsCommand(), a.queueListCommand(), a.queueCallsCommand(), a.queueGetCommand(), a.queueCancelCommand())
}

func (a *app) queueStatsCommand() *cobra.Command {
	var all bool
	c := a.command("stats", "Count messages and calls", exactly(0), brief, func(ctx context.Context, _ []string) error {
		cl, err := a.connect(ctx)
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
			{label: "Calls", value: first(pairsText(r.GetCalls()), "none")}, {label: "Calls by priority", value: first(pairsText(r.GetCallsByPriority()), "none")},
			{label: "Oldest call", value: fmt.Sprintf("%.1f s", r.GetOldestCallSeconds())},
		})
	})
	a.allFlag(c, &all)
	return c
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
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		id, err := a.optionalSession(ctx, args)
		if err != nil {
			return err
		}
		answer := &apiv1.ListMessagesResponse{}
		fetch := func() (_ []*apiv1.Message, err error) {
			q := queueReader{cl: cl, namespace: a.scope(all), limit: l.limit, match: match}
			answer.Messages, answer.NextPageToken, err = q.read(ctx, id)
			return answer.Messages, err
		}
		return show(ctx, a, a.messageKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: priority=high, status=QUEUED; != negates")
	a.allFlag(c, &all)
	c.ValidArgsFunction = a.completeSessions
	return c
}

// queueReader reads mailboxes: one, or all that hold something, one after the other. The API reads one at a time.
type queueReader struct {
	cl        *client.Client
	namespace string
	limit     int // 0 for none
	match     func(*apiv1.Message) bool
}

func (q *queueReader) read(ctx context.Context, id string) (found []*apiv1.Message, next string, err error) {
	if id != "" {
		return q.mailbox(ctx, q.namespace, id, q.limit)
	}
	token := ""
	for {
		r, err := q.cl.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{Namespace: q.namespace, PageSize: pageMax, PageToken: token})
		if err != nil {
			return nil, "", err
		}
		for _, s := range r.GetSessions() {
			if s.GetMailbox().GetQueued()+s.GetMailbox().GetDelivered() == 0 {
				continue
			}
			left := 0
			if q.limit > 0 {
				if left = q.limit - len(found); left == 0 {
					return found, s.GetId(), nil
				}
			}
			l, _, err := q.mailbox(ctx, s.GetNamespace(), s.GetId(), left)
			if err != nil && !fault.Is(err, fault.NotFound) { // it may have gone meanwhile
				return nil, "", err
			}
			found = append(found, l...)
		}
		if token = r.GetNextPageToken(); token == "" {
			return found, "", nil
		}
	}
}

func (q *queueReader) mailbox(ctx context.Context, namespace, id string, limit int) ([]*apiv1.Message, string, error) {
	return pages(limit, func(size int32, token string) ([]*apiv1.Message, string, error) {
		r, err := q.cl.Queues.ListMessages(ctx, &apiv1.ListMessagesRequest{Namespace: namespace, SessionId: id, PageSize: size, PageToken: token})
		return keep(r.GetMessages(), 0, q.match), r.GetNextPageToken(), err
	})
}

// optionalSession is the whole id of the session that is named, empty when none is.
func (a *app) optionalSession(ctx context.Context, args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	s, err := a.findSession(ctx, args[0])
	return s.GetId(), err
}
