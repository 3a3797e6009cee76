// Clients: what they were told, and what they were not.

package sim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

const (
	callTimeout  = 5 * time.Second        // of one attempt
	retryAfter   = 250 * time.Millisecond // until the next
	opPatience   = 30 * time.Second       // of one operation with all its attempts
	clientID     = "client"
	keyLabel     = "sim/key" // of a session: the key that it was spawned with
	maxPerSlot   = 60        // messages to one session: the state keeps that many results
	spawnActor   = "sim"
	noneAccepted = uint64(0)
)

// client does what users do, and remembers what it was told. Its methods may be called from several goroutines.
type client struct {
	w *World

	mu       sync.Mutex
	sessions map[string]*spawned // by the name that stories use
	order    []string
	keys     int
	term     uint64 // the latest in which somebody was told something
	wait     sync.WaitGroup
}

// spawned is a session that was asked for.
type spawned struct {
	name, key string
	id        string // once it was acknowledged
	restart   string
	sent      []*sent
	ended     bool // termination was acknowledged
	revived   bool // somebody may have had it go on since
}

// sent is a message that was sent.
type sent struct {
	key      string
	priority session.Priority
	text     string
	sequence uint64 // once it was acknowledged
	refused  error  // for good: it is not in the mailbox
	maybe    bool   // nobody said: it is there, or will never be
}

func newClient(w *World) *client { return &client{w: w, sessions: map[string]*spawned{}} }

// newKey returns an idempotency key that was not used before.
func (c *client) newKey(what string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys++
	return fmt.Sprintf("%s-%d", what, c.keys)
}

// try calls the operation on servers that say that they lead, until one answers for good or patience ends. It reports
// whether there was an answer; without one, the operation may have taken effect all the same.
func (c *client) try(op func(ctx context.Context, o *gateway.Operations) error) (answered bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), opPatience)
	defer cancel()
	for ctx.Err() == nil {
		answered, err = c.attempt(ctx, op)
		if answered && !retryable(err) {
			return true, err
		}
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
		}
	}
	return false, err
}

func retryable(err error) bool {
	return fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Timeout) || fault.Is(err, fault.Exhausted)
}

// attempt asks one server once. There may be several that say that they lead, and only one that does.
func (c *client) attempt(ctx context.Context, op func(context.Context, *gateway.Operations) error) (answered bool, err error) {
	i := c.w.pickLeader()
	if i == nil {
		return false, fault.New(fault.Unavailable, "no server leads")
	}
	l, _ := i.node.Leader()
	term := l.Term
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ctx = auth.NewContext(ctx, auth.Identity{Name: spawnActor, Role: auth.Admin})
	err = op(ctx, i.ops)
	if i.ctx.Err() != nil || c.w.net.chance(c.w.net.losing()) {
		return false, fault.New(fault.Unavailable, "the answer was lost")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term = max(c.term, term)
	return true, err
}

// latestTerm is the latest in which somebody was told something.
func (c *client) latestTerm() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.term
}

func (n *network) losing() float64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lost
}

// spawn asks for a session. Options are key=value: restart, command, every.
func (c *client) spawn(name string, options map[string]string) {
	s := &spawned{name: name, key: c.newKey("spawn"), restart: options["restart"]}
	c.mu.Lock()
	c.sessions[name] = s
	c.order = append(c.order, name)
	c.mu.Unlock()
	spec := &apiv1.SessionSpec{
		Type: session.TypeProcess, Command: []string{"toy"}, Labels: map[string]string{keyLabel: s.key},
		Restart: s.restart, CheckpointEvery: options["every"],
	}
	if command := options["command"]; command != "" {
		spec.Command = []string{command}
	}
	var id string
	answered, err := c.try(func(ctx context.Context, o *gateway.Operations) error {
		row, err := o.Spawn(ctx, &apiv1.SpawnSessionRequest{Spec: spec, IdempotencyKey: s.key})
		if err == nil {
			id = row.ID
		}
		return err
	})
	if answered && err != nil {
		c.w.fail("spawn %s was refused: %v", name, err)
	}
	if answered && err == nil {
		c.mu.Lock()
		s.id = id
		c.mu.Unlock()
	}
}

// send sends a message. The priority is the text's first word, so that whoever sees the text knows it.
func (c *client) send(name, text string) {
	c.mu.Lock()
	s := c.sessions[name]
	if s == nil || s.id == "" || len(s.sent) >= maxPerSlot {
		c.mu.Unlock()
		return
	}
	p, _ := priorityOf(text)
	m := &sent{key: fmt.Sprintf("send-%d", len(s.sent)+1), priority: p, text: text, maybe: true}
	s.sent = append(s.sent, m)
	id := s.id
	c.mu.Unlock()
	sequence := noneAccepted
	answered, err := c.try(func(ctx context.Context, o *gateway.Operations) error {
		r, err := o.Send(ctx, &apiv1.SendMessageRequest{SessionId: id, Text: []byte(text), Priority: apiv1.Priority_Level(p), IdempotencyKey: m.key})
		if err == nil {
			sequence = r.GetSequence()
		}
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !answered:
	case err == nil:
		m.sequence, m.maybe = sequence, false
	default:
		m.refused, m.maybe = err, false
	}
}

// terminate ends a session.
func (c *client) terminate(name string) {
	c.mu.Lock()
	s := c.sessions[name]
	c.mu.Unlock()
	if s == nil || s.id == "" {
		return
	}
	answered, err := c.try(func(ctx context.Context, o *gateway.Operations) error {
		_, err := o.Terminate(ctx, &apiv1.TerminateSessionRequest{Id: s.id, Reason: "the story says so"})
		return err
	})
	if answered && err != nil {
		c.w.fail("terminate %s was refused: %v", name, err)
	}
	if answered {
		c.mu.Lock()
		s.ended = true
		c.mu.Unlock()
	}
}

// background runs an operation that the story does not wait for.
func (c *client) background(f func()) { c.wait.Go(f) }

// known returns a copy of what the client was told.
func (c *client) known() []spawned {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]spawned, 0, len(c.order))
	for _, name := range c.order {
		s := *c.sessions[name]
		s.sent = nil
		for _, m := range c.sessions[name].sent {
			m := *m
			s.sent = append(s.sent, &m)
		}
		out = append(out, s)
	}
	return out
}

// id is a session's, empty before it was acknowledged.
func (c *client) id(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sessions[name]; s != nil {
		return s.id
	}
	return ""
}

// priorityOf reads the priority off a message's text, where it is the first word: "critical: 7".
func priorityOf(text string) (session.Priority, string) {
	if word, rest, ok := strings.Cut(text, ": "); ok {
		if p, ok := session.ParsePriority(word); ok {
			return p, rest
		}
	}
	return session.Normal, text
}
