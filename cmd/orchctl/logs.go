// sessions logs: the numbered output of a session.

package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) logsCommand() *cobra.Command {
	var following, timestamps bool
	var since string
	run := func(ctx context.Context, args []string) error {
		req := &apiv1.ReadLogsRequest{Follow: following}
		if err := parseSince(since, req); err != nil {
			return err
		}
		s, err := a.findSession(ctx, args[0])
		if err != nil {
			return err
		}
		req.Namespace, req.SessionId = s.GetNamespace(), s.GetId()
		w := logWriter{a: a, timestamps: timestamps}
		return a.client.Logs(ctx, req, w.line)
	}
	c := a.command("logs SESSION", "Print a session's output; its errors go to standard error", exactly(1), streams, run)
	once, forever := c.RunE, a.runner(follow, run)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if following {
			return forever(cmd, args)
		}
		return once(cmd, args)
	}
	c.Flags().BoolVarP(&following, "follow", "f", false, "go on with new lines until the session has ended")
	c.Flags().StringVar(&since, "since", "", "begin at a line number, or that long ago: 120, 10m")
	c.Flags().BoolVar(&timestamps, "timestamps", false, "begin each line with its time and number")
	c.ValidArgsFunction = a.completeSessions
	return c
}

// parseSince reads a line number or a span.
func parseSince(s string, req *apiv1.ReadLogsRequest) error {
	if s == "" {
		return nil
	}
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		req.FromLine = n
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return fault.New(fault.Invalid, "--since: %q is neither a line number nor a span; write 120 or 10m", s)
	}
	req.Since = durationpb.New(d)
	return nil
}

// logWriter prints lines where they belong.
type logWriter struct {
	a          *app
	timestamps bool
	open       bool // the last line was partial: the next goes on with it
}

func (w *logWriter) line(l *apiv1.LogLine) error {
	if o := w.a.flags.output; o == "json" || o == "yaml" {
		return w.a.printStreamed(l)
	}
	if l.GetStream() == apiv1.LogLine_NOTICE {
		w.a.note("orchctl: " + string(l.GetText()))
		return nil
	}
	var b bytes.Buffer
	if w.timestamps && !w.open {
		fmt.Fprintf(&b, "%s %d ", l.GetTime().AsTime().Format("2006-01-02T15:04:05.000Z07:00"), l.GetNumber())
	}
	b.Write(l.GetText())
	if w.open = l.GetPartial(); !w.open {
		b.WriteByte('\n')
	}
	to := w.a.out()
	if l.GetStream() == apiv1.LogLine_STDERR {
		to = w.a.stderr
	}
	_, err := to.Write(b.Bytes())
	return err
}
