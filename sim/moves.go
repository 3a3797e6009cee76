// Clients that move sessions: checkpoint, migrate, pause, resume, fork, rewind. Any of them may be refused; none may have
// another effect than its answer says.

package sim

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/gateway"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// forkPrefix begins the names of forks: what follows is unique to the request, as its other labels are the original's.
const forkPrefix = "fork-"

// verb is what a client does to a session; args are what follows the session's name in the story.
type verb func(c *client, id string, args []string) error

// moveVerbs are the verbs of stories that move sessions, but for fork.
var moveVerbs = map[string]verb{
	"migrate":    (*client).migrate,
	"cancel":     (*client).cancel,
	"pause":      (*client).pause,
	"resume":     (*client).resume,
	"rewind":     (*client).rewind,
	"checkpoint": (*client).checkpoint,
}

// moveVerb returns what a client does that moves a session; nil when the verb is none of those.
func (c *client) moveVerb(name string, args []string) (func(), error) {
	do, ok := moveVerbs[name]
	if !ok && name != "fork" {
		return nil, nil
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("%s: which session?", name)
	}
	if name == "fork" {
		if len(args) < 2 {
			return nil, fmt.Errorf("fork: under which name?")
		}
		return func() { c.fork(args[0], args[1]) }, nil
	}
	return func() {
		id := c.id(args[0])
		if id == "" {
			return
		}
		if name == "rewind" {
			c.revive(args[0])
		}
		if err := do(c, id, args[1:]); err != nil && fault.Is(err, fault.Internal) {
			c.w.fail("%s %s: %v", name, args[0], err)
		}
	}, nil
}

// revive notes that a session that was terminated may go on.
func (c *client) revive(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[name].revived = true
}

// once calls an operation until it is answered for good; nil when nobody said.
func (c *client) once(op func(ctx context.Context, o *gateway.Operations) error) error {
	if answered, err := c.try(op); answered {
		return err
	}
	return nil
}

// migrate: "migrate NAME [to NODE] [cold]".
func (c *client) migrate(id string, args []string) error {
	req := &apiv1.MigrateSessionRequest{Id: id, IdempotencyKey: c.newKey("migrate")}
	for i, a := range args {
		switch {
		case a == "cold":
			req.Mode = a
		case a == "to" && i+1 < len(args):
			req.Target = args[i+1]
		}
	}
	return c.once(func(ctx context.Context, o *gateway.Operations) error {
		_, err := o.Migrate(ctx, req)
		return err
	})
}

func (c *client) cancel(id string, _ []string) error {
	req := &apiv1.CancelMigrationRequest{Id: id, IdempotencyKey: c.newKey("cancel")}
	return c.once(func(ctx context.Context, o *gateway.Operations) error {
		_, err := o.CancelMigration(ctx, req)
		return err
	})
}

func (c *client) pause(id string, _ []string) error {
	req := &apiv1.PauseSessionRequest{Id: id, IdempotencyKey: c.newKey("pause")}
	return c.once(func(ctx context.Context, o *gateway.Operations) error {
		_, err := o.Pause(ctx, req)
		return err
	})
}

func (c *client) resume(id string, _ []string) error {
	req := &apiv1.ResumeSessionRequest{Id: id, IdempotencyKey: c.newKey("resume")}
	return c.once(func(ctx context.Context, o *gateway.Operations) error {
		_, err := o.Resume(ctx, req)
		return err
	})
}

// rewind: "rewind NAME [BACK]", to the checkpoint that is so many before the head; 0 for the head itself.
func (c *client) rewind(id string, args []string) error {
	back := 0
	if len(args) > 0 {
		back, _ = strconv.Atoi(args[0])
	}
	i := c.w.freshest()
	if i == nil {
		return nil
	}
	s := i.store.View().Session(id)
	if s == nil || len(s.Checkpoints) == 0 {
		return nil
	}
	req := &apiv1.RewindSessionRequest{Id: id, IdempotencyKey: c.newKey("rewind"), Sequence: s.Checkpoints[max(0, len(s.Checkpoints)-1-back)].Sequence}
	return c.once(func(ctx context.Context, o *gateway.Operations) error {
		_, err := o.Rewind(ctx, req)
		return err
	})
}

func (c *client) checkpoint(id string, _ []string) error {
	req := &apiv1.CheckpointSessionRequest{Id: id, IdempotencyKey: c.newKey("checkpoint")}
	return c.once(func(ctx context.Context, o *gateway.Operations) error {
		_, err := o.Checkpoint(ctx, req)
		return err
	})
}

// fork makes a session go on from another one's head.
func (c *client) fork(of, name string) {
	id := c.id(of)
	if id == "" {
		return
	}
	s := &spawned{name: name, key: c.newKey(strings.TrimSuffix(forkPrefix, "-"))}
	c.mu.Lock()
	s.restart = c.sessions[of].restart
	c.sessions[name] = s
	c.order = append(c.order, name)
	c.mu.Unlock()
	req := &apiv1.ForkSessionRequest{Id: id, Name: s.key, IdempotencyKey: s.key}
	var made string
	err := c.once(func(ctx context.Context, o *gateway.Operations) error {
		row, err := o.Fork(ctx, req)
		if err == nil {
			made = row.ID
		}
		return err
	})
	if err != nil && fault.Is(err, fault.Internal) {
		c.w.fail("fork %s: %v", of, err)
	}
	if err == nil && made != "" {
		c.mu.Lock()
		s.id = made
		c.mu.Unlock()
	}
}

// keyOf is the key of the request that made a session.
func keyOf(s *session.Session) string {
	if strings.HasPrefix(s.Spec.Name, forkPrefix) {
		return s.Spec.Name
	}
	key, _ := session.Lookup(s.Spec.Labels, keyLabel)
	return key
}
