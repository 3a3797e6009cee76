// dlq: messages and calls that were given up, for a person to look at, retry or purge.

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) dlqCommand() *cobra.Command {
	return a.group("dlq", "See, retry and purge dead letters: messages that could not be delivered, and calls that were given up",
		a.dlqListCommand(), a.dlqGetCommand(), a.dlqRetryCommand(), a.dlqPurgeCommand())
}

// callPrefix makes it plain that an argument is a call's id, and no session.
const callPrefix = "call/"

// letterKind prints dead messages and dead calls.
func (a *app) letterKind() kind[proto.Message] {
	return kind[proto.Message]{
		noun:    "dead letters",
		columns: []string{"KIND", "ID", "SEQUENCE", "PRIORITY", "ATTEMPTS", "AGE", "CAUSE", "+NAMESPACE", "+SIZE", "+TEXT"},
		row: func(l proto.Message) []string {
			switch l := l.(type) {
			case *apiv1.Message:
				return []string{
					"message", l.GetSessionId(), number(l.GetSequence()), priorityText(l.GetPriority()), number(l.GetAttempts()), a.age(l.GetCreateTime()),
					l.GetCause(), l.GetNamespace(), bytesText(int64(len(l.GetText()))), clip(string(l.GetText())),
				}
			case *apiv1.Call:
				return []string{
					"call", l.GetId(), "-", priorityText(l.GetPriority()), number(l.GetAttempts()), a.age(l.GetCreateTime()), l.GetLastError(),
					l.GetNamespace(), bytesText(int64(l.GetArgumentsBytes())), l.GetTool() + " for " + l.GetSession(),
				}
			default:
				return nil
			}
		},
		name: func(l proto.Message) string {
			switch l := l.(type) {
			case *apiv1.Message:
				return messageName(l)
			case *apiv1.Call:
				return callPrefix + l.GetId()
			default:
				return ""
			}
		},
	}
}

// letterMatch reads a filter of dead letters.
func letterMatch(filter string) (func(proto.Message) bool, error) {
	t, err := parseTerms(filter, "kind", "priority", "status", "cause")
	return func(l proto.Message) bool {
		values := map[string]string{"status": "DEAD"}
		switch l := l.(type) {
		case *apiv1.Message:
			values["kind"], values["priority"], values["cause"] = "message", priorityText(l.GetPriority()), l.GetCause()
		case *apiv1.Call:
			values["kind"], values["priority"], values["cause"] = "call", priorityText(l.GetPriority()), l.GetLastError()
		}
		return t.match(values)
	}, err
}

