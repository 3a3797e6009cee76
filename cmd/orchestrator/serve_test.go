// The key that servers share, and what they know each other by.

package main

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestGossipKey(t *testing.T) {
	hex32 := strings.Repeat("0a", 32)
	for content, want := range map[string]string{
		hex32: "", hex32 + "\n": "", "": "does not hold 32 bytes", hex32[2:]: "does not hold 32 bytes", strings.Repeat("xy", 32): "does not hold 32 bytes",
	} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := readGossipKey(file)
		if want == "" {
			if err != nil || hex.EncodeToString(key) != hex32 {
				t.Errorf("%q: %x %v", content, key, err)
			}
			continue
		}
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) || key != nil {
			t.Errorf("%q: %x %v", content, key, err)
		}
	}
	if _, err := readGossipKey(filepath.Join(t.TempDir(), "none")); !fault.Is(err, fault.Invalid) {
		t.Errorf("a file that is not there: %v", err)
	}
	if key, err := readGossipKey(""); key != nil || err != nil {
		t.Errorf("no file: %x %v", key, err)
	}
}

// TestPeerSecret: servers with one key know each other, those with another do not, and the secret does not tell the key. Its value is what
// servers of other versions in the cluster expect.
func TestPeerSecret(t *testing.T) {
	one, other := make([]byte, 32), append(make([]byte, 31), 1)
	if peerSecret(one) != peerSecret(make([]byte, 32)) || peerSecret(one) == peerSecret(other) {
		t.Error("the secret does not follow the key")
	}
	if got := peerSecret(other); strings.Contains(got, hex.EncodeToString(other)) || len(got) != 64 {
		t.Errorf("the secret is %s", got)
	}
	key, err := hex.DecodeString(strings.Repeat("0a", 32))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := peerSecret(key), "12ccf41a7f90ff0de2a6c3c615947aa05d1356079d3d5bc32134604a63720b3b"; got != want {
		t.Errorf("the secret is %s, want %s", got, want)
	}
}
