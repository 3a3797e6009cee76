// Where chunks go on their way to the store, and where they come from.

package checkpoint

import (
	"context"
	"slices"
	"sync"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// One call of PutBatch gets at most so much, and a frame more.
const (
	batchFrames = 64
	batchBytes  = 4 << 20
)

// through is the store with the node's cache in front of it. What the cache cannot do it does without.
type through struct {
	store chunks.Store
	cache chunks.Store // nil for none
}

// Missing asks the store alone: what counts is what other nodes would find.
func (t through) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	return t.store.Missing(ctx, ids)
}

// Put stores, and caches.
func (t through) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := t.store.Put(ctx, id, frame); err != nil {
		return err
	}
	t.remember(ctx, id, frame)
	return nil
}

// Get takes from the cache what it has.
func (t through) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	if frame, ok := t.cached(ctx, id); ok {
		return frame, nil
	}
	frame, err := t.store.Get(ctx, id)
	if err == nil {
		t.remember(ctx, id, frame)
	}
	return frame, err
}

func (t through) cached(ctx context.Context, id chunk.ID) ([]byte, bool) {
	if t.cache == nil {
		return nil, false
	}
	frame, err := t.cache.Get(ctx, id)
	return frame, err == nil
}

func (t through) remember(ctx context.Context, id chunk.ID, frame []byte) {
	if t.cache != nil {
		_ = t.cache.Put(ctx, id, frame) // a cache may be full, or its disk broken: then it has less
	}
}

// spoolSink takes the chunks of a session that is held: nobody far away is asked while there is room here.
type spoolSink struct {
	known map[chunk.ID]struct{} // in the store
	held  *spooled
	store through

	mu     sync.Mutex
	direct Sent
	gone   map[chunk.ID]struct{} // put straight to the store
}

// Missing knows what is in the store from before, and what is in the spool.
func (s *spoolSink) Missing(_ context.Context, ids []chunk.ID) (missing []chunk.ID, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		_, known := s.known[id]
		_, gone := s.gone[id]
		if !known && !gone && !s.held.has(id) {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// Put puts a chunk into the spool, or into the store where there is no room.
func (s *spoolSink) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	ok, err := s.held.put(id, frame)
	if ok {
		return nil
	}
	if putErr := s.store.Put(ctx, id, frame); putErr != nil {
		if err != nil {
			return err // a full disk here is the nearer cause
		}
		return putErr
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone == nil {
		s.gone = map[chunk.ID]struct{}{}
	}
	s.gone[id] = struct{}{}
	s.direct.add(frame)
	return nil
}

func (s *spoolSink) sent() Sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.direct
}

func (r *Sent) add(frame []byte) {
	n, _ := chunk.ContentBytes(frame) // it was sealed here
	r.Sent, r.Content = r.Sent+int64(len(frame)), r.Content+int64(n)
}

// upload stores what the store lacks of the capture and of the pieces of its manifest, and tells how far it is. What is confirmed, the store said
// not long ago that it has; it is not asked about. A store that lacks what it had, and what is not here either, has the capture given up: the
// next one reads everything. The manifest goes with the last chunks: it counts when it is committed, which is after all of this.
func (c *capture) upload(ctx context.Context, to through, pieces []serializer.Piece, confirmed map[chunk.ID]struct{}) (sent Sent, err error) {
	ids := slices.DeleteFunc(idsOf(c.got.Chunks), func(id chunk.ID) bool { _, ok := confirmed[id]; return ok })
	manifest := make(map[chunk.ID][]byte, len(pieces))
	for _, p := range pieces {
		manifest[p.ID] = p.Frame
		ids = append(ids, p.ID)
	}
	missing, err := to.Missing(ctx, ids)
	if err != nil {
		return sent, err
	}
	// In any order, says the store; a piece comes after what it names.
	lacks := make(map[chunk.ID]bool, len(missing))
	for _, id := range missing {
		lacks[id] = true
	}
	missing = slices.DeleteFunc(ids, func(id chunk.ID) bool { return !lacks[id] })
	var done, total int64
	for _, id := range missing {
		total += int64(c.held.bytes(id) + len(manifest[id]))
	}
	c.s.Progress.tell(0, total)
	for len(missing) > 0 {
		var batch []chunks.Frame
		for bytes := 0; len(missing) > 0 && len(batch) < batchFrames && bytes < batchBytes; missing = missing[1:] {
			frame, ok := manifest[missing[0]]
			if !ok {
				if frame, ok, err = c.held.get(missing[0]); err != nil {
					return sent, err
				}
			}
			if !ok {
				c.d.forget(c.s)
				return sent, lostByStore(missing[0])
			}
			batch = append(batch, chunks.Frame{ID: missing[0], Bytes: frame})
			bytes += len(frame)
		}
		for i, err := range chunks.PutBatch(ctx, to.store, batch, c.d.o.Parallel) {
			if err != nil {
				return sent, err
			}
			if frame := batch[i].Bytes; manifest[batch[i].ID] == nil {
				sent.add(frame)
			} else {
				sent.Sent += int64(len(frame)) // it is no content
			}
			to.remember(ctx, batch[i].ID, batch[i].Bytes)
			done += int64(len(batch[i].Bytes))
		}
		c.s.Progress.tell(done, total)
	}
	return sent, nil
}
