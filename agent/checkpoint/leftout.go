// What a capture could not take along: told for people, and never lost without a word.

package checkpoint

import (
	"fmt"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
)

const (
	// examplesMax is how many files, and how many links, are named.
	examplesMax = 3
	// exampleBytes bounds each of them.
	exampleBytes = 100
)

// leftOut says what of a session is not in a capture, in one line; empty when it is only sockets, pipes and devices.
func leftOut(s serializer.Stats) string {
	var parts []string
	if s.Unreadable > 0 {
		parts = append(parts, counted(s.Unreadable, "file or directory", "files or directories")+examples(s, func(k serializer.Skip) (string, bool) {
			return fmt.Sprintf("%s: %s", clip(k.Path), k.Reason), k.Reason == serializer.SkipUnreadable || k.Reason == serializer.SkipPath
		}))
	}
	if s.LinksOut > 0 {
		parts = append(parts, counted(s.LinksOut, "link that does not stay in the workspace", "links that do not stay in the workspace")+examples(s, func(k serializer.Skip) (string, bool) {
			return fmt.Sprintf("%s: %s", clip(k.Path), clip(k.Detail)), k.Reason == serializer.SkipLink
		}))
	}
	return strings.Join(parts, ", and ")
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// examples names the first of what fits.
func examples(s serializer.Stats, of func(serializer.Skip) (string, bool)) string {
	var all []string
	for _, k := range s.Skipped {
		if text, ok := of(k); ok && len(all) < examplesMax {
			all = append(all, text)
		}
	}
	if len(all) == 0 {
		return ""
	}
	return " (" + strings.Join(all, "; ") + ")"
}

// clip makes a path fit for a line that people read.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > exampleBytes {
		s = strings.ToValidUTF8(s[:exampleBytes], "") + "…"
	}
	return s
}

// whole refuses a capture that lacks files of a session that is to go on from it, and from nothing else. Links that lead elsewhere
// do not count: where they lead to is not the session's.
func whole(s serializer.Stats) error {
	if s.Unreadable == 0 {
		return nil
	}
	s.LinksOut = 0
	return fault.New(fault.FailedPrecondition, "the session would lose what cannot be captured, %s; let the node-agent's user read it, or remove it", leftOut(s))
}
