// A slot: one connection, for one call at a time.

package provider

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// headerBytesMax bounds an answer's header.
const headerBytesMax = 64 << 10

// slot holds one keep-alive connection for each address that it spoke to; that is one, unless the provider has several URLs. It has no
// key: calls of several keys share it.
type slot struct{ transport *http.Transport }

// dialFunc opens a connection, as net.Dialer's DialContext does.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newSlot makes a slot, which connects when it is used. HTTP/1.1 alone: a slot is to be a connection, and ending a call is to end it.
func newSlot(tlsConfig *tls.Config, dial dialFunc, tlsTime, keep time.Duration) *slot {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &slot{&http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dial, TLSClientConfig: tlsConfig.Clone(), TLSHandshakeTimeout: tlsTime,
		MaxIdleConnsPerHost: 1, IdleConnTimeout: keep, Protocols: &protocols, MaxResponseHeaderBytes: headerBytesMax,
	}}
}

// roundTrip sends a request and follows no redirect, which would take the key elsewhere. No header says that a request may be repeated
// (Idempotency-Key): net/http would then send it twice by itself.
func (s *slot) roundTrip(r *http.Request) (*http.Response, error) { return s.transport.RoundTrip(r) }

func (s *slot) close() { s.transport.CloseIdleConnections() }

// counted wraps a dial so that open connections are counted.
func counted(dial dialFunc, timeout time.Duration, open *atomic.Int64) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		open.Add(1)
		return &countedConn{Conn: c, open: open}, nil
	}
}

type countedConn struct {
	net.Conn
	open   *atomic.Int64
	closed atomic.Bool
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// tlsConfig trusts the system's authorities, or the one of a file.
func tlsConfig(what, caFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w; make it readable for this user", what, err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "%s: %s holds no certificate in PEM", what, caFile)
	}
	return c, nil
}
