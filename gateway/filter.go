// Filters of lists: terms joined by commas, all of which must hold.

package gateway

import (
	"slices"
	"strings"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// term is KEY=VALUE or KEY!=VALUE; a value that ends in * matches by its beginning.
type term struct {
	key, value string
	not        bool
}

func (t term) matches(v string) bool {
	ok := v == t.value
	if p, wild := strings.CutSuffix(t.value, "*"); wild {
		ok = strings.HasPrefix(v, p)
	}
	return ok != t.not
}

// parseTerms reads a filter whose keys are among the given ones, or label.KEY when "label." is.
func parseTerms(text string, keys ...string) ([]term, error) {
	var terms []term
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fault.New(fault.Invalid, "filter: %q is not KEY=VALUE or KEY!=VALUE", clip(part)).WithField("filter")
		}
		t := term{key: k, value: v}
		t.key, t.not = strings.CutSuffix(k, "!")
		if !slices.Contains(keys, t.key) && (!strings.HasPrefix(t.key, "label.") || !slices.Contains(keys, "label.")) {
			return nil, fault.New(fault.Invalid, "filter: %q is not a key; use %s", clip(t.key), strings.Join(keys, ", ")).WithField("filter")
		}
		terms = append(terms, t)
	}
	return terms, nil
}

// sessionFilter matches sessions that a caller may see.
type sessionFilter struct {
	who       auth.Identity
	namespace string
	only      string // an id
	terms     []term
}

func newSessionFilter(who auth.Identity, namespace, text string) (*sessionFilter, error) {
	if namespace != "" {
		if err := who.CheckNamespace(namespace); err != nil {
			return nil, err
		}
	}
	terms, err := parseTerms(text, "phase", "node", "type", "name", "priority", "id", "checkpoint", "label.")
	if err != nil {
		return nil, err
	}
	return &sessionFilter{who: who, namespace: namespace, terms: terms}, nil
}

func (f *sessionFilter) everything() bool {
	return f.who.Namespace == "" && f.namespace == "" && f.only == "" && len(f.terms) == 0
}

func (f *sessionFilter) session(v *state.View, s *session.Session) bool {
	spec := s.Spec
	if !f.who.MayUse(spec.Namespace) || (f.namespace != "" && spec.Namespace != f.namespace) || (f.only != "" && s.ID != f.only) {
		return false
	}
	for _, t := range f.terms {
		var value string
		switch t.key {
		case "phase":
			value = s.Phase.String()
		case "node":
			value = nodeName(v, s.NodeID)
		case "type":
			value = spec.Type
		case "name":
			value = spec.Name
		case "priority":
			value = spec.Priority.String()
		case "id":
			value = s.ID
		case "checkpoint":
			value = checkpointWord(s)
		default:
			value, _ = session.Lookup(spec.Labels, strings.TrimPrefix(t.key, "label."))
		}
		if !t.matches(value) {
			return false
		}
	}
	return true
}

// checkpointWord is how a session's checkpoints do, in a word of a filter.
func checkpointWord(s *session.Session) string {
	switch {
	case s.CheckpointError != "":
		return "failing" // the last attempt at one
	case s.Head() == nil:
		return "none"
	default:
		return "made"
	}
}

// nodeFilter matches nodes.
type nodeFilter []term

func newNodeFilter(text string) (nodeFilter, error) {
	return parseTerms(text, "status", "name", "schedulable", "id", "label.")
}

func (f nodeFilter) node(n *state.Node) bool {
	for _, t := range f {
		var value string
		switch t.key {
		case "status":
			value = n.Status.String()
		case "name":
			value = n.Name
		case "id":
			value = n.ID
		case "schedulable":
			value = "false"
			if n.Schedulable {
				value = "true"
			}
		default:
			value, _ = session.Lookup(n.Labels, strings.TrimPrefix(t.key, "label."))
		}
		if !t.matches(value) {
			return false
		}
	}
	return true
}

// eventFilter matches events that a caller may see.
type eventFilter struct {
	who       auth.Identity
	namespace string
	terms     []term
}

func newEventFilter(who auth.Identity, namespace, text string) (*eventFilter, error) {
	if namespace != "" {
		if err := who.CheckNamespace(namespace); err != nil {
			return nil, err
		}
	}
	terms, err := parseTerms(text, "type", "session", "node")
	return &eventFilter{who, namespace, terms}, err
}

func (f *eventFilter) event(e *state.Event) bool {
	// An event of the cluster itself has no namespace; those bound to one do not see it.
	if !f.who.MayUse(e.Namespace) || (f.namespace != "" && e.Namespace != f.namespace) {
		return false
	}
	for _, t := range f.terms {
		value := map[string]string{"type": e.Type, "session": e.SessionID, "node": e.Node}[t.key]
		if !t.matches(value) {
			return false
		}
	}
	return true
}
