// A chunk store without chunks: whole workspaces, shared by the nodes of a test.

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/internal/fault"
)

// vault is a keeper of all nodes.
type vault struct {
	mu        sync.Mutex
	kept      map[[32]byte]image
	down      bool // nothing can be stored
	torn      bool // something of each session cannot be captured
	cold      bool // sessions are copied before their first capture
	warm      map[string]bool
	rounds    []checkpoint.Round // what the next copies do; then nothing
	copies    int
	staged    []string          // what was made ready, and what was let go of
	lent      []string          // to whom, and what was called back
	peers     []checkpoint.Peer // that restores were to ask
	restores  int
	spooled   int // captures that are neither stored nor given up
	readTime  time.Duration
	storeTime time.Duration
	copyTime  time.Duration
}

type image struct {
	Session checkpoint.Session
	Ledger  string
}

func newVault() *vault { return &vault{kept: map[[32]byte]image{}, warm: map[string]bool{}} }

func (v *vault) open() (checkpoint.Keeper, error) { return v, nil }

func (v *vault) locked(f func()) { v.mu.Lock(); defer v.mu.Unlock(); f() }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *vault) times() (read, store, copying time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.readTime, v.storeTime, v.copyTime
}

var (
	errDown = fault.New(fault.Unavailable, "the store is down")
	errTorn = fault.New(fault.FailedPrecondition, "the session would lose x")
)

func (v *vault) Warm(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.cold || v.warm[id]
}

func (v *vault) Copy(ctx context.Context, s checkpoint.Session, _ bool) (r checkpoint.Round, err error) {
	_, _, d := v.times()
	if err := sleep(ctx, d); err != nil {
		return r, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.down {
		return r, errDown
	}
	if v.torn && s.Whole {
		return r, errTorn
	}
	v.copies++
	if s.Progress != nil {
		for i := range int64(1000) {
			s.Progress(i+1, 1000)
		}
	}
	v.warm[s.ID] = true
	if len(v.rounds) > 0 {
		r, v.rounds = v.rounds[0], v.rounds[1:]
	}
	if r.Manifest == ([32]byte{}) {
		r.Manifest[31] = byte(v.copies)
	}
	return r, nil
}

func (v *vault) Stage(ctx context.Context, s checkpoint.Staging) (int64, error) {
	_, _, d := v.times()
	if err := sleep(ctx, d); err != nil {
		return 0, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.down {
		return 0, errDown
	}
	v.staged = append(v.staged, fmt.Sprint(s.SessionID, " ", s.Manifest[0]))
	if s.Peer != nil {
		v.peers = append(v.peers, *s.Peer)
	}
	return 1, nil
}

func (v *vault) Unstage(id string) error {
	v.locked(func() { v.staged = append(v.staged, id+" gone") })
	return nil
}

func (v *vault) Lend(id, token string) {
	v.locked(func() { v.lent = append(v.lent, id+" "+token) })
}

func (v *vault) Recall(id string, after time.Duration) {
	v.locked(func() { v.lent = append(v.lent, fmt.Sprint(id, " back after ", after)) })
}

func ledgerOf(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "workspace", "ledger"))
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func (v *vault) Capture(ctx context.Context, s checkpoint.Session) (checkpoint.Capture, error) {
	before := ledgerOf(s.Dir)
	d, _, _ := v.times()
	if err := sleep(ctx, d); err != nil {
		return nil, err
	}
	if after := ledgerOf(s.Dir); after != before {
		return nil, fault.New(fault.Aborted, "the session worked while it was read: %q became %q", before, after)
	}
	var torn bool
	v.locked(func() { torn = v.torn })
	if torn && s.Whole {
		return nil, errTorn
	}
	v.locked(func() { v.spooled++ })
	c := &vaulted{v: v, image: image{s, before}}
	if torn {
		c.leftOut = "x"
	}
	return c, nil
}

type vaulted struct {
	v       *vault
	image   image
	leftOut string
}

func (c *vaulted) Discard() { c.v.locked(func() { c.v.spooled-- }) }

func (c *vaulted) Store(ctx context.Context) (st checkpoint.Stored, err error) {
	_, d, _ := c.v.times()
	if err := sleep(ctx, d); err != nil {
		return st, err
	}
	c.v.mu.Lock()
	defer c.v.mu.Unlock()
	if c.v.down {
		return st, errDown
	}
	b, err := json.Marshal(c.image)
	if err != nil {
		return st, err
	}
	id := sha256.Sum256(b)
	c.v.kept[id] = c.image
	c.v.spooled--
	return checkpoint.Stored{Manifest: id, Bytes: 1000, Sent: checkpoint.Sent{Sent: 10, Content: 20}, Chunks: 1, Keeps: []string{"workspace"}, LeftOut: c.leftOut}, nil
}

func (v *vault) Restore(ctx context.Context, r checkpoint.Restore) (got checkpoint.Restored, err error) {
	d, _, _ := v.times()
	if err := sleep(ctx, d); err != nil {
		return got, err
	}
	v.mu.Lock()
	im, ok := v.kept[r.Manifest]
	if r.Peer != nil {
		v.peers = append(v.peers, *r.Peer)
	}
	v.restores++
	down := v.down
	v.mu.Unlock()
	if down {
		return got, errDown
	}
	if !ok {
		return got, fault.New(fault.NotFound, "there is no such checkpoint")
	}
	if err := os.Mkdir(filepath.Join(r.Dir, "workspace"), 0o700); err != nil {
		return got, err
	}
	text := strings.ReplaceAll(im.Ledger+" ", " ", "\n")
	return checkpoint.Restored{Turn: im.Session.Turn}, os.WriteFile(filepath.Join(r.Dir, "workspace", "ledger"), []byte(strings.TrimPrefix(text, "\n")), 0o600)
}
