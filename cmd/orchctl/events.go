// events: what happened in the cluster.

package main

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// sessionIDLength is how long the cluster makes the ids of sessions.
const sessionIDLength = 20

// eventsMax is how many events the server gives at most.
const eventsMax = 10000

func (a *app) eventKind() kind[*apiv1.Event] {
	return kind[*apiv1.Event]{
		noun:    "events",
		columns: []string{"TIME", "TYPE", "NAMESPACE", "SESSION", "NODE", "MESSAGE", "+EPOCH", "+INDEX"},
		row: func(e *apiv1.Event) []string {
			return []string{
				e.GetTime().AsTime().Format(time.RFC3339), e.GetType(), e.GetNamespace(), e.GetSessionId(), e.GetNode(), e.GetMessage(), some(e.GetEpoch()), number(e.GetIndex()),
			}
		},
		name:    func(e *apiv1.Event) string { return number(e.GetIndex()) },
		watched: map[string]int{"TYPE": len("session.terminating"), "SESSION": sessionIDLength, "NODE": len("node-10")},
	}
}

func (a *app) eventsCommand() *cobra.Command {
	l := listFlags{}
	var after uint64
	c := a.command("events", "Show what happened last, oldest first; of all namespaces unless -n names one", exactly(0), brief, func(ctx context.Context, _ []string) error {
		cl, err := a.connect(ctx)
		if err := errors.Join(err, l.check()); err != nil {
			return err
		}
		k := a.eventKind()
		if l.watch {
			t := watchTable(a, k)
			return cl.WatchEvents(ctx, &apiv1.WatchEventsRequest{Namespace: a.flags.namespace, Filter: l.filter, AfterIndex: after}, func(e *apiv1.Event) error {
				if err := printChange(a, k, t, e, k.row(e)); err != nil {
					return err
				}
				return t.flush()
			})
		}
		limit := int32(min(l.limit, math.MaxInt32))
		if limit == 0 {
			limit = eventsMax
		}
		r, err := cl.Events.ListEvents(ctx, &apiv1.ListEventsRequest{Namespace: a.flags.namespace, Filter: l.filter, Limit: limit})
		if err != nil {
			return err
		}
		r.Events = keep(r.GetEvents(), 0, func(e *apiv1.Event) bool { return e.GetIndex() > after })
		return printList(a, k, r.GetEvents(), r)
	})
	l.add(c, "terms joined by commas: type=session.*, session=ID, node=NAME")
	c.Flags().Lookup("limit").DefValue = "100"
	l.limit = 100
	c.Flags().Uint64Var(&after, "after", 0, "only events after this index")
	return c
}
