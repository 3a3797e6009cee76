// sessions spawn: what to run and what it needs, from flags to a spec.

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// spawnFlags are the flags as they were typed.
type spawnFlags struct {
	typ, name, priority, cpu, memory, profile, protocol, restart, checkpointEvery, state, strategy, key, workspace string
	require, labels, selector, env, secrets                                                                        []string
	maxRestarts                                                                                                    uint32
	keep                                                                                                           uint32
	ttl, grace, turnIdle, keepFor, pauseAfter                                                                      time.Duration
	wait, attach                                                                                                   bool
}

func (a *app) spawnCommand() *cobra.Command {
	var f spawnFlags
	c := a.command("spawn [flags] -- COMMAND ARGS...", "Start a session", atLeast(0), brief, func(ctx context.Context, args []string) error {
		spec, err := a.spec(&f, args)
		if err != nil {
			return err
		}
		return a.spawn(ctx, &f, spec)
	})
	c.Example = `  orchctl sessions spawn --name ledger -- ./ledger --file book.txt
  orchctl sessions spawn --cpu 500m --memory 512Mi --require gpu --wait -- python3 train.py
  orchctl sessions spawn --workspace . --wait -- make test`
	fl := c.Flags()
	fl.StringVar(&f.typ, "type", session.TypeProcess, "process, claude-code, claude-flow or acp")
	fl.StringVar(&f.name, "name", "", "a name, unique among the namespace's sessions that have not ended")
	fl.StringVar(&f.priority, "priority", session.Normal.String(), "critical, high, normal or low: who is placed first where there is not enough")
	fl.StringSliceVar(&f.require, "require", nil, "capabilities that the node must have: gpu, high-memory, or any key that a node declares")
	fl.StringSliceVar(&f.labels, "label", nil, "a label as KEY=VALUE")
	fl.StringSliceVar(&f.selector, "node-selector", nil, "a label that the node must have, as KEY=VALUE")
	fl.StringVar(&f.cpu, "cpu", "", "CPU to reserve: thousandths of a core as 500 or 500m; cores with a point, as 0.5 or 2.0")
	fl.StringVar(&f.memory, "memory", "", "memory to reserve, and its limit where the node can: bytes, or 512Mi, 1GiB, 2G")
	fl.StringVar(&f.profile, "memory-profile", "", "the name of a memory profile")
	fl.StringVar(&f.workspace, "workspace", "", "what its workspace begins with: a directory, an archive (.tar, .tar.gz, .tar.zst, .zip; a file or a URL), or a git repository with #REF")
	fl.StringArrayVar(&f.env, "env", nil, "an environment variable as KEY=VALUE")
	fl.StringSliceVar(&f.secrets, "secret", nil, "the name of a secret that the node puts into the environment")
	fl.StringVar(&f.protocol, "protocol", session.ProtocolLines, "how it takes messages: lines, json, raw (a terminal) or none")
	fl.StringVar(&f.restart, "restart", string(session.RestartNever), "never, on-failure or always")
	fl.Uint32Var(&f.maxRestarts, "max-restarts", 0, "restarts in a row before it fails for good; after a run of 10 minutes they are counted anew (default 5 with a restart policy)")
	fl.DurationVar(&f.ttl, "ttl", 0, "the time after which it is ended; 0 for never")
	fl.DurationVar(&f.grace, "grace", session.DefaultGrace, "the time between SIGTERM and SIGKILL")
	fl.DurationVar(&f.turnIdle, "turn-idle", session.DefaultTurnIdle, "for --protocol raw: the quiet time that ends a turn")
	fl.StringVar(&f.checkpointEvery, "checkpoint-every", "", "when it is checkpointed by itself: \"turn\", or a time such as 5m (default: only when asked)")
	fl.Uint32Var(&f.keep, "keep-checkpoints", 0, fmt.Sprintf("how many checkpoints are kept, at most %d; the oldest go first (default %d)", session.CheckpointsMax, session.CheckpointsDefault))
	fl.DurationVar(&f.keepFor, "keep-checkpoints-for", 0, "how long checkpoints are kept, the newest one always; 0 for as long as there are not too many")
	fl.StringVar(&f.state, "state", "", "what a checkpoint keeps beside messages: files, or memory for the process's memory, too, where nodes can (default files)")
	fl.DurationVar(&f.pauseAfter, "pause-after", 0, "pause it when no turn was under way and no message waited for so long; a message wakes it; 0 for never")
	keyFlag(c, &f.key, "is the same session")
	fl.StringVar(&f.strategy, "strategy", "", "the placement strategy, instead of the cluster's")
	fl.BoolVar(&f.wait, "wait", false, "wait until it runs or has ended; exit code 1 when it failed, or was ended by somebody")
	fl.BoolVar(&f.attach, "attach", false, "join its terminal once it runs")
	a.complete(c, "type", session.TypeProcess, session.TypeClaudeCode, session.TypeClaudeFlow, session.TypeACP)
	a.complete(c, "priority", "critical", "high", "normal", "low")
	a.complete(c, "protocol", session.ProtocolLines, session.ProtocolJSON, session.ProtocolRaw, session.ProtocolNone)
	a.complete(c, "checkpoint-every", session.EveryTurn, "30s", "5m", "1h")
	a.complete(c, "state", session.StateFiles, session.StateMemory)
	a.complete(c, "restart", string(session.RestartNever), string(session.RestartOnFailure), string(session.RestartAlways))
	return c
}

