// Nodes as programs fetch from each other: over TLS with their own certificates, with the token of a move, and from no one else.

package main

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/agent"
	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestNodesFetchFromEachOther(t *testing.T) {
	authority := func() *auth.CA {
		ca, err := auth.InitCA(filepath.Join(t.TempDir(), "ca"), "test", time.Now)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	ours, theirs := authority(), authority()
	start := func(name, serve string, ca *auth.CA) *node {
		t.Helper()
		issued, err := ca.Issue(auth.CertRequest{Role: auth.Node, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		files, err := issued.Write(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		cfg := defaults()
		cfg.Name, cfg.DataDir, cfg.Servers, cfg.Checkpoints.Serve = name, t.TempDir(), []string{"127.0.0.1:1"}, serve
		cfg.TLS.CAFile, cfg.TLS.CertFile, cfg.TLS.KeyFile = files.CA, files.Cert, files.Key
		n, err := newNode(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return n
	}
	source, target, foreign := start("n1", ":0", ours), start("n2", "", ours), start("n3", "", theirs)
	of := chunkstest.Chunk(1, 100_000)
	if err := source.cache.Put(t.Context(), of.ID, of.Bytes); err != nil {
		t.Fatal(err)
	}
	const token = "the token of a move"
	source.peers.lender.Lend("s", token, func(id chunk.ID) bool { return id == of.ID })
	address := source.peers.listener.Addr().String()
	if !strings.HasPrefix(address, "127.0.0.1:") {
		t.Errorf("it listens on %s, and its servers are on loopback", address)
	}
	gets := func(n *node, token string) bool {
		t.Helper()
		var k checkpoint.Options
		n.lendAndBorrow(&k)
		b, err := k.Borrow(checkpoint.Peer{Address: address, Token: token})
		if err != nil {
			t.Fatal(err)
		}
		frame, ok := b.Get(t.Context(), of.ID)
		if ok && !bytes.Equal(frame, of.Bytes) {
			t.Error("something else came")
		}
		return ok
	}
	if !gets(target, token) {
		t.Error("the target does not get what is lent to it")
	}
	if gets(target, "the token of another") {
		t.Error("any token will do")
	}
	if gets(foreign, token) {
		t.Error("a node of another cluster gets it")
	}
}

// Without TLS, and by itself, a node opens nothing beyond this machine.
func TestServing(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"no port":       {[]string{"--checkpoints-serve", "10.0.0.7"}, "use :0 for the address"},
		"for all":       {[]string{"--checkpoints-serve", "0.0.0.0:0"}, "checkpoints.serve: 0.0.0.0:0 can be reached from other machines, with no TLS"},
		"no cache":      {[]string{"--checkpoints-serve", ":0", "--checkpoints-cache-bytes", "0"}, "what is served is in the cache"},
		"no own key":    {[]string{"--checkpoints-serve", ":0", "--tls-ca-file", "ca.pem"}, "nodes know each other by their certificates"},
		"not this host": {[]string{"--checkpoints-serve", "192.0.2.1:0", "--insecure"}, "choose another address, or none"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := program(t, append([]string{"run", "--data-dir", t.TempDir()}, tc.args...)...)
			if code != exitcode.Usage || !strings.Contains(stderr, tc.says) {
				t.Errorf("exit code %d; said %q, want %q", code, stderr, tc.says)
			}
		})
	}
	if cfg := defaults(); cfg.Checkpoints.Serve != "" {
		t.Error("nodes serve without having been told to")
	}
	n := &node{cfg: defaults(), log: slog.New(slog.DiscardHandler)}
	n.cfg.Checkpoints.Serve = "0.0.0.0:0"
	n.cfg.Insecure = true
	var o agent.Options
	if err := n.peering(t.Context(), &o); err != nil {
		t.Fatal(err)
	}
	defer n.peers.close()
	if !strings.HasPrefix(o.ChunkAddress, "127.0.0.1:") || strings.HasSuffix(o.ChunkAddress, ":0") {
		t.Errorf("other nodes are told %s", o.ChunkAddress)
	}
}
