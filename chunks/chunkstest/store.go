// The tests of putting and getting.

package chunkstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func testEmpty(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	a, b := Chunk(1, 100).ID, Chunk(2, 100).ID
	wantMissing(t, s, nil)
	wantMissing(t, s, []chunk.ID{b, a}, b, a)
	if _, err := s.Get(context.Background(), a); !fault.Is(err, fault.NotFound) {
		t.Error("get from an empty store:", err)
	}
}

func testRoundTrip(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	for name, f := range samples() {
		put(t, s, f)
		got, err := s.Get(context.Background(), f.ID)
		if err != nil || !bytes.Equal(got, f.Bytes) {
			t.Errorf("%s: got %d bytes of %d, %v", name, len(got), len(f.Bytes), err)
		}
		wantMissing(t, s, []chunk.ID{f.ID})
	}
}

func testPutTwice(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	f := Chunk(1, 5000)
	put(t, s, f, f, f)
	has(t, s, f)
}

// One content may have several frames; all are the chunk.
func testOtherCoding(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	content := make([]byte, 4096)
	packed, plain := Seal(content), Plain(content)
	put(t, s, plain, packed)
	has(t, s, plain)
}

func testWrongChunks(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	good := Chunk(1, 70_000)
	flipped := slices.Clone(good.Bytes)
	flipped[len(flipped)/2] ^= 1
	newer := slices.Clone(good.Bytes)
	newer[4] = 9
	for name, frame := range map[string][]byte{
		"another's": Chunk(2, 70_000).Bytes, "nothing": nil, "no frame": []byte("hello"), "a changed bit": flipped, "a newer version": newer,
		"cut short": good.Bytes[:len(good.Bytes)-1], "with a tail": append(slices.Clone(good.Bytes), 0), "only a header": good.Bytes[:chunk.HeaderBytes],
		"too long": make([]byte, chunk.MaxFrameBytes+1),
	} {
		err := s.Put(context.Background(), good.ID, frame)
		if !fault.Is(err, fault.Invalid) || !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("put %s: want an error of kind invalid that matches chunk.ErrCorrupt, got %v (%s)", name, err, fault.KindOf(err))
		}
		wantMissing(t, s, []chunk.ID{good.ID}, good.ID)
	}
	put(t, s, good)
	has(t, s, good)
}

func testMissing(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	var ids, want []chunk.ID
	for i := range uint64(100) {
		f := Chunk(i, int(100+i))
		ids = append(ids, f.ID)
		if i%3 == 0 {
			put(t, s, f)
		} else {
			want = append(want, f.ID)
		}
	}
	wantMissing(t, s, ids, want...)
	for i := range ids { // never there, and more than one request may hold
		for j := range 50 {
			id := ids[i]
			id[0] ^= byte(j + 1)
			ids = append(ids, id)
			want = append(want, id)
		}
	}
	wantMissing(t, s, ids, want...)
}

func testCancelled(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	there, not := Chunk(1, 1000), Chunk(2, 1000)
	put(t, s, there)
	if err := s.Put(ctx, not.ID, not.Bytes); !errors.Is(err, context.Canceled) {
		t.Error("put:", err)
	}
	if _, err := s.Get(ctx, there.ID); !errors.Is(err, context.Canceled) {
		t.Error("get:", err)
	}
	if _, err := s.Missing(ctx, []chunk.ID{there.ID}); !errors.Is(err, context.Canceled) {
		t.Error("missing:", err)
	}
	for _, err := range chunks.PutBatch(ctx, s, []chunks.Frame{not, there}, 2) {
		if !errors.Is(err, context.Canceled) {
			t.Error("put batch:", err)
		}
	}
	if _, errs := chunks.GetBatch(ctx, s, []chunk.ID{there.ID}, 2); !errors.Is(errs[0], context.Canceled) {
		t.Error("get batch:", errs[0])
	}
	wantMissing(t, s, []chunk.ID{not.ID, there.ID}, not.ID)
	put(t, s, not)
	has(t, s, not)
}

// Puts of the same and of different chunks, and all the rest at the same time.
func testConcurrent(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	shared := Chunk(1000, 100_000)
	var all sync.WaitGroup
	for g := range uint64(8) {
		all.Go(func() {
			for i := range uint64(10) {
				own := Chunk(g*100+i, 3000)
				if i%3 == 0 {
					put2(t, s, shared)
				}
				put2(t, s, own)
				has(t, s, own)
				has(t, s, shared)
				if got, err := s.Missing(context.Background(), []chunk.ID{own.ID, shared.ID}); len(got) > 0 || err != nil {
					t.Errorf("missing although they were put: %v, %v", got, err)
				}
			}
		})
	}
	all.Wait()
}

// put2 is put for goroutines that are not the test's.
func put2(t testing.TB, s chunks.Store, f chunks.Frame) {
	if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
		t.Errorf("put %s: %v", f.ID, err)
	}
}

