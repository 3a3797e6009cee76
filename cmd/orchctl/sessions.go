// sessions: list, get, watch, history, terminate. The commands that speak with a session have files of their own.

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
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func (a *app) sessionsCommand() *cobra.Command {
	g := a.group("sessions", "Spawn, see, talk to, move and end sessions",
		a.spawnCommand(), a.sessionsListCommand(), a.sessionsGetCommand(), a.sessionsWatchCommand(), a.terminateCommand(),
		a.sendCommand(), a.logsCommand(), a.attachCommand(), a.execCommand(), a.historyCommand(), a.migrateCommand(),
		a.checkpointCommand(), a.checkpointsCommand(), a.pauseCommand(), a.resumeCommand(), a.forkCommand(), a.rewindCommand(), a.restoreSessionCommand(),
		a.exportCommand(), a.importCommand(),
	)
	g.Aliases = []string{"session", "s"}
	return g
}

func (a *app) sessionKind() kind[*apiv1.Session] {
	return kind[*apiv1.Session]{
		noun:    "sessions",
		columns: []string{"ID", "NAME", "PHASE", "NODE", "EPOCH", "RESTARTS", "QUEUED", "ACKED", "DEAD", "AGE", "+TYPE", "+PRIORITY", "+NAMESPACE", "+LABELS", "+CHECKPOINT", "+LAG", "+REASON"},
		row: func(s *apiv1.Session) []string {
			m := s.GetMailbox()
			return []string{
				s.GetId(), s.GetName(), s.GetPhase().String(), s.GetNode(), number(s.GetEpoch()), number(s.GetRestarts()), number(m.GetQueued() + m.GetDelivered()),
				number(m.GetAcked()), number(m.GetDead()), a.age(s.GetCreateTime()), s.GetType(), priorityText(s.GetPriority()), s.GetNamespace(),
				pairsText(s.GetLabels()), checkpointCell(s), lagText(s.GetLag()), s.GetReason(),
			}
		},
		name:    (*apiv1.Session).GetId,
		watched: map[string]int{"ID": sessionIDLength, "PHASE": len("TERMINATING"), "NODE": len("node-10")},
	}
}

// checkpointCell is the number of a session's last checkpoint, and whether the attempt at the next one failed.
func checkpointCell(s *apiv1.Session) string {
	out := some(s.GetCheckpoint().GetSequence())
	if s.GetCheckpointError() != "" {
		out = strings.TrimSpace(out + " failing")
	}
	return out
}

func priorityText(p apiv1.Priority_Level) string {
	if p == 0 {
		return ""
	}
	return session.Priority(p).String()
}

func (a *app) sessionsListCommand() *cobra.Command {
	var l listFlags
	var all bool
	c := a.command("list", "List sessions", exactly(0), brief, func(ctx context.Context, _ []string) error {
		cl, err := a.connect(ctx)
		if err := errors.Join(err, l.check()); err != nil {
			return err
		}
		namespace := a.namespace()
		if all {
			namespace = ""
		}
		if l.watch {
			return a.watchSessions(ctx, cl, &apiv1.WatchSessionsRequest{Namespace: namespace, Filter: l.filter})
		}
		answer := &apiv1.ListSessionsResponse{}
		answer.Sessions, answer.NextPageToken, err = pages(l.limit, func(size int32, token string) ([]*apiv1.Session, string, error) {
			r, err := cl.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{Namespace: namespace, Filter: l.filter, PageSize: size, PageToken: token})
			answer.Total = r.GetTotal()
			return r.GetSessions(), r.GetNextPageToken(), err
		})
		if err != nil {
			return err
		}
		if err := printList(a, a.sessionKind(), answer.Sessions, answer); err != nil {
			return err
		}
		a.cutNote(len(answer.Sessions), answer.NextPageToken, answer.Total)
		return nil
	})
	c.Aliases = []string{"ls"}
	l.add(c, "terms joined by commas: phase=RUNNING, node=NAME, type=T, name=PREFIX*, priority=P, checkpoint=made|none|failing, label.KEY=VALUE; != negates")
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "the sessions of every namespace that the token may see")
	return c
}

