// Who signs what a person exports, and whose archives a person imports.
//
// Each person has a key, made at the first export, beside the contexts. Trusted are that key, the signers that a command names, and those in the
// contexts file under trusted_signers.

package main

import (
	"crypto/ed25519"
	"path/filepath"
	"strings"

	clientcontext "github.com/neolith/orchestrator/client/context"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/archive"
)

// signingKeyFile lies beside the contexts.
const signingKeyFile = "signing.key"

// fingerprintPrefix begins the name of a key.
const fingerprintPrefix = "SHA256:"

// keyPath is where the person's key is.
func (a *app) keyPath() (string, error) {
	path, err := clientcontext.DefaultPath(a.getenv)
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(path), signingKeyFile), nil
}

// signingKey returns the key to sign with: the one in the file that was named, or the person's own, which is made when there is none.
func (a *app) signingKey(named string) (ed25519.PrivateKey, error) {
	if named != "" {
		return archive.LoadKey(named)
	}
	path, err := a.keyPath()
	if err != nil {
		return nil, err
	}
	key, err := archive.LoadKey(path)
	if !fault.Is(err, fault.NotFound) {
		return key, err
	}
	key, err = archive.CreateKey(path)
	if fault.Is(err, fault.AlreadyExists) { // another export made it a moment ago
		return archive.LoadKey(path)
	}
	if err == nil {
		a.note("made your signing key, " + path + ", " + archive.Fingerprint(publicOf(key)) + "; keep it as you keep an ssh key")
	}
	return key, err
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// trust is whose archives are taken.
type trust struct {
	own   string
	named map[string]bool
	file  string // where more can be written down
	kept  map[string]bool
}

// newTrust reads whom the person trusts: signers are fingerprints or files with public keys.
func (a *app) newTrust(signers []string) (*trust, error) {
	path, err := clientcontext.DefaultPath(a.getenv)
	if err != nil {
		return nil, err
	}
	t := &trust{named: map[string]bool{}, kept: map[string]bool{}, file: path}
	f, err := clientcontext.Load(path)
	if err != nil {
		return nil, err
	}
	for _, s := range f.TrustedSigners {
		if !isFingerprint(s) {
			return nil, fault.New(fault.Invalid, "%s: trusted_signers: %.80q is not a fingerprint; write it as %s and 43 characters", path, s, fingerprintPrefix)
		}
		t.kept[s] = true
	}
	for _, s := range signers {
		if isFingerprint(s) {
			t.named[s] = true
			continue
		}
		if strings.HasPrefix(s, fingerprintPrefix) {
			return nil, fault.New(fault.Invalid, "--signer: %.80q is not a fingerprint; write it as %s and 43 characters", s, fingerprintPrefix)
		}
		key, err := archive.LoadPublicKey(s)
		if err != nil {
			return nil, fault.New(fault.Invalid, "--signer: %w; give a fingerprint (%s…), or a file with a public key", err, fingerprintPrefix)
		}
		t.named[archive.Fingerprint(key)] = true
	}
	own, err := archive.LoadKey(filepath.Join(filepath.Dir(path), signingKeyFile))
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	if err == nil {
		t.own = archive.Fingerprint(publicOf(own))
	}
	return t, nil
}

func isFingerprint(s string) bool {
	rest, ok := strings.CutPrefix(s, fingerprintPrefix)
	return ok && len(rest) == 43 && strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") == ""
}

// why says why a signer is trusted; empty when nothing does.
func (t *trust) why(fingerprint string) string {
	switch {
	case fingerprint == t.own:
		return "your own key"
	case t.named[fingerprint]:
		return "named by --signer"
	case t.kept[fingerprint]:
		return "in trusted_signers"
	}
	return ""
}

// check refuses a signer who is not trusted.
func (t *trust) check(key ed25519.PublicKey) error {
	if f := archive.Fingerprint(key); t.why(f) == "" {
		return fault.New(fault.PermissionDenied, "who that is, is not known here; ask whoever gave you the file for their fingerprint, and if it is this one give --signer %s, or write it into %s under trusted_signers", f, t.file)
	}
	return nil
}
