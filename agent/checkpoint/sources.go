// Where the chunks of a restore come from: this node, the node that the session comes from, the store.

package checkpoint

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/chunks/peer"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Sources count where chunks of restores came from, and their bytes, over all restores.
type Sources struct {
	CacheChunks, CacheBytes atomic.Int64
	PeerChunks, PeerBytes   atomic.Int64
	StoreChunks, StoreBytes atomic.Int64
	PeerFailures            atomic.Int64 // chunks that a peer should have given, and did not
}

// Sources are the Disk's counts. They are read while it works.
func (d *Disk) Sources() *Sources { return &d.from }

// source is where one restore gets its chunks from. It counts.
type source struct {
	t     through
	peer  *peer.Borrower // nil for none
	all   *Sources
	bytes atomic.Int64 // that did not come from this node
}

// source returns the source of a restore. A peer that cannot be reached is no error: the store has everything.
func (d *Disk) source(p *Peer) *source {
	s := &source{t: through{d.o.Store, d.o.Cache}, all: &d.from}
	if p == nil || d.o.Borrow == nil {
		return s
	}
	b, err := d.o.Borrow(*p)
	if err != nil {
		d.log.Warn("the node that a session comes from cannot be asked for chunks; the store is", "peer", p.Address, "error", err)
		return s
	}
	s.peer = b
	return s
}

func (s *source) close() {
	if s.peer != nil {
		s.all.PeerFailures.Add(s.peer.Failures())
		_ = s.peer.Close() // it closes nothing that could fail
	}
}

// fetched is how many bytes did not come from this node.
func (s *source) fetched() int64 { return s.bytes.Load() }

// Get implements serializer.Source: this node, the peer, the store.
func (s *source) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	if frame, ok := s.t.cached(ctx, id); ok {
		s.all.CacheChunks.Add(1)
		s.all.CacheBytes.Add(int64(len(frame)))
		return frame, nil
	}
	if s.peer != nil {
		if frame, ok := s.peer.Get(ctx, id); ok {
			s.came(ctx, id, frame, &s.all.PeerChunks, &s.all.PeerBytes)
			return frame, nil
		}
	}
	frame, err := s.t.store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	s.came(ctx, id, frame, &s.all.StoreChunks, &s.all.StoreBytes)
	return frame, nil
}

// came counts a chunk, and keeps it.
func (s *source) came(ctx context.Context, id chunk.ID, frame []byte, chunks, bytes *atomic.Int64) {
	chunks.Add(1)
	bytes.Add(int64(len(frame)))
	s.bytes.Add(int64(len(frame)))
	s.t.remember(ctx, id, frame)
}

// Lend implements Keeper. What the session is made of is what was stored of it last.
func (d *Disk) Lend(sessionID, token string) {
	if d.o.Lender == nil {
		return
	}
	d.o.Lender.Lend(sessionID, token, func(id chunk.ID) bool {
		_, ok := d.knownOf(sessionID)[id]
		return ok
	})
}

// Recall implements Keeper.
func (d *Disk) Recall(sessionID string, after time.Duration) {
	if d.o.Lender != nil {
		d.o.Lender.Recall(sessionID, after)
	}
}

// roots adds up the progress of several roots, one after the other.
type roots struct {
	tell        Progress
	done, total int64 // of those before
	now, of     int64 // of the one under way
}

// next returns what the next root is to tell; nil when nobody listens.
func (r *roots) next() func(done, total int64) {
	r.done, r.total = r.done+r.now, r.total+r.of
	r.now, r.of = 0, 0
	if r.tell == nil {
		return nil
	}
	return func(done, total int64) {
		r.now, r.of = done, total
		r.tell(r.done+done, r.total+total)
	}
}
