// Keys: one that signs lies in a file that only its owner reads; the public ones of others lie wherever they do.

package archive

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/neolith/orchestrator/internal/fault"
)

const maxKeyFileBytes = 64 << 10

// LoadKey reads the key in a file: PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` makes them, too. The error is of kind fault.NotFound
// when there is none, and of kind fault.PermissionDenied when others than its owner could use it.
func LoadKey(name string) (ed25519.PrivateKey, error) {
	der, err := readKeyFile(name, "PRIVATE KEY", true)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "archive: %s: %w", name, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fault.New(fault.Invalid, "archive: %s holds no ed25519 key; make one with `openssl genpkey -algorithm ed25519`", name)
	}
	return key, nil
}

// CreateKey makes a key and writes it to a file that must not exist, for its owner only, together with the directory where that is missing. The file
// is there as a whole or not at all.
func CreateKey(name string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("archive: make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("archive: encode the key: %w", err)
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("archive: make the directory of the key: %w", err)
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*") // 0600
	if err != nil {
		return nil, fmt.Errorf("archive: write the key: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return nil, fmt.Errorf("archive: write the key: %w", err)
	}
	// A link, unlike a rename, never replaces a key that is there.
	switch err := os.Link(tmp.Name(), name); {
	case errors.Is(err, fs.ErrExist):
		return nil, fault.New(fault.AlreadyExists, "archive: %s is there already; a key is never overwritten: move it away first", name)
	case err != nil:
		return nil, fmt.Errorf("archive: write the key: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("archive: write the key: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return nil, fmt.Errorf("archive: sync %s: %w", dir, err)
	}
	return key, nil
}

// LoadPublicKey reads the public key in a file: PEM, as PublicKeyPEM returns it.
func LoadPublicKey(name string) (ed25519.PublicKey, error) {
	der, err := readKeyFile(name, "PUBLIC KEY", false)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "archive: %s: %w", name, err)
	}
	key, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return nil, fault.New(fault.Invalid, "archive: %s holds no ed25519 key", name)
	}
	return key, nil
}

// PublicKeyPEM returns a public key as others keep it, and as openssl reads it.
func PublicKeyPEM(key ed25519.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("archive: encode the public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// readKeyFile returns the first PEM block of a type in a file.
func readKeyFile(name, kind string, secret bool) ([]byte, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "archive: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	if mode := st.Mode(); secret && (!mode.IsRegular() || mode.Perm()&0o077 != 0) {
		return nil, fault.New(fault.PermissionDenied, "archive: the key %s is not for its owner alone (%s): `chmod 600 %s`, and make a new one if others may have read it", name, mode, name)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFileBytes))
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind {
			return block.Bytes, nil
		}
	}
	return nil, fault.New(fault.Invalid, "archive: %s holds no PEM block %q", name, kind)
}
