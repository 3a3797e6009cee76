// nodes drain: a node gets rid of its sessions, with its plan first and what happens shown while it happens.

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// drainFlags are the flags as they were typed.
type drainFlags struct {
	dryRun, force, wait bool
	deadline            time.Duration
	key                 string
}

func (a *app) drainCommand() *cobra.Command {
	var f drainFlags
	c := a.command("drain NODE", "Move the sessions of a node elsewhere, and keep others away from it", exactly(1), streams, nil)
	c.Long = `Move the sessions of a node elsewhere, and keep others away from it.

The plan is printed first: what would become of each session, as things stand. Where some have no place elsewhere the drain is
refused, unless --force is given: then those are paused. The node is cordoned, and its sessions move, the most urgent first, a few at
a time; a move that fails is tried again with another target. When the deadline has passed, what is left stays, and works on; with
--force it is paused. The node stays cordoned until 'orchctl nodes uncordon', which also cancels a drain that is under way.

On a terminal the drain is waited for and shown. Ctrl-C then asks: let it go on in the background, or stop it.
The exit code is 0 when nothing is left, 4 when the drain was refused, and 1 when it ended otherwise.`
	c.Example = `  orchctl nodes drain node-3 --dry-run
  orchctl nodes drain node-3 --deadline 30m
  orchctl nodes drain node-3 --force --wait -o json`
	fl := c.Flags()
	fl.BoolVar(&f.dryRun, "dry-run", false, "only print the plan")
	fl.BoolVar(&f.force, "force", false, "pause what has no place elsewhere, and what is left at the deadline")
	fl.DurationVar(&f.deadline, "deadline", 0, "how long it may take (default 10m)")
	fl.BoolVar(&f.wait, "wait", false, "wait until it is over and print its figures (default on a terminal)")
	keyFlag(c, &f.key, "is the same drain")
	c.ValidArgsFunction = a.completeNodes
	c.RunE = a.runner(streams, func(ctx context.Context, args []string) error {
		if !fl.Changed("wait") {
			f.wait = isTerminal(a.stdout)
		}
		if fl.Changed("deadline") && f.deadline <= 0 {
			return fault.New(fault.Invalid, "--deadline: %s is no time; use something like 30m", f.deadline)
		}
		return a.drain(ctx, args[0], &f)
	})
	return c
}

func (a *app) drain(ctx context.Context, ref string, f *drainFlags) error {
	cl, err := a.connect(ctx)
	if err != nil {
		return err
	}
	req := &apiv1.DrainNodeRequest{Id: ref, Force: f.force, DryRun: true}
	if f.deadline > 0 {
		req.Deadline = durationpb.New(f.deadline)
	}
	plan, err := cl.Nodes.DrainNode(ctx, req)
	if err != nil {
		return err
	}
	if f.dryRun || a.flags.output == "table" || a.flags.output == "wide" {
		if err := a.printPlan(plan); err != nil || f.dryRun {
			return err
		}
	}
	req.Id, req.DryRun, req.IdempotencyKey = plan.GetNode().GetId(), false, f.key
	r, err := cl.Nodes.DrainNode(ctx, req)
	if err != nil {
		return err
	}
	n := r.GetNode()
	if !f.wait {
		return a.printDone(n, n.GetName(), fmt.Sprintf("node/%s is draining; see 'orchctl nodes get %s'", n.GetName(), n.GetName()))
	}
	n, err = a.followDrain(ctx, n)
	switch {
	case errors.Is(err, errBackground):
		a.note(fmt.Sprintf("node/%s goes on draining; see 'orchctl nodes get %s'", n.GetName(), n.GetName()))
		return nil
	case err != nil:
		return err
	}
	return a.printDrained(n)
}

// printPlan prints what would become of each session, and a line that sums it up.
func (a *app) printPlan(plan *apiv1.DrainNodeResponse) error {
	k := kind[*apiv1.DrainNodeResponse_Step]{
		noun:    "sessions on " + plan.GetNode().GetName(),
		columns: []string{"SESSION", "PRIORITY", "ACTION", "TARGET", "REASON", "+NAMESPACE", "+ID"},
		row: func(s *apiv1.DrainNodeResponse_Step) []string {
			return []string{
				first(s.GetName(), s.GetSessionId()), session.Priority(s.GetPriority()).String(), strings.ToLower(s.GetAction().String()), s.GetTarget(),
				s.GetReason(), s.GetNamespace(), s.GetSessionId(),
			}
		},
		name: (*apiv1.DrainNodeResponse_Step).GetSessionId,
	}
	if err := printList(a, k, plan.GetPlan(), plan); err != nil {
		return err
	}
	all := int(plan.GetMigrate() + plan.GetPause() + plan.GetStay())
	if all == 0 || a.flags.output != "table" && a.flags.output != "wide" {
		return nil
	}
	sum := fmt.Sprintf("%d to migrate, %d to pause, %d without a place", plan.GetMigrate(), plan.GetPause(), plan.GetStay())
	if more := all - len(plan.GetPlan()); more > 0 {
		sum = fmt.Sprintf("… and %d more: %s", more, sum)
	}
	_, err := fmt.Fprintln(a.out(), sum)
	return err
}

