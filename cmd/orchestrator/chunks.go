// The chunk store of a server: its own directory, the other servers' beside it, and who is let in.
//
//	node ──► /v1/chunks/ ──► cluster store ──► directory here
//	                          │    └─────────► /v1/chunks/ of each other server, as a server ──► its directory
//	                          └──────────────► bucket, where the settings choose one
//
// Nodes are served by the cluster's store, of which a majority of the voters must have each chunk; servers by the directory
// alone. Where there is a bucket, all of it is there, and directories are only read: for what was stored before there was one.

package main

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/chunks/dir"
	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/chunks/majority"
	"github.com/neolith/orchestrator/chunks/s3"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	// peerHeader carries the servers' secret where there is no TLS.
	peerHeader = "X-Orchestrator-Peer"
	// membersEvery is how old the list of servers may be that chunks are written to.
	membersEvery = 2 * time.Second
)

// chunkStore is the cluster's store as this server sees it. It implements chunks.Store.
type chunkStore struct {
	id      string
	local   *dir.Store
	bucket  *s3.Store // nil for the servers' directories
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
	local, err := dir.Open(filepath.Join(cfg.DataDir, "chunks"), dir.Options{MaxBytes: int64(cfg.Chunks.MaxBytes), Prepared: true, Logger: log})
	if err != nil {
		return nil, err
	}
	scheme := "http://"
	if peer != nil {
		scheme = "https://"
	}
	var bucket *s3.Store
	if cfg.Chunks.Store == storeS3 {
		if bucket, err = openBucket(cfg.Chunks.S3, log); err != nil {
			return nil, errors.Join(err, local.Close())
		}
	}
	return &chunkStore{
		id: cfg.Name, local: local, bucket: bucket, members: members, log: log,
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
	if c.bucket != nil {
		_ = c.bucket.Close()
	}
	return c.local.Close()
}

// Missing implements chunks.Store.
func (c *chunkStore) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	if c.bucket != nil {
		return c.bucket.Missing(ctx, ids)
	}
	s, err := c.store()
	if err != nil {
		return nil, err
	}
	return s.Missing(ctx, ids)
}

// Put implements chunks.Store.
func (c *chunkStore) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if c.bucket != nil {
		return c.bucket.Put(ctx, id, frame)
	}
	s, err := c.store()
	if err != nil {
		return err
	}
	return s.Put(ctx, id, frame)
}

// Get implements chunks.Store. What was stored before there was a bucket is in the directories.
func (c *chunkStore) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	if c.bucket != nil {
		frame, err := c.bucket.Get(ctx, id)
		if !fault.Is(err, fault.NotFound) {
			return frame, err
		}
	}
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
