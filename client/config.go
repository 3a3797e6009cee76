// What a Client needs to know: where, as whom, over what, and how patiently.

package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// The defaults and bounds of a Client.
const (
	DefaultAddress        = "127.0.0.1:8077"
	DefaultTimeout        = 30 * time.Second
	DefaultConnectTimeout = 3 * time.Second
	MaxAddresses          = 64
	// MaxAnswerBytes bounds one answer; a page of the largest sessions fits.
	MaxAnswerBytes = 64 << 20

	keepaliveTime    = 15 * time.Second // servers allow one ping each 10 s
	keepaliveTimeout = 5 * time.Second
)

// Config says where a Client goes and how. Only Addresses is needed.
type Config struct {
	// Addresses are host:port of servers; any will do, the first is tried first.
	Addresses []string
	// Token is sent with every call. It is refused where it would cross a network in plain text.
	Token string
	// TLS makes every connection a TLS one; nil means plain text, which is refused beyond loopback unless Insecure.
	TLS *tls.Config
	// Insecure allows plain text beyond loopback, without a token.
	Insecure bool
	// Timeout bounds a call whose context has no deadline, with all its repetitions, and how long a stream or a
	// waiting call tries to come back after an interruption. DefaultTimeout when 0.
	Timeout time.Duration
	// ReachTimeout is after how long without a connection to any address a call gives up, before its deadline. 0 leaves
	// it to the deadline.
	ReachTimeout time.Duration
	// ConnectTimeout is how long one address may take to connect while there are others. DefaultConnectTimeout when 0.
	ConnectTimeout time.Duration
	// RetryExhausted makes calls that were refused with RESOURCE_EXHAUSTED and a time to come back wait for that time.
	RetryExhausted bool
	// OnRetry, when set, is told of each repetition before its pause. It must not block.
	OnRetry func(Retry)
	// UserAgent names the program, such as "orchctl/1.2".
	UserAgent string
	// Dial replaces the network, for tests and simulations.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Retry describes one repetition.
type Retry struct {
	Method  string // such as /orchestrator.v1.SessionService/SpawnSession
	Attempt int    // the attempt that failed, from 1
	Err     error
	Wait    time.Duration
}

// TLSFiles names the files of a TLS configuration. Empty fields are left to the system: its roots, no client
// certificate, the name that was dialled.
type TLSFiles struct{ CA, Cert, Key, ServerName string }

// Empty reports whether nothing is configured.
func (f TLSFiles) Empty() bool { return f == TLSFiles{} }

// Load reads the files. It returns nil when nothing is configured, and errors of kind fault.Invalid.
func (f TLSFiles) Load() (*tls.Config, error) {
	if f.Empty() {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: f.ServerName}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fault.New(fault.Invalid, "read the TLS authority: %w; name a readable PEM file", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.Invalid, "read the TLS authority %s: it holds no PEM certificate", f.CA)
		}
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, fault.New(fault.Invalid, "a TLS client certificate needs both a certificate and a key; give the other one too")
	}
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fault.New(fault.Invalid, "read the TLS client certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// IsLoopback reports whether host:port stays on this machine. Names other than localhost are not looked up.
func IsLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// check refuses what cannot work or would not be safe, and fills in defaults.
func (c *Config) check() error {
	if len(c.Addresses) == 0 {
		return fault.New(fault.Invalid, "no server address; give at least one as host:port")
	}
	if len(c.Addresses) > MaxAddresses {
		return fault.New(fault.Invalid, "%d server addresses, more than %d", len(c.Addresses), MaxAddresses)
	}
	for _, a := range c.Addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || port == "" {
			return fault.New(fault.Invalid, "%q is not a server address; write it as host:port", a)
		}
		if c.TLS != nil || IsLoopback(a) {
			continue
		}
		if !c.Insecure {
			return fault.New(fault.Invalid, "refused to connect to %s: it is not on this machine and no TLS is configured; give the cluster's CA file", a)
		}
		if c.Token != "" {
			return fault.New(fault.Invalid, "refused to send a token to %s in plain text; configure TLS, or leave the token out", a)
		}
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = DefaultConnectTimeout
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}
	}
	return nil
}
