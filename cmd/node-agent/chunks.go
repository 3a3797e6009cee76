// How the node reaches the servers' chunk store: where the link goes, as the link does.

package main

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/cache"
	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
)

const (
	chunkDialTimeout = 5 * time.Second
	chunkIdleTimeout = time.Minute
	// peerDialTimeout is short: the store has what a peer has.
	peerDialTimeout = time.Second
	// chunkAttempts are few: another server is tried next.
	chunkAttempts = 2
)

// chunkClient returns what makes the store of one server, with the certificates and the token of the link.
func (n *node) chunkClient(link nodelink.DialOptions) func(address string) (chunks.Store, error) {
	return func(address string) (chunks.Store, error) {
		dialer := &net.Dialer{Timeout: chunkDialTimeout}
		transport := &http.Transport{DialContext: dialer.DialContext, DisableCompression: true, MaxIdleConnsPerHost: n.cfg.Checkpoints.Parallel, IdleConnTimeout: chunkIdleTimeout}
		url := "http://" + address
		if link.TLS != nil {
			url = "https://" + address
			transport.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				cfg, err := link.TLS() // anew at each dial: certificates are renewed
				if err != nil {
					return nil, fault.New(fault.FailedPrecondition, "dial %s: certificates: %w", addr, err)
				}
				return (&tls.Dialer{NetDialer: dialer, Config: cfg}).DialContext(ctx, network, addr)
			}
		}
		o := chunkhttp.ClientOptions{URL: url, Transport: transport, ParallelMax: n.cfg.Checkpoints.Parallel, AttemptsMax: chunkAttempts, Limiter: n.limiter}
		if link.Token != nil {
			o.Credentials = func(r *http.Request) error {
				token, err := link.Token()
				if err == nil {
					r.Header.Set("Authorization", "Bearer "+token)
				}
				return err
			}
		}
		client, err := chunkhttp.NewClient(o)
		if err != nil {
			return nil, err
		}
		return &serverStore{client, transport}, nil
	}
}

// serverStore is a server's store and the connections to it.
type serverStore struct {
	*chunkhttp.Client
	transport *http.Transport
}

// Close ends the connections that rest.
func (s *serverStore) Close() error {
	s.transport.CloseIdleConnections()
	return s.Client.Close()
}

// cacheMetrics read what the cache counts.
func cacheMetrics(c *cache.Cache) []prometheus.Collector {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "node_agent", Subsystem: "chunk_cache", Name: name, Help: help}
	}
	counter := func(name, help string, read func() int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts(opts(name, help)), func() float64 { return float64(read()) })
	}
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("bytes", "Bytes of chunks in the cache.")), func() float64 {
			bytes, _ := c.Usage()
			return float64(bytes)
		}),
		counter("hits_total", "Chunks that were found in the cache.", c.Counters().Gets.Load),
		counter("misses_total", "Chunks that were not.", c.Counters().NotFound.Load),
		counter("evicted_total", "Chunks that made room for others.", c.Counters().Deleted.Load),
	}
}