func (a *app) sessionsGetCommand() *cobra.Command {
	c := a.command("get SESSION", "Show one session: where it is, how it is, why", exactly(1), brief, func(ctx context.Context, args []string) error {
		s, err := a.findSession(ctx, args[0])
		if err != nil {
			return err
		}
		return printOne(a, a.sessionKind(), s, a.sessionFields(s))
	})
	c.ValidArgsFunction = a.completeSessions
	return c
}

// findSession returns the session of an id, a unique prefix of one, or a name.
func (a *app) findSession(ctx context.Context, ref string) (*apiv1.Session, error) {
	cl, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	r, err := cl.Sessions.GetSession(ctx, &apiv1.GetSessionRequest{Namespace: a.namespace(), Id: ref})
	return r.GetSession(), err
}

func (a *app) sessionFields(s *apiv1.Session) []field {
	spec, m := s.GetSpec(), s.GetMailbox()
	fields := []field{
		{label: "ID", value: s.GetId()}, {label: "Name", value: s.GetName()}, {label: "Namespace", value: s.GetNamespace()}, {label: "Type", value: s.GetType()},
		{label: "Phase", value: s.GetPhase().String()}, {label: "Reason", value: s.GetReason()}, {label: "Exit", value: exitText(s.GetExit())},
		{label: "Node", value: s.GetNode()}, {label: "Placement", value: s.GetPlacement()}, {label: "Epoch", value: number(s.GetEpoch())}, {label: "PID", value: some(s.GetPid())},
		{label: "Priority", value: priorityText(s.GetPriority())}, {label: "Labels", value: pairsText(s.GetLabels())},
		{label: "Created", value: a.at(s.GetCreateTime())}, {label: "Started", value: a.at(s.GetStartTime())}, {label: "Ended", value: a.at(s.GetEndTime())},
		{label: "Restarts", value: restartsText(s)},
		{label: "Mailbox", value: fmt.Sprintf("%d queued, %d delivered, %d acked, %d dead", m.GetQueued(), m.GetDelivered(), m.GetAcked(), m.GetDead())},
		{label: "Output", value: fmt.Sprintf("%d lines", s.GetOutputLine())},
		{label: "Checkpoint", value: a.headText(s.GetCheckpoint())}, {label: "Keeps", value: keepsText(s)},
		{label: "Saving fails", value: s.GetCheckpointError()},
		{label: "Lag", value: first(lagText(s.GetLag()), "none")}, {label: "Migration", value: a.migrationText(s.GetMigration())},
		{label: "Command", value: strings.Join(spec.GetCommand(), " ")}, {label: "Protocol", value: spec.GetProtocol()},
	}
	wide := []field{
		{label: "Environment", value: pairsText(spec.GetEnv())}, {label: "Secrets", value: strings.Join(spec.GetSecrets(), ",")},
		{label: "Requires", value: strings.Join(spec.GetRequire(), ",")}, {label: "Node selector", value: pairsText(spec.GetNodeSelector())},
		{label: "CPU", value: amount(spec.GetCpuMilli(), fmt.Sprintf("%dm", spec.GetCpuMilli()))},
		{label: "Memory", value: amount(spec.GetMemoryBytes(), bytesText(spec.GetMemoryBytes()))}, {label: "Memory profile", value: spec.GetMemoryProfile()},
		{label: "TTL", value: spanText(spec.GetTtl())}, {label: "Grace", value: spanText(spec.GetGrace())}, {label: "Turn idle", value: spanText(spec.GetTurnIdle())},
		{label: "Checkpoints", value: checkpointsText(spec)}, {label: "Manifest", value: s.GetCheckpoint().GetManifest()},
		{label: "Strategy", value: spec.GetStrategy()}, {label: "Modify index", value: number(s.GetModifyIndex())},
	}
	for _, f := range wide {
		f.wide = true
		fields = append(fields, f)
	}
	return fields
}

