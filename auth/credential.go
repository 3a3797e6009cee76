// Credentials: what a caller shows, before it is known who it is.

package auth

import "crypto/tls"

// Credential is what a caller has shown on a port that does not speak gRPC. It prints without the token.
type Credential struct {
	// Token is the text of a token; empty for none.
	Token string
	// TLS is the caller's connection, which may carry a certificate; nil without TLS.
	TLS *tls.ConnectionState
}

// String returns the credential without secrets.
func (c Credential) String() string {
	switch t, err := Parse(c.Token); {
	case c.Token == "" && c.TLS == nil:
		return "nothing"
	case c.Token == "":
		return "a connection with TLS"
	case err != nil:
		return "a malformed token"
	default:
		return t.String()
	}
}

// GoString is String: %#v does not show secrets either.
func (c Credential) GoString() string { return c.String() }
