// Package configtest checks the sample files that are shipped with a program, so that they never lie.
package configtest

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"testing"

	"github.com/neolith/orchestrator/internal/config"
)

// commented is a setting that is commented out. Prose has a space after the "#".
var commented = regexp.MustCompile(`(?m)^( *)#([a-z][a-z0-9_]*:|- )`)

// Sample checks a sample file against a program's settings: it loads as it stands, and with every commented line of it
// in force; it names every key, set or commented out; and each line that is commented out (as "#key: value", without a
// space after the "#") shows the default. Keys in examples are commented out with an example instead.
func Sample[T any](t testing.TB, file string, defaults T, examples ...string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(full, commented.ReplaceAll(text, []byte("$1$2")), 0o600); err != nil {
		t.Fatal(err)
	}
	asIs, err := config.Load(defaults, config.Options{File: file, Environ: []string{}})
	if err != nil {
		t.Errorf("the sample does not load: %v", err)
		return
	}
	all, err := config.Load(defaults, config.Options{File: full, Environ: []string{}})
	if err != nil {
		t.Errorf("the sample does not load with every line of it in force: %v", err)
		return
	}
	keys, err := config.Keys[T]()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if all.Origin(key).File == "" {
			t.Errorf("%s: the sample does not name it", key)
			continue
		}
		if asIs.Origin(key).File != "" || slices.Contains(examples, key) {
			continue
		}
		got, want := reflect.ValueOf(config.Value(all.Config, key)), reflect.ValueOf(config.Value(defaults, key))
		same := reflect.DeepEqual(got.Interface(), want.Interface()) || empty(got) && empty(want)
		if !same {
			t.Errorf("%s: the sample shows %v, and the default is %v", key, got, want)
		}
	}
}

// empty treats a list that is nil and one that is written [] alike.
func empty(v reflect.Value) bool {
	return (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}
