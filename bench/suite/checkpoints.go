// Checkpoints: a workspace into the store of a server, beside tar and zstd into a file; then again with little changed, and
// with nothing.

package suite

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/serializer"
)

const (
	workspaceFiles = 2000
	workspaceBytes = 50_000 // a file
	changedFiles   = workspaceFiles / 100
	manyFiles      = 50_000
	manyFileBytes  = 1000

	minOfTar        = 0.6
	maxChangedTime  = 150 // ms
	maxChangedShare = 1.5 // % of the bytes
	maxUnchanged    = 400 // ms

	// racyTime is how old a file must be before its time alone says that it did not change.
	racyTime = 3 * time.Second
)

// Checkpoints measures captures.
func (b *Bench) Checkpoints(ctx context.Context) ([]*measure.Figure, error) {
	fig := func(name, unit string) *measure.Figure {
		return &measure.Figure{Part: "checkpoints", Name: name, Unit: unit}
	}
	first := fig("100 MB in 2,000 files: the first checkpoint", "MB/s")
	first.RawName = "tar, zstd -T2 -1, and sync"
	changed, share := fig("the same with 1 % changed", "ms"), fig("the same with 1 % changed: sent", "%")
	unchanged := fig("50,000 files, unchanged", "ms")
	// All trees stay to the end: ext4 passes over inodes that were freed seconds ago one by one, so that whoever makes many files
	// after a removal pays for it.
	work, remove, err := b.dir("checkpoints")
	if err != nil {
		return nil, err
	}
	defer remove()
	for run := range b.o.Runs {
		if err := b.checkpointRun(ctx, work, first, changed, share); err != nil {
			return nil, err
		}
		if err := b.unchangedRun(ctx, work, unchanged); err != nil {
			return nil, err
		}
		b.logf("checkpoints: run %d of %d: %.0f MB/s (tar and zstd %.0f), 1 %%: %.0f ms, unchanged: %.0f ms", run+1, b.o.Runs,
			first.Runs[run], first.Raw[run], changed.Runs[run], unchanged.Runs[run])
	}
	first.WantRatio(minOfTar)
	changed.WantAtMost(maxChangedTime)
	share.WantAtMost(maxChangedShare)
	unchanged.WantAtMost(maxUnchanged)
	return []*measure.Figure{first, changed, share, unchanged}, nil
}

// captured is a tree and the store that its checkpoints go to.
type captured struct {
	dir, work string
	store     *dir.Store
	index     *serializer.Index
}

func withTree(within string, files, bytes int, f func(c *captured) error) error {
	work, err := os.MkdirTemp(within, "tree-")
	if err != nil {
		return fmt.Errorf("make a directory for data: %w", err)
	}
	c := &captured{work: work, dir: filepath.Join(work, "workspace")}
	if err := writeTree(c.dir, files, bytes); err != nil {
		return err
	}
	if c.store, err = dir.Open(filepath.Join(work, "chunks"), dir.Options{Prepared: true}); err != nil {
		return err
	}
	err = f(c)
	if closed := c.store.Close(); err == nil {
		err = closed
	}
	return err
}

// checkpoint makes one as an agent does, up to its durable manifest and the saved index.
func (c *captured) checkpoint(ctx context.Context) (took time.Duration, sent, whole int64, err error) {
	start := time.Now()
	got, err := serializer.Capture(ctx, c.store, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: c.dir}}, Previous: c.index, Parallel: checkpoint.DefaultParallel})
	if err != nil {
		return 0, 0, 0, err
	}
	m := &serializer.Manifest{SessionID: "bench", Namespace: "default", NodeID: "bench", Epoch: 1, Sequence: 1, SerializedAt: start,
		Keeps: serializer.KeepsWorkspace, Roots: got.Roots, Chunks: got.Chunks}
	stored, err := serializer.StoreManifest(ctx, c.store, m)
	if err != nil {
		return 0, 0, 0, err
	}
	if err := got.Index.Save(filepath.Join(c.work, "index")); err != nil {
		return 0, 0, 0, err
	}
	c.index = got.Index
	return time.Since(start), got.Stats.BytesSent + stored.Sent, got.Stats.Bytes, nil
}

func (b *Bench) checkpointRun(ctx context.Context, work string, first, changed, share *measure.Figure) error {
	return withTree(work, workspaceFiles, workspaceBytes, func(c *captured) error {
		raw, err := tarZstd(ctx, c.dir, filepath.Join(c.work, "raw.tar.zst"))
		if err != nil {
			return err
		}
		took, _, whole, err := c.checkpoint(ctx)
		if err != nil {
			return err
		}
		mb := float64(whole) / 1e6
		first.Runs, first.Raw = append(first.Runs, mb/took.Seconds()), append(first.Raw, mb/raw.Seconds())
		if err := pause(ctx, racyTime); err != nil {
			return err
		}
		if _, _, _, err := c.checkpoint(ctx); err != nil { // reads again what was written too shortly before the first
			return err
		}
		for i := range changedFiles {
			if err := os.WriteFile(treePath(c.dir, i*100), source(uint64(i)+1<<40, workspaceBytes), 0o644); err != nil {
				return err
			}
		}
		took, sent, whole, err := c.checkpoint(ctx)
		if err != nil {
			return err
		}
		changed.Runs = append(changed.Runs, float64(took)/1e6)
		share.Runs = append(share.Runs, 100*float64(sent)/float64(whole))
		return nil
	})
}

func (b *Bench) unchangedRun(ctx context.Context, work string, f *measure.Figure) error {
	return withTree(work, manyFiles, manyFileBytes, func(c *captured) error {
		if err := pause(ctx, racyTime); err != nil {
			return err
		}
		if _, _, _, err := c.checkpoint(ctx); err != nil {
			return err
		}
		took, _, _, err := c.checkpoint(ctx)
		f.Runs = append(f.Runs, float64(took)/1e6)
		return err
	})
}

// tarZstd times what people would do without a checkpoint.
func tarZstd(ctx context.Context, dir, file string) (time.Duration, error) {
	start := time.Now()
	out, err := exec.CommandContext(ctx, "sh", "-c", `tar -C "$0" -cf - . | zstd -q -T2 -1 > "$1" && sync "$1"`, dir, file).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("tar and zstd, which the checkpoint is compared with: %w: %s", err, out)
	}
	return time.Since(start), nil
}

func treePath(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("package%03d", i/50), fmt.Sprintf("file%05d.go", i))
}

// writeTree makes a tree of files that look like source code.
func writeTree(dir string, files, bytes int) error {
	for i := range files {
		p := treePath(dir, i)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, source(uint64(i), bytes), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// source returns text that compresses about as source code does, to a quarter.
func source(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	text := make([]byte, 0, n+32)
	for len(text) < n {
		text = fmt.Appendf(text, "%x ", r.Uint32()>>(4*(r.Uint32()%6)))
		if r.Uint32()%3 == 0 {
			text = append(text, "return fmt.Errorf(\n\t"...)
		}
	}
	return text[:n]
}
