// Which capabilities there are: a session that requires what no node has ever heard of would wait for ever.

package gateway

import (
	"maps"
	"slices"
	"strings"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
)

// alwaysKnown are the capabilities that every node says something about.
var alwaysKnown = []string{"gpu", "high-memory"}

// maxNamedCapabilities bounds how many capabilities a refusal lists.
const maxNamedCapabilities = 24

// knownCapabilities refuses capabilities that no node names, as held or as not held. What is known and held by no node may
// come; a cluster without any node knows nothing and refuses nothing.
func knownCapabilities(v *state.View, required []string) error {
	unknown := map[string]bool{}
	for _, key := range required {
		unknown[key] = !slices.Contains(alwaysKnown, key)
	}
	maps.DeleteFunc(unknown, func(_ string, is bool) bool { return !is })
	if len(unknown) == 0 {
		return nil
	}
	named, nodes := map[string]bool{}, 0
	for n := range v.Nodes() {
		nodes++
		for _, f := range n.Capabilities.Custom {
			named[f.Key] = true
			delete(unknown, f.Key)
		}
		if len(unknown) == 0 {
			return nil
		}
	}
	if nodes == 0 {
		return nil
	}
	for _, key := range alwaysKnown {
		named[key] = true
	}
	known := slices.Sorted(maps.Keys(named))
	if more := len(known) - maxNamedCapabilities; more > 0 {
		known = append(known[:maxNamedCapabilities:maxNamedCapabilities], "…")
	}
	return fault.New(fault.Invalid, "spec.require: no node knows the capability %q; they know %s, and one more becomes known when a node declares it",
		slices.Min(slices.Collect(maps.Keys(unknown))), strings.Join(known, ", ")).WithField("spec.require")
}
