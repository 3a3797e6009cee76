// Package links says which symbolic links a tree may hold that goes from one machine to another: none that leads out of it. What captures,
// restores, packs or unpacks trees asks here, so that what one of them lets in another one does not let out.
package links

import "strings"

// MaxTargetBytes bounds a target: what Linux takes as a path (PATH_MAX without its end).
const MaxTargetBytes = 4095

// Flaw says why a link may not be kept, by its path within the tree, slashes between names, and its target; "" when it may. It must not lead out of
// the tree, whatever other links its way goes through: .. is taken at its beginning only, where the way leads up through directories
// that are no links. So nothing may lie below a link either: whoever keeps a tree sees to it that each path's directory is one.
func Flaw(path, target string) string {
	switch {
	case target == "":
		return "is empty"
	case target[0] == '/':
		return "is absolute"
	case len(target) > MaxTargetBytes:
		return "is too long"
	case strings.IndexByte(target, 0) >= 0:
		return "has a NUL in it"
	}
	up, down := strings.Count(path, "/"), false
	for name := range strings.SplitSeq(target, "/") {
		switch {
		case name == "" || name == ".":
		case name != "..":
			down = true
		case down:
			return "has .. behind a name"
		default:
			if up--; up < 0 {
				return "leads out of the tree"
			}
		}
	}
	return ""
}
