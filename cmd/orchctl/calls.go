// queue calls, get and cancel: calls of tools that clients were promised an answer to.

package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) callKind() kind[*apiv1.Call] {
	return kind[*apiv1.Call]{
		noun:    "calls",
		columns: []string{"CALL", "TOOL", "PRIORITY", "STATUS", "SERVER", "ATTEMPTS", "AGE", "+NAMESPACE", "+CALLER", "+SESSION", "+REQUEST", "+ERROR"},
		row: func(c *apiv1.Call) []string {
			return []string{
				c.GetId(), c.GetTool(), priorityText(c.GetPriority()), callStatus(c), c.GetServer(), number(c.GetAttempts()), a.age(c.GetCreateTime()),
				c.GetNamespace(), c.GetCaller(), c.GetSession(), c.GetRequestId(), clip(c.GetLastError()),
			}
		},
		name: (*apiv1.Call).GetId,
	}
}

// callStatus says what an ended call ended with.
func callStatus(c *apiv1.Call) string {
	s := c.GetStatus().String()
	switch o := c.GetOutcome(); {
	case c.GetCancelling():
		return s + " (cancelling)"
	case c.GetStatus() == apiv1.Call_DEAD:
		return s
	case o.GetCancelled():
		return s + " (cancelled)"
	case o.GetCode() != "":
		return s + " (" + o.GetCode() + ")"
	default:
		return s
	}
}

// callFilter reads a filter that the server applies.
func callFilter(filter string) (*apiv1.ListCallsRequest, error) {
	req := &apiv1.ListCallsRequest{}
	t, err := parseTerms(filter, "status", "server", "tool", "session")
	if err != nil {
		return nil, err
	}
	for _, c := range t {
		if c.not {
			return nil, fault.New(fault.Invalid, "--filter: %s!= is not possible; give what is wanted", c.key)
		}
		switch c.key {
		case "status":
			n, ok := apiv1.Call_Status_value[strings.ToUpper(c.value)]
			if !ok || n == 0 {
				return nil, fault.New(fault.Invalid, "--filter: %q is not a status; use QUEUED, RUNNING, ENDED or DEAD", c.value)
			}
			req.Status = apiv1.Call_Status(n)
		case "server":
			req.Server = c.value
		case "tool":
			req.Tool = c.value
		case "session":
			req.Session = c.value
		}
	}
	return req, nil
}

func (a *app) queueCallsCommand() *cobra.Command {
	var l listFlags
	var all bool
	c := a.command("calls", "List calls of tools, in the order in which they were taken", exactly(0), brief, func(ctx context.Context, _ []string) error {
		req, err := callFilter(l.filter)
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		req.Namespace = a.scope(all)
		answer := &apiv1.ListCallsResponse{}
		fetch := func() (_ []*apiv1.Call, err error) {
			answer.Calls, answer.NextPageToken, err = pages(l.limit, func(size int32, token string) ([]*apiv1.Call, string, error) {
				req.PageSize, req.PageToken = size, token
				r, err := cl.Queues.ListCalls(ctx, req)
				return r.GetCalls(), r.GetNextPageToken(), err
			})
			return answer.Calls, err
		}
		return show(ctx, a, a.callKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: status=RUNNING, server=ID, tool=NAME, session=ID (of the client)")
	a.allFlag(c, &all)
	return c
}

// callFields describe one call.
func (a *app) callFields(c *apiv1.Call) []field {
	o := c.GetOutcome()
	return []field{
		{label: "Call", value: c.GetId()}, {label: "Tool", value: c.GetTool()}, {label: "Status", value: callStatus(c)},
		{label: "Priority", value: priorityText(c.GetPriority())}, {label: "Namespace", value: c.GetNamespace()}, {label: "Caller", value: c.GetCaller()},
		{label: "Client", value: c.GetOwner() + ", session " + c.GetSession()}, {label: "Request", value: c.GetRequestId()},
		{label: "Server", value: c.GetServer()}, {label: "Attempts", value: number(c.GetAttempts())}, {label: "Order key", value: c.GetOrderKey()},
		{label: "Repeatable", value: yesNo(c.GetRepeatable())}, {label: "Created", value: a.at(c.GetCreateTime())}, {label: "Begun", value: a.at(c.GetBeginTime())},
		{label: "Ended", value: a.at(c.GetEndTime())}, {label: "Deadline", value: a.at(c.GetDeadline())}, {label: "Not before", value: a.at(c.GetNotBefore())},
		{label: "Last error", value: c.GetLastError()}, {label: "Arguments", value: payload(c.GetArguments(), c.GetArgumentsBytes())},
		{label: "Outputs", value: payload(o.GetOutputs(), o.GetOutputsBytes())}, {label: "Delivered", value: delivered(c)},
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// delivered says whether the client was given the outcome, once there is one.
func delivered(c *apiv1.Call) string {
	if c.GetOutcome() == nil {
		return ""
	}
	return yesNo(c.GetDelivered())
}

// payload is bytes where they are at hand, and their size where they are not.
func payload(b []byte, size uint64) string {
	if len(b) == 0 && size > 0 {
		return bytesText(int64(size)) + ", not shown"
	}
	return string(b)
}

func (a *app) queueGetCommand() *cobra.Command {
	return a.command("get CALL", "Show one call with its arguments or outputs", exactly(1), brief, func(ctx context.Context, args []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		r, err := cl.Queues.GetCall(ctx, &apiv1.GetCallRequest{Namespace: a.namespace(), Id: args[0]})
		if err != nil {
			return err
		}
		return printOne(a, a.callKind(), r.GetCall(), a.callFields(r.GetCall()))
	})
}

func (a *app) queueCancelCommand() *cobra.Command {
	var key string
	c := a.command("cancel CALL", "End a call that waits, and have one that runs ended", exactly(1), brief, func(ctx context.Context, args []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		r, err := cl.Queues.CancelCall(ctx, &apiv1.CancelCallRequest{Namespace: a.namespace(), Id: args[0], IdempotencyKey: key})
		if err != nil {
			return err
		}
		return a.printDone(r, r.GetCall().GetId(), "call/"+r.GetCall().GetId()+": "+callStatus(r.GetCall()))
	})
	keyFlag(c, &key, "has no further effect")
	return c
}
