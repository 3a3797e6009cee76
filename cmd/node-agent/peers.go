// Chunks between nodes: what this one serves of sessions that leave it, and how it asks others.

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/agent"
	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/auth"
	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/chunks/peer"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/telemetry"
)

// peers is the node's side of both. Its parts are nil where the node does not serve, or speaks without TLS.
type peers struct {
	listener  net.Listener
	lender    *peer.Lender
	accept    *tls.Config
	transport *http.Transport // to other nodes
	scheme    string
}

// peering says how nodes reach each other, and opens the port for those that fetch from this one.
func (n *node) peering(_ context.Context, o *agent.Options) error {
	dialer := &net.Dialer{Timeout: peerDialTimeout}
	n.peers.scheme = "http://"
	n.peers.transport = &http.Transport{DialContext: dialer.DialContext, DisableCompression: true, MaxIdleConnsPerHost: n.cfg.Checkpoints.Parallel, IdleConnTimeout: chunkIdleTimeout}
	if n.certs != nil {
		n.peers.scheme = "https://"
		if n.cfg.TLS.CAFile == "" {
			// Servers are known by public authorities, which know no nodes: the store is asked.
			n.peers.transport = nil
		} else {
			dial, err := n.certs.NodePeerDial()
			if err != nil {
				return err
			}
			n.peers.transport.DialTLSContext = (&tls.Dialer{NetDialer: dialer, Config: dial}).DialContext
		}
	}
	serve := n.cfg.Checkpoints.Serve
	if serve == "" {
		return nil
	}
	if n.certs != nil {
		var err error
		if n.peers.accept, err = n.certs.NodePeerAccept(); err != nil {
			return fault.New(fault.Invalid, "checkpoints.serve: %w", err)
		}
	}
	host, port, err := net.SplitHostPort(serve)
	if err != nil {
		return fault.New(fault.Invalid, "checkpoints.serve: %w", err)
	}
	local := n.cfg.local()
	host = cmp.Or(host, local)
	warning, err := auth.ListenPolicy{TLS: n.peers.accept != nil, Tokens: true, Insecure: n.cfg.Insecure}.Check("checkpoints.serve", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	if warning != "" {
		n.log.Warn(warning)
	}
	if n.peers.listener, err = net.Listen("tcp", net.JoinHostPort(host, port)); err != nil {
		return fault.New(fault.Invalid, "checkpoints.serve: %w; choose another address, or none", err)
	}
	at := n.peers.listener.Addr().(*net.TCPAddr)
	if at.IP.IsUnspecified() {
		host = local
	}
	o.ChunkAddress = net.JoinHostPort(host, fmt.Sprint(at.Port))
	return nil
}

// lendAndBorrow adds both to what captures and restores. The cache, from which is lent, is open.
func (n *node) lendAndBorrow(k *checkpoint.Options) {
	if n.peers.listener != nil {
		n.peers.lender = peer.NewLender(peer.LenderOptions{From: n.cache, Limiter: n.limiter, Logger: n.log})
		k.Lender = n.peers.lender
	}
	if n.peers.transport != nil {
		k.Borrow = func(p checkpoint.Peer) (*peer.Borrower, error) {
			return peer.NewBorrower(peer.BorrowerOptions{URL: n.peers.scheme + p.Address, Token: p.Token, Transport: n.peers.transport,
				ParallelMax: n.cfg.Checkpoints.Parallel, Limiter: n.limiter, Logger: n.log})
		}
	}
}

// servePeers serves other nodes until ctx ends.
func (n *node) servePeers(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle(chunkhttp.Path, n.peers.lender)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHTTPHeader,
		ErrorLog: telemetry.StdLogger(n.log)}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = s.Close() // who fetches asks the store
	})
	l := n.peers.listener
	n.log.Info("chunks are served to nodes that sessions move to", "address", l.Addr().String(), "tls", n.peers.accept != nil)
	if n.peers.accept != nil {
		l = tls.NewListener(l, n.peers.accept)
	}
	err := s.Serve(l)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve chunks to nodes: %w", err)
}

func (p *peers) close() {
	if p.listener != nil {
		_ = p.listener.Close()
	}
	if p.transport != nil {
		p.transport.CloseIdleConnections()
	}
}

// sourceMetrics read where the chunks of restores came from, and what was lent.
func sourceMetrics(s *checkpoint.Sources, lender *peer.Lender) []prometheus.Collector {
	counter := func(name, help, from string, read func() int64) prometheus.Collector {
		o := prometheus.CounterOpts{Namespace: "node_agent", Name: name, Help: help}
		if from != "" {
			o.ConstLabels = prometheus.Labels{"from": from}
		}
		return prometheus.NewCounterFunc(o, func() float64 { return float64(read()) })
	}
	const chunksHelp, bytesHelp = "Chunks of restores, by where they came from.", "Bytes of chunks of restores, by where they came from."
	all := []prometheus.Collector{
		counter("restore_chunks_total", chunksHelp, "cache", s.CacheChunks.Load), counter("restore_chunk_bytes_total", bytesHelp, "cache", s.CacheBytes.Load),
		counter("restore_chunks_total", chunksHelp, "peer", s.PeerChunks.Load), counter("restore_chunk_bytes_total", bytesHelp, "peer", s.PeerBytes.Load),
		counter("restore_chunks_total", chunksHelp, "store", s.StoreChunks.Load), counter("restore_chunk_bytes_total", bytesHelp, "store", s.StoreBytes.Load),
		counter("restore_peer_failures_total", "Chunks that the node that a session came from should have given, and did not.", "", s.PeerFailures.Load),
	}
	if lender != nil {
		c := lender.Counters()
		all = append(all, counter("lent_chunks_total", "Chunks that other nodes fetched from this one.", "", c.Chunks.Load),
			counter("lent_bytes_total", "Bytes of chunks that other nodes fetched from this one.", "", c.Bytes.Load),
			counter("lent_refused_total", "Requests of other nodes whose token did not count.", "", c.Refused.Load))
	}
	return all
}
