// PEM files: written once, never over another, keys for their owner only.

package auth

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/neolith/orchestrator/internal/fault"
)

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// writePair writes a key, then its certificate: whoever sees the certificate finds its key.
func writePair(certFile string, cert []byte, keyFile string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("ca: encode the key: %w", err)
	}
	if _, err := os.Lstat(certFile); err == nil { // before the key is written, which would be left over
		return fault.New(fault.AlreadyExists, "ca: %s is there already; it is never overwritten: move it away first", certFile)
	}
	if err := writeNew(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	return writeNew(certFile, certPEM(cert), 0o644)
}

// writeNew writes a file that must not exist, durably.
func writeNew(name string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.AlreadyExists, "ca: %s is there already; it is never overwritten: move it away first", name)
	}
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(name)
		return fmt.Errorf("ca: write %s: %w", name, err)
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("ca: sync %s: %w", dir, err)
	}
	return nil
}

// readPEM returns the first block of a type in a file.
func readPEM(name, kind string) ([]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind {
			return block.Bytes, nil
		}
	}
	return nil, fault.New(fault.Invalid, "tls: %s: holds no PEM block %q", name, kind)
}

// readECKey returns the key in a file: in PKCS #8, as ours are, or in SEC 1, as openssl and Helm make them.
func readECKey(name string) (*ecdsa.PrivateKey, error) {
	bad := func(err error) error { return fault.New(fault.Invalid, "ca: %s: %w", name, err) }
	if der, err := readPEM(name, "EC PRIVATE KEY"); err == nil {
		key, err := x509.ParseECPrivateKey(der)
		if err != nil {
			return nil, bad(err)
		}
		return key, nil
	}
	der, err := readPEM(name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, bad(err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, bad(errors.New("is no key of an elliptic curve; make the authority with `orchestrator ca init`"))
	}
	return key, nil
}

// readCert returns the first certificate in a file.
func readCert(name string) (*x509.Certificate, error) {
	der, err := readPEM(name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "tls: %s: %w", name, err)
	}
	return cert, nil
}
