// The chunk store of a server: its own directory, the other servers' beside it, and who is let in.
//
//	node ──► /v1/chunks/ ──► cluster store ──► directory here
//	                               └─────────► /v1/chunks/ of each other server, as a server ──► its directory
//
// Nodes are served by the cluster's store, of which a majority of the voters must have each chunk; servers by the directory
// alone.

package main

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"iter"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/dir"
	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/chunks/majority"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

const (
	// peerHeader carries the servers' secret where there is no TLS.
	peerHeader = "X-Orchestrator-Peer"
	// membersEvery is how old the list of servers may be that chunks are written to.
	membersEvery = 2 * time.Second
	// sweepEvery is how often chunks are looked for that no checkpoint names; younger ones than sweepGrace stay. A checkpoint must
	// be committed within it.
	sweepEvery = time.Hour
	sweepGrace = 6 * time.Hour
	// maxLag is how long ago a server may have heard of its leader that sweeps.
	maxLag = 10 * time.Second
)

// chunkStore is the cluster's store as this server sees it. It implements chunks.Store.
type chunkStore struct {
	id      string
	local   *dir.Store
	members func() ([]cluster.Member, error)
	dial    func(address string) (*chunkhttp.Client, error)
	log     *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	servers []string // id and address of each, as all was made from
	all     *majority.Store
	clients []*chunkhttp.Client
}

// openChunks opens the directory; the rest follows the members.
func openChunks(cfg Config, secret string, peer *tls.Config, members func() ([]cluster.Member, error), log *slog.Logger) (*chunkStore, error) {
	local, err := dir.Open(filepath.Join(cfg.DataDir, "chunks"), dir.Options{MaxBytes: int64(cfg.Chunks.MaxBytes), Logger: log})
	if err != nil {
		return nil, err
	}
	scheme := "http://"
	if peer != nil {
		scheme = "https://"
	}
	return &chunkStore{
		id: cfg.Name, local: local, members: members, log: log,
		dial: func(address string) (*chunkhttp.Client, error) {
			o := chunkhttp.ClientOptions{URL: scheme + address, Credentials: func(r *http.Request) error {
				r.Header.Set(peerHeader, secret)
				return nil
			}}
			if peer != nil {
				o.Credentials = nil // the certificate says it
				o.Transport = &http.Transport{TLSClientConfig: peer.Clone(), MaxIdleConnsPerHost: 16, IdleConnTimeout: idleTimeout}
			}
			return chunkhttp.NewClient(o)
		},
	}, nil
}

// store returns the store of the servers that there are now.
func (c *chunkStore) store() (*majority.Store, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all != nil && time.Since(c.looked) < membersEvery {
		return c.all, nil
	}
	members, err := c.members()
	if err != nil {
		return nil, fault.New(fault.Unavailable, "chunks: %w", err)
	}
	members = slices.DeleteFunc(members, func(m cluster.Member) bool { return !m.Voter && m.ID != c.id })
	c.looked = time.Now()
	var is []string
	for _, m := range members {
		is = append(is, m.ID, m.LinkAddress)
	}
	if c.all != nil && slices.Equal(is, c.servers) {
		return c.all, nil
	}
	return c.rebuild(members, is)
}

// rebuild makes the store of other members. What the one before still has under way goes on.
func (c *chunkStore) rebuild(members []cluster.Member, is []string) (*majority.Store, error) {
	var stores []majority.Member
	var clients []*chunkhttp.Client
	for _, m := range members {
		switch {
		case m.ID == c.id:
			stores = append(stores, majority.Member{Name: m.ID, Store: c.local, Local: true})
		case m.LinkAddress == "":
			stores = append(stores, majority.Member{Name: m.ID, Store: unreachable(m.ID)})
		default:
			cl, err := c.dial(m.LinkAddress)
			if err != nil {
				return nil, err
			}
			clients = append(clients, cl)
			stores = append(stores, majority.Member{Name: m.ID, Store: cl})
		}
	}
	if len(stores) == 0 {
		stores = []majority.Member{{Name: c.id, Store: c.local, Local: true}}
	}
	all, err := majority.New(stores, majority.Options{Logger: c.log})
	if err != nil {
		return nil, err
	}
	c.closeRemote()
	c.all, c.clients, c.servers = all, clients, is
	return all, nil
}

