// dlq: messages that were given up, for a person to look at, retry or purge.

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) dlqCommand() *cobra.Command {
	return a.group("dlq", "See, retry and purge dead letters: messages that could not be delivered",
		a.dlqListCommand(), a.dlqGetCommand(), a.dlqRetryCommand(), a.dlqPurgeCommand())
}

func (a *app) letterKind() kind[*apiv1.Message] {
	k := a.messageKind()
	k.noun = "dead letters"
	k.columns = []string{"SESSION", "SEQUENCE", "PRIORITY", "ATTEMPTS", "AGE", "CAUSE", "+NAMESPACE", "+SIZE", "+TEXT"}
	k.row = func(m *apiv1.Message) []string {
		return []string{
			m.GetSessionId(), number(m.GetSequence()), priorityText(m.GetPriority()), number(m.GetAttempts()), a.age(m.GetCreateTime()), m.GetCause(),
			m.GetNamespace(), bytesText(int64(len(m.GetText()))), clip(string(m.GetText())),
		}
	}
	return k
}

func (a *app) dlqListCommand() *cobra.Command {
	var l listFlags
	var all bool
	c := a.command("list [SESSION]", "List dead letters", between(0, 1), brief, func(ctx context.Context, args []string) error {
		match, err := messageMatch(l.filter)
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		id, err := a.letterSession(ctx, args)
		if err != nil {
			return err
		}
		answer := &apiv1.ListDeadLettersResponse{}
		fetch := func() (_ []*apiv1.Message, err error) {
			answer.Messages, answer.NextPageToken, err = pages(l.limit, func(size int32, token string) ([]*apiv1.Message, string, error) {
				r, err := cl.Queues.ListDeadLetters(ctx, &apiv1.ListDeadLettersRequest{Namespace: a.scope(all), SessionId: id, PageSize: size, PageToken: token})
				return keep(r.GetMessages(), 0, match), r.GetNextPageToken(), err
			})
			return answer.Messages, err
		}
		return show(ctx, a, a.letterKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: priority=high, cause=TEXT*; != negates")
	a.allFlag(c, &all)
	c.ValidArgsFunction = a.completeSessions
	return c
}

// letterSession is the whole id of the session that is named, empty when none is. Dead letters outlive their sessions:
// what is not found is taken for the whole id of one that is gone.
func (a *app) letterSession(ctx context.Context, args []string) (string, error) {
	id, err := a.optionalSession(ctx, args)
	if fault.Is(err, fault.NotFound) {
		return args[0], nil
	}
	return id, err
}

// sequence reads the second argument, 0 when there is none.
func sequence(args []string) (uint64, error) {
	if len(args) < 2 {
		return 0, nil
	}
	n, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil || n == 0 {
		return 0, fault.New(fault.Invalid, "%q is not a message's sequence; 'orchctl dlq list' shows them", args[1])
	}
	return n, nil
}

func (a *app) dlqGetCommand() *cobra.Command {
	c := a.command("get SESSION SEQUENCE", "Show one dead letter with its text", exactly(2), brief, func(ctx context.Context, args []string) error {
		n, err := sequence(args)
		if err != nil {
			return err
		}
		id, err := a.letterSession(ctx, args)
		if err != nil {
			return err
		}
		r, err := a.client.Queues.GetDeadLetter(ctx, &apiv1.GetDeadLetterRequest{Namespace: a.namespace(), SessionId: id, Sequence: n})
		if err != nil {
			return err
		}
		m := r.GetMessage()
		return printOne(a, a.letterKind(), m, []field{
			{label: "Session", value: m.GetSessionId()}, {label: "Sequence", value: number(m.GetSequence())}, {label: "Priority", value: priorityText(m.GetPriority())},
			{label: "Cause", value: m.GetCause()}, {label: "Attempts", value: number(m.GetAttempts())}, {label: "Created", value: a.at(m.GetCreateTime())},
			{label: "Deadline", value: a.at(m.GetDeadline())}, {label: "Died", value: a.at(m.GetEndTime())}, {label: "Text", value: string(m.GetText())},
		})
	})
	c.ValidArgsFunction = a.completeSessions
	return c
}

func (a *app) dlqRetryCommand() *cobra.Command {
	var key string
	c := a.command("retry SESSION [SEQUENCE]", "Put one dead letter, or all of a session, back into the mailbox", between(1, 2), brief, func(ctx context.Context, args []string) error {
		n, err := sequence(args)
		if err != nil {
			return err
		}
		id, err := a.letterSession(ctx, args)
		if err != nil {
			return err
		}
		r, err := a.client.Queues.RetryDeadLetters(ctx, &apiv1.RetryDeadLettersRequest{Namespace: a.namespace(), SessionId: id, Sequence: n, IdempotencyKey: key})
		if err != nil {
			return err
		}
		return a.printDone(r, id, fmt.Sprintf("session/%s: %d dead letter(s) back in the mailbox", id, r.GetRetried()))
	})
	c.Flags().StringVar(&key, "idempotency-key", "", "a repetition with the same key has no further effect")
	c.ValidArgsFunction = a.completeSessions
	return c
}

func (a *app) dlqPurgeCommand() *cobra.Command {
	var key string
	var all bool
	c := a.command("purge [SESSION [SEQUENCE]]", "Delete one dead letter, all of a session, or with --all those of the namespace", between(0, 2), brief, func(ctx context.Context, args []string) error {
		if all == (len(args) > 0) {
			return fault.New(fault.Invalid, "name a session, or give --all for the whole namespace; one of the two")
		}
		n, err := sequence(args)
		if err != nil {
			return err
		}
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		id, err := a.letterSession(ctx, args)
		if err != nil {
			return err
		}
		r, err := cl.Queues.PurgeDeadLetters(ctx, &apiv1.PurgeDeadLettersRequest{Namespace: a.namespace(), SessionId: id, Sequence: n, IdempotencyKey: key})
		if err != nil {
			return err
		}
		return a.printDone(r, first(id, a.namespace()), fmt.Sprintf("%d dead letter(s) deleted", r.GetPurged()))
	})
	c.Flags().StringVar(&key, "idempotency-key", "", "a repetition with the same key has no further effect")
	c.Flags().BoolVar(&all, "all", false, "all dead letters of the namespace")
	c.ValidArgsFunction = a.completeSessions
	return c
}
