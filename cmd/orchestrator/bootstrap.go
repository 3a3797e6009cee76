// The first leader's first acts: the cluster's id, and its first admin token.

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
)

// adminTokenFile is where a token that was made is put, in the data directory.
const adminTokenFile = "admin-token"

// lead is this server's leadership.
func (s *server) lead(ctx context.Context, term uint64) {
	for ctx.Err() == nil {
		err := s.initCluster(ctx)
		if err == nil {
			break
		}
		s.log.Error("could not write the cluster's first entries; trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	s.leader.Run(ctx, term)
}

// initCluster gives a new cluster its id and its first token; on any other it does nothing.
func (s *server) initCluster(ctx context.Context) error {
	v := s.store.View()
	if v.ClusterID() == "" {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		if _, err := s.node.Propose(ctx, &clusterv1.Command{Kind: &clusterv1.Command_InitCluster{InitCluster: &clusterv1.InitCluster{ClusterId: hex.EncodeToString(id[:])}}}); err != nil {
			return err
		}
	}
	if s.cfg.Auth.Tokens && v.Stats().Tokens == 0 {
		return s.firstToken(ctx)
	}
	return nil
}

// firstToken makes the bootstrap token known to the cluster: the given one, or one that it makes and writes to a file.
func (s *server) firstToken(ctx context.Context) error {
	var t auth.Token
	made := ""
	if file := s.cfg.Auth.BootstrapTokenFile; file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return fault.New(fault.Invalid, "auth.bootstrap_token_file: %w", err)
		}
		if t, err = auth.Parse(strings.TrimSpace(string(b))); err != nil {
			return fault.New(fault.Invalid, "auth.bootstrap_token_file: %s: %w", file, err)
		}
	} else {
		t, made = auth.Generate(), filepath.Join(s.cfg.DataDir, adminTokenFile)
		// Written first: a token that is known to the cluster and to nobody else would lock everybody out.
		if err := renameio.WriteFile(made, []byte(t.Reveal()+"\n"), 0o600); err != nil {
			return fault.New(fault.Internal, "write %s: %w", made, err)
		}
	}
	results, err := s.node.Propose(ctx, &clusterv1.Command{Kind: &clusterv1.Command_CreateToken{CreateToken: &clusterv1.CreateToken{
		Id: t.ID, Name: "bootstrap", Role: string(auth.Admin), Hash: t.Hash(), OnlyFirst: true,
	}}})
	if err != nil {
		return err
	}
	if results[0].Err != nil { // there is a token already
		if made != "" {
			if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.log.Warn("could not remove an admin token that is not in force", "file", made, "error", err)
			}
		}
		return nil
	}
	if made != "" {
		s.log.Info("the first admin token is in a file; move it to where only you read it", "file", made)
	}
	return nil
}
