// The last file of an archive, SIGNATURE: who vouches for what SHA256SUMS names.
//
// Signed is not SHA256SUMS itself but a statement with its hash, so that neither end has to hold what may be a gigabyte; the statement's
// first line keeps the key from having signed anything else by it.

package archive

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
)

// statement returns what is signed.
func statement(sums [sha256.Size]byte) []byte {
	return fmt.Appendf(nil, "%s, version %d\n%x\n", formatName, Version, sums)
}

// sign returns SIGNATURE.
func sign(key ed25519.PrivateKey, sums [sha256.Size]byte) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fault.New(fault.Invalid, "archive: a key of %d bytes is no ed25519 key", len(key))
	}
	return signatureFile(key.Public().(ed25519.PublicKey), ed25519.Sign(key, statement(sums)))
}

// signatureFile returns SIGNATURE with a key and a signature in it.
func signatureFile(key ed25519.PublicKey, signature []byte) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("archive: encode the public key: %w", err)
	}
	b64 := base64.StdEncoding
	return fmt.Appendf(nil, "algorithm ed25519\npublic-key %s\nsignature %s\n", b64.EncodeToString(der), b64.EncodeToString(signature)), nil
}

// verify returns who signed, or an error of the kind fault.PermissionDenied when the signature is not one of these checksums. There is one way to
// write SIGNATURE, so that nothing in it can be changed.
func verify(text []byte, sums [sha256.Size]byte) (ed25519.PublicKey, error) {
	lines := strings.Split(string(text), "\n")
	if algorithm, ok := strings.CutPrefix(lines[0], "algorithm "); ok && algorithm != "ed25519" {
		return nil, fault.New(fault.Unimplemented, "archive: it is signed with %.40q; this release knows ed25519: upgrade orchctl", algorithm)
	}
	if len(lines) != 4 {
		return nil, corrupt("%s has %d lines, want 3", signatureName, len(lines)-1)
	}
	der, err := field(lines[1], "public-key ")
	if err != nil {
		return nil, err
	}
	signature, err := field(lines[2], "signature ")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, corrupt("%s: the public key: %w", signatureName, err)
	}
	key, ok := parsed.(ed25519.PublicKey)
	if !ok || len(signature) != ed25519.SignatureSize {
		return nil, corrupt("%s: no ed25519 key and signature", signatureName)
	}
	if again, err := signatureFile(key, signature); err != nil || string(again) != string(text) {
		return nil, corrupt("%s is not in the one form that it has", signatureName)
	}
	if !ed25519.Verify(key, statement(sums), signature) {
		return nil, fault.New(fault.PermissionDenied, "%w", corruption{fmt.Errorf("the key %s did not sign this: it was changed after it was signed", Fingerprint(key))})
	}
	return key, nil
}

func field(line, name string) ([]byte, error) {
	text, ok := strings.CutPrefix(line, name)
	if !ok {
		return nil, corrupt("%s has no line %q", signatureName, strings.TrimSpace(name))
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, corrupt("%s: %s: %w", signatureName, strings.TrimSpace(name), err)
	}
	return b, nil
}

// Fingerprint names a key as ssh does: "SHA256:" and 43 characters.
func Fingerprint(key ed25519.PublicKey) string {
	const kind = "ssh-ed25519"
	var b []byte
	for _, s := range [][]byte{[]byte(kind), key} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	sum := sha256.Sum256(b)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}
