// Package chunks keeps the bytes of checkpoints: chunks, each stored once under the hash of its content, beside raft and
// never through it.
//
// A chunk travels and rests as its frame (serializer/chunk). A Store is asked what it lacks before anything is sent to it,
// checks what it is given and what it gives, and answers a put when the chunk would survive the loss of power. There is one
// interface, and one suite of tests (chunkstest) that every store passes:
//
//	dir       a directory of a server: the embedded default
//	http      the same over the network: the handler under /v1/chunks/ and its client (docs/protocol/chunks.md)
//	majority  several stores, of which more than half must have a chunk
//	s3        a bucket
//	cache     a bounded directory on a node, and reading through it
//
// # Who may rely on what, and how long
//
// No store knows who needs a chunk. Whoever does names it in a manifest that is committed through raft, and Sweep deletes what no
// manifest names. Between the upload of a chunk and the commit of its manifest nobody names it, so a store keeps for a grace
// what was put or asked for lately: Put, of a chunk that is there too, and Missing both make a chunk young again. A
// checkpoint must therefore be committed within the grace of the first chunk that it asked about, or ask again.
package chunks

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Store keeps chunks. Its methods may be called concurrently. Frames are shared, not copied: neither side changes one after it was
// handed over. An error of ctx is returned as such (errors.Is); other errors have a fault kind:
//
//	Invalid      the frame is not the chunk that id names (it matches chunk.ErrCorrupt, too)
//	NotFound     Get: there is no such chunk
//	Internal     Get: what is stored is damaged (it matches chunk.ErrCorrupt); it is put aside, the chunk counts as missing from now on
//	Exhausted    the store is full or asked too much; try again after RetryAfter
//	Unavailable  the store cannot be reached, or its disk fails; the outcome is unknown, and every call may be repeated
type Store interface {
	// Missing returns those of ids that the store lacks, in their order. Those that it has are young again: they stay for the
	// grace of the collection.
	Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error)
	// Put stores a frame after it was verified, and is durable when it returns. Putting a chunk that is there makes it young
	// again, and mends it when it is damaged.
	Put(ctx context.Context, id chunk.ID, frame []byte) error
	// Get returns a chunk's frame, verified.
	Get(ctx context.Context, id chunk.ID) ([]byte, error)
}

// Source is where chunks come from: a store, or a node that has them.
type Source interface {
	// Get as Store.Get.
	Get(ctx context.Context, id chunk.ID) ([]byte, error)
}

// Collectable is a store that can be swept.
type Collectable interface {
	// Walk calls fn for every chunk whose id comes after the given one (the zero id: for all), in the order of ids, with the
	// frame's length and when it was put or asked for last. Chunks that come or go meanwhile may be told or not. It ends with the first
	// error of fn, which may call Delete.
	Walk(ctx context.Context, after chunk.ID, fn func(id chunk.ID, bytes int64, modified time.Time) error) error
	// Delete deletes a chunk unless it was put or asked for after unmodifiedSince: then it stays, and the error is of kind
	// FailedPrecondition. A chunk that is not there is no error.
	Delete(ctx context.Context, id chunk.ID, unmodifiedSince time.Time) error
}

// Frame is a chunk with its name.
type Frame struct {
	ID    chunk.ID
	Bytes []byte
}

// Cut cuts bytes into frames, of the largest chunks that there may be.
func Cut(data []byte) (frames []Frame) {
	for len(data) > 0 {
		part := data[:min(len(data), chunk.MaxContentBytes)]
		data = data[len(part):]
		frames = append(frames, Frame{ID: chunk.Sum(part), Bytes: chunk.Seal(part)})
	}
	return frames
}

// Batcher is a store that moves many chunks at once faster than one by one. PutBatch and GetBatch are its users.
type Batcher interface {
	// PutBatch puts each of the frames as Put does, and returns an error for each, nil where it is stored.
	PutBatch(ctx context.Context, frames []Frame) []error
	// GetBatch gets each of the chunks as Get does: its frame or its error.
	GetBatch(ctx context.Context, ids []chunk.ID) ([][]byte, []error)
}

// PutBatch puts frames, all at once where the store can, else up to parallel at a time. It returns an error for each.
func PutBatch(ctx context.Context, s Store, frames []Frame, parallel int) []error {
	if b, ok := s.(Batcher); ok {
		return b.PutBatch(ctx, frames)
	}
	errs := make([]error, len(frames))
	each(len(frames), parallel, func(i int) { errs[i] = s.Put(ctx, frames[i].ID, frames[i].Bytes) })
	return errs
}

// GetBatch gets chunks, all at once where the source can, else up to parallel at a time: each a frame or an error.
func GetBatch(ctx context.Context, s Source, ids []chunk.ID, parallel int) ([][]byte, []error) {
	if b, ok := s.(Batcher); ok {
		return b.GetBatch(ctx, ids)
	}
	frames, errs := make([][]byte, len(ids)), make([]error, len(ids))
	each(len(ids), parallel, func(i int) { frames[i], errs[i] = s.Get(ctx, ids[i]) })
	return frames, errs
}

func each(n, parallel int, do func(i int)) {
	var g errgroup.Group
	g.SetLimit(max(parallel, 1))
	for i := range n {
		g.Go(func() error { do(i); return nil })
	}
	_ = g.Wait() // do keeps its errors
}

// contents are buffers to verify frames in.
var contents = sync.Pool{New: func() any { return new([]byte) }}

// Verify returns nil when frame is the chunk that id names; else an error that matches chunk.ErrCorrupt.
func Verify(id chunk.ID, frame []byte) error {
	buf := contents.Get().(*[]byte)
	content, err := chunk.Open((*buf)[:0], id, frame)
	*buf = content[:0]
	contents.Put(buf)
	return err
}

// VerifyPut is Verify for what a store is given: a frame that is not the chunk is the caller's mistake, of kind Invalid.
func VerifyPut(id chunk.ID, frame []byte) error {
	if err := Verify(id, frame); err != nil {
		return fault.New(fault.Invalid, "chunks: put %s: %w", id, err)
	}
	return nil
}

// Damaged is the error of Get for a chunk that is damaged where it is stored.
func Damaged(id chunk.ID, where string, err error) error {
	if !errors.Is(err, chunk.ErrCorrupt) {
		err = errors.Join(chunk.ErrCorrupt, err)
	}
	return fault.New(fault.Internal, "chunks: %s has chunk %s damaged; it was put aside and counts as missing: %w", where, id, err)
}

// NotFound is the error of Get for a chunk that is not there.
func NotFound(id chunk.ID, where string) error {
	return fault.New(fault.NotFound, "chunks: %s has no chunk %s", where, id)
}
