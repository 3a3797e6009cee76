// The suite of all stores over a cache and a tee, and what only they have: eviction in the order of use, places that rest.

package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustOpen(t testing.TB, path string, maxBytes int64) *Cache {
	t.Helper()
	c, err := Open(path, Options{MaxBytes: maxBytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func damage(t testing.TB, state string, id chunk.ID) {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(state, "*/*", id.String()))
	if len(names) != 1 {
		t.Fatal("no file of the chunk:", names)
	}
	if err := os.Truncate(names[0], 20); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	chunkstest.Run(t, chunkstest.Harness{
		Open: func(t testing.TB, state string, maxBytes int64) chunks.Store {
			if maxBytes == 0 {
				maxBytes = 1 << 30
			}
			return mustOpen(t, state, maxBytes)
		},
		Bounded: true, Evicts: true, Damage: damage,
	})
}

// teed is a tee with what it stands on.
type teed struct {
	*Tee
	cache *Cache
	store *dir.Store
}

func (t *teed) Close() error { return errors.Join(t.cache.Close(), t.store.Close()) }

func TestTeeConformance(t *testing.T) {
	chunkstest.Run(t, chunkstest.Harness{
		Open: func(t testing.TB, state string, maxBytes int64) chunks.Store {
			store, err := dir.Open(filepath.Join(state, "store"), dir.Options{MaxBytes: maxBytes})
			if err != nil {
				t.Fatal(err)
			}
			c := mustOpen(t, filepath.Join(state, "cache"), 20_000) // too small for most
			return &teed{NewTee(c, store, nil), c, store}
		},
		Bounded: true,
		Damage:  func(t testing.TB, state string, id chunk.ID) { damage(t, filepath.Join(state, "store"), id) },
	})
}

func put(t testing.TB, s chunks.Store, frames ...chunks.Frame) {
	t.Helper()
	for _, f := range frames {
		if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
			t.Fatal(err)
		}
	}
}

func get(t testing.TB, s chunks.Store, f chunks.Frame) {
	t.Helper()
	if got, err := s.Get(context.Background(), f.ID); err != nil || !bytes.Equal(got, f.Bytes) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
}

func have(t testing.TB, s chunks.Store, frames ...chunks.Frame) (there []int) {
	t.Helper()
	for i, f := range frames {
		switch _, err := s.Get(context.Background(), f.ID); {
		case err == nil:
			there = append(there, i)
		case !fault.Is(err, fault.NotFound):
			t.Fatal(err)
		}
	}
	return there
}

func TestEvictsWhatWasUsedLeastLately(t *testing.T) {
	state := t.TempDir()
	c := mustOpen(t, state, 3*1010)
	var f []chunks.Frame
	for i := range uint64(6) {
		f = append(f, chunkstest.Chunk(i, 1000))
	}
	put(t, c, f[0], f[1], f[2])
	get(t, c, f[0])
	put(t, c, f[3]) // 1 goes
	if got, err := c.Missing(context.Background(), []chunk.ID{f[2].ID, f[1].ID}); err != nil || !slices.Equal(got, []chunk.ID{f[1].ID}) {
		t.Errorf("missing %v, %v", got, err)
	}
	put(t, c, f[4]) // 0 goes: 2 was asked for
	put(t, c, f[3], f[3])
	if got := have(t, c, f...); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("it has %v", got)
	}
	if n, count := c.Usage(); n != 3*1010 || count != 3 {
		t.Errorf("usage %d bytes, %d chunks", n, count)
	}
	if n := c.Counters().Deleted.Load(); n != 2 {
		t.Errorf("%d were evicted", n)
	}
	big := chunkstest.Chunk(9, 4000)
	if err := c.Put(context.Background(), big.ID, big.Bytes); !fault.Is(err, fault.Exhausted) {
		t.Error("a chunk that cannot fit:", err)
	}
	// The order of use outlives a restart, as far as it was written down, and a smaller bound is observed.
	for i, age := range map[int]time.Duration{2: time.Hour, 3: 3 * time.Hour, 4: 2 * time.Hour} {
		names, _ := filepath.Glob(filepath.Join(state, "*/*", f[i].ID.String()))
		if err := os.Chtimes(names[0], time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	c = mustOpen(t, state, 3*1010)
	get(t, c, f[3]) // its use is long ago, so it is written down
	c.Close()
	c = mustOpen(t, state, 2*1010)
	if got := have(t, c, f...); !slices.Equal(got, []int{2, 3}) {
		t.Errorf("after a restart it has %v", got)
	}
	if _, err := Open(t.TempDir(), Options{}); !fault.Is(err, fault.Invalid) {
		t.Error("without a bound:", err)
	}
}

// However many put at the same time, the bound holds and the books are right.
func TestConcurrentEviction(t *testing.T) {
	const maxBytes = 20 * 1010
	c := mustOpen(t, t.TempDir(), maxBytes)
	var all sync.WaitGroup
	for g := range uint64(8) {
		all.Go(func() {
			for i := range uint64(40) {
				f := chunkstest.Chunk((g*7+i)%60, 1000)
				if err := c.Put(context.Background(), f.ID, f.Bytes); err != nil {
					t.Error(err)
				}
				if _, err := c.Get(context.Background(), f.ID); err != nil && !fault.Is(err, fault.NotFound) {
					t.Error(err)
				}
				if n, _ := c.Usage(); n > maxBytes+8*1010 { // gets may note what has just gone
					t.Errorf("%d bytes are used", n)
				}
			}
		})
	}
	all.Wait()
	if n, _ := c.kept.Usage(); n > maxBytes {
		t.Errorf("%d bytes are kept, at most %d", n, maxBytes)
	}
}

// source is a place that can fail, and counts what it is asked.
type source struct {
	kept  map[chunk.ID][]byte
	err   error
	asked int
}

func (s *source) Get(_ context.Context, id chunk.ID) ([]byte, error) {
	s.asked++
	if s.err != nil {
		return nil, s.err
	}
	if f, ok := s.kept[id]; ok {
		return f, nil
	}
	return nil, chunks.NotFound(id, "the source")
}

func TestTeeReadsFromTheNearest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := dir.Open(t.TempDir(), dir.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		c := mustOpen(t, t.TempDir(), 1<<20)
		defer c.Close()
		peer := &source{kept: make(map[chunk.ID][]byte)}
		tee := NewTee(c, store, nil, Source{"peer", peer})
		both, far, wrong, nowhere := chunkstest.Chunk(1, 100), chunkstest.Chunk(2, 100), chunkstest.Chunk(3, 100), chunkstest.Chunk(4, 100)
		put(t, store, both, far, wrong)
		peer.kept[both.ID] = both.Bytes
		for range 2 {
			get(t, tee, both)
		}
		if peer.asked != 1 || store.Counters().Gets.Load() != 0 || tee.FromCache.Load() != 1 || tee.FromAfar[0].Load() != 1 {
			t.Errorf("the peer was asked %d times, the store %d", peer.asked, store.Counters().Gets.Load())
		}
		get(t, tee, far)
		if _, err := tee.Get(context.Background(), nowhere.ID); !fault.Is(err, fault.NotFound) {
			t.Error("what is nowhere:", err)
		}
		// A liar and a source that fails are asked last for a while.
		peer.kept[wrong.ID] = far.Bytes
		get(t, tee, wrong)
		asked := peer.asked
		more := chunkstest.Chunk(5, 100)
		put(t, store, more)
		peer.kept[more.ID] = more.Bytes
		get(t, tee, more)
		if peer.asked != asked {
			t.Error("a source that lied was asked first")
		}
		time.Sleep(restAfter)
		peer.err = fault.New(fault.Unavailable, "gone")
		if _, err := tee.Get(context.Background(), nowhere.ID); !fault.Is(err, fault.Unavailable) {
			t.Error("what a silent source may have:", err)
		}
		// A put reaches the store, and stays.
		own := chunkstest.Chunk(6, 100)
		put(t, tee, own)
		get(t, store, own)
		get(t, c, own)
		if got, err := tee.Missing(context.Background(), []chunk.ID{own.ID, nowhere.ID}); err != nil || len(got) != 1 {
			t.Errorf("missing %v, %v", got, err)
		}
	})
}
