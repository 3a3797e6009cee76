// The helper's answers: connect, spawn, send, terminate.

package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
)

// Role is the name of the helper.
const Role = "load"

// The forms of sending.
const (
	Unary  = "unary"  // one call a message
	Sender = "sender" // client.Sender: batches on a stream
	Turn   = "turn"   // one call a message, which is answered when its turn has ended: sent, delivered, acked
	Ask    = "ask"    // client.Sender, awaiting the turn
)

// ConnectArgs say where to, and over how many connections the callers are spread.
type ConnectArgs struct {
	Access      testbed.Access
	Connections int
}

// SpawnArgs say what to spawn: Count sessions by Callers, each waiting for one before the next.
type SpawnArgs struct {
	Callers, Count int
	Command        []string
	Protocol       string
	// Wait until each session runs.
	Wait bool
	// Names are given to sessions as NAME-NUMBER when not empty.
	Name string
}

// SpawnResult is what came of it. IDs are those of the sessions.
type SpawnResult struct {
	Summary measure.Summary
	IDs     []string
}

// SendArgs say what to send: messages of Bytes to Sessions, for Length after Warm.
type SendArgs struct {
	Sessions     []string
	Callers      int
	Bytes        int
	Warm, Length time.Duration
	Form         string
	// Patient callers wait when a mailbox is full, instead of counting an error.
	Patient bool
	// Profile is a file for a processor profile of the generator; empty for none.
	Profile string
}

type generator struct {
	clients []*client.Client
	senders []*client.Sender
}

// gcPercent lets the generator's heap, a few megabytes, grow before it is collected: a sixth of its time went into that
// by default, and it shares its cores with the servers that are measured.
const gcPercent = 800

// Serve returns what the helper answers. It belongs to a process of its own, whose garbage collector it sets.
func Serve() testbed.Handlers {
	debug.SetGCPercent(gcPercent)
	g := &generator{}
	return testbed.Handlers{
		"connect":   testbed.Handle(g.connect),
		"spawn":     testbed.Handle(g.spawn),
		"send":      testbed.Handle(g.send),
		"terminate": testbed.Handle(g.terminate),
	}
}

func (g *generator) connect(ctx context.Context, a ConnectArgs) (struct{}, error) {
	for _, s := range g.senders {
		_ = s.Close()
	}
	for _, c := range g.clients {
		_ = c.Close()
	}
	g.clients, g.senders = nil, nil
	for range max(a.Connections, 1) {
		c, err := a.Access.Client()
		if err != nil {
			return struct{}{}, err
		}
		g.clients = append(g.clients, c)
		if _, err := c.Cluster.GetStatus(ctx, &apiv1.GetStatusRequest{Consistency: apiv1.Consistency_STALE}); err != nil {
			return struct{}{}, fmt.Errorf("connect: %w", err)
		}
	}
	return struct{}{}, nil
}

func (g *generator) client(caller int) *client.Client { return g.clients[caller%len(g.clients)] }

func (g *generator) spawn(ctx context.Context, a SpawnArgs) (SpawnResult, error) {
	ids := make([]string, a.Count)
	s := measure.Each(a.Callers, a.Count, func(i int) error {
		spec := &apiv1.SessionSpec{Command: a.Command, Protocol: a.Protocol}
		if a.Name != "" {
			spec.Name = fmt.Sprintf("%s-%d", a.Name, i)
		}
		r, err := g.client(i).Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Spec: spec, Wait: a.Wait})
		if err != nil {
			return err
		}
		ids[i] = r.GetSession().GetId()
		if p := r.GetSession().GetPhase(); a.Wait && p != apiv1.Session_RUNNING {
			return fmt.Errorf("session %s is %s: %s", ids[i], p, r.GetSession().GetReason())
		}
		return nil
	})
	return SpawnResult{Summary: s, IDs: ids}, nil
}

