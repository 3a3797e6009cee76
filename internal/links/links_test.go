// Links that may be kept, and links that may not.

package links

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestFlaw(t *testing.T) {
	for _, c := range []struct{ path, target, want string }{
		{"l", "a", ""}, {"l", "a/b/./c//d", ""}, {"a/l", "../b", ""}, {"a/b/l", "../../c", ""}, {"l", ".", ""}, {"a/l", "..", ""}, {"l", "...", ""},
		{"l", "", "is empty"}, {"l", "/etc/passwd", "is absolute"}, {"l", "..", "leads out of the tree"}, {"a/l", "../..", "leads out of the tree"},
		{"a/l", "b/../../..", "has .. behind a name"}, {"a/b/l", ".././../..", "leads out of the tree"}, {"l", "a\x00b", "has a NUL in it"},
		{"l", strings.Repeat("x", MaxTargetBytes), ""}, {"l", strings.Repeat("x", MaxTargetBytes+1), "is too long"},
	} {
		if got := Flaw(c.path, c.target); got != c.want {
			t.Errorf("%q -> %.40q: %q, want %q", c.path, c.target, got, c.want)
		}
	}
}

// TestNoneLeadsOut: the kernel follows no link that is kept out of the tree, through whatever other links that are kept, too.
func TestNoneLeadsOut(t *testing.T) {
	names := []string{"a", "b", "a/c", "a/d", "b/c", "b/d"}
	target := rapid.StringMatching(`(\.\./){0,3}(a|b|c|d|\.)(/(a|b|c|d|\.\.|\.)){0,3}`)
	rapid.Check(t, func(rt *rapid.T) {
		out, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		root := filepath.Join(out, "tree")
		for _, d := range []string{"a", "b"} {
			if rapid.Bool().Draw(rt, d+" is a directory") {
				if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
					rt.Fatal(err)
				}
			}
		}
		_ = os.MkdirAll(root, 0o700)
		for _, name := range names {
			to := target.Draw(rt, name)
			at := filepath.Join(root, name)
			// As in a tree that is kept: what has no directory of its own is not there, and nothing lies below a link.
			if in, err := os.Lstat(filepath.Dir(at)); err == nil && in.IsDir() && Flaw(name, to) == "" {
				_ = os.Symlink(to, at) // where nothing has its name
			}
		}
		for _, name := range names {
			where, err := filepath.EvalSymlinks(filepath.Join(root, name))
			if err == nil && where != root && !strings.HasPrefix(where, root+"/") {
				rt.Fatalf("%s leads to %s", name, where)
			}
		}
	})
}