// spec turns flags into a spec and refuses at once what the cluster would refuse.
func (a *app) spec(f *spawnFlags, command []string) (*apiv1.SessionSpec, error) {
	bad := func(err error) error { return fault.New(fault.Invalid, "%w", err) }
	priority, ok := session.ParsePriority(f.priority)
	if !ok {
		return nil, fault.New(fault.Invalid, "--priority: %q is not a priority; use critical, high, normal or low", f.priority)
	}
	p := &apiv1.SessionSpec{
		Type: f.typ, Name: f.name, Namespace: a.namespace(), Priority: apiv1.Priority_Level(priority), Command: command,
		Secrets: f.secrets, Require: f.require, MemoryProfile: f.profile, Protocol: f.protocol, Restart: f.restart,
		MaxRestarts: f.maxRestarts, Strategy: f.strategy, CheckpointEvery: f.checkpointEvery, KeepCheckpoints: f.keep,
		State: f.state, Grace: durationpb.New(f.grace),
	}
	if f.keepFor != 0 {
		p.KeepCheckpointsFor = durationpb.New(f.keepFor)
	}
	if f.ttl != 0 {
		p.Ttl = durationpb.New(f.ttl)
	}
	if f.pauseAfter != 0 {
		p.PauseAfter = durationpb.New(f.pauseAfter)
	}
	if f.protocol == session.ProtocolRaw || f.turnIdle != session.DefaultTurnIdle {
		p.TurnIdle = durationpb.New(f.turnIdle)
	}
	var err error
	if p.Env, err = parsePairs("env", f.env); err != nil {
		return nil, bad(err)
	}
	if p.Labels, err = parsePairs("label", f.labels); err != nil {
		return nil, bad(err)
	}
	if p.NodeSelector, err = parsePairs("node-selector", f.selector); err != nil {
		return nil, bad(err)
	}
	if f.cpu != "" {
		if p.CpuMilli, err = parseCPU(f.cpu); err != nil {
			return nil, bad(fmt.Errorf("--cpu: %w", err))
		}
	}
	if f.memory != "" {
		if p.MemoryBytes, err = parseBytes(f.memory); err != nil {
			return nil, bad(fmt.Errorf("--memory: %w", err))
		}
	}
	check := pbconv.SpecFromProto(p)
	check.Normalize()
	return p, check.Validate()
}

func (a *app) spawn(ctx context.Context, f *spawnFlags, spec *apiv1.SessionSpec) error {
	cl, err := a.connect(ctx)
	if err != nil {
		return err
	}
	var s *apiv1.Session
	if f.workspace != "" {
		s, err = a.spawnWithFiles(ctx, f, spec)
	} else {
		var r *apiv1.SpawnSessionResponse
		r, err = cl.Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Spec: spec, IdempotencyKey: f.key})
		s = r.GetSession()
	}
	if err != nil {
		return err
	}
	if f.attach || f.wait {
		// Watched from here rather than waited for there, so that the id is known whatever happens.
		s, err = a.await(ctx, s, func(p session.Phase) bool { return p == session.Running || p.Ended() })
		if err != nil {
			return err
		}
	}
	if f.attach && !session.Phase(s.GetPhase()).Ended() {
		return a.attach(ctx, s)
	}
	return a.printSpawned(s, "spawned", f.wait || f.attach)
}

// printSpawned tells of a session that was made, and whether it failed where that was waited for.
func (a *app) printSpawned(s *apiv1.Session, how string, waited bool) error {
	sentence := "session/" + s.GetId() + " " + how
	switch {
	case s.GetNode() != "":
		sentence += " on " + s.GetNode()
	case s.GetReason() != "":
		sentence += ", " + strings.ToLower(s.GetPhase().String()) + ": " + s.GetReason()
	}
	if err := a.printDone(s, s.GetId(), sentence); err != nil {
		return err
	}
	if !waited {
		return nil
	}
	ended := "failed"
	switch s.GetPhase() {
	case apiv1.Session_FAILED:
	case apiv1.Session_TERMINATED: // by somebody, or by its time to live
		ended = "was ended"
	default:
		return nil
	}
	return &about{s.GetId(), &exitError{exitcode.Failed, fmt.Errorf("the session %s: %s; see 'orchctl sessions logs %s'", ended, first(exitText(s.GetExit()), s.GetReason(), "no reason given"), s.GetId())}}
}
