// A node: the parts, how they hang together, and their life.

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/neolith/orchestrator/agent"
	"github.com/neolith/orchestrator/agent/capability"
	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/driver/process"
	"github.com/neolith/orchestrator/agent/health"
	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/outputlog"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/agent/shim/embed"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/chunks/cache"
	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry"
)

// node is a node agent as a program.
//
//	1 certificates, token ──► dial ──────────────────────┐
//	2 data directory ──► shim program ──► process driver ┤
//	                └──► lease file ─────────────────────┼──► 4 agent ──► 5 metrics and health over HTTP
//	3 capabilities, health sampler ──────────────────────┤
//	  chunk cache, servers' chunk store ──► checkpoints ─┘
//	  chunks to and from other nodes ───────────┘
type node struct {
	cfg      Config
	log      *slog.Logger
	registry *prometheus.Registry
	lease    *lease.Writer
	certs    *auth.Certs   // nil without TLS
	limiter  *rate.Limiter // of all chunks that come and go; nil for no limit
	peers    peers
	servers  *checkpoint.Servers
	cache    *cache.Cache // nil for none
	agent    *agent.Agent
	listener net.Listener // nil without metrics.listen
}

// newNode makes the parts; run or close must follow.
func newNode(ctx context.Context, cfg Config, log *slog.Logger) (_ *node, err error) {
	n := &node{cfg: cfg, log: log, registry: telemetry.NewRegistry(telemetry.ThisBuild()), limiter: chunkhttp.NewLimiter(int64(cfg.Checkpoints.BytesPerSecond))}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	opts := agent.Options{
		Name: cfg.Name, Labels: cfg.Labels, Version: telemetry.ThisBuild().Version, Address: cfg.address(), Servers: cfg.Servers,
		Boottime: lease.Now, SecretsDir: cfg.SecretsDir, PastLogs: process.ReadLogs, Sweep: sweep,
		MaxStarts: cfg.Sessions.MaxStarts, MaxRestores: cfg.Checkpoints.MaxRestores, MaxEndedKept: cfg.Sessions.MaxEndedKept, DrainOnStop: cfg.Sessions.DrainOnStop, EndOnStop: cfg.Sessions.EndOnStop, Metrics: n.registry, Logger: log,
	}
	for _, step := range []func(context.Context, *agent.Options) error{n.dialer, n.peering, n.dataDir, n.checkpoints, n.machine} {
		if err := step(ctx, &opts); err != nil {
			return nil, err
		}
	}
	if n.agent, err = agent.New(opts); err != nil {
		return nil, err
	}
	if cfg.Metrics.Listen != "" {
		if n.listener, err = net.Listen("tcp", cfg.Metrics.Listen); err != nil {
			return nil, fault.New(fault.Invalid, "metrics.listen: %w; choose another port, or none", err)
		}
	}
	return n, nil
}

// dialer says how servers are reached.
func (n *node) dialer(_ context.Context, o *agent.Options) error {
	d := nodelink.DialOptions{JSON: n.cfg.Link.Codec == codecJSON}
	switch {
	case n.cfg.usesTLS():
		certs, err := auth.LoadCerts(auth.Files{Cert: n.cfg.TLS.CertFile, Key: n.cfg.TLS.KeyFile, CA: n.cfg.TLS.CAFile}, auth.DefaultRecheck, n.log, time.Now)
		if err != nil {
			return err
		}
		n.registry.MustRegister(certs)
		n.certs = certs
		d.TLS = func() (*tls.Config, error) { return certs.NodeTLS(), nil }
	case n.cfg.Insecure:
		n.log.Warn("INSECURE: the node link is not encrypted and servers are not verified, because insecure: true says so")
	}
	if n.cfg.TokenFile != "" {
		if _, err := readToken(n.cfg.TokenFile); err != nil {
			return err
		}
		d.Token = func() (string, error) { return readToken(n.cfg.TokenFile) } // anew at each dial: tokens are rotated
	}
	o.Dial = nodelink.DialWebSocket(d)
	n.servers = checkpoint.NewServers(n.cfg.Servers, n.chunkClient(d))
	o.OnServers = n.servers.Use
	return nil
}

func readToken(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fault.New(fault.Invalid, "token_file: %w; make it readable for this user", err)
	}
	t, err := auth.Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fault.New(fault.Invalid, "token_file: %s: %w", file, err)
	}
	return t.Reveal(), nil
}

