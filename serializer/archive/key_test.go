// Keys and their files.

package archive

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "keys", "export.pem")
	if _, err := LoadKey(name); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	key, err := CreateKey(name)
	must(t, err)
	got, err := LoadKey(name)
	if err != nil || !got.Equal(key) {
		t.Error(err)
	}
	if st, err := os.Stat(name); err != nil || st.Mode() != 0o600 {
		t.Error(st.Mode(), err)
	}
	if _, err := CreateKey(name); !fault.Is(err, fault.AlreadyExists) {
		t.Error(err)
	}
	if again, err := LoadKey(name); err != nil || !again.Equal(key) {
		t.Error("the key was overwritten", err)
	}
	if left, err := os.ReadDir(filepath.Dir(name)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o601} {
		must(t, os.Chmod(name, mode))
		if _, err := LoadKey(name); !fault.Is(err, fault.PermissionDenied) || !contains(err, "chmod 600") {
			t.Errorf("%s: %v", mode, err)
		}
	}
	public := filepath.Join(dir, "export.pub")
	text, err := PublicKeyPEM(key.Public().(ed25519.PublicKey))
	must(t, err)
	must(t, os.WriteFile(public, text, 0o644))
	if pub, err := LoadPublicKey(public); err != nil || !pub.Equal(key.Public()) {
		t.Error(err)
	}
	if _, err := LoadKey(dir); !fault.Is(err, fault.PermissionDenied) {
		t.Error(err)
	}
}

func TestKeyFilesThatAreNone(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(curve)
	must(t, err)
	public, err := x509.MarshalPKIXPublicKey(curve.Public())
	must(t, err)
	for name, text := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "another curve": append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})...),
		"rubbish": append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")})...),
	} {
		file := filepath.Join(t.TempDir(), "key")
		must(t, os.WriteFile(file, text, 0o600))
		if _, err := LoadKey(file); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := LoadPublicKey(file); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// ssh-keygen shows the same of the same key.
func TestFingerprint(t *testing.T) {
	blob, err := base64.StdEncoding.DecodeString("AAAAC3NzaC1lZDI1NTE5AAAAIEZakOr7x0UzZfVeT699eUzQRNZqV31IJ39S09Llobgi")
	must(t, err)
	if got := Fingerprint(blob[len(blob)-ed25519.PublicKeySize:]); got != "SHA256:CvvcxjV73Ye3bbz89c1QeYxF2WuUlBjyvyCBaAt0KYA" {
		t.Error(got)
	}
}
