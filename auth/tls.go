// TLS 1.3 configurations, one for each kind of conversation.
//
//	ServerTLS   a server's ports: shows its certificate; clients may, or must, show one of our authority
//	PeerTLS     servers among each other (raft, relay): both sides must be of role server
//	NodeTLS     a node that dials a server
//	ClientTLS   anybody else who dials a server, such as orchctl
//
// Whoever dials a server verifies its chain, and then that it is a server of this cluster by the role in the
// certificate, or by its host name. The role is enough because only the cluster's own authority gives it, and lets a
// server be reached by an address that was not known when its certificate was made. With the system's authorities
// (no CA file) the host name must match.

package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// ClientCert says whether a server's port wants its clients to show a certificate.
type ClientCert uint8

// What a port wants.
const (
	NoClientCert       ClientCert = iota // does not ask
	OptionalClientCert                   // one that is shown must be good
	RequireClientCert                    // one must be shown
)

// ServerTLS is for a server's port. Clients' certificates are verified against the CA file; what they say is in
// PeerIdentity. ALPN is left to the protocol above.
func (c *Certs) ServerTLS(want ClientCert) (*tls.Config, error) {
	return c.serverTLS(want, nil)
}

// PeerTLS is for servers among each other: the first configuration accepts, the second dials. Both refuse whoever is
// not a server of this cluster, whatever its host name.
func (c *Certs) PeerTLS() (accept, dial *tls.Config, err error) {
	if c.files.CA == "" {
		return nil, nil, errors.New("tls: servers need the cluster's own authority to know each other; give tls.ca_file")
	}
	if accept, err = c.serverTLS(RequireClientCert, isServer); err != nil {
		return nil, nil, err
	}
	own := c.get()
	if err := isServer(own.pair.Leaf); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.files.Cert, err)
	}
	return accept, c.dialTLS(x509.ExtKeyUsageServerAuth, isServer), nil
}

// NodeTLS is for a node agent that dials a server.
func (c *Certs) NodeTLS() *tls.Config { return c.dialTLS(x509.ExtKeyUsageServerAuth, nil) }

// NodePeerAccept is for a node that other nodes fetch chunks from. They may show a certificate; then it is a node's.
func (c *Certs) NodePeerAccept() (*tls.Config, error) { return c.serverTLS(OptionalClientCert, isNode) }

// NodePeerDial is for a node that dials another. It refuses whoever is not a node of this cluster, whatever its host name. Certificates
// of nodes are for clients; that one answers here takes nothing from what its key proves, and only this configuration lets it.
func (c *Certs) NodePeerDial() (*tls.Config, error) {
	if c.files.CA == "" {
		return nil, errors.New("tls: nodes need the cluster's own authority to know each other; give tls.ca_file")
	}
	return c.dialTLS(x509.ExtKeyUsageClientAuth, isNode), nil
}

// ClientTLS is for any other client that dials a server.
func (c *Certs) ClientTLS() *tls.Config { return c.dialTLS(x509.ExtKeyUsageServerAuth, nil) }

func (c *Certs) serverTLS(want ClientCert, check func(*x509.Certificate) error) (*tls.Config, error) {
	if c.files.Cert == "" {
		return nil, errors.New("tls: a server needs a certificate; give tls.cert_file and tls.key_file")
	}
	if want != NoClientCert && c.files.CA == "" {
		return nil, errors.New("tls: certificates of clients can be checked against the cluster's own authority only; give tls.ca_file")
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.get().pair, nil
		},
		// A resumed session would skip the client's certificate.
		SessionTicketsDisabled: true,
		ClientAuth:             [...]tls.ClientAuthType{tls.NoClientCert, tls.RequestClientCert, tls.RequireAnyClientCert}[want],
	}
	if want != NoClientCert {
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 && want == OptionalClientCert {
				return nil
			}
			// Not left to the package: its authorities are fixed when the configuration is made.
			if err := c.get().verify(s.PeerCertificates, x509.ExtKeyUsageClientAuth, c.now()); err != nil {
				return err
			}
			if check != nil {
				return check(s.PeerCertificates[0])
			}
			return nil
		}
	}
	return cfg, nil
}

// dialTLS verifies by itself, as the authorities may change under it and the role may stand for the host name.
// check replaces that rule when it is not nil.
func (c *Certs) dialTLS(usage x509.ExtKeyUsage, check func(*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if pair := c.get().pair; pair != nil {
				return pair, nil
			}
			return &tls.Certificate{}, nil
		},
		InsecureSkipVerify: true, // VerifyConnection does all of it
		VerifyConnection: func(s tls.ConnectionState) error {
			set := c.get()
			if err := set.verify(s.PeerCertificates, usage, c.now()); err != nil {
				return err
			}
			leaf := s.PeerCertificates[0]
			switch {
			case check != nil:
				return check(leaf)
			case set.roots != nil && isServer(leaf) == nil:
				return nil
			}
			return hostMatches(leaf, s.ServerName)
		},
	}
}

// hostMatches is the usual check of a host name. TLS does not tell one that was dialled by its address.
func hostMatches(leaf *x509.Certificate, host string) error {
	if host == "" {
		return errors.New("tls: the server was dialled by an address, and its certificate names no role; dial it by a host name, or trust the cluster's own authority by tls.ca_file")
	}
	if err := leaf.VerifyHostname(host); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	return nil
}

// isServer refuses a certificate that is not a server's.
func isServer(cert *x509.Certificate) error {
	who, ok := CertIdentity(cert)
	if !ok {
		return fmt.Errorf("tls: the certificate of %q names no role; issue one with `orchestrator ca issue --role server`", cert.Subject.CommonName)
	}
	if who.Role != Server {
		return fmt.Errorf("tls: the certificate of %q is a %s's, not a server's; issue one with `orchestrator ca issue --role server`", cert.Subject.CommonName, who.Role)
	}
	return nil
}

// isNode refuses a certificate that is not a node's.
func isNode(cert *x509.Certificate) error {
	if who, ok := CertIdentity(cert); !ok || who.Role != Node {
		return fmt.Errorf("tls: the certificate of %q is not a node's; issue one with `orchestrator ca issue --role node`", cert.Subject.CommonName)
	}
	return nil
}

// PeerIdentity returns who is at the other end of a connection that one of these configurations verified; false when it
// showed no certificate, or one without a role.
func PeerIdentity(s *tls.ConnectionState) (Identity, bool) {
	if s == nil || !s.HandshakeComplete || len(s.PeerCertificates) == 0 {
		return Identity{}, false
	}
	return CertIdentity(s.PeerCertificates[0])
}