// checkpointsText is when a session is checkpointed by itself, how many of its checkpoints are kept, and for how long.
func checkpointsText(spec *apiv1.SessionSpec) string {
	out := "on demand"
	if every := spec.GetCheckpointEvery(); every != "" {
		out = "every " + every
	}
	keep := spec.GetKeepCheckpoints()
	if keep == 0 {
		keep = session.CheckpointsDefault
	}
	out += fmt.Sprintf(", %d kept", keep)
	if d := spec.GetKeepCheckpointsFor(); d != nil {
		out += " for " + d.AsDuration().String()
	}
	return out
}

// restartsText is how often it was started again, and what decides that.
func restartsText(s *apiv1.Session) string {
	if policy := s.GetSpec().GetRestart(); policy != string(session.RestartNever) {
		return fmt.Sprintf("%d (%s, at most %d in a row)", s.GetRestarts(), policy, s.GetSpec().GetMaxRestarts())
	}
	return fmt.Sprintf("%d (never)", s.GetRestarts())
}

// amount is the text, empty when there is none of it.
func amount(n int64, text string) string {
	if n == 0 {
		return ""
	}
	return text
}

func spanText(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return d.AsDuration().String()
}

// exitText is an exit in a few words: failed, exit code 3: message.
func exitText(e *apiv1.Session_Exit) string {
	if e == nil {
		return ""
	}
	out := e.GetCause()
	switch {
	case e.GetSignal() != "":
		out += ", " + e.GetSignal()
	case e.GetCode() != 0:
		out += fmt.Sprintf(", exit code %d", e.GetCode())
	}
	if m := e.GetMessage(); m != "" && !strings.HasSuffix(out, m) {
		out += ": " + m
	}
	return out
}

func (a *app) sessionsWatchCommand() *cobra.Command {
	var filter string
	c := a.command("watch [SESSION]", "Print sessions as they change, until interrupted", between(0, 1), follow, func(ctx context.Context, args []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		req := &apiv1.WatchSessionsRequest{Namespace: a.namespace(), Filter: filter}
		if len(args) == 1 {
			req.Id = args[0]
		}
		return a.watchSessions(ctx, cl, req)
	})
	c.Flags().StringVar(&filter, "filter", "", "terms joined by commas, as in 'sessions list'")
	c.ValidArgsFunction = a.completeSessions
	return c
}

// watchSessions prints what is there once it is all known, and then each change at once.
func (a *app) watchSessions(ctx context.Context, cl *client.Client, req *apiv1.WatchSessionsRequest) error {
	k := a.sessionKind()
	t := watchTable(a, k)
	synced := false
	return cl.WatchSessions(ctx, req, func(m *apiv1.WatchSessionsResponse) error {
		if o := a.flags.output; o == "json" || o == "yaml" {
			return a.printStreamed(m)
		}
		s := m.GetSession()
		switch {
		case m.GetSynced():
			synced = true
			return t.flush()
		case m.GetRemoved():
			a.note("session/" + s.GetId() + " is gone")
			return nil
		}
		if err := printChange(a, k, t, s, k.row(s)); err != nil || !synced {
			return err
		}
		return t.flush()
	})
}

func (a *app) historyCommand() *cobra.Command {
	c := a.command("history SESSION", "Show the last changes of a session's phase, with when, where and why", exactly(1), brief, func(ctx context.Context, args []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		r, err := cl.Sessions.GetSessionHistory(ctx, &apiv1.GetSessionHistoryRequest{Namespace: a.namespace(), Id: args[0]})
		if err != nil {
			return err
		}
		k := kind[*apiv1.GetSessionHistoryResponse_Entry]{
			noun: "changes", columns: []string{"TIME", "PHASE", "EPOCH", "NODE", "REASON", "+INDEX"},
			row: func(e *apiv1.GetSessionHistoryResponse_Entry) []string {
				return []string{e.GetTime().AsTime().Format(time.RFC3339Nano), e.GetPhase().String(), number(e.GetEpoch()), e.GetNode(), e.GetReason(), number(e.GetIndex())}
			},
			name: func(e *apiv1.GetSessionHistoryResponse_Entry) string { return e.GetPhase().String() },
		}
		return printList(a, k, r.GetEntries(), r)
	})
	c.ValidArgsFunction = a.completeSessions
	return c
}

