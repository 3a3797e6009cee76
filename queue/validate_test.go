// What is not taken as a call, and why.

package queue

import (
	"strings"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func TestValidate(t *testing.T) {
	good := func() *Call {
		return &Call{
			Key: Key{"token 1", "ann", "r-1"}, Tool: "chat", Server: "s1", Priority: session.Normal, Deadline: 100,
			Arguments: Blob{Inline: []byte("{}"), Size: 2},
		}
	}
	if err := good().Validate(99); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Call)
		field  string
	}{
		"no owner":         {func(c *Call) { c.Owner = "" }, "key.owner"},
		"no session":       {func(c *Call) { c.Session = "" }, "key.session"},
		"no request id":    {func(c *Call) { c.RequestID = "" }, "key.request_id"},
		"NUL":              {func(c *Call) { c.Session = "a\x00b" }, "key.session"},
		"a long key":       {func(c *Call) { c.RequestID = strings.Repeat("x", MaxKeyBytes+1) }, "key.request_id"},
		"not UTF-8":        {func(c *Call) { c.OrderKey = "\xff" }, "order_key"},
		"no tool":          {func(c *Call) { c.Tool = "" }, "tool"},
		"no server":        {func(c *Call) { c.Server = "" }, "server_id"},
		"a long namespace": {func(c *Call) { c.Caller.Namespace = strings.Repeat("x", MaxNameBytes+1) }, "caller.namespace"},
		"priority 0":       {func(c *Call) { c.Priority = 0 }, "priority"},
		"priority 5":       {func(c *Call) { c.Priority = 5 }, "priority"},
		"no deadline":      {func(c *Call) { c.Deadline = 0 }, "deadline"},
		"arguments":        {func(c *Call) { c.Arguments.Size = 3 }, "arguments"},
		"many chunks":      {func(c *Call) { c.Arguments = Blob{Chunks: make([][32]byte, maxBlobChunks+1)} }, "arguments"},
	} {
		t.Run(name, func(t *testing.T) {
			call := good()
			c.change(call)
			err := call.Validate(99)
			if !fault.Is(err, fault.Invalid) || fault.As(err).Field != c.field {
				t.Errorf("%v, field %q; want %q", err, fault.As(err).Field, c.field)
			}
		})
	}
	if err := good().Validate(100); !fault.Is(err, fault.Timeout) {
		t.Errorf("a deadline that has passed: %v", err)
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]Key{}
	for _, k := range []Key{{"a", "b", "c"}, {"ab", "", "c"}, {"a", "bc", ""}, {"a", "b", "d"}, {"", "ab", "c"}} {
		id := k.ID()
		if len(id) != 12 || id != k.ID() {
			t.Errorf("%v: %q", k, id)
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%v and %v are both %s", k, other, id)
		}
		seen[id] = k
	}
}
