// Collection: what no manifest names goes, once it has been left alone for the grace.

package chunks

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Live tells every chunk that somebody needs: the manifests of all checkpoints, and what they name; in any order, an id as often as
// it likes. An error ends it: then nothing is known, and nothing may be deleted.
type Live func(ctx context.Context) iter.Seq2[chunk.ID, error]

// Set are the ids of chunks, in 8 bytes each: their beginnings. Two ids that begin alike are one to it, so it may say that it has a
// chunk that it has not (once in a million million, beside ten million others), and never the reverse: a chunk too much is kept.
type Set struct{ prefixes []uint64 }

// Collect gathers the ids of a Live.
func Collect(ctx context.Context, live Live) (*Set, error) {
	var s Set
	for id, err := range live(ctx) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		if len(s.prefixes) == cap(s.prefixes) && cap(s.prefixes) >= 1<<16 {
			s.compact() // chunks are shared by checkpoints: the same id comes many times
		}
		s.prefixes = append(s.prefixes, prefix(id))
	}
	s.compact()
	return &s, nil
}

func prefix(id chunk.ID) uint64 { return binary.BigEndian.Uint64(id[:]) }

func (s *Set) compact() {
	slices.Sort(s.prefixes)
	s.prefixes = slices.Compact(s.prefixes)
}

// Has reports whether an id is in the set.
func (s *Set) Has(id chunk.ID) bool {
	_, ok := slices.BinarySearch(s.prefixes, prefix(id))
	return ok
}

// Len returns how many ids there are.
func (s *Set) Len() int { return len(s.prefixes) }

// Swept is what a sweep did.
type Swept struct {
	Live, LiveBytes       int64 // chunks that are needed
	Young, YoungBytes     int64 // chunks that nobody needs, but that were put or asked for within the grace
	Deleted, DeletedBytes int64
}

// Sweep deletes the chunks of a store that are not live and that were neither put nor asked for since now - grace. now is when the
// sweep begins, by the clock that dates the store's chunks: what is live is asked for after it, so a chunk whose manifest is
// committed too late for the answer was asked for within the grace, and stays. Every error ends it; what was deleted until then is told.
func Sweep(ctx context.Context, s Collectable, live Live, grace time.Duration, now time.Time) (Swept, error) {
	var done Swept
	if grace <= 0 {
		return done, fault.New(fault.Invalid, "chunks: sweep: a grace of %s would take chunks from uploads that are under way", grace)
	}
	needed, err := Collect(ctx, live)
	if err != nil {
		return done, fmt.Errorf("chunks: sweep: which chunks are live: %w", err)
	}
	cutoff := now.Add(-grace)
	err = s.Walk(ctx, chunk.ID{}, func(id chunk.ID, n int64, modified time.Time) error {
		switch judge(needed.Has(id), modified, cutoff) {
		case keepLive:
			done.Live++
			done.LiveBytes += n
			return nil
		case keepYoung:
			done.Young++
			done.YoungBytes += n
			return nil
		}
		switch err := s.Delete(ctx, id, cutoff); {
		case fault.Is(err, fault.FailedPrecondition): // it was asked for since it was looked at
			done.Young++
			done.YoungBytes += n
			return nil
		case err != nil:
			return err
		}
		done.Deleted++
		done.DeletedBytes += n
		return nil
	})
	if err != nil {
		return done, fmt.Errorf("chunks: sweep: %w", err)
	}
	return done, nil
}

// verdict is what becomes of a chunk.
type verdict uint8

const (
	remove verdict = iota
	keepLive
	keepYoung
)

// judge decides about one chunk.
func judge(live bool, modified, cutoff time.Time) verdict {
	switch {
	case live:
		return keepLive
	case modified.After(cutoff):
		return keepYoung
	}
	return remove
}

// Compare orders ids, as Walk does.
func Compare(a, b chunk.ID) int { return bytes.Compare(a[:], b[:]) }