// drainText is a drain in a few words.
func (a *app) drainText(d *apiv1.Drain) string {
	if d == nil {
		return ""
	}
	out := fmt.Sprintf("%s, %d of %d moved, %d paused, %d left", strings.ToLower(d.GetState().String()), d.GetMoved(), d.GetTotal(), d.GetPaused(), d.GetRemaining())
	if d.GetState() == apiv1.Drain_DRAINING {
		out += ", until " + d.GetDeadline().AsTime().Format(time.RFC3339)
	}
	if d.GetForce() {
		out += ", with force"
	}
	if d.GetByAgent() {
		out += ", asked for by its agent, which was told to stop"
	}
	if d.GetReason() != "" {
		out += ": " + d.GetReason()
	}
	return out + " (" + a.age(d.GetStartTime()) + " ago)"
}

// printDrained prints the figures of a drain that is over; one that left something behind is an error.
func (a *app) printDrained(n *apiv1.Node) error {
	d := n.GetDrain()
	var err error
	switch a.flags.output {
	case "json", "yaml", "name":
		err = a.printDone(n, n.GetName(), "")
	default:
		if d.GetState() == apiv1.Drain_DRAINED {
			err = a.printFields(drainFigures(n))
		}
	}
	if err != nil || d.GetState() == apiv1.Drain_DRAINED {
		return err
	}
	left := fmt.Sprintf("%d of %s left", d.GetRemaining(), several(d.GetTotal(), "session"))
	what := fmt.Sprintf("the drain of %s was cancelled (%s)", n.GetName(), first(d.GetReason(), "uncordoned"))
	if d.GetState() == apiv1.Drain_INCOMPLETE {
		what, left = fmt.Sprintf("%s is not empty at its deadline", n.GetName()), left+": "+first(d.GetReason(), "they are on their way")
		left += fmt.Sprintf("; it stays cordoned; drain it again with --force to pause them, or see 'orchctl nodes get %s'", n.GetName())
	}
	return &exitError{exitcode.Failed, fmt.Errorf("%s; %s", what, left)}
}

// drainFigures are what a drain came to.
func drainFigures(n *apiv1.Node) []field {
	d := n.GetDrain()
	ended := int(d.GetTotal()) - int(d.GetMoved()+d.GetPaused()+d.GetRemaining())
	figures := []field{
		{label: "Node", value: n.GetName()}, {label: "Moved", value: fmt.Sprintf("%d of %d", d.GetMoved(), d.GetTotal())}, {label: "Paused", value: number(d.GetPaused())},
	}
	if ended > 0 {
		figures = append(figures, field{label: "Ended", value: number(ended)})
	}
	return append(figures,
		field{label: "Longest blackout", value: millisText(d.GetLongestBlackoutMs())},
		field{label: "Total", value: spanSince(d.GetStartTime().AsTime(), d.GetEndTime().AsTime())})
}

// drainQuestion is what an interrupt asks.
const drainQuestion = "go on in the [b]ackground, [s]top and uncordon the node, or keep [w]atching?"

// ongoingDrain is a drain that is shown.
type ongoingDrain struct {
	*drainView
	id    string    // of its node
	start time.Time // of the drain, which tells it from a later one
}

// followDrain shows a node's drain until it is over, and returns the node as it is then.
func (a *app) followDrain(ctx context.Context, n *apiv1.Node) (*apiv1.Node, error) {
	d := &ongoingDrain{drainView: a.newDrainView(n), id: n.GetId(), start: n.GetDrain().GetStartTime().AsTime()}
	err := lookOn(ctx, d, question{show: &d.live, text: drainQuestion, key: 's', ending: "stopping …"})
	return d.n, err
}

// drainLooksEvery is how often a node is looked at whose drain is shown.
const drainLooksEvery = 500 * time.Millisecond

// watch looks at the node again and again.
func (d *ongoingDrain) watch(ctx context.Context, seen func(*apiv1.Node) error) error {
	tick := time.NewTicker(min(d.a.refresh, drainLooksEvery))
	defer tick.Stop()
	for {
		r, err := d.a.client.Nodes.GetNode(ctx, &apiv1.GetNodeRequest{Id: d.id})
		switch {
		case err == nil:
			if err := seen(r.GetNode()); err != nil {
				return err
			}
		case !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Timeout): // leaders come and go
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *ongoingDrain) update(n *apiv1.Node) error {
	if now := n.GetDrain(); now == nil || !now.GetStartTime().AsTime().Equal(d.start) {
		return &exitError{exitcode.Failed, fmt.Errorf("the drain of %s ended, and its record is gone: the node was uncordoned, or is drained anew; see 'orchctl events'", d.n.GetName())}
	}
	d.n = n
	return nil
}

func (d *ongoingDrain) over() bool { return d.n.GetDrain().GetState() != apiv1.Drain_DRAINING }

// end uncordons the node, which cancels the drain.
func (d *ongoingDrain) end(ctx context.Context) error {
	_, err := d.a.client.Nodes.UncordonNode(ctx, &apiv1.UncordonNodeRequest{Id: d.id})
	return err
}

func (d *ongoingDrain) left() error {
	return &exitError{exitcode.Failed, fmt.Errorf("interrupted; the drain goes on, see 'orchctl nodes get %s', or end it with 'orchctl nodes uncordon %s'", d.n.GetName(), d.n.GetName())}
}

func (d *ongoingDrain) late() error {
	return fault.New(fault.Timeout, "%s still holds %s; the drain goes on, see 'orchctl nodes get %s'", d.n.GetName(), several(d.n.GetDrain().GetRemaining(), "session"), d.n.GetName())
}