func (a *app) dlqListCommand() *cobra.Command {
	var l listFlags
	var all bool
	c := a.command("list [SESSION]", "List dead letters: messages, of all sessions or one, and calls", between(0, 1), brief, func(ctx context.Context, args []string) error {
		match, err := letterMatch(l.filter)
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		id, err := a.letterSession(ctx, args)
		if err != nil {
			return err
		}
		answer := &apiv1.ListDeadLettersResponse{}
		fetch := func() (letters []proto.Message, err error) {
			letters, answer.NextPageToken, err = pages(l.limit, func(size int32, token string) ([]proto.Message, string, error) {
				r, err := cl.Queues.ListDeadLetters(ctx, &apiv1.ListDeadLettersRequest{Namespace: a.scope(all), SessionId: id, PageSize: size, PageToken: token})
				var page []proto.Message
				for _, m := range r.GetMessages() {
					page = append(page, m)
				}
				for _, c := range r.GetCalls() {
					page = append(page, c)
				}
				return keep(page, 0, match), r.GetNextPageToken(), err
			})
			answer.Messages, answer.Calls = nil, nil
			for _, letter := range letters {
				switch letter := letter.(type) {
				case *apiv1.Message:
					answer.Messages = append(answer.Messages, letter)
				case *apiv1.Call:
					answer.Calls = append(answer.Calls, letter)
				}
			}
			return letters, err
		}
		return show(ctx, a, a.letterKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: kind=call, priority=high, cause=TEXT*; != negates")
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

// deadLetter is what the first argument names: a session, or a dead call, by its id with call/ before it, or alone where no session
// is called so.
func (a *app) deadLetter(ctx context.Context, args []string) (session, call string, err error) {
	if len(args) == 0 {
		return "", "", nil
	}
	if call, ok := strings.CutPrefix(args[0], callPrefix); ok {
		if len(args) > 1 {
			return "", "", fault.New(fault.Invalid, "a call has no sequence; give only %s", args[0])
		}
		return "", call, nil
	}
	session, err = a.optionalSession(ctx, args)
	if !fault.Is(err, fault.NotFound) {
		return session, "", err
	}
	if len(args) == 1 {
		r, err := a.client.Queues.GetCall(ctx, &apiv1.GetCallRequest{Namespace: a.namespace(), Id: args[0]})
		switch {
		case err == nil:
			return "", r.GetCall().GetId(), nil
		case !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unimplemented):
			return "", "", err
		}
	}
	return args[0], "", nil // of a session that is gone
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
	c := a.command("get SESSION SEQUENCE | CALL", "Show one dead letter with its text, or one dead call", between(1, 2), brief, func(ctx context.Context, args []string) error {
		if len(args) == 1 {
			return a.dlqGetCall(ctx, strings.TrimPrefix(args[0], callPrefix))
		}
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
		return printOne(a, a.letterKind(), proto.Message(m), []field{
			{label: "Session", value: m.GetSessionId()}, {label: "Sequence", value: number(m.GetSequence())}, {label: "Priority", value: priorityText(m.GetPriority())},
			{label: "Cause", value: m.GetCause()}, {label: "Attempts", value: number(m.GetAttempts())}, {label: "Created", value: a.at(m.GetCreateTime())},
			{label: "Deadline", value: a.at(m.GetDeadline())}, {label: "Died", value: a.at(m.GetEndTime())}, {label: "Text", value: string(m.GetText())},
		})
	})
	c.ValidArgsFunction = a.completeSessions
	return c
}

// dlqGetCall shows a dead call.
func (a *app) dlqGetCall(ctx context.Context, id string) error {
	cl, err := a.connect(ctx)
	if err != nil {
		return err
	}
	r, err := cl.Queues.GetDeadLetter(ctx, &apiv1.GetDeadLetterRequest{Namespace: a.namespace(), CallId: id})
	if err != nil {
		return err
	}
	return printOne(a, a.letterKind(), proto.Message(r.GetCall()), a.callFields(r.GetCall()))
}

func (a *app) dlqRetryCommand() *cobra.Command {
	var key string
	c := a.command("retry SESSION [SEQUENCE] | CALL", "Put one dead letter, or all of a session, back into the mailbox, or have a dead call wait again", between(1, 2), brief, func(ctx context.Context, args []string) error {
		n, err := sequence(args)
		if err != nil {
			return err
		}
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		id, call, err := a.deadLetter(ctx, args)
		if err != nil {
			return err
		}
		r, err := cl.Queues.RetryDeadLetters(ctx, &apiv1.RetryDeadLettersRequest{Namespace: a.namespace(), SessionId: id, Sequence: n, CallId: call, IdempotencyKey: key})
		if err != nil {
			return err
		}
		if call != "" {
			return a.printDone(r, callPrefix+call, callPrefix+call+": waits again")
		}
		return a.printDone(r, id, fmt.Sprintf("session/%s: %d dead letter(s) back in the mailbox", id, r.GetRetried()))
	})
	keyFlag(c, &key, "has no further effect")
	c.ValidArgsFunction = a.completeSessions
	return c
}

func (a *app) dlqPurgeCommand() *cobra.Command {
	var key string
	var all bool
	c := a.command("purge [SESSION [SEQUENCE] | CALL]", "Delete one dead letter, all of a session, a dead call, or with --all those of the namespace", between(0, 2), brief, func(ctx context.Context, args []string) error {
		if all == (len(args) > 0) {
			return fault.New(fault.Invalid, "name a session or a call, or give --all for the whole namespace; one of the two")
		}
		n, err := sequence(args)
		if err != nil {
			return err
		}
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		id, call, err := a.deadLetter(ctx, args)
		if err != nil {
			return err
		}
		r, err := cl.Queues.PurgeDeadLetters(ctx, &apiv1.PurgeDeadLettersRequest{Namespace: a.namespace(), SessionId: id, Sequence: n, CallId: call, IdempotencyKey: key})
		if err != nil {
			return err
		}
		if call != "" {
			id = callPrefix + call
		}
		return a.printDone(r, first(id, a.namespace()), fmt.Sprintf("%d dead letter(s) deleted", r.GetPurged()))
	})
	keyFlag(c, &key, "has no further effect")
	c.Flags().BoolVar(&all, "all", false, "all dead letters of the namespace, messages and calls")
	c.ValidArgsFunction = a.completeSessions
	return c
}
