// The contexts file: private, whole, strict, and safe to change from two programs at once.

package clientcontext

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestPathFollowsXDGThenHome(t *testing.T) {
	env := map[string]string{"HOME": "/home/a"}
	get := func(k string) string { return env[k] }
	if p, err := DefaultPath(get); err != nil || p != "/home/a/.config/orchctl/config.yaml" {
		t.Fatal(p, err)
	}
	env["XDG_CONFIG_HOME"] = "/x"
	if p, err := DefaultPath(get); err != nil || p != "/x/orchctl/config.yaml" {
		t.Fatal(p, err)
	}
	if _, err := DefaultPath(func(string) string { return "" }); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
}

func TestSavedFileIsPrivateAndReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "orchctl", "config.yaml")
	if f, err := Load(path); err != nil || len(f.Contexts) != 0 {
		t.Fatal("a missing file is an empty one", f, err)
	}
	err := Update(path, func(f *File) error {
		f.Set(Context{Name: "dev", Addresses: []string{"127.0.0.1:8077", "127.0.0.1:8087"}, Token: "secret", TLSCA: "/ca.pem"})
		return f.Use("dev")
	})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := f.Get("dev"); !ok || f.Current != "dev" || c.Token != "secret" || len(c.Addresses) != 2 {
		t.Fatalf("%+v", f)
	}
	if err := f.Use("prod"); !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
}

func TestByAddressesNeedsAllOfThem(t *testing.T) {
	f := &File{Current: "b", Contexts: []Context{
		{Name: "a", Addresses: []string{"h:1", "h:2"}},
		{Name: "b", Addresses: []string{"h:1"}},
	}}
	for addresses, want := range map[string]string{"h:1": "b", "h:1,h:2": "a", "h:2": "a", "h:1,evil:1": "", "": ""} {
		var list []string
		if addresses != "" {
			list = strings.Split(addresses, ",")
		}
		if c, _ := f.ByAddresses(list); c.Name != want {
			t.Errorf("%s: got %q, want %q", addresses, c.Name, want)
		}
	}
}

func TestBadFilesAreRefusedWithTheirName(t *testing.T) {
	for name, text := range map[string]string{
		"unknown key": "currant: x\n",
		"no name":     "contexts:\n- addresses: [a:1]\n",
		"twice":       "contexts:\n- name: a\n- name: a\n",
		"no yaml":     "{",
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUpdatesAtOnceLoseNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := Update(path, func(f *File) error { f.Set(Context{Name: fmt.Sprint(i)}); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if f, err := Load(path); err != nil || len(f.Contexts) != 20 {
		t.Fatal(len(f.Contexts), err)
	}
}