func (c *chunkStore) closeRemote() {
	if c.all != nil {
		_ = c.all.Close()
	}
	for _, cl := range c.clients {
		_ = cl.Close()
	}
}

// Close ends what is under way, and closes the directory.
func (c *chunkStore) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeRemote()
	return c.local.Close()
}

// Missing implements chunks.Store.
func (c *chunkStore) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	s, err := c.store()
	if err != nil {
		return nil, err
	}
	return s.Missing(ctx, ids)
}

// Put implements chunks.Store.
func (c *chunkStore) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	s, err := c.store()
	if err != nil {
		return err
	}
	return s.Put(ctx, id, frame)
}

// Get implements chunks.Store.
func (c *chunkStore) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	s, err := c.store()
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, id)
}

// unreachable is a server whose address is not known.
type unreachable string

func (u unreachable) err() error {
	return fault.New(fault.Unavailable, "chunks: the address of server %s is not known", string(u))
}

// Missing implements chunks.Store.
func (u unreachable) Missing(context.Context, []chunk.ID) ([]chunk.ID, error) { return nil, u.err() }

// Put implements chunks.Store.
func (u unreachable) Put(context.Context, chunk.ID, []byte) error { return u.err() }

// Get implements chunks.Store.
func (u unreachable) Get(context.Context, chunk.ID) ([]byte, error) { return nil, u.err() }

// chunkHandler serves nodes and servers.
func (s *server) chunkHandler() http.Handler {
	nodes := chunkhttp.NewHandler(s.chunks, chunkhttp.HandlerOptions{Authorize: s.authorizeLink, Logger: s.log})
	servers := chunkhttp.NewHandler(s.chunks.local, chunkhttp.HandlerOptions{
		Authorize: func(*http.Request) (string, error) { return "server", nil }, RequestsMax: 64, RequestsPerClientMax: 64, Logger: s.log,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.fromPeer(r) {
			servers.ServeHTTP(w, r)
			return
		}
		nodes.ServeHTTP(w, r)
	})
}

// fromPeer reports whether another server asks.
func (s *server) fromPeer(r *http.Request) bool {
	if r.TLS != nil {
		id, ok := auth.PeerIdentity(r.TLS)
		return ok && id.Role == auth.Server
	}
	return s.certs == nil && subtle.ConstantTimeCompare([]byte(r.Header.Get(peerHeader)), []byte(s.secret)) == 1
}

// sweepChunks deletes, now and then, what no checkpoint names from the directory of this server.
func (s *server) sweepChunks(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		// A server that lags by more than the grace would take what is needed for garbage.
		if st := s.node.Stats(); st.LastContact < 0 || st.LastContact > maxLag || s.node.AppliedIndex() < s.node.CommitIndex() {
			s.log.Debug("chunks were not swept: the state may be behind")
			continue
		}
		swept, err := chunks.Sweep(ctx, s.chunks.local, liveChunks(s.store.View(), s.chunks), sweepGrace, now)
		if err != nil && !errors.Is(err, context.Canceled) {
			s.log.Warn("chunks could not be swept", "error", err)
			continue
		}
		s.log.Info("chunks were swept", "needed", swept.Live, "young", swept.Young, "deleted", swept.Deleted, "deleted_bytes", swept.DeletedBytes)
	}
}

// liveChunks yields what the checkpoints of all sessions name.
func liveChunks(view *state.View, from chunks.Source) chunks.Live {
	return func(ctx context.Context) iter.Seq2[chunk.ID, error] {
		return func(yield func(chunk.ID, error) bool) {
			seen := map[session.ManifestID]bool{}
			for s := range view.Sessions("") {
				for _, c := range s.Checkpoints {
					if seen[c.Manifest] {
						continue
					}
					seen[c.Manifest] = true
					m, stored, err := serializer.LoadManifest(ctx, from, chunk.ID(c.Manifest))
					if fault.Is(err, fault.NotFound) {
						continue // it cannot be restored any more; that must not keep all garbage for ever
					}
					if err != nil {
						yield(chunk.ID{}, err)
						return
					}
					for _, id := range stored.Parts {
						if !yield(id, nil) {
							return
						}
					}
					for _, c := range m.Chunks {
						if !yield(c.ID, nil) {
							return
						}
					}
				}
			}
		}
	}
}
