// The client's batches: many small frames in one request.

package http

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// What one request of the client carries; the server would take more. Several requests share the work of both ends.
const (
	putChunksMax = 256
	putBytesMax  = 2 << 20 // and one frame more
	getChunksMax = 32
)

// PutBatch implements chunks.Batcher.
func (c *Client) PutBatch(ctx context.Context, frames []chunks.Frame) []error {
	errs := make([]error, len(frames))
	var g errgroup.Group
	g.SetLimit(c.opts.ParallelMax)
	for from := 0; from < len(frames); {
		to, n := from, 0
		for to < len(frames) && to-from < putChunksMax && n < putBytesMax {
			n += putRecordBytes + len(frames[to].Bytes)
			to++
		}
		some, theirs := frames[from:to], errs[from:to]
		g.Go(func() error { c.putSome(ctx, some, theirs); return nil })
		from = to
	}
	_ = g.Wait() // each frame has its error
	return errs
}

// putSome puts what fits into one request. After an attempt that broke off it asks what is missing, and sends that.
func (c *Client) putSome(ctx context.Context, frames []chunks.Frame, errs []error) {
	var open []int // what has no outcome yet
	for i, f := range frames {
		if len(f.Bytes) > chunk.MaxFrameBytes {
			errs[i] = chunks.VerifyPut(f.ID, f.Bytes)
			continue
		}
		open = append(open, i)
	}
	again := false
	err := c.retry(ctx, func(ctx context.Context) error {
		if again {
			var err error
			if open, err = c.stillMissing(ctx, frames, open); err != nil {
				return err
			}
		}
		again = true
		if len(open) == 0 {
			return nil
		}
		var b body
		for _, i := range open {
			b = append(b, putRecord(frames[i].ID, len(frames[i].Bytes)), frames[i].Bytes)
		}
		var result putResult
		err := c.send(ctx, http.MethodPost, "put", b, func(r io.Reader, _ int64) error {
			text, err := io.ReadAll(io.LimitReader(r, resultMaxBytes))
			if err != nil {
				return err
			}
			if err := json.Unmarshal(text, &result); err != nil {
				return fault.New(fault.Internal, "%s answered a batch with %.200q: %w", c.opts.URL, text, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		open, err = c.settle(result, open, errs)
		return err
	})
	for _, i := range open {
		errs[i] = err
	}
}

// settle takes the outcomes of a batch, and returns the frames that may be tried again with the reason of one of them.
func (c *Client) settle(result putResult, open []int, errs []error) (again []int, err error) {
	if result.Stored+len(result.Failed) != len(open) {
		return open, fault.New(fault.Internal, "%s answered a batch of %d with %d outcomes", c.opts.URL, len(open), result.Stored+len(result.Failed))
	}
	for _, f := range result.Failed {
		if f.Index == nil || *f.Index < 0 || *f.Index >= len(open) {
			return open, fault.New(fault.Internal, "%s answered a batch of %d with an outcome of another", c.opts.URL, len(open))
		}
		failed := f.err(c.opts.URL)
		switch fault.KindOf(failed) {
		case fault.Exhausted, fault.Unavailable, fault.Timeout:
			again, err = append(again, open[*f.Index]), failed
		default:
			errs[open[*f.Index]] = failed
		}
	}
	return again, err
}

// stillMissing returns those of the open frames that the server lacks.
func (c *Client) stillMissing(ctx context.Context, frames []chunks.Frame, open []int) ([]int, error) {
	ids := make([]chunk.ID, len(open))
	for n, i := range open {
		ids[n] = frames[i].ID
	}
	lacks, err := c.missing(ctx, ids)
	if err != nil {
		return open, err
	}
	var still []int
	for _, i := range open {
		if len(lacks) > 0 && lacks[0] == frames[i].ID {
			still, lacks = append(still, i), lacks[1:]
		}
	}
	return still, nil
}

// GetBatch implements chunks.Batcher.
func (c *Client) GetBatch(ctx context.Context, ids []chunk.ID) ([][]byte, []error) {
	frames, errs := make([][]byte, len(ids)), make([]error, len(ids))
	var g errgroup.Group
	g.SetLimit(c.opts.ParallelMax)
	for from := 0; from < len(ids); from += getChunksMax {
		to := min(from+getChunksMax, len(ids))
		g.Go(func() error { c.getSome(ctx, ids[from:to], frames[from:to], errs[from:to]); return nil })
	}
	_ = g.Wait() // each chunk has its error
	return frames, errs
}

// getSome gets what one request asks for. After an attempt that broke off it goes on where that ended.
func (c *Client) getSome(ctx context.Context, ids []chunk.ID, frames [][]byte, errs []error) {
	done := 0
	err := c.retry(ctx, func(ctx context.Context) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return c.send(ctx, http.MethodPost, "get", body{packIDs(ids[done:])}, func(r io.Reader, _ int64) error {
			for ; done < len(ids); done++ {
				id, what, b, err := readGotRecord(r)
				switch {
				case err != nil:
					return err
				case id != ids[done]:
					return fault.New(fault.Internal, "%s sent chunk %s where %s was asked for", c.opts.URL, id, ids[done])
				case what == gotFrame:
					if errs[done] = c.verify(id, b); errs[done] == nil {
						frames[done] = b
					}
				default:
					var f failure
					if err := json.Unmarshal(b, &f); err != nil {
						return fault.New(fault.Internal, "%s sent an error that is none: %w", c.opts.URL, err)
					}
					errs[done] = f.err(c.opts.URL)
				}
			}
			return nil
		})
	})
	for ; done < len(ids); done++ {
		errs[done] = err
	}
}
