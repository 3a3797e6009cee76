// sessions send: one message into a session's mailbox.

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func (a *app) sendCommand() *cobra.Command {
	var priority, key string
	var wait bool
	var deadline time.Duration
	c := a.command("send SESSION MESSAGE|-", "Send a message; print its sequence, or with --wait what the session answers", exactly(2), brief,
		func(ctx context.Context, args []string) error {
			level, ok := session.ParsePriority(priority)
			if !ok {
				return fault.New(fault.Invalid, "--priority: %q is not a priority; use critical, high, normal or low", priority)
			}
			text, err := a.message(args[1])
			if err != nil {
				return err
			}
			s, err := a.findSession(ctx, args[0])
			if err != nil {
				return err
			}
			req := &apiv1.SendMessageRequest{
				Namespace: s.GetNamespace(), SessionId: s.GetId(), Text: text, Priority: apiv1.Priority_Level(level), IdempotencyKey: key, Wait: wait,
			}
			if deadline > 0 {
				req.Deadline = timestamppb.New(a.now().Add(deadline))
			}
			r, err := a.client.Sessions.SendMessage(ctx, req)
			if err != nil {
				return err
			}
			return a.printSent(r, wait)
		})
	c.Long = `Send a message to a session. It is durable when its sequence is printed.

"-" reads the message from standard input, to its end; one line break at the end is not part of it.`
	c.Flags().StringVar(&priority, "priority", session.Normal.String(), "critical, high, normal or low")
	keyFlag(c, &key, "is the same message")
	c.Flags().BoolVar(&wait, "wait", false, "wait until the turn has ended and print its result")
	c.Flags().DurationVar(&deadline, "deadline", 0, "the time after which it becomes a dead letter instead of being delivered")
	a.complete(c, "priority", "critical", "high", "normal", "low")
	c.ValidArgsFunction = a.completeSessions
	return c
}

// message is the text of the argument, or standard input.
func (a *app) message(arg string) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	b, err := io.ReadAll(io.LimitReader(a.stdin, session.MaxMessageBytes+2))
	if err != nil {
		return nil, fmt.Errorf("read the message from standard input: %w", err)
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	if len(b) > session.MaxMessageBytes {
		return nil, fault.New(fault.Invalid, "the message is more than %d bytes; write it to a file in the workspace and send its name", session.MaxMessageBytes)
	}
	return b, nil
}

func (a *app) printSent(r *apiv1.SendMessageResponse, wait bool) error {
	m := r.GetMessage()
	var err error
	switch a.flags.output {
	case "json", "yaml":
		err = a.printMessage(r)
	case "name":
		_, err = fmt.Fprintln(a.out(), r.GetSequence())
	default:
		switch {
		case !wait:
			_, err = fmt.Fprintln(a.out(), r.GetSequence())
		case m.GetStatus() != apiv1.Message_DEAD:
			text := string(m.GetResult())
			if !strings.HasSuffix(text, "\n") {
				text += "\n"
			}
			_, err = io.WriteString(a.out(), text)
		}
	}
	if err == nil && m.GetStatus() == apiv1.Message_DEAD {
		err = &exitError{exitcode.Failed, fmt.Errorf("message %d became a dead letter: %s; see 'orchctl dlq get %s %d'", r.GetSequence(), first(m.GetCause(), "no cause given"), r.GetSessionId(), r.GetSequence())}
	}
	return err
}
