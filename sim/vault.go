// The chunk store, as an agent reaches it: over the network, from the servers, and not at all while it is stopped.

package sim

import (
	"context"
	"time"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/driver/fake"
	"github.com/neolith/orchestrator/internal/fault"
)

// vaultTimes are long enough for a fault to fall into any of them, and short beside a lease.
func vaultTimes() fake.VaultOptions {
	return fake.VaultOptions{
		CopyTime: 200 * time.Millisecond, ReadTime: 20 * time.Millisecond, StoreTime: 100 * time.Millisecond, RestoreTime: 200 * time.Millisecond,
	}
}

const (
	storePatience = 10 * time.Second // of a transfer that gets nowhere
	storeRetry    = 100 * time.Millisecond
	storeTrips    = 4 // of a transfer, over a slow link
)

// keeper is what one agent keeps checkpoints with.
type keeper struct {
	checkpoint.Keeper
	*life
}

// transfer waits until the agent may act and a majority of the servers, which hold the chunks, is in reach.
func (k *keeper) transfer(ctx context.Context, at step, session string) error {
	if !k.act() {
		return context.Canceled
	}
	w := k.n.w
	if err := sleep(ctx, w.steps.reach(at, session)+storeTrips*w.net.trouble(k.n.id).delay); err != nil {
		return err
	}
	for until := time.Now().Add(storePatience); !k.n.reachesStore(); {
		if time.Now().After(until) {
			return fault.New(fault.Unavailable, "the chunk store cannot be reached from %s", k.n.id)
		}
		if err := sleep(ctx, storeRetry); err != nil {
			return err
		}
	}
	return nil
}

// over is what a transfer comes to for an agent that was stopped or killed meanwhile.
func (k *keeper) over(err error) error {
	if !k.act() {
		return context.Canceled
	}
	return err
}

// setStoreDown has nobody reach the chunks, or everybody.
func (w *World) setStoreDown(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noStore = down
	w.vault.SetDown(down)
}

func (w *World) storeIsDown() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.noStore
}

func (n *node) reachesStore() bool {
	reached := 0
	for _, s := range n.w.servers {
		if s.running() != nil && n.w.net.reaches(n.id, s.id) && n.w.net.reaches(s.id, n.id) {
			reached++
		}
	}
	return reached > len(n.w.servers)/2
}

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

// Copy implements checkpoint.Keeper.
func (k *keeper) Copy(ctx context.Context, s checkpoint.Session, manifest bool) (r checkpoint.Round, err error) {
	k.n.w.steps.copying(s.ID, true)
	defer k.n.w.steps.copying(s.ID, false)
	if err := k.transfer(ctx, stepCopying, s.ID); err != nil {
		return r, err
	}
	r, err = k.Keeper.Copy(ctx, s, manifest)
	return r, k.over(err)
}

// Stage implements checkpoint.Keeper.
func (k *keeper) Stage(ctx context.Context, st checkpoint.Staging) (int64, error) {
	if err := k.transfer(ctx, stepCopied, st.SessionID); err != nil {
		return 0, err
	}
	n, err := k.Keeper.Stage(ctx, st)
	return n, k.over(err)
}

// Restore implements checkpoint.Keeper.
func (k *keeper) Restore(ctx context.Context, r checkpoint.Restore) (got checkpoint.Restored, err error) {
	if err := k.transfer(ctx, stepRestoring, r.SessionID); err != nil {
		return got, err
	}
	got, err = k.Keeper.Restore(ctx, r)
	return got, k.over(err)
}

// Capture implements checkpoint.Keeper.
func (k *keeper) Capture(ctx context.Context, s checkpoint.Session) (checkpoint.Capture, error) {
	if !k.act() {
		return nil, context.Canceled
	}
	if err := sleep(ctx, k.n.w.steps.reach(stepCapturing, s.ID)); err != nil {
		return nil, err
	}
	c, err := k.Keeper.Capture(ctx, s)
	if err = k.over(err); err != nil {
		return nil, err
	}
	return &capture{c, k, s.ID}, nil
}

type capture struct {
	checkpoint.Capture
	k  *keeper
	id string
}

// Store implements checkpoint.Capture.
func (c *capture) Store(ctx context.Context) (st checkpoint.Stored, err error) {
	if err := c.k.transfer(ctx, stepStoring, c.id); err != nil {
		return st, err
	}
	st, err = c.Capture.Store(ctx)
	return st, c.k.over(err)
}
