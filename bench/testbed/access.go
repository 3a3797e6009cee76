// Access: how a helper reaches a cluster.

package testbed

import (
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/nodelink"
)

// Access is all that a client or a simulated node needs to know of a cluster.
type Access struct {
	// Addresses are of the gRPC API, the leader's first; Links are of the node link and Clients of the client gateway, in the same order.
	Addresses []string
	Links     []string
	Clients   []string
	Token     string
	// Node names the files of a node's certificate; empty without TLS.
	Node auth.Files
}

// Client makes a client.
func (a Access) Client() (*client.Client, error) {
	cfg := client.Config{Addresses: a.Addresses, Token: a.Token, UserAgent: "orchestrator-bench"}
	if a.Node.CA != "" {
		c, err := client.TLSFiles{CA: a.Node.CA}.Load()
		if err != nil {
			return nil, err
		}
		cfg.TLS = c
	}
	return client.New(cfg)
}

// DialOptions are those of a node's link: its certificate, or without TLS a token.
func (a Access) DialOptions() (nodelink.DialOptions, error) {
	if a.Node.CA == "" {
		return nodelink.DialOptions{Token: func() (string, error) { return a.Token, nil }}, nil
	}
	certs, err := auth.LoadCerts(a.Node, time.Hour, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		return nodelink.DialOptions{}, err
	}
	return nodelink.DialOptions{TLS: func() (*tls.Config, error) { return certs.NodeTLS(), nil }}, nil
}
