// Tokens: how they look, how they are made, and how a secret is compared with its hash.

package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	tokenPrefix   = "orch_"
	tokenIDLength = 10 // characters of base32: 50 random bits
	secretBytes   = 32 // 256 random bits
	secretLength  = 52 // characters of base32
)

// tokenText is base32 in lower case: no character needs quoting anywhere, and a double click selects it all.
var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token is a token with its secret. It prints without the secret, so that it cannot slip into a log; Reveal has it.
type Token struct {
	ID     string
	secret string
}

// Generate makes a token from the system's randomness.
func Generate() Token {
	var id [7]byte
	var secret [secretBytes]byte
	_, _ = rand.Read(id[:]) // never fails; see its documentation
	_, _ = rand.Read(secret[:])
	return Token{ID: tokenText.EncodeToString(id[:])[:tokenIDLength], secret: tokenText.EncodeToString(secret[:])}
}

// Parse reads orch_<id>_<secret>. Its errors are of kind fault.Unauthenticated and never repeat what was given.
func Parse(text string) (Token, error) {
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	id, secret, ok2 := strings.Cut(rest, "_")
	if !ok || !ok2 || len(id) != tokenIDLength || len(secret) != secretLength || !isTokenText(id) || !isTokenText(secret) {
		return Token{}, fault.New(fault.Unauthenticated, "token: is not of the form orch_<id>_<secret>; give it whole, as `orchctl tokens create` printed it")
	}
	return Token{ID: id, secret: secret}, nil
}

func isTokenText(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// Reveal returns the whole token. It is for the one time a token is shown, and for the wire.
func (t Token) Reveal() string { return tokenPrefix + t.ID + "_" + t.secret }

// String returns the token without its secret.
func (t Token) String() string { return tokenPrefix + t.ID + "_…" }

// GoString is String: %#v does not show secrets either.
func (t Token) GoString() string { return t.String() }

// Hash returns the SHA-256 of the secret, which is what the cluster keeps. A plain hash is enough, for a secret of 256
// random bits cannot be guessed.
func (t Token) Hash() []byte {
	sum := sha256.Sum256([]byte(t.secret))
	return sum[:]
}

// Verify compares the secret with a hash, in a time that does not depend on either.
func (t Token) Verify(hash []byte) bool { return subtle.ConstantTimeCompare(t.Hash(), hash) == 1 }
