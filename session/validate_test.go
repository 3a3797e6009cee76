// What is refused, and which of several mistakes is named.

package session

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestPauseAfter(t *testing.T) {
	for _, c := range []struct {
		after    time.Duration
		protocol string
		ok       bool
	}{
		{0, ProtocolNone, true},
		{MinPauseAfter, "", true},
		{MinPauseAfter - 1, "", false},
		{-1, "", false},
		{time.Hour, ProtocolRaw, true},
		{time.Hour, ProtocolNone, false},
	} {
		s := Spec{Command: []string{"a"}, PauseAfter: c.after, Protocol: c.protocol}
		s.Normalize()
		if f := fault.As(s.Validate()); (f == nil) != c.ok || f != nil && f.Field != "spec.pause_after" {
			t.Errorf("%s with protocol %q: %v", c.after, c.protocol, f)
		}
	}
}

// Of several mistakes always the same one is named.
func TestTheFirstMistakeIsNamed(t *testing.T) {
	many := slices.Repeat([]string{"x"}, MaxListEntries+1)
	pairs := slices.Repeat([]Pair{{Key: "k", Value: "v"}}, MaxListEntries+1)
	wrong := []Pair{{Key: "no space"}}
	for name, c := range map[string]struct {
		spec  Spec
		field string
	}{
		"labels before the selector":          {Spec{Command: []string{"a"}, Labels: wrong, NodeSelector: wrong}, "spec.labels"},
		"the command before what is secret":   {Spec{Command: []string{"a", "\x00"}, Secrets: []string{"\x00"}}, "spec.command"},
		"the command before what it needs":    {Spec{Command: many, Require: many, Secrets: many}, "spec.command"},
		"what it needs before what is secret": {Spec{Command: []string{"a"}, Require: many, Secrets: many}, "spec.require"},
		"the environment before the labels":   {Spec{Command: []string{"a"}, Env: pairs, Labels: pairs, NodeSelector: pairs}, "spec.env"},
		"the labels before the selector":      {Spec{Command: []string{"a"}, Labels: pairs, NodeSelector: pairs}, "spec.labels"},
		"lists before pairs":                  {Spec{Command: []string{"a"}, Secrets: many, Env: pairs}, "spec.secrets"},
		"a field before the whole":            {Spec{Command: []string{"a"}, Env: []Pair{{Key: "K", Value: strings.Repeat("x", MaxSpecBytes)}}, Labels: pairs}, "spec.labels"},
	} {
		c.spec.Normalize()
		for range 50 { // a map's order would have shown by then
			f := fault.As(c.spec.Validate())
			if f == nil || f.Kind != fault.Invalid || f.Field != c.field {
				t.Errorf("%s: %v names %s", name, f, c.field)
				break
			}
		}
	}
}
