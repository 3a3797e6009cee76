// A ledger goes on where an earlier process of it ended.

package ledger

import (
	"os"
	"strings"
	"testing"
)

func TestKeep(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct{ in, out string }{
		{"a 1\nb 2\n", "a 1\nb 3\n"},
		{"c x\nd -5\n", "refused \"c x\"\nd -2\n"}, // another process
	} {
		var out strings.Builder
		if err := Keep(strings.NewReader(c.in), &out); err != nil || out.String() != c.out {
			t.Errorf("%q: %q, %v", c.in, out.String(), err)
		}
	}
	if b, err := os.ReadFile(File); err != nil || string(b) != "a 1\nb 2\nd -5\n" {
		t.Errorf("it kept %q, %v", b, err)
	}
}
