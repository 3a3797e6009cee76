// Tools that move, save, copy and hold sessions.

package tools

import (
	"context"
	"errors"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

func moveTools() []Tool {
	return []Tool{migrateTool(), checkpointTool(), forkTool(), pauseTool(), resumeTool()}
}

// onSession is the schema of a tool about one session that may wait, with further properties.
func onSession(wait string, more map[string]*Schema) *Schema {
	p := map[string]*Schema{"id": idSchema(), "namespace": namespaceSchema(), "wait": flag(wait, true), "idempotency_key": keySchema()}
	for name, s := range more {
		p[name] = s
	}
	return object([]string{"id"}, p)
}

// undoTime bounds the undoing of a call that was cancelled.
const undoTime = 5 * time.Second

func migrateTool() Tool {
	type arguments struct {
		target
		Target string `json:"target"`
		Mode   string `json:"mode"`
	}
	return Tool{
		Name: "session_migrate", Destructive: true,
		Description: "Move a session to another node while it works. Nothing is lost; it answers nothing for the blackout, which the answer tells. Returns the session as JSON, with migration.",
		Schema: onSession("wait until it has moved", map[string]*Schema{
			"target": text("the node to move to; chosen when left out", session.MaxNameBytes),
			"mode":   oneOf("live copies while it works, cold does not; live by default", "live", "cold"),
		}),
		run: onOne(func(ctx context.Context, api api, c *Call, a arguments) (*apiv1.MigrateSessionResponse, error) {
			c.progress("the session is being moved")
			r, err := api.sessions.MigrateSession(ctx, &apiv1.MigrateSessionRequest{
				Namespace: a.Namespace, Id: a.ID, Target: a.Target, Mode: a.Mode, IdempotencyKey: a.key(c), Wait: a.waits(),
			})
			if err != nil && errors.Is(context.Cause(ctx), ErrCancelled) {
				// The move goes on by itself, unless it is told not to.
				undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
				defer cancel()
				_, _ = api.sessions.CancelMigration(undo, &apiv1.CancelMigrationRequest{Namespace: a.Namespace, Id: a.ID}) // it may have ended
			}
			return r, err
		}),
	}
}

func checkpointTool() Tool {
	return Tool{
		Name:        "session_checkpoint",
		Description: "Save a session's state at the end of its turn, so that it can be restored, forked or moved from there. Returns the session as JSON, with checkpoint.",
		Schema:      onSession("wait until it is saved", nil),
		run: onOne(func(ctx context.Context, api api, c *Call, a target) (*apiv1.CheckpointSessionResponse, error) {
			return api.sessions.CheckpointSession(ctx, &apiv1.CheckpointSessionRequest{Namespace: a.Namespace, Id: a.ID, IdempotencyKey: a.key(c), Wait: a.waits()})
		}),
	}
}

func forkTool() Tool {
	type arguments struct {
		target
		Sequence uint64 `json:"sequence"`
		Name     string `json:"name"`
		Strategy string `json:"strategy"`
	}
	return Tool{
		Name:        "session_fork",
		Description: "Start a new session from a checkpoint of another one; the other goes on. Returns the new session as JSON.",
		Schema: onSession("wait until it runs", map[string]*Schema{
			"sequence": whole("which checkpoint; the last when left out", 0, 1<<62),
			"name":     text("the new session's name", session.MaxNameBytes),
			"strategy": text("how its node is chosen", session.MaxNameBytes),
		}),
		run: onOne(func(ctx context.Context, api api, c *Call, a arguments) (*apiv1.ForkSessionResponse, error) {
			return api.sessions.ForkSession(ctx, &apiv1.ForkSessionRequest{
				Namespace: a.Namespace, Id: a.ID, Sequence: a.Sequence, Name: a.Name, Strategy: a.Strategy, IdempotencyKey: a.key(c), Wait: a.waits(),
			})
		}),
	}
}

func pauseTool() Tool {
	type arguments struct {
		target
		Reason string `json:"reason"`
	}
	return Tool{
		Name: "session_pause", Destructive: true,
		Description: "Save a session's state and stop it, so that it holds no node. A message or session_resume has it go on. Returns the session as JSON.",
		Schema:      onSession("wait until it is paused", map[string]*Schema{"reason": text("why, for the history", 1024)}),
		run: onOne(func(ctx context.Context, api api, c *Call, a arguments) (*apiv1.PauseSessionResponse, error) {
			return api.sessions.PauseSession(ctx, &apiv1.PauseSessionRequest{Namespace: a.Namespace, Id: a.ID, Reason: a.Reason, IdempotencyKey: a.key(c), Wait: a.waits()})
		}),
	}
}

func resumeTool() Tool {
	return Tool{
		Name:        "session_resume",
		Description: "Have a paused session go on from where it stopped. Returns the session as JSON.",
		Schema:      onSession("wait until it runs", nil),
		run: onOne(func(ctx context.Context, api api, c *Call, a target) (*apiv1.ResumeSessionResponse, error) {
			return api.sessions.ResumeSession(ctx, &apiv1.ResumeSessionRequest{Namespace: a.Namespace, Id: a.ID, IdempotencyKey: a.key(c), Wait: a.waits()})
		}),
	}
}