// dataDir makes what lies in the data directory beside the agent's own: the shim and the lease.
func (n *node) dataDir(_ context.Context, o *agent.Options) error {
	dir, err := filepath.Abs(n.cfg.DataDir)
	if err != nil {
		return fault.New(fault.Invalid, "data_dir: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.New(fault.Invalid, "data_dir: %w; make it writable for this user, or choose another one", err)
	}
	program := shim.Self()
	path, err := embed.Extract(dir)
	switch {
	case err != nil:
		return fault.New(fault.Invalid, "data_dir: %w; make it writable for this user", err)
	case path != "":
		program = shim.Program{Path: path}
	default:
		n.log.Warn("no shim is built in, so this larger program stands beside each session; build with `make build`")
	}
	o.DataDir, o.LeasePath = dir, filepath.Join(dir, "lease")
	if n.lease, err = lease.OpenWriter(o.LeasePath); err != nil {
		return fault.New(fault.Invalid, "data_dir: %w; make it writable for this user", err)
	}
	o.Lease = n.lease
	total := int64(n.cfg.Sessions.OutputLogBytes)
	o.Drivers = map[string]driver.Driver{session.TypeProcess: process.New(process.Options{
		Shim: program, Logger: n.log, NoCgroups: !n.cfg.Sessions.Cgroups,
		LogTotalBytes: total, LogSegmentBytes: min(outputlog.DefaultSegmentBytes, total/2), // of one segment nothing can go
	})}
	return nil
}

// checkpoints says what captures and restores sessions. It is opened once the data directory is this agent's.
func (n *node) checkpoints(_ context.Context, o *agent.Options) error {
	cfg, dir := n.cfg.Checkpoints, o.DataDir
	o.Checkpoints = func() (checkpoint.Keeper, error) {
		k := checkpoint.Options{Store: n.servers, SpoolDir: filepath.Join(dir, "spool"), SpoolBytes: int64(cfg.SpoolBytes),
			Parallel: cfg.Parallel, Captures: cfg.MaxCaptures, Release: telemetry.ThisBuild().Version, Logger: n.log}
		if cfg.CacheBytes > 0 {
			var err error
			if n.cache, err = cache.Open(cmp.Or(cfg.CacheDir, filepath.Join(dir, "chunks")), cache.Options{MaxBytes: int64(cfg.CacheBytes), Logger: n.log}); err != nil {
				return nil, fault.New(fault.FailedPrecondition, "checkpoints.cache_dir: %w; choose another one", err)
			}
			k.Cache = n.cache
			n.registry.MustRegister(cacheMetrics(n.cache)...)
		}
		n.lendAndBorrow(&k)
		keeper, err := checkpoint.New(k)
		if err != nil {
			return nil, err
		}
		n.registry.MustRegister(sourceMetrics(keeper.Sources(), n.peers.lender)...)
		return keeper, nil
	}
	return nil
}

// machine finds out what the node can run and begins to measure it.
func (n *node) machine(ctx context.Context, o *agent.Options) error {
	found, err := capability.Detect(ctx)
	if err != nil {
		return err
	}
	declared, err := n.cfg.declared()
	if err != nil {
		return err
	}
	o.Capabilities = capability.Merge(declared, found)
	o.Sampler, err = health.NewMachine(ctx, o.DataDir)
	return err
}

// sweep kills what lives of a session whose record is damaged: its shim, and everything that the shim's own record names.
func sweep(ctx context.Context, sessionDir string) error {
	run, err := shim.ReadRun(sessionDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was started
	}
	if err != nil {
		return err
	}
	boot, err := lease.Boot()
	if err != nil {
		return fmt.Errorf("sweep %s: %w", sessionDir, err)
	}
	if run.Boot != string(boot[:]) {
		return nil // nothing lives that was started before the machine was
	}
	run.Shim.Kill()
	return shim.Sweep(ctx, run)
}

// run works until ctx ends, or until a part fails. What serves others does so until the agent has ended: it may take its time.
func (n *node) run(ctx context.Context) error {
	defer n.close()
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, agentCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer stop()
		return n.agent.Run(agentCtx)
	})
	if n.listener != nil {
		group.Go(func() error { return n.serveHTTP(serving) })
	}
	if n.peers.listener != nil {
		group.Go(func() error { return n.servePeers(serving) })
	}
	return group.Wait()
}

// close frees what run has not. It is idempotent.
func (n *node) close() {
	if n.agent != nil {
		n.agent.Close()
	}
	n.peers.close()
	if n.servers != nil {
		_ = n.servers.Close()
	}
	if n.cache != nil {
		_ = n.cache.Close()
		n.cache = nil
	}
	if n.lease != nil {
		_ = n.lease.Close()
	}
	if n.listener != nil {
		_ = n.listener.Close()
	}
}
