// Checkpoints of trees that are none, in a store that is none.

package fake

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/internal/fault"
)

// beforeMax bounds the messages that a tree remembers of the epochs that it goes on from; the oldest go first.
const beforeMax = 1 << 16

// VaultOptions say how long a Vault takes. All of it passes in the caller's goroutine.
type VaultOptions struct {
	CopyTime, ReadTime, StoreTime, RestoreTime time.Duration
	// ImageBytes is how much a session is said to hold, and to send when it is copied first; 1 MiB when 0.
	ImageBytes int64
}

// Vault is the chunk store of a simulation: what it keeps, all machines can restore. It outlives agents and machines.
type Vault struct {
	opt VaultOptions

	mu     sync.Mutex
	down   bool
	images map[[32]byte]*image
	warm   map[string]bool // by session: something of it is stored
	n      uint64
}

// image is a tree between two turns.
type image struct {
	session checkpoint.Session
	lines   []*apiv1.LogLine
	order   []Seen // of all its epochs
	count   int
	sum     int64
}

// NewVault makes an empty store.
func NewVault(o VaultOptions) *Vault {
	if o.ImageBytes == 0 {
		o.ImageBytes = 1 << 20
	}
	return &Vault{opt: o, images: make(map[[32]byte]*image), warm: make(map[string]bool)}
}

// SetDown makes the store unreachable, or lets it be reached again.
func (v *Vault) SetDown(down bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.down = down
}

// Given returns what the checkpointed session had been given, in its order over all its epochs; false when there is no such
// checkpoint.
func (v *Vault) Given(manifest [32]byte) ([]Seen, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	im := v.images[manifest]
	if im == nil {
		return nil, false
	}
	return slices.Clone(im.order), true
}

// Delete drops a checkpoint, as a store's collection does.
func (v *Vault) Delete(manifest [32]byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.images, manifest)
}

var errDown = fault.New(fault.Unavailable, "fake: the chunk store cannot be reached")

func (v *Vault) reach(ctx context.Context, d time.Duration) error {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.down {
		return errDown
	}
	return nil
}

// Keeper is what an agent on the machine captures its sessions with, and restores them.
func (m *Machine) Keeper(v *Vault) checkpoint.Keeper {
	return &keeper{m: m, v: v, staged: map[string]string{}}
}

type keeper struct {
	m *Machine
	v *Vault

	mu     sync.Mutex
	staged map[string]string // by session: the directory of what is ready
}

// Warm says whether anything of the session is stored.
func (k *keeper) Warm(id string) bool {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	return k.v.warm[id]
}

// Copy sends the whole image once, and nothing after.
func (k *keeper) Copy(ctx context.Context, s checkpoint.Session, _ bool) (r checkpoint.Round, err error) {
	if err := k.v.reach(ctx, k.v.opt.CopyTime); err != nil {
		return r, err
	}
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	if !k.v.warm[s.ID] {
		k.v.warm[s.ID] = true
		r.Sent = checkpoint.Sent{Sent: k.v.opt.ImageBytes, Content: k.v.opt.ImageBytes}
	}
	k.v.n++
	r.Manifest = sha256.Sum256(binary.BigEndian.AppendUint64([]byte("a round of "+s.ID), k.v.n))
	r.Bytes = k.v.opt.ImageBytes
	return r, nil
}

// Stage takes the time of a restore, and leaves an empty directory.
func (k *keeper) Stage(ctx context.Context, st checkpoint.Staging) (int64, error) {
	k.mu.Lock()
	k.staged[st.SessionID] = st.Dir
	k.mu.Unlock()
	if err := os.MkdirAll(st.Dir, 0o700); err != nil {
		return 0, fmt.Errorf("fake: stage session %s: %w", st.SessionID, err)
	}
	return k.v.opt.ImageBytes, k.v.reach(ctx, k.v.opt.RestoreTime)
}

// Unstage removes the directory.
func (k *keeper) Unstage(id string) error {
	k.mu.Lock()
	dir := k.staged[id]
	delete(k.staged, id)
	k.mu.Unlock()
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}

// Lend has nothing to lend: there are no chunks.
func (k *keeper) Lend(string, string) {}

// Recall has nothing to do.
func (k *keeper) Recall(string, time.Duration) {}

