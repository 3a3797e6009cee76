// Tests of the collection and of the helpers of batches.

package chunks_test

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

var bg = context.Background()

// shelf is a store of dates alone.
type shelf struct {
	dates map[chunk.ID]time.Time
	// before is called before each delete; tests change dates there.
	before func(id chunk.ID)
}

func (s *shelf) Walk(ctx context.Context, after chunk.ID, fn func(chunk.ID, int64, time.Time) error) error {
	for _, id := range slices.SortedFunc(maps.Keys(s.dates), chunks.Compare) {
		if chunks.Compare(id, after) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(id, 10, s.dates[id]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *shelf) Delete(_ context.Context, id chunk.ID, unmodifiedSince time.Time) error {
	if s.before != nil {
		s.before(id)
	}
	if s.dates[id].After(unmodifiedSince) {
		return fault.New(fault.FailedPrecondition, "young")
	}
	delete(s.dates, id)
	return nil
}

func live(ids ...chunk.ID) chunks.Live {
	return func(context.Context) iter.Seq2[chunk.ID, error] {
		return func(yield func(chunk.ID, error) bool) {
			for _, id := range ids {
				if !yield(id, nil) {
					return
				}
			}
		}
	}
}

func id(n uint64) chunk.ID { return chunkstest.Chunk(n, 10).ID }

// Whatever is live or young stays, and everything else goes.
func TestSweepProperty(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	rapid.Check(t, func(t *rapid.T) {
		grace := time.Duration(rapid.IntRange(1, 1000).Draw(t, "grace")) * time.Second
		s := &shelf{dates: make(map[chunk.ID]time.Time)}
		var needed []chunk.ID
		want := make(map[chunk.ID]time.Time)
		for i := range rapid.IntRange(0, 40).Draw(t, "chunks") {
			age := time.Duration(rapid.IntRange(-10, 1010).Draw(t, "age")) * time.Second
			s.dates[id(uint64(i))] = now.Add(-age)
			isLive := rapid.Bool().Draw(t, "live")
			for range rapid.IntRange(1, 3).Draw(t, "times") {
				if isLive {
					needed = append(needed, id(uint64(i)))
				}
			}
			if isLive || age < grace {
				want[id(uint64(i))] = now.Add(-age)
			}
		}
		n := int64(len(s.dates))
		done, err := chunks.Sweep(bg, s, live(append(needed, id(1000))...), grace, now)
		if err != nil || !maps.Equal(s.dates, want) {
			t.Fatalf("%d chunks are left, want %d: %v", len(s.dates), len(want), err)
		}
		if done.Live+done.Young+done.Deleted != n || done.Deleted != n-int64(len(want)) || done.DeletedBytes != 10*done.Deleted {
			t.Fatalf("it says %+v of %d", done, n)
		}
	})
}

func TestSweepDeletesNothingInDoubt(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	old := now.Add(-time.Hour)
	fresh := func() *shelf { return &shelf{dates: map[chunk.ID]time.Time{id(1): old, id(2): old}} }
	broken := errors.New("the state is not there")
	s := fresh()
	_, err := chunks.Sweep(bg, s, func(context.Context) iter.Seq2[chunk.ID, error] {
		return func(yield func(chunk.ID, error) bool) {
			_ = yield(id(1), nil) && yield(chunk.ID{}, broken)
		}
	}, time.Minute, now)
	if !errors.Is(err, broken) || len(s.dates) != 2 {
		t.Errorf("with half of what is live: %d left, %v", len(s.dates), err)
	}
	for _, grace := range []time.Duration{0, -time.Hour} {
		if _, err := chunks.Sweep(bg, s, live(), grace, now); !fault.Is(err, fault.Invalid) || len(s.dates) != 2 {
			t.Errorf("with a grace of %s: %d left, %v", grace, len(s.dates), err)
		}
	}
	ctx, cancel := context.WithCancel(bg)
	s.before = func(chunk.ID) { cancel() }
	if done, err := chunks.Sweep(ctx, s, live(), time.Minute, now); !errors.Is(err, context.Canceled) || done.Deleted != 1 {
		t.Errorf("cancelled after the first: %+v, %v", done, err)
	}
	// A chunk that is asked for between the look and the delete stays.
	s = fresh()
	s.before = func(id chunk.ID) { s.dates[id] = now }
	if done, err := chunks.Sweep(bg, s, live(), time.Minute, now); err != nil || done.Young != 2 || done.Deleted != 0 || len(s.dates) != 2 {
		t.Errorf("asked for meanwhile: %+v, %v", done, err)
	}
}

// An upload beside sweeps: it asks what is missing, puts that, and commits. Nothing that it committed may be gone, though every
// chunk was garbage before and much older than the grace.
func TestSweepAgainstUpload(t *testing.T) {
	s, err := dir.Open(t.TempDir(), dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var frames []chunks.Frame
	var ids []chunk.ID
	for i := range uint64(30) {
		f := chunkstest.Chunk(i, 2000)
		frames, ids = append(frames, f), append(ids, f.ID)
	}
	const grace = 100 * time.Millisecond
	var mu sync.Mutex
	var committed []chunk.ID
	state := func(ctx context.Context) iter.Seq2[chunk.ID, error] {
		mu.Lock()
		defer mu.Unlock()
		return live(slices.Clone(committed)...)(ctx)
	}
	commit := func(ids []chunk.ID) {
		mu.Lock()
		defer mu.Unlock()
		committed = ids
	}
	var deleted atomic.Int64
	ctx, stop := context.WithTimeout(bg, 30*time.Second) // a slow disk tries less, and proves less
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for ctx.Err() == nil {
			done, err := chunks.Sweep(ctx, s, state, grace, time.Now())
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			deleted.Add(done.Deleted)
		}
	})
	began := time.Now()
	for judged := 0; ctx.Err() == nil && (deleted.Load() < 20 || judged < 20); {
		at := int(time.Since(began)/(2*grace)) * 7 % 30 // a few of them for a while, so that the others become old
		some := ids[at:min(at+4, 30)]
		begin := time.Now()
		missing, err := s.Missing(bg, some)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			if slices.Contains(missing, f.ID) {
				if err := s.Put(bg, f.ID, f.Bytes); err != nil {
					t.Fatal(err)
				}
			}
		}
		commit(some)
		if time.Since(begin) > grace*3/4 {
			continue // an upload that takes longer than the grace has no promise
		}
		judged++
		for _, id := range some {
			if _, err := s.Get(bg, id); err != nil {
				t.Fatalf("a committed chunk is gone: %v", err)
			}
		}
	}
	if deleted.Load() == 0 {
		t.Error("nothing was deleted: nothing was tried")
	}
	stop()
	sweeper.Wait()
}

func TestSet(t *testing.T) {
	ids := make([]chunk.ID, 0, 200_000)
	for i := range 100_000 {
		c := chunk.Sum([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		ids = append(ids, c, c)
	}
	set, err := chunks.Collect(bg, live(ids[:100_000]...))
	if err != nil || set.Len() != 50_000 {
		t.Fatal(set.Len(), err)
	}
	for i, id := range ids {
		if set.Has(id) != (i < 100_000) {
			t.Fatalf("id %d: %t", i, set.Has(id))
		}
	}
}
