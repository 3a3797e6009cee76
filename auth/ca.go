// The cluster's own certificate authority: one key pair in a directory, which signs for servers, nodes and clients.

package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// The files of a certificate authority in its directory, and how long certificates hold.
const (
	CACertFile = "ca.pem"
	CAKeyFile  = "ca-key.pem"

	CAValidity          = 10 * 365 * 24 * time.Hour
	DefaultLeafValidity = 365 * 24 * time.Hour
	// clockSkew is how far a machine's clock may be behind the one that issued.
	clockSkew = time.Hour
)

// certNameRE is what a certificate may be named: it becomes part of file names and of a URI.
var certNameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// CA is a certificate authority that can sign.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

// InitCA makes a certificate authority and writes it into a directory, which is made when it is missing. It never
// overwrites one: that is fault.AlreadyExists.
func InitCA(dir, cluster string, now func() time.Time) (*CA, error) {
	if !certNameRE.MatchString(cluster) {
		return nil, fault.New(fault.Invalid, "ca: %.64q is not a cluster's name; use lower-case letters, digits, '-' and '.', at most 63", cluster)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("ca: make a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{"orchestrator"}, CommonName: cluster + " CA"},
		NotBefore:             now().Add(-clockSkew),
		NotAfter:              now().Add(CAValidity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("ca: sign itself: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, "ca: make its directory: %w; choose one that you may write", err)
	}
	if err := writePair(filepath.Join(dir, CACertFile), der, filepath.Join(dir, CAKeyFile), key); err != nil {
		return nil, err
	}
	return OpenCA(dir, now)
}

// OpenCA reads a certificate authority from its directory.
func OpenCA(dir string, now func() time.Time) (*CA, error) {
	cert, err := readCert(filepath.Join(dir, CACertFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "ca: %w; make one with `orchestrator ca init`", err)
	}
	if err != nil {
		return nil, err
	}
	keyFile := filepath.Join(dir, CAKeyFile)
	key, err := readECKey(keyFile)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fault.New(fault.Invalid, "ca: %s is not the key of %s; restore both files from one backup", CAKeyFile, CACertFile)
	}
	return &CA{cert: cert, key: key, now: now}, nil
}

// CertPEM returns the authority's certificate, which everybody who is to trust it needs.
func (c *CA) CertPEM() []byte { return certPEM(c.cert.Raw) }

// CertRequest is what a certificate shall say.
type CertRequest struct {
	Role Role   // Server, Node or Client
	Name string // becomes the subject, a part of the URI, and the file's name
	// Hosts are the names and addresses under which others reach a server; a server needs at least one.
	Hosts []string
	// Validity is DefaultLeafValidity when 0; never beyond the authority's own.
	Validity time.Duration
}

// Issued is a certificate with its key, signed and not yet written.
type Issued struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
	ca   []byte
}

// Issue signs a certificate for a new key. Errors in the request are of kind fault.Invalid.
func (c *CA) Issue(r CertRequest) (*Issued, error) {
	if !certNameRE.MatchString(r.Name) {
		return nil, fault.New(fault.Invalid, "ca: %.64q is not a name for a certificate; use lower-case letters, digits, '-' and '.', at most 63", r.Name)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{"orchestrator"}, OrganizationalUnit: []string{string(r.Role)}, CommonName: r.Name},
		URIs:                  []*url.URL{roleURI(r.Role, r.Name)},
		NotBefore:             c.now().Add(-clockSkew),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	switch r.Role {
	case Server: // servers call each other: they are clients, too
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		if len(r.Hosts) == 0 {
			return nil, fault.New(fault.Invalid, "ca: a server's certificate needs the names or addresses under which it is reached; give --host")
		}
	case Node, Client:
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	default:
		return nil, fault.New(fault.Invalid, "ca: %.64q is not a certificate's role; use server, node or client", r.Role)
	}
	for _, host := range r.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if hostRE.MatchString(host) {
			template.DNSNames = append(template.DNSNames, host)
		} else {
			return nil, fault.New(fault.Invalid, "ca: %.64q is neither a host name nor an address", host)
		}
	}
	validity := r.Validity
	if validity == 0 {
		validity = DefaultLeafValidity
	}
	if validity < 0 {
		return nil, fault.New(fault.Invalid, "ca: a validity of %s is negative", validity)
	}
	template.NotAfter = c.now().Add(validity)
	if template.NotAfter.After(c.cert.NotAfter) {
		template.NotAfter = c.cert.NotAfter
	}
	if !template.NotAfter.After(c.now()) {
		return nil, fault.New(fault.FailedPrecondition, "ca: the authority itself expired at %s; make a new one with `orchestrator ca init`", c.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("ca: make a key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, fmt.Errorf("ca: sign %s: %w", r.Name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("ca: read back %s: %w", r.Name, err)
	}
	return &Issued{Cert: cert, key: key, ca: c.CertPEM()}, nil
}

// files are where the certificate goes.
func (i *Issued) files(dir string) Files {
	name := i.Cert.Subject.CommonName
	return Files{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+"-key.pem"), CA: filepath.Join(dir, CACertFile)}
}

// Replace is Write where a certificate of that name, its key and ca.pem may be there from before, and are given up. It is for places
// that hold nothing else, such as the volume of a pod, whose certificate is made again when it starts again.
func (i *Issued) Replace(dir string) (Files, error) {
	f := i.files(dir)
	if i.Cert.Subject.CommonName != "ca" { // Write refuses it
		for _, name := range []string{f.Cert, f.Key, f.CA} {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return Files{}, fault.New(fault.Invalid, "ca: replace: %w; choose a directory that you may write", err)
			}
		}
	}
	return i.Write(dir)
}

var hostRE = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// Write writes NAME.pem, NAME-key.pem (readable by its owner only) and ca.pem into a directory, and returns their paths.
// It never overwrites a certificate or key: that is fault.AlreadyExists. A ca.pem that is there must be the same.
func (i *Issued) Write(dir string) (Files, error) {
	f := i.files(dir)
	name := i.Cert.Subject.CommonName
	if name == "ca" {
		return Files{}, fault.New(fault.Invalid, "ca: the name \"ca\" is the authority's own")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Files{}, fault.New(fault.Invalid, "ca: make the directory: %w; choose one that you may write", err)
	}
	switch there, err := os.ReadFile(f.CA); {
	case errors.Is(err, fs.ErrNotExist):
		if err := writeNew(f.CA, i.ca, 0o644); err != nil {
			return Files{}, err
		}
	case err != nil:
		return Files{}, fmt.Errorf("ca: %w", err)
	case !slices.Equal(there, i.ca):
		return Files{}, fault.New(fault.AlreadyExists, "ca: %s is of another authority; write into another directory", f.CA)
	}
	return f, writePair(f.Cert, i.Cert.Raw, f.Key, i.key)
}

// roleURI is how a certificate says its role: orch://server/NAME.
func roleURI(role Role, name string) *url.URL {
	return &url.URL{Scheme: "orch", Host: string(role), Path: "/" + name}
}

// CertIdentity returns who a verified certificate makes its holder; false when it names no role of ours.
func CertIdentity(cert *x509.Certificate) (Identity, bool) {
	for _, u := range cert.URIs {
		if u.Scheme != "orch" || len(u.Path) < 2 {
			continue
		}
		switch role := Role(u.Host); role {
		case Server, Node, Client:
			return Identity{Name: u.Path[1:], Role: role}, true
		}
	}
	return Identity{}, false
}

// serial returns a random serial number of 127 bits.
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