// Capture takes the tree as it is. One that is at work, or works meanwhile, is an error: nobody may capture it then.
func (k *keeper) Capture(ctx context.Context, s checkpoint.Session) (checkpoint.Capture, error) {
	im, err := k.m.image(s)
	if err != nil {
		return nil, err
	}
	if d := k.v.opt.ReadTime; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		after, err := k.m.image(s)
		if err != nil {
			return nil, err
		}
		if after.count != im.count {
			return nil, fault.New(fault.Internal, "fake: session %s was given messages while it was captured", s.ID)
		}
	}
	return &captured{k.v, im}, nil
}

// image copies the state of a tree.
func (m *Machine) image(s checkpoint.Session) (*image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.trees[s.ID]
	switch {
	case t == nil || t.s.Epoch != s.Epoch || t.exit != nil:
		return nil, fault.New(fault.Aborted, "fake: epoch %d of session %s does not run here", s.Epoch, s.ID)
	case t.outstanding != 0:
		return nil, fault.New(fault.Internal, "fake: session %s was captured while the turn of message %d was under way", s.ID, t.outstanding)
	}
	im := &image{session: s, count: t.count, sum: t.sum, order: slices.Clone(t.before)}
	for _, sequence := range t.order {
		im.order = append(im.order, Seen{s.ID, sequence})
	}
	im.order = im.order[max(0, len(im.order)-beforeMax):]
	for _, l := range t.lines {
		if l.GetNumber() <= s.OutputLine {
			im.lines = append(im.lines, l)
		}
	}
	return im, nil
}

type captured struct {
	v  *Vault
	im *image
}

func (c *captured) Discard() {}

// Store keeps the image under a name of its own.
func (c *captured) Store(ctx context.Context) (st checkpoint.Stored, err error) {
	if err := c.v.reach(ctx, c.v.opt.StoreTime); err != nil {
		return st, err
	}
	c.v.mu.Lock()
	defer c.v.mu.Unlock()
	c.v.n++
	id := sha256.Sum256(binary.BigEndian.AppendUint64(fmt.Append(nil, c.im.session.ID, "/", c.im.session.Epoch, "/", c.im.session.Sequence, "/"), c.v.n))
	c.v.images[id] = c.im
	sent := c.v.opt.ImageBytes
	if c.v.warm[c.im.session.ID] {
		sent /= 100
	}
	c.v.warm[c.im.session.ID] = true
	return checkpoint.Stored{Manifest: id, Bytes: c.v.opt.ImageBytes, Sent: checkpoint.Sent{Sent: sent, Content: sent}, Chunks: 2,
		Keeps: c.im.session.Keeps}, nil
}

// Restore has the session's next Start on this machine, of the epoch that begins with it, go on from the checkpoint.
func (k *keeper) Restore(ctx context.Context, r checkpoint.Restore) (got checkpoint.Restored, err error) {
	if err := k.v.reach(ctx, k.v.opt.RestoreTime); err != nil {
		return got, err
	}
	if err := k.Unstage(r.SessionID); err != nil {
		return got, err
	}
	k.v.mu.Lock()
	im := k.v.images[r.Manifest]
	k.v.mu.Unlock()
	if im == nil {
		return got, fault.New(fault.NotFound, "fake: there is no checkpoint %x", r.Manifest[:4])
	}
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	k.m.restored[r.SessionID] = restored{epoch: r.Epoch, manifest: r.Manifest, im: im, line: r.OutputLine, notice: r.Notice}
	return checkpoint.Restored{Turn: im.session.Turn, Bytes: k.v.opt.ImageBytes, Fetched: k.v.opt.ImageBytes}, nil
}

// restored waits for the start of its epoch.
type restored struct {
	epoch    uint32
	manifest [32]byte
	im       *image
	line     uint64
	notice   string
}

// goOn gives a new tree what was restored for it. The Machine's lock is held.
func (t *tree) goOn(r restored) {
	t.lines, t.last = nil, r.line
	for _, l := range r.im.lines {
		if l.GetNumber() <= r.line {
			t.lines = append(t.lines, l)
		}
	}
	if r.notice != "" {
		t.notice = &apiv1.LogLine{Stream: apiv1.LogLine_NOTICE, Time: timestamppb.Now(), Epoch: t.s.Epoch, Text: []byte(r.notice)}
		t.noticeAt = r.line
	}
	t.count, t.sum, t.before = r.im.count, r.im.sum, slices.Clone(r.im.order)
	t.restored = &r.manifest
}
