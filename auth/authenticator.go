// The authenticator: from what a caller shows to who it is.

package auth

import (
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// TokenRecord is what the cluster keeps of a token.
type TokenRecord struct {
	ID         string
	Name       string
	Role       Role
	Namespace  string // empty for all
	Hash       []byte // SHA-256 of the secret
	ExpireTime int64  // Unix nanoseconds; 0 for never
}

// Tokens is where records of tokens are looked up. It is called for each request, from many goroutines.
type Tokens interface {
	Token(id string) (TokenRecord, bool)
}

// Authenticator turns tokens into identities. It keeps nothing: a token that is revoked is refused from then on.
type Authenticator struct {
	tokens Tokens
	now    func() time.Time
}

// NewAuthenticator returns an authenticator over the given records and clock.
func NewAuthenticator(tokens Tokens, now func() time.Time) *Authenticator {
	return &Authenticator{tokens: tokens, now: now}
}

// Authenticate returns who holds a token. Errors are of kind fault.Unauthenticated. An unknown id and a wrong secret
// look alike, and take the same time.
func (a *Authenticator) Authenticate(text string) (Identity, error) {
	if text == "" {
		return Identity{}, fault.New(fault.Unauthenticated, "no token was given; give one with ORCHCTL_TOKEN or a context, a node with token_file, or send it as \"authorization: Bearer orch_…\"")
	}
	t, err := Parse(text)
	if err != nil {
		return Identity{}, err
	}
	record, known := a.tokens.Token(t.ID)
	if right := t.Verify(record.Hash); !right || !known {
		return Identity{}, fault.New(fault.Unauthenticated, "token %s: is unknown here, revoked or mistyped; ask an admin for a new one (`orchctl tokens create`)", t)
	}
	if record.ExpireTime != 0 && a.now().UnixNano() >= record.ExpireTime {
		return Identity{}, fault.New(fault.Unauthenticated, "token %s (%s): expired at %s; ask an admin for a new one (`orchctl tokens create`)",
			t, record.Name, time.Unix(0, record.ExpireTime).UTC().Format(time.RFC3339))
	}
	return Identity{TokenID: record.ID, Name: record.Name, Role: record.Role, Namespace: record.Namespace}, nil
}

// Recheck returns what an identity that was authenticated before may do now, without its secret: the holder of a token while that is there, with
// the role that it has now. Errors are of kind fault.Unauthenticated. Who showed a certificate is believed still.
func (a *Authenticator) Recheck(id Identity) (Identity, error) {
	if id.TokenID == "" {
		return id, nil
	}
	record, known := a.tokens.Token(id.TokenID)
	switch {
	case !known:
		return Identity{}, fault.New(fault.Unauthenticated, "token %s_%s (%s): was revoked; ask an admin for a new one (`orchctl tokens create`)", strings.TrimSuffix(tokenPrefix, "_"), id.TokenID, id.Name)
	case record.ExpireTime != 0 && a.now().UnixNano() >= record.ExpireTime:
		return Identity{}, fault.New(fault.Unauthenticated, "token %s_%s (%s): has expired; ask an admin for a new one (`orchctl tokens create`)", strings.TrimSuffix(tokenPrefix, "_"), id.TokenID, id.Name)
	}
	return Identity{TokenID: record.ID, Name: record.Name, Role: record.Role, Namespace: record.Namespace}, nil
}

// Bearer returns the token of an Authorization header; "" for none. Errors are of kind fault.Unauthenticated.
func Bearer(header string) (string, error) {
	if header == "" {
		return "", nil
	}
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", fault.New(fault.Unauthenticated, "authorization: is not \"Bearer orch_…\"")
	}
	return strings.TrimSpace(token), nil
}
