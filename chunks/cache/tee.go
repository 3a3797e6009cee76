// The cache before other places.

package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	// restAfter is how long a source that failed is asked last.
	restAfter = 5 * time.Second
	// parallelMax is how many chunks of a batch are moved at a time where a source knows no batches.
	parallelMax = 16
)

// Source is a place to get chunks from that may be nearer than the store.
type Source struct {
	Name string
	chunks.Source
}

// Tee is a cache before sources and a store. It implements chunks.Store and chunks.Batcher; it closes nothing.
type Tee struct {
	cache chunks.Store
	store chunks.Store
	from  []*place // the sources, and last the store
	log   *slog.Logger

	// Counts of what came from where; the last place is the store.
	FromCache atomic.Int64
	FromAfar  []atomic.Int64
}

// place is a source that may have to rest.
type place struct {
	Source
	restUntil atomic.Int64 // Unix nanoseconds
}

// NewTee puts a cache before sources, which are asked in their order, and a store. log hears of a cache or a source that fails; nil is
// silence.
func NewTee(cache, store chunks.Store, log *slog.Logger, sources ...Source) *Tee {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &Tee{cache: cache, store: store, log: log, FromAfar: make([]atomic.Int64, len(sources)+1)}
	for _, s := range append(slices.Clone(sources), Source{"the store", store}) {
		t.from = append(t.from, &place{Source: s})
	}
	return t
}

// Missing implements chunks.Store: what the store lacks.
func (t *Tee) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	return t.store.Missing(ctx, ids)
}

// Put implements chunks.Store: it is durable when the store has it.
func (t *Tee) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	t.keep(ctx, id, frame)
	return t.store.Put(ctx, id, frame)
}

// PutBatch implements chunks.Batcher.
func (t *Tee) PutBatch(ctx context.Context, frames []chunks.Frame) []error {
	for _, f := range frames {
		t.keep(ctx, f.ID, f.Bytes)
	}
	return chunks.PutBatch(ctx, t.store, frames, parallelMax)
}

// keep puts a chunk into the cache; that it cannot is no error of anybody's.
func (t *Tee) keep(ctx context.Context, id chunk.ID, frame []byte) {
	if err := t.cache.Put(ctx, id, frame); err != nil && ctx.Err() == nil && !errors.Is(err, chunk.ErrCorrupt) {
		t.log.Warn("chunks: the cache does not keep a chunk", "chunk", id.String(), "error", err)
	}
}

// Get implements chunks.Store.
func (t *Tee) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	frames, errs := t.GetBatch(ctx, []chunk.ID{id})
	return frames[0], errs[0]
}

// GetBatch implements chunks.Batcher: each place is asked for what those before it did not give.
func (t *Tee) GetBatch(ctx context.Context, ids []chunk.ID) ([][]byte, []error) {
	frames, errs := chunks.GetBatch(ctx, t.cache, ids, parallelMax)
	open := make([]int, 0, len(ids)) // what is still sought
	for i, err := range errs {
		switch {
		case err == nil:
			t.FromCache.Add(1)
			continue
		case !fault.Is(err, fault.NotFound) && !errors.Is(err, chunk.ErrCorrupt) && ctx.Err() == nil:
			t.log.Warn("chunks: the cache does not give a chunk", "chunk", ids[i].String(), "error", err)
		}
		open = append(open, i)
	}
	told := make([][]error, len(ids)) // by each place
	for _, n := range t.order(time.Now()) {
		if len(open) == 0 || ctx.Err() != nil {
			break
		}
		open = t.ask(ctx, n, ids, open, frames, told)
	}
	for i, err := range told {
		if errs[i] = nil; frames[i] == nil {
			errs[i] = verdict(ids[i], err)
		}
	}
	if err := ctx.Err(); err != nil {
		for _, i := range open {
			errs[i] = err
		}
	}
	return frames, errs
}

// order is in which order the places are asked: those that failed lately after the others.
func (t *Tee) order(now time.Time) []int {
	var fit, tired []int
	for n, p := range t.from {
		if p.restUntil.Load() > now.UnixNano() {
			tired = append(tired, n)
		} else {
			fit = append(fit, n)
		}
	}
	return append(fit, tired...)
}

// ask asks one place for what is open, keeps what it gives, and returns what is open still.
func (t *Tee) ask(ctx context.Context, n int, ids []chunk.ID, open []int, frames [][]byte, told [][]error) (still []int) {
	p := t.from[n]
	some := make([]chunk.ID, len(open))
	for k, i := range open {
		some[k] = ids[i]
	}
	got, errs := chunks.GetBatch(ctx, p.Source.Source, some, parallelMax)
	failed := false
	for k, i := range open {
		if errs[k] == nil {
			errs[k] = chunks.Verify(ids[i], got[k])
		}
		switch err := errs[k]; {
		case err == nil:
			frames[i] = got[k]
			t.FromAfar[n].Add(1)
			t.keep(ctx, ids[i], got[k])
			continue
		case !fault.Is(err, fault.NotFound) && ctx.Err() == nil && !failed:
			failed = true
			p.restUntil.Store(time.Now().Add(restAfter).UnixNano())
			t.log.Warn("chunks: a source fails; others are asked before it for a while", "source", p.Name, "chunk", ids[i].String(), "error", err)
		}
		told[i] = append(told[i], fmt.Errorf("%s: %w", p.Name, errs[k]))
		still = append(still, i)
	}
	return still
}

// verdict is the error for a chunk that no place gave. The worst is not that it is not there.
func verdict(id chunk.ID, told []error) error {
	kind, retry := fault.NotFound, time.Duration(0)
	for _, err := range told {
		switch k := fault.KindOf(err); k {
		case fault.NotFound:
		case fault.Exhausted:
			kind, retry = fault.Exhausted, max(retry, fault.As(err).RetryAfter)
		default:
			if errors.Is(err, chunk.ErrCorrupt) && kind == fault.NotFound {
				kind = fault.Internal
			} else if !errors.Is(err, chunk.ErrCorrupt) {
				kind = fault.Unavailable
			}
		}
	}
	return fault.New(kind, "chunks: get %s: %w", id, errors.Join(told...)).WithRetry(retry)
}
