// "Did you mean": the nearest name to one that is unknown.

package config

import (
	"maps"
	"slices"
	"strings"
)

// suggestKey returns "; did you mean …?" for an unknown key, or "" when nothing is near.
func (s *schema) suggestKey(key string) string {
	names := slices.Sorted(maps.Keys(s.sections))
	for _, f := range s.fields {
		names = append(names, f.key)
	}
	last := key[strings.LastIndexByte(key, '.')+1:]
	if best := nearest(key, names); best != "" {
		return "; did you mean " + best + "?"
	}
	for _, name := range names { // the right name at the wrong place
		if name[strings.LastIndexByte(name, '.')+1:] == last {
			return "; did you mean " + name + "?"
		}
	}
	return "; \"config print\" lists all keys"
}

// suggestEnv is suggestKey for a variable.
func (s *schema) suggestEnv(name string) string {
	names := make([]string, len(s.fields))
	for i, f := range s.fields {
		names[i] = f.env
	}
	if best := nearest(name, names); best != "" {
		return "; did you mean " + best + "?"
	}
	return "; unset it"
}

// nearest returns the name that takes the fewest edits, if that is few enough for a slip of the fingers.
func nearest(name string, names []string) string {
	best, least := "", min(3, len(name)/3)+1
	for _, n := range names {
		if d := distance(name, n); d < least {
			best, least = n, d
		}
	}
	return best
}

// distance counts insertions, deletions, replacements and swaps of neighbours between two words.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
