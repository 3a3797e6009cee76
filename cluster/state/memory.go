// Process memory: why no session can have it in its checkpoints, in one line.

package state

import (
	"fmt"
	"iter"
	"strings"

	"github.com/neolith/orchestrator/session"
)

// CRIU is the capability of a node that could checkpoint the memory of processes.
const CRIU = "criu"

// criuNamed is how many nodes a refusal names.
const criuNamed = 3

// Has reports whether the node declares a capability as held.
func (c *Capabilities) Has(key string) bool {
	for _, f := range c.Custom {
		if f.Key == key {
			return f.Value
		}
	}
	return false
}

// NoMemory says why a session whose spec asks for its process's memory is refused: this release has no backend for it, and
// which of the nodes, given by id, could use one.
func NoMemory(nodes iter.Seq[*Node]) string {
	var able []string
	all, why := 0, ""
	for n := range nodes {
		all++
		if n.Capabilities.Has(CRIU) {
			able = append(able, n.Name)
		} else if reason, ok := session.Lookup(n.Capabilities.Absent, CRIU); ok && why == "" {
			why = fmt.Sprintf(" (%s: %s)", n.Name, reason)
		}
	}
	which := "no node has the capability criu" + why
	if len(able) > 0 {
		more := ""
		if len(able) > criuNamed {
			more = fmt.Sprintf(" and %d more", len(able)-criuNamed)
		}
		which = fmt.Sprintf("%d of %d nodes have the capability criu (%s%s)", len(able), all, strings.Join(able[:min(len(able), criuNamed)], ", "), more)
	}
	return "checkpoints of this release keep messages, transcript and workspace, and no process memory; " + which + "; leave --state away"
}
