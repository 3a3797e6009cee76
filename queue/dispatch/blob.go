// Large arguments and results: in the chunk store, and in the state their names.

package dispatch

import (
	"context"
	"errors"
	"time"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	blobParallel = 4                      // chunks that are moved at a time, of one blob
	blobRetry    = 200 * time.Millisecond // before what failed is tried again
)

// blobs moves bytes into the chunk store and back.
type blobs struct{ store chunks.Store }

// inline is bytes that are kept in the state.
func inline(b []byte) queue.Blob { return queue.Blob{Inline: b, Size: uint64(len(b))} }

// put keeps bytes: few in the blob itself, many in the store, until ctx ends. What they are is for people.
func (b *blobs) put(ctx context.Context, what string, data []byte) (queue.Blob, error) {
	if len(data) <= queue.InlineBytes {
		return inline(data), nil
	}
	if b.store == nil {
		return queue.Blob{}, fault.New(fault.Unimplemented, "%s of the call takes %d bytes, and this server has no chunk store for more than %d; ask for less at a time, or with durable false", what, len(data), queue.InlineBytes)
	}
	out := queue.Blob{Size: uint64(len(data))}
	frames := chunks.Cut(data)
	for _, f := range frames {
		out.Chunks = append(out.Chunks, f.ID)
	}
	err := again(ctx, func() error { return errors.Join(chunks.PutBatch(ctx, b.store, frames, blobParallel)...) })
	if err != nil {
		return queue.Blob{}, fault.New(kindOf(err), "%s of the call cannot be stored: %w", what, err).WithRetry(time.Second)
	}
	return out, nil
}

// get returns the bytes, each chunk verified.
func (b *blobs) get(ctx context.Context, what string, blob queue.Blob) ([]byte, error) {
	if len(blob.Chunks) == 0 {
		return blob.Inline, nil
	}
	if b.store == nil {
		return nil, fault.New(fault.Unimplemented, "%s of the call is in a chunk store, and this server has none", what)
	}
	ids := make([]chunk.ID, len(blob.Chunks))
	for i, id := range blob.Chunks {
		ids[i] = id
	}
	var data []byte
	err := again(ctx, func() error {
		frames, errs := chunks.GetBatch(ctx, b.store, ids, blobParallel)
		if err := errors.Join(errs...); err != nil {
			return err
		}
		data = make([]byte, 0, min(blob.Size, uint64(len(ids))*chunk.MaxContentBytes))
		for i, f := range frames {
			var err error
			if data, err = chunk.Open(data, ids[i], f); err != nil {
				return err
			}
		}
		if uint64(len(data)) != blob.Size {
			return fault.New(fault.Internal, "it has %d bytes, not %d", len(data), blob.Size)
		}
		return nil
	})
	if err != nil {
		return nil, fault.New(kindOf(err), "%s of the call cannot be read: %w", what, err).WithRetry(time.Second)
	}
	return data, nil
}

// again repeats what failed in a way that may pass, until ctx ends.
func again(ctx context.Context, do func() error) error {
	for pause := blobRetry; ; pause *= 2 {
		err := do()
		if err == nil || kindOf(err) != fault.Unavailable && kindOf(err) != fault.Exhausted {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// kindOf is the kind of an error; that of a context whose time is over is that it may pass.
func kindOf(err error) fault.Kind {
	if f := fault.As(err); f != nil {
		return f.Kind
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fault.Unavailable
	}
	return fault.Internal
}