// send keeps the callers sending; each has its sessions in turn.
func (g *generator) send(ctx context.Context, a SendArgs) (measure.Summary, error) {
	if len(a.Sessions) == 0 {
		return measure.Summary{}, errors.New("there is no session to send to")
	}
	text := []byte(strings.Repeat("0123456789abcdef", a.Bytes/16+1)[:a.Bytes])
	one, err := g.form(a.Form)
	if err != nil {
		return measure.Summary{}, err
	}
	next := make([]int, a.Callers) // each caller's place among the sessions
	for i := range next {
		next[i] = i
	}
	if a.Profile != "" {
		f, err := os.Create(a.Profile)
		if err != nil {
			return measure.Summary{}, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return measure.Summary{}, err
		}
		defer pprof.StopCPUProfile()
	}
	s := measure.ClosedLoop(a.Callers, a.Warm, a.Length, func(caller int) error {
		id := a.Sessions[next[caller]%len(a.Sessions)]
		next[caller] += a.Callers
		for {
			err := one(ctx, caller, &apiv1.SendMessageRequest{SessionId: id, Text: text})
			f := fault.As(err)
			if !a.Patient || f == nil || f.Kind != fault.Exhausted {
				return err
			}
			select {
			case <-time.After(min(max(f.RetryAfter, time.Millisecond), 50*time.Millisecond)):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return s, nil
}

// form returns how one message is sent.
func (g *generator) form(form string) (func(context.Context, int, *apiv1.SendMessageRequest) error, error) {
	switch form {
	case Unary:
		return func(ctx context.Context, caller int, m *apiv1.SendMessageRequest) error {
			_, err := g.client(caller).Sessions.SendMessage(ctx, m)
			return err
		}, nil
	case Turn:
		return func(ctx context.Context, caller int, m *apiv1.SendMessageRequest) error {
			m.Wait = true
			_, err := g.client(caller).Sessions.SendMessage(ctx, m)
			return err
		}, nil
	case Sender, Ask:
		for len(g.senders) < len(g.clients) {
			g.senders = append(g.senders, g.clients[len(g.senders)].NewSender())
		}
		if form == Ask {
			return func(ctx context.Context, caller int, m *apiv1.SendMessageRequest) error {
				_, err := g.senders[caller%len(g.senders)].Ask(ctx, m)
				return err
			}, nil
		}
		return func(ctx context.Context, caller int, m *apiv1.SendMessageRequest) error {
			_, err := g.senders[caller%len(g.senders)].Send(ctx, m)
			return err
		}, nil
	}
	return nil, fmt.Errorf("%q is no form of sending", form)
}

// terminate ends sessions at once, and waits until they have.
func (g *generator) terminate(ctx context.Context, ids []string) (measure.Summary, error) {
	s := measure.Each(64, len(ids), func(i int) error {
		_, err := g.client(i).Sessions.TerminateSession(ctx, &apiv1.TerminateSessionRequest{Id: ids[i], Grace: durationpb.New(0)})
		return err
	})
	if s.Errors > 0 {
		return s, fmt.Errorf("terminate: %s", s.FirstError)
	}
	return s, g.waitEnded(ctx, ids)
}

func (g *generator) waitEnded(ctx context.Context, ids []string) error {
	var wait sync.WaitGroup
	var mu sync.Mutex
	var first error
	slots := make(chan struct{}, 16)
	for i, id := range ids {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if err := ended(ctx, g.client(i), id); err != nil {
				mu.Lock()
				first = errors.Join(first, err)
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return first
}

// ended waits until a session has ended.
func ended(ctx context.Context, c *client.Client, id string) error {
	for {
		r, err := c.Sessions.GetSession(ctx, &apiv1.GetSessionRequest{Id: id, Consistency: apiv1.Consistency_STALE})
		if err != nil {
			return err
		}
		if r.GetSession().GetPhase() >= apiv1.Session_COMPLETED {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
