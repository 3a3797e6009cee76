// Rewriting absolute paths in a session's state: they were true on the machine that it comes from.

package serializer

import (
	"bytes"
	"slices"
)

// RewritePaths returns text with each absolute path of the path map, and each path below one, put in the place that places
// gives for its root. Pairs whose root has no place are left alone. A path counts only as a whole: neither /data/a nor /x/data
// is found in /data/ab or /y/x/data. Where several fit, the longest counts.
func RewritePaths(text []byte, pairs []PathPair, places map[string]string) []byte {
	pairs = slices.DeleteFunc(slices.Clone(pairs), func(p PathPair) bool {
		_, ok := places[p.Root]
		return !ok || p.Source == places[p.Root] || p.Source == "/" || p.Source == ""
	})
	slices.SortStableFunc(pairs, func(a, b PathPair) int { return len(b.Source) - len(a.Source) })
	if len(pairs) == 0 {
		return text
	}
	var out []byte
	done := 0 // of text is in out
	for at := 0; at < len(text); {
		next := bytes.IndexByte(text[at:], '/')
		if next < 0 {
			break
		}
		at += next
		i := -1
		if at == 0 || !inName(text[at-1]) {
			i = slices.IndexFunc(pairs, func(p PathPair) bool {
				rest, ok := bytes.CutPrefix(text[at:], []byte(p.Source))
				return ok && (len(rest) == 0 || rest[0] == '/' || !inName(rest[0]))
			})
		}
		if i < 0 {
			at++
			continue
		}
		out = append(append(out, text[done:at]...), places[pairs[i].Root]...)
		at += len(pairs[i].Source)
		done = at
	}
	if done == 0 {
		return text
	}
	return append(out, text[done:]...)
}

// inName reports whether a byte next to a path would make it another path.
func inName(b byte) bool {
	return b >= 0x80 || b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || b == '.' || b == '_' || b == '-' || b == '/'
}
