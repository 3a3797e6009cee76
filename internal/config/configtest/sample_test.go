// The checker itself: it accepts an honest sample and tells each way of lying.

package configtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type settings struct {
	Dir  string `yaml:"dir"`
	Link struct {
		Lease time.Duration `yaml:"lease"`
	} `yaml:"link"`
	Join []string `yaml:"join"`
}

// recorder is a testing.TB that keeps what a check complains of.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func TestSample(t *testing.T) {
	var defaults settings
	defaults.Link.Lease = 12 * time.Second
	for _, c := range []struct{ name, text, want string }{
		{"honest", "# Where: a directory.\ndir: /x\nlink:\n  #lease: 12s\n#join: []\n", ""},
		{"key missing", "dir: /x\n#join: []\n", "link.lease: the sample does not name it"},
		{"another default", "dir: /x\nlink:\n  #lease: 13s\n#join: []\n", "link.lease: the sample shows 13s, and the default is 12s"},
		{"old key", "dir: /x\nlink:\n  lease: 12s\njoin: []\nold: 1\n", "the sample does not load: "},
		{"old key commented out", "dir: /x\nlink:\n  #lease: 12s\n#join: []\n#old: 1\n", "with every line of it in force"},
		{"example", "#dir: /example\nlink:\n  #lease: 12s\n#join: []\n", ""},
	} {
		file := filepath.Join(t.TempDir(), "sample.yaml")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := &recorder{TB: t}
		examples := []string{}
		if c.name == "example" {
			examples = append(examples, "dir")
		}
		Sample(r, file, defaults, examples...)
		said := strings.Join(r.said, "; ")
		if (c.want == "") != (said == "") || !strings.Contains(said, c.want) {
			t.Errorf("%s: said %q, want %q", c.name, said, c.want)
		}
	}
}
