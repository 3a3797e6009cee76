// Calls of tools: who called what, with what it was answered, and how long that took.

package record

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/session"
)

// Recorder takes what happened; *recorder.Recorder does.
type Recorder interface {
	// Take does not keep the pointer.
	Take(i *recorder.Interaction) error
	Room(ctx context.Context) error
}

// Tools records calls of tools. It implements tools.Observer.
type Tools struct {
	recorder Recorder
	caller   func(ctx context.Context) (auth.Identity, error)
	find     func(namespace, session string) (id string)
	room     sync.Pool // of *recorder.Interaction, which are too large for the stacks of calls
}

// NewTools makes what records calls. caller says who makes the calls of a context; find returns the id of the session that somebody named, by its
// id, the beginning of it, or its name; empty when there is none.
func NewTools(r Recorder, caller func(ctx context.Context) (auth.Identity, error), find func(namespace, session string) string) *Tools {
	return &Tools{recorder: r, caller: caller, find: find, room: sync.Pool{New: func() any { return new(recorder.Interaction) }}}
}

// Begin implements tools.Observer: a call that could not be recorded waits.
func (t *Tools) Begin(ctx context.Context, tool *tools.Tool, c *tools.Call) (context.Context, error) {
	if err := t.recorder.Room(ctx); err != nil {
		return ctx, err
	}
	if !tool.AsksModels { // nothing that it causes is recorded as the same call's
		return ctx, nil
	}
	return recorder.NewContext(ctx, c.Origin), nil
}

// End implements tools.Observer.
func (t *Tools) End(ctx context.Context, tool *tools.Tool, c *tools.Call, began time.Time, outputs []tools.Output, err error) {
	i := t.room.Get().(*recorder.Interaction)
	defer func() { *i = recorder.Interaction{}; t.room.Put(i) }()
	i.Time, i.Latency, i.Kind = began, time.Since(began), recorder.ToolCall
	i.Client, i.RequestID, i.Tool = c.Origin.Client, c.Origin.RequestID, tool.Name
	i.RequestBytes, i.Request = int64(len(c.Arguments)), string(c.Arguments[:min(len(c.Arguments), recorder.LookedAtBytes)])
	who, unknown := t.caller(ctx)
	if unknown == nil {
		i.Principal = who.String()
	}
	i.Namespace, i.Session = t.about(who.Namespace, tool, c.Arguments)
	i.Response, i.ResponseBytes = textOf(outputs)
	i.Ended(ctx, err)
	_ = t.recorder.Take(i) // what it could not keep it has counted
}

// about returns the namespace of a call, and the session that it is about.
func (t *Tools) about(namespace string, tool *tools.Tool, arguments json.RawMessage) (in, id string) {
	var named struct {
		ID        string `json:"id"`
		Namespace string `json:"namespace"`
	}
	if tool.OfSession() || tool.Namespaced() {
		_ = json.Unmarshal(arguments, &named) // they were checked
	}
	if in = namespace; in == "" {
		in = named.Namespace
	}
	if in == "" {
		in = session.DefaultNamespace
	}
	if !tool.OfSession() || named.ID == "" {
		return in, ""
	}
	if id = t.find(in, named.ID); id == "" {
		id = named.ID
	}
	return in, id
}

// textOf is what was answered: mostly one text.
func textOf(outputs []tools.Output) (text string, bytes int64) {
	if len(outputs) == 1 {
		return outputs[0].Text, 0
	}
	for _, o := range outputs {
		bytes += int64(len(o.Text))
		if len(text) < recorder.LookedAtBytes {
			text += o.Text
		}
	}
	return text, bytes
}
