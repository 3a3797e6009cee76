// Filters: what matches, and that a refusal names what is wrong.
package gateway

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// TestFilterRefusals: a filter is refused exactly when a term has no '=' or a key that is not known, and the refusal
// names the term or the key, and the field.
func TestFilterRefusals(t *testing.T) {
	keys := []string{"phase", "name", "label."}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 4).Draw(t, "terms")
		var parts []string
		wrong := ""
		for range n {
			key := rapid.OneOf(rapid.SampledFrom([]string{"phase", "name", "label.team", "label.x"}), rapid.StringMatching(`[a-z.]{1,12}`)).Draw(t, "key")
			op := rapid.SampledFrom([]string{"=", "!=", ""}).Draw(t, "operator")
			value := rapid.StringMatching(`[A-Za-z0-9-]{0,5}\*?`).Draw(t, "value")
			known := slices.Contains([]string{"phase", "name"}, key) || strings.HasPrefix(key, "label.")
			if wrong == "" && (op == "" || !known) {
				wrong = key
			}
			parts = append(parts, key+op+value)
		}
		terms, err := parseTerms(strings.Join(parts, ","), keys...)
		switch {
		case wrong == "" && (err != nil || len(terms) != n):
			t.Fatalf("%q: %d terms, %v", parts, len(terms), err)
		case wrong != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), wrong) || fault.As(err).Field != "filter"):
			t.Fatalf("%q: %v does not name %q", parts, err, wrong)
		}
	})
}

func TestSessionFilter(t *testing.T) {
	row := &session.Session{ID: "abc", Phase: session.Running, Spec: &session.Spec{
		Namespace: "films", Name: "ledger", Type: "process", Priority: session.High, Labels: []session.Pair{{Key: "team", Value: "books"}},
	}}
	row.Checkpoints = []*session.Checkpoint{{Sequence: 1}}
	v := state.New(state.DefaultLimits()).View()
	for filter, want := range map[string]bool{
		"": true, "phase=RUNNING": true, "phase=running": false, "phase!=RUNNING": false, "name=led*": true, "name=led": false,
		"label.team=books": true, "label.team!=books": false, "label.none=": true, "label.none=x": false, "priority=high": true,
		"type=process,id=abc": true, "type=process,id=abd": false, "node=": true, "phase=RUNNING , name=* ,": true,
		"checkpoint=made": true, "checkpoint=failing": false, "checkpoint!=none": true,
	} {
		f, err := newSessionFilter(auth.Identity{Role: auth.Admin}, "", filter)
		if err != nil {
			t.Fatalf("%q: %v", filter, err)
		}
		if got := f.session(v, row); got != want {
			t.Errorf("%q matches: %v, want %v", filter, got, want)
		}
	}
	for want, s := range map[string]session.Saved{
		"none": {}, "made": {Checkpoints: row.Checkpoints}, "failing": {Checkpoints: row.Checkpoints, CheckpointError: "no room"},
	} {
		if got := checkpointWord(&session.Session{Saved: s}); got != want {
			t.Errorf("%+v is %s, want %s", s, got, want)
		}
	}
	if _, err := newSessionFilter(auth.Identity{Role: auth.Viewer, Namespace: "books"}, "films", ""); !fault.Is(err, fault.PermissionDenied) {
		t.Errorf("another's namespace: %v", err)
	}
	f, err := newSessionFilter(auth.Identity{Role: auth.Viewer, Namespace: "books"}, "", "")
	if err != nil || f.session(v, row) || f.everything() {
		t.Errorf("another's session is seen: %v", err)
	}
}
