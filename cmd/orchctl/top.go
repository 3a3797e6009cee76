// top: nodes and sessions at a glance, again and again.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
)

const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the other screen, without a cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	homeScreen  = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
	// topRows is how many nodes and sessions are asked for.
	topRows = 200
)

func (a *app) topCommand() *cobra.Command {
	return a.command("top", "Show nodes and sessions, refreshed every 2 seconds; q leaves. Prints once where there is no terminal", exactly(0), follow,
		func(ctx context.Context, _ []string) error {
			cl, err := a.connect(ctx)
			if err != nil {
				return err
			}
			if !isTerminal(a.stdout) || !isTerminal(a.stdin) {
				v, err := a.look(ctx, cl)
				if err != nil {
					return err
				}
				_, err = io.WriteString(a.out(), strings.Join(v.lines(a), "\n")+"\n")
				return err
			}
			return a.live(ctx, cl)
		})
}

// view is what top shows.
type view struct {
	status   *apiv1.GetStatusResponse
	nodes    []*apiv1.Node
	sessions []*apiv1.Session
	total    int64
}

func (a *app) look(ctx context.Context, cl *client.Client) (v view, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.flags.timeout)
	defer cancel()
	if v.status, err = cl.Cluster.GetStatus(ctx, &apiv1.GetStatusRequest{}); err != nil {
		return v, err
	}
	n, err := cl.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{PageSize: topRows})
	if err != nil {
		return v, err
	}
	s, err := cl.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{Namespace: a.flags.namespace, PageSize: topRows})
	v.nodes, v.sessions, v.total = n.GetNodes(), s.GetSessions(), s.GetTotal()
	return v, err
}

func (v view) lines(a *app) []string {
	s := v.status
	out := []string{
		fmt.Sprintf("leader %s   term %d   %d servers, %d may fail   applied %d", first(s.GetLeader(), "none"), s.GetTerm(), len(s.GetMembers()), s.GetFailureTolerance(), s.GetAppliedIndex()),
		fmt.Sprintf("nodes    %s", first(pairsText(s.GetNodes()), "none")),
		fmt.Sprintf("sessions %s", first(pairsText(s.GetSessions()), "none")),
	}
	nodes := newTable(a, a.nodeKind().columns)
	for _, n := range v.nodes {
		nodes.add(a.nodeKind().row(n))
	}
	columns := slices.Clone(a.sessionKind().columns)
	columns[slices.Index(columns, "+LAG")] = "LAG" // what a loss would cost is worth a column here
	sessions := newTable(a, columns)
	for _, s := range v.sessions {
		sessions.add(a.sessionKind().row(s))
	}
	for _, t := range []*rows{nodes, sessions} {
		if len(t.pending) > 0 {
			out = append(append(out, ""), strings.Split(strings.TrimSuffix(t.render(), "\n"), "\n")...)
		}
	}
	if more := v.total - int64(len(v.sessions)); more > 0 {
		out = append(out, fmt.Sprintf("and %d more sessions", more))
	}
	return out
}

// live shows the view until q, Ctrl-C or the end of ctx.
func (a *app) live(ctx context.Context, cl *client.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := a.openTerminal(ctx, nil, true)
	if err != nil {
		return err
	}
	defer t.close()
	if _, err := io.WriteString(a.stdout, enterScreen); err != nil {
		return err
	}
	defer io.WriteString(a.stdout, leaveScreen) //nolint:errcheck // the terminal is gone when this fails
	t.start(a.stdin)
	tick := time.NewTicker(a.refresh)
	defer tick.Stop()
	for {
		v, err := a.look(ctx, cl)
		lines := []string{"orchctl: " + clean(fmt.Sprint(err)) + "; trying again"}
		if err == nil {
			lines = v.lines(a)
		} else if errors.Is(err, context.Canceled) {
			return nil
		}
		if err := a.draw(append(lines, "", a.now().Format(time.TimeOnly)+"   q leaves")); err != nil {
			return err
		}
		if leave := t.until(tick.C); leave {
			return nil
		}
	}
}

// until waits for the next refresh; it reports whether the user wants to leave.
func (t *terminal) until(tick <-chan time.Time) (leave bool) {
	for {
		select {
		case b, ok := <-t.input:
			if !ok || strings.ContainsAny(string(b), "qQ\x03\x04") {
				return true
			}
		case <-t.resize:
			return false
		case <-tick:
			return false
		case <-t.ctx.Done():
			return true
		}
	}
}

// draw writes the lines over what was there, as many as fit.
func (a *app) draw(lines []string) error {
	width, height, err := term.GetSize(int(a.stdout.(*os.File).Fd()))
	if err != nil || width < 1 || height < 2 {
		width, height = 80, 24
	}
	if len(lines) > height {
		lines = append(lines[:height-1:height-1], lines[len(lines)-1])
	}
	var b strings.Builder
	b.WriteString(homeScreen)
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(fit(l, width) + clearLine)
	}
	b.WriteString(clearBelow)
	_, err = io.WriteString(a.stdout, b.String())
	return err
}
