// What cannot be captured is named; and a session that leaves does not go without it.

package checkpoint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
)

func TestWhatIsLeftOutIsNamed(t *testing.T) {
	shared := newFaulty(t)
	a, b := newDisk(t, shared, 0), newDisk(t, shared, 0)
	s := newSession(t)
	work := filepath.Join(s.Dir, Workspace)
	link := func(name, target string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(work, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("inside", filepath.Join(work, "dir0", "file0"))
	if st := store(t, capt(t, a, s)); st.LeftOut != "" {
		t.Errorf("nothing is left out, and it says %q", st.LeftOut)
	}
	link("python", "/usr/bin/python3")
	leaves := s
	leaves.Whole = true
	st := store(t, capt(t, a, leaves)) // where it leads to is not the session's
	if want := "1 link that does not stay in the workspace (python: /usr/bin/python3 is absolute)"; st.LeftOut != want {
		t.Errorf("it says %q, want %q", st.LeftOut, want)
	}
	to, _ := restore(t, b, st, 8, "")
	if target, err := os.Readlink(filepath.Join(to, Workspace, "inside")); err != nil || target != "dir0/file0" {
		t.Errorf("a link to a file of the workspace leads to %q, %v", target, err)
	}
	// What is too deep to be kept stands for what may not be read: root may read everything.
	deep := filepath.Join(work, strings.Repeat("d/", serializer.MaxDepth+1))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if st = store(t, capt(t, a, s)); !strings.HasPrefix(st.LeftOut, "1 file or directory (d/d/") || !strings.HasSuffix(st.LeftOut, "(python: /usr/bin/python3 is absolute)") || len(st.LeftOut) > 500 {
		t.Errorf("it says %q", st.LeftOut)
	}
	for what, err := range map[string]error{
		"copy":    func() error { _, err := a.Copy(t.Context(), leaves, true); return err }(),
		"capture": func() error { _, err := a.Capture(t.Context(), leaves); return err }(),
	} {
		if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "d/d/") || strings.Contains(err.Error(), "python") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestLeftOutFitsALine(t *testing.T) {
	s := serializer.Stats{Unreadable: 5000, LinksOut: 1, SkippedTotal: 5001}
	for range 100 {
		s.Skipped = append(s.Skipped, serializer.Skip{Path: strings.Repeat("a\n\xff\x1b", 1000), Reason: serializer.SkipUnreadable})
	}
	got := leftOut(s)
	if len(got) > 600 || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\x1b") || !strings.HasPrefix(got, "5000 files or directories (a???a???") {
		t.Errorf("%q", got)
	}
}
