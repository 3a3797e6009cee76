// Package chunkstest is the suite of tests that every store of chunks passes. A test of an implementation calls Run.
package chunkstest

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Harness is how the suite gets at an implementation.
type Harness struct {
	// Open opens a store; what it keeps lies in state, a directory of the test's own, so that a store that is closed and
	// opened on the same state again has it still. maxBytes bounds the frames that it holds, 0 leaves it unbounded. The suite
	// closes the store where it is an io.Closer; whatever else was started ends with the test, or with the store.
	Open func(t testing.TB, state string, maxBytes int64) chunks.Store
	// Bounded says that the store observes maxBytes.
	Bounded bool
	// Evicts says that a full store lets go of old chunks rather than refuse new ones.
	Evicts bool
	// Damage changes a byte of what is kept of a chunk, behind the back of the open store. nil leaves the tests of damage out.
	Damage func(t testing.TB, state string, id chunk.ID)
	// Heals says that a store gives a damaged chunk all the same, from another copy.
	Heals bool
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Empty", testEmpty},
		{"RoundTrip", testRoundTrip},
		{"PutTwice", testPutTwice},
		{"OtherCoding", testOtherCoding},
		{"WrongChunks", testWrongChunks},
		{"Missing", testMissing},
		{"Cancelled", testCancelled},
		{"Concurrent", testConcurrent},
		{"Batches", testBatches},
		{"Reopened", testReopened},
		{"Full", testFull},
		{"Damaged", testDamaged},
		{"Walk", testWalk},
		{"Delete", testDelete},
		{"DeleteAgainstPut", testDeleteAgainstPut},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, h) })
	}
}

// Chunk returns a chunk of n bytes of content that does not shrink; the same seed gives the same.
func Chunk(seed uint64, n int) chunks.Frame {
	content := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(content) // it never fails
	return Plain(content)
}

// Plain returns the chunk of content in a frame that is not compressed. It needs no encoder: those are kept for later and have
// channels, which must not leave the bubble of a test that uses testing/synctest.
func Plain(content []byte) chunks.Frame {
	frame := append([]byte{'O', 'R', 'C', 'C', 1, 0}, binary.BigEndian.AppendUint32(nil, uint32(len(content)))...)
	return chunks.Frame{ID: chunk.Sum(content), Bytes: append(frame, content...)}
}

// Seal returns the chunk of content.
func Seal(content []byte) chunks.Frame {
	return chunks.Frame{ID: chunk.Sum(content), Bytes: chunk.Seal(content)}
}

// samples are chunks of all sorts.
func samples() map[string]chunks.Frame {
	return map[string]chunks.Frame{
		"nothing": Seal(nil), "a byte": Seal([]byte{7}), "text": Seal([]byte(strings.Repeat("a line of text\n", 9000))),
		"64 KiB": Chunk(1, 64<<10), "the longest": Chunk(2, chunk.MaxContentBytes), "zeros": Seal(make([]byte, chunk.MaxContentBytes)),
	}
}

// open opens a store that is closed when the test ends.
func open(t testing.TB, h Harness, state string, maxBytes int64) chunks.Store {
	t.Helper()
	s := h.Open(t, state, maxBytes)
	t.Cleanup(func() { closeStore(t, s) }) // closing twice is fine
	return s
}

func closeStore(t testing.TB, s chunks.Store) {
	t.Helper()
	if c, ok := s.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Error("close:", err)
		}
	}
}

func put(t testing.TB, s chunks.Store, frames ...chunks.Frame) {
	t.Helper()
	for _, f := range frames {
		if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
			t.Fatalf("put %s of %d bytes: %v", f.ID, len(f.Bytes), err)
		}
	}
}

// has fails the test unless the store gives the chunk.
func has(t testing.TB, s chunks.Store, f chunks.Frame) {
	t.Helper()
	got, err := s.Get(context.Background(), f.ID)
	if err != nil {
		t.Errorf("get %s: %v", f.ID, err)
		return
	}
	same(t, f, got)
}

// same fails the test unless two frames hold the same content; their coding may differ.
func same(t testing.TB, f chunks.Frame, got []byte) {
	t.Helper()
	content, err := chunk.Open(nil, f.ID, got)
	if err != nil {
		t.Errorf("what came for %s: %v", f.ID, err)
	} else if chunk.Sum(content) != f.ID {
		t.Errorf("what came for %s holds something else", f.ID)
	}
}

func missing(t testing.TB, s chunks.Store, ids ...chunk.ID) []chunk.ID {
	t.Helper()
	got, err := s.Missing(context.Background(), ids)
	if err != nil {
		t.Fatal("missing:", err)
	}
	return got
}

func wantMissing(t testing.TB, s chunks.Store, ids []chunk.ID, want ...chunk.ID) {
	t.Helper()
	if got := missing(t, s, ids...); !slices.Equal(got, want) {
		t.Errorf("missing of %d: got %v, want %v", len(ids), got, want)
	}
}