func (a *app) terminateCommand() *cobra.Command {
	var grace time.Duration
	var reason, key string
	var wait bool
	c := a.command("terminate SESSION...", "End sessions: SIGTERM, grace, then the whole process tree is killed", atLeast(1), brief, nil)
	c.Flags().DurationVar(&grace, "grace", 0, "time between SIGTERM and SIGKILL, instead of the session's own")
	c.Flags().StringVar(&reason, "reason", "", "why, for the history")
	keyFlag(c, &key, "is the same termination; for one session")
	c.Flags().BoolVar(&wait, "wait", false, "wait until nothing of them runs any more")
	c.ValidArgsFunction = a.completeSessions
	run := func(ctx context.Context, args []string) (err error) {
		if key != "" && len(args) > 1 {
			return fault.New(fault.Invalid, "--idempotency-key is for one session, not %d; leave it out, or name one", len(args))
		}
		for _, ref := range args {
			err = a.firstError(err, a.terminate(ctx, ref, terminateOptions{grace, c.Flags().Changed("grace"), reason, key, wait}), ref)
		}
		return err
	}
	c.RunE = a.runner(brief, run)
	return c
}

type terminateOptions struct {
	grace       time.Duration
	graced      bool
	reason, key string
	wait        bool
}

func (a *app) terminate(ctx context.Context, ref string, o terminateOptions) error {
	// The whole id first: a prefix or a name may mean another session by the time of a repetition.
	s, err := a.findSession(ctx, ref)
	if err != nil {
		return err
	}
	req := &apiv1.TerminateSessionRequest{Namespace: s.GetNamespace(), Id: s.GetId(), IdempotencyKey: o.key, Reason: o.reason}
	if o.graced {
		req.Grace = durationpb.New(o.grace)
	}
	r, err := a.client.Sessions.TerminateSession(ctx, req)
	if err != nil {
		return err
	}
	s = r.GetSession()
	if o.wait {
		if s, err = a.await(ctx, s, func(p session.Phase) bool { return p.Ended() }); err != nil {
			return err
		}
	}
	sentence := "session/" + s.GetId() + " " + strings.ToLower(s.GetPhase().String())
	return a.printDone(s, s.GetId(), sentence)
}

// await watches a session until its phase is one that was waited for.
func (a *app) await(ctx context.Context, s *apiv1.Session, ready func(session.Phase) bool) (*apiv1.Session, error) {
	return a.awaitSession(ctx, s, func(s *apiv1.Session) bool { return ready(session.Phase(s.GetPhase())) })
}

// awaitSession watches a session until it is as ready wants it.
func (a *app) awaitSession(ctx context.Context, s *apiv1.Session, ready func(*apiv1.Session) bool) (*apiv1.Session, error) {
	if ready(s) {
		return s, nil
	}
	found := errors.New("found")
	err := a.client.WatchSessions(ctx, &apiv1.WatchSessionsRequest{Namespace: s.GetNamespace(), Id: s.GetId()}, func(m *apiv1.WatchSessionsResponse) error {
		switch {
		case m.GetRemoved():
			return fault.New(fault.NotFound, "session %s was removed", s.GetId())
		case m.GetSession() == nil:
			return nil
		}
		s = m.GetSession()
		if ready(s) {
			return found
		}
		text := "session/" + s.GetId() + " is " + s.GetPhase().String()
		if s.GetReason() != "" {
			text += ": " + s.GetReason()
		}
		a.busy.say(text)
		return nil
	})
	if errors.Is(err, found) {
		return s, nil
	}
	// The other side may see the deadline pass a moment earlier than this one.
	if err != nil && (ctx.Err() != nil || fault.Is(err, fault.Timeout)) {
		why := first(s.GetReason(), "no reason given")
		if errors.Is(ctx.Err(), context.Canceled) {
			return s, fault.New(fault.Aborted, "interrupted while session/%s was %s (%s); it goes on, see 'orchctl sessions get %s'", s.GetId(), s.GetPhase(), why, s.GetId())
		}
		return s, fault.New(fault.Timeout, "session/%s is still %s (%s); it goes on, see 'orchctl sessions get %s'", s.GetId(), s.GetPhase(), why, s.GetId())
	}
	return s, err
}