func testBatches(t *testing.T, h Harness) {
	s := open(t, h, t.TempDir(), 0)
	var frames []chunks.Frame
	var ids []chunk.ID
	for i := range uint64(150) {
		f := Chunk(i, int(i*700)) // more than one request may hold
		frames, ids = append(frames, f), append(ids, f.ID)
	}
	bad := map[int]bool{0: true, 77: true, 149: true}
	for i := range bad {
		frames[i].Bytes = []byte("not a frame")
	}
	for i, err := range chunks.PutBatch(context.Background(), s, frames, 8) {
		if bad[i] && (!fault.Is(err, fault.Invalid) || !errors.Is(err, chunk.ErrCorrupt)) || !bad[i] && err != nil {
			t.Errorf("put %d: %v", i, err)
		}
	}
	got, errs := chunks.GetBatch(context.Background(), s, ids, 8)
	for i := range ids {
		switch {
		case bad[i] && !fault.Is(errs[i], fault.NotFound):
			t.Errorf("get %d, which was not stored: %v", i, errs[i])
		case !bad[i] && errs[i] != nil:
			t.Errorf("get %d: %v", i, errs[i])
		case !bad[i]:
			same(t, frames[i], got[i])
		}
	}
	if errs := chunks.PutBatch(context.Background(), s, nil, 1); len(errs) != 0 {
		t.Error("an empty batch:", errs)
	}
}

func testReopened(t *testing.T, h Harness) {
	state := t.TempDir()
	s := open(t, h, state, 0)
	all := samples()
	for _, f := range all {
		put(t, s, f)
	}
	closeStore(t, s)
	s = open(t, h, state, 0)
	for name, f := range all {
		t.Run(name, func(t *testing.T) { has(t, s, f) })
	}
}

func testFull(t *testing.T, h Harness) {
	if !h.Bounded {
		t.Skip("the store has no bound of its own")
	}
	const maxBytes = 100_000
	state := t.TempDir()
	s := open(t, h, state, maxBytes)
	var frames []chunks.Frame
	for i := range uint64(20) {
		frames = append(frames, Chunk(i, 10_000)) // with their headers, nine fit
	}
	refused := 0
	for i, f := range frames {
		switch err := s.Put(context.Background(), f.ID, f.Bytes); {
		case err == nil && !h.Evicts && i >= 9:
			t.Errorf("chunk %d was stored, beyond the bound", i)
		case err != nil && (h.Evicts || i < 9):
			t.Errorf("chunk %d: %v", i, err)
		case err != nil:
			refused++
			if e := fault.As(err); e == nil || e.Kind != fault.Exhausted || e.RetryAfter <= 0 {
				t.Errorf("chunk %d: want exhausted with a time to come back, got %v", i, err)
			}
		}
	}
	there := len(frames) - len(missing(t, s, idsOf(frames)...))
	if there > 9 || there < 5 {
		t.Errorf("%d chunks of 10 KB are there in 100 KB", there)
	}
	if h.Evicts {
		has(t, s, frames[len(frames)-1])
		return
	}
	if refused != 11 {
		t.Errorf("%d were refused, want 11", refused)
	}
	put(t, s, frames[0]) // what is there needs no room
	has(t, s, frames[0])
	closeStore(t, s)
	s = open(t, h, state, maxBytes)
	if err := s.Put(context.Background(), frames[19].ID, frames[19].Bytes); !fault.Is(err, fault.Exhausted) {
		t.Error("full, closed and opened, it stores more:", err)
	}
}

func idsOf(frames []chunks.Frame) []chunk.ID {
	ids := make([]chunk.ID, len(frames))
	for i, f := range frames {
		ids[i] = f.ID
	}
	return ids
}

func testDamaged(t *testing.T, h Harness) {
	if h.Damage == nil {
		t.Skip("there is no way to damage what it keeps")
	}
	for _, how := range []string{"get", "put"} {
		t.Run(fmt.Sprintf("noticed by %s", how), func(t *testing.T) {
			state := t.TempDir()
			s := open(t, h, state, 0)
			f, other := Chunk(1, 50_000), Chunk(2, 50_000)
			put(t, s, f, other)
			h.Damage(t, state, f.ID)
			if how == "put" {
				put(t, s, f)
				has(t, s, f)
				return
			}
			if h.Heals {
				has(t, s, f)
				has(t, s, f)
				return
			}
			if _, err := s.Get(context.Background(), f.ID); !errors.Is(err, chunk.ErrCorrupt) {
				t.Errorf("get of a damaged chunk: %v, want one that matches chunk.ErrCorrupt", err)
			}
			if _, err := s.Get(context.Background(), f.ID); !fault.Is(err, fault.NotFound) {
				t.Errorf("get of a chunk that was put aside: %v, want not found", err)
			}
			wantMissing(t, s, []chunk.ID{f.ID, other.ID}, f.ID)
			put(t, s, f)
			has(t, s, f)
			has(t, s, other)
		})
	}
}
