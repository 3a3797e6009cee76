// A data directory is opened by its own server, in a release that knows it, once.

package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestOpenDataDirRefusals(t *testing.T) {
	record := func(text string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "server.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		before func(t *testing.T, dir string)
		says   string // empty: it opens
	}{
		"new":             {func(*testing.T, string) {}, ""},
		"its own":         {record(`{"version":1,"cluster":"c","server":"s"}`), ""},
		"another cluster": {record(`{"version":1,"cluster":"other","server":"s"}`), `belongs to cluster "other"`},
		"another server":  {record(`{"version":1,"cluster":"c","server":"other"}`), `belongs to server "other"`},
		"newer":           {record(`{"version":2,"cluster":"c","server":"s"}`), "run the newer release"},
		"damaged":         {record(`{"version":`), "restore it"},
		"in use": {func(t *testing.T, dir string) {
			d, err := OpenDataDir(dir, "c", "s")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
		}, "another process uses it"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.before(t, dir)
			d, err := OpenDataDir(dir, "c", "s")
			if c.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				d, err = OpenDataDir(dir, "c", "s")
				if err != nil {
					t.Fatalf("again, after Close: %v", err)
				}
				d.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), dir) {
				t.Errorf("got %v, want something that names %s and says %q", err, dir, c.says)
			}
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.FailedPrecondition {
				t.Errorf("kind %v", k)
			}
		})
	}
	t.Run("a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDataDir(file, "c", "s"); !fault.Is(err, fault.Invalid) {
			t.Errorf("got %v", err)
		}
	})
}
