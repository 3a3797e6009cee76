// A million sessions in the replicated state: what one weighs, and how long a snapshot and its restore take. Each run is
// a process of its own, and the restore another one, so that nothing of the one is weighed in the other.

package suite

import (
	"context"
	"fmt"

	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/stateload"
	"github.com/neolith/orchestrator/bench/testbed"
)

// The targets of this part.
const (
	maxBytesPerSession = 1500
	maxSaveSeconds     = 10
	maxRestoreSeconds  = 15
)

// State weighs the replicated state.
func (b *Bench) State(ctx context.Context) ([]*measure.Figure, error) {
	size := measure.Amount(float64(b.o.Sessions), "")
	f := func(name, unit string) *measure.Figure {
		return &measure.Figure{Part: "state", Name: fmt.Sprintf("%s sessions: %s", size, name), Unit: unit}
	}
	weight, save, restore := f("memory each", "B"), f("snapshot", "s"), f("restore", "s")
	restored, file, fill := f("memory each after a restore", "B"), f("snapshot file, each", "B"), f("spawn and start each, applying alone", "µs")
	n := float64(b.o.Sessions)
	for run := range b.o.Runs {
		b.logf("state: run %d of %d", run+1, b.o.Runs)
		dir, remove, err := b.dir("state")
		if err != nil {
			return nil, err
		}
		var filled stateload.Filled
		var saved, back stateload.Saved
		err = helper(stateload.Role, func(h *testbed.Helper) error {
			if err := h.Ask(ctx, "fill", stateload.FillArgs{Sessions: b.o.Sessions}, &filled); err != nil {
				return err
			}
			return h.Ask(ctx, "save", dir, &saved)
		})
		if err != nil {
			return nil, err
		}
		err = helper(stateload.Role, func(h *testbed.Helper) error { return h.Ask(ctx, "restore", dir, &back) })
		if err != nil {
			return nil, err
		}
		remove()
		weight.Runs, save.Runs, restore.Runs = append(weight.Runs, float64(filled.Bytes)/n), append(save.Runs, saved.Seconds), append(restore.Runs, back.Seconds)
		restored.Runs, file.Runs = append(restored.Runs, float64(back.Bytes)/n), append(file.Runs, float64(saved.Bytes)/n)
		fill.Runs = append(fill.Runs, filled.Seconds/n*1e6)
		b.logf("  %.0f B each, snapshot %.1f s, restore %.1f s", weight.Runs[run], saved.Seconds, back.Seconds)
	}
	weight.WantAtMost(maxBytesPerSession)
	save.WantAtMost(maxSaveSeconds)
	restore.WantAtMost(maxRestoreSeconds)
	return []*measure.Figure{weight, restored, save, restore, file, fill}, nil
}
