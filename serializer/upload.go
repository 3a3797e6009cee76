// Sealing and storing chunks beside the reading, by a few workers and in a few buffers.

package serializer

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/neolith/orchestrator/serializer/chunk"
)

// askTogether is how many chunks a worker asks about at a time when there are so many: few, so that the other workers have some.
const askTogether = 4

// job is a chunk on its way to the sink.
type job struct {
	id      chunk.ID
	content []byte
}

// uploader stores chunks. What it has counted may be read after wait.
type uploader struct {
	sink  Sink
	group *errgroup.Group
	jobs  chan job
	free  chan []byte   // the buffers; one that was never used is nil
	seals chan struct{} // a place for each compressor

	mu              sync.Mutex
	chunks          int
	content, frames int64 // bytes
}

// newUploader starts workers; the context that it returns ends with the first error of one.
func newUploader(ctx context.Context, sink Sink, workers int) (*uploader, context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	buffers := workers + buffersPerCapture
	u := &uploader{sink: sink, group: group, jobs: make(chan job, buffers), free: make(chan []byte, buffers), seals: make(chan struct{}, sealsAtOnce())}
	for range buffers {
		u.free <- nil
	}
	for range workers {
		group.Go(func() error { return u.work(ctx) })
	}
	return u, ctx
}

// buffer waits for a buffer of bundleBytes.
func (u *uploader) buffer(ctx context.Context) ([]byte, error) {
	select {
	case buf := <-u.free:
		if buf == nil {
			buf = make([]byte, bundleBytes)
		}
		return buf, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// release gives a buffer back.
func (u *uploader) release(buf []byte) { u.free <- buf }

// send hands over a chunk in a buffer.
func (u *uploader) send(ctx context.Context, id chunk.ID, buf []byte) error {
	select {
	case u.jobs <- job{id, buf}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait ends the workers when all is stored, and returns their first error.
func (u *uploader) wait() error {
	close(u.jobs)
	return u.group.Wait()
}

func (u *uploader) work(ctx context.Context) error {
	batch, ids := make([]job, 0, askTogether), make([]chunk.ID, 0, askTogether)
	for {
		batch, ids = batch[:0], ids[:0]
		select {
		case j, ok := <-u.jobs:
			if !ok {
				return nil
			}
			batch, ids = append(batch, j), append(ids, j.id)
		case <-ctx.Done():
			return ctx.Err()
		}
	more:
		for len(batch) < askTogether {
			select {
			case j, ok := <-u.jobs:
				if !ok {
					break more
				}
				batch, ids = append(batch, j), append(ids, j.id)
			default:
				break more
			}
		}
		missing, err := u.sink.Missing(ctx, ids)
		if err != nil {
			return fmt.Errorf("ask which chunks are stored: %w", err)
		}
		for _, j := range batch {
			for _, id := range missing {
				if id == j.id {
					if err := u.put(ctx, j); err != nil {
						return err
					}
					break
				}
			}
			u.release(j.content[:bundleBytes])
		}
	}
}

func (u *uploader) put(ctx context.Context, j job) error {
	u.seals <- struct{}{} // the others are compressing, and will be done
	frame := chunk.Seal(j.content)
	<-u.seals
	if err := u.sink.Put(ctx, j.id, frame); err != nil {
		return fmt.Errorf("put chunk %s: %w", j.id, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.chunks++
	u.content += int64(len(j.content))
	u.frames += int64(len(frame))
	return nil
}
