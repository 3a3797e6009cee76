// Extracting: executable, only for the owner, and mended when damaged.
package embed

import (
	"os"
	"testing"
)

func TestExtract(t *testing.T) {
	dir := t.TempDir()
	script := []byte("#!/bin/sh\nexit 0\n")
	path, err := extract(dir, script)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v; want mode 0700", st.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o700); err != nil {
		t.Fatal(err)
	}
	again, err := extract(dir, script)
	if err != nil || again != path {
		t.Fatalf("got %s, %v; want %s", again, err, path)
	}
	if b, _ := os.ReadFile(path); string(b) != string(script) {
		t.Fatalf("the damaged file was kept: %q", b)
	}
	other, err := extract(dir, append(script, '\n'))
	if err != nil || other == path {
		t.Fatalf("another build went to %s, %v", other, err)
	}
}
