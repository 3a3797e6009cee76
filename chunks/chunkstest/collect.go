// The tests of what collection needs.

package chunkstest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// collectable skips the test for a store that cannot be swept.
func collectable(t *testing.T, s chunks.Store) chunks.Collectable {
	t.Helper()
	c, ok := s.(chunks.Collectable)
	if !ok {
		t.Skip("it is not collectable")
	}
	return c
}

// clockSlack is how far a store's clock may be from ours, and how coarse it may be.
const clockSlack = 2 * time.Second

func testWalk(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	c := collectable(t, s)
	begin := time.Now().Add(-clockSlack)
	var want []chunk.ID
	for i := range uint64(40) {
		f := Chunk(i, 1000)
		put(t, s, f)
		want = append(want, f.ID)
	}
	slices.SortFunc(want, func(a, b chunk.ID) int { return bytes.Compare(a[:], b[:]) })
	walk := func(after chunk.ID) (got []chunk.ID) {
		err := c.Walk(context.Background(), after, func(id chunk.ID, n int64, modified time.Time) error {
			got = append(got, id)
			if n != 1000+chunk.HeaderBytes {
				t.Errorf("walk tells of %d bytes, want %d", n, 1000+chunk.HeaderBytes)
			}
			if modified.Before(begin) || modified.After(time.Now().Add(clockSlack)) {
				t.Errorf("walk says that a chunk is of %s, and it is %s", modified, time.Now())
			}
			return nil
		})
		if err != nil {
			t.Error("walk:", err)
		}
		return got
	}
	if got := walk(chunk.ID{}); !slices.Equal(got, want) {
		t.Errorf("walk tells of %d chunks, want %d in the order of their ids: %v", len(got), len(want), got)
	}
	for _, i := range []int{0, 17, 38, 39} {
		if got := walk(want[i]); !slices.Equal(got, want[i+1:]) {
			t.Errorf("walk after the chunk %d of 40 tells of %d chunks", i, len(got))
		}
	}
	n := 0
	if err := c.Walk(context.Background(), chunk.ID{}, func(chunk.ID, int64, time.Time) error { n++; return io.EOF }); !errors.Is(err, io.EOF) || n != 1 {
		t.Errorf("a walk that its caller ended went on to %d chunks and gave %v", n, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Walk(ctx, chunk.ID{}, func(chunk.ID, int64, time.Time) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error("a cancelled walk:", err)
	}
}

func testDelete(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	c := collectable(t, s)
	f, other := Chunk(1, 1000), Chunk(2, 1000)
	put(t, s, f, other)
	if err := c.Delete(context.Background(), f.ID, time.Now().Add(-time.Minute)); !fault.Is(err, fault.FailedPrecondition) {
		t.Error("a young chunk was deleted, or refused in another way:", err)
	}
	has(t, s, f)
	if err := c.Delete(context.Background(), f.ID, time.Now().Add(time.Minute)); err != nil {
		t.Error("delete:", err)
	}
	wantMissing(t, s, []chunk.ID{f.ID, other.ID}, f.ID)
	if _, err := s.Get(context.Background(), f.ID); !fault.Is(err, fault.NotFound) {
		t.Error("get of a deleted chunk:", err)
	}
	if err := c.Delete(context.Background(), f.ID, time.Now().Add(time.Minute)); err != nil {
		t.Error("delete of what is not there:", err)
	}
	put(t, s, f)
	has(t, s, f)
	has(t, s, other)
}

// A put that returned is there whatever a sweep does that takes only what is older.
func testDeleteAgainstPut(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	c := collectable(t, s)
	f := Chunk(1, 5000)
	old := time.Now().Add(-time.Minute)
	ctx, cancel := context.WithCancel(context.Background())
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for ctx.Err() == nil {
			if err := c.Delete(ctx, f.ID, old); err != nil && !fault.Is(err, fault.FailedPrecondition) && !errors.Is(err, context.Canceled) {
				t.Error("delete:", err)
			}
		}
	})
	for range 20 {
		put(t, s, f)
		has(t, s, f)
	}
	cancel()
	sweeper.Wait()
	wantMissing(t, s, []chunk.ID{f.ID})
}
