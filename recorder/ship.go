// The shipper: from the spool to the sink, until the sink has confirmed.

package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder/spool"
)

const (
	batchRecordsMax = 4000
	batchBytesMax   = 4 << 20

	// A sink that fails is tried again after retryFirst, doubling up to retryLast.
	retryFirst = 100 * time.Millisecond
	retryLast  = 10 * time.Second
	// writeTimeMax bounds one write to the sink, whatever the sink itself does about it.
	writeTimeMax = 2 * time.Minute

	// While the spool is almost empty the shipper is busy for one part in restShare of the time, or for as long as restRate records a second take,
	// one batch every restLeast; the fuller the spool, the longer, and from a fill of restFill on all the time.
	restShare          = 12
	restRate, restFill = 5200, 0.25
	restLeast          = 50 * time.Millisecond

	pruneEvery   = 5 * time.Minute
	pruneTimeMax = 5 * time.Minute

	rejectedName     = "rejected.jsonl"
	rejectedBytesMax = 64 << 20
)

// ship sends what is durable, batch by batch, until ctx ends.
func (r *Recorder) ship(ctx context.Context) error {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for ctx.Err() == nil {
		select {
		case <-prune.C: // also while there is always something to send
			r.prune(ctx)
		default:
		}
		batch, err := r.spool.Next(batchRecordsMax, batchBytesMax)
		if err != nil {
			return fmt.Errorf("recorder: %w", err) // whoever runs Serve starts it again
		}
		if batch.Damaged > 0 {
			r.m.damagedBytes.Add(float64(batch.Damaged))
			r.log.Error("a part of the recorder's spool is damaged and skipped", "bytes", batch.Damaged)
		}
		if len(batch.Records) > 0 || batch.Damaged > 0 {
			begin := time.Now()
			if !r.deliver(ctx, batch) || !r.rest(ctx, begin, len(batch.Records)) {
				break
			}
			continue
		}
		r.noteOldest(time.Time{})
		select {
		case <-r.durable:
		case <-prune.C:
			r.prune(ctx)
		case <-ctx.Done():
		}
	}
	return nil
}

// rest leaves the processor to the work: what comes in a burst is sent behind it, while the spool has plenty of room. A batch of so many records was
// begun at a time. False when ctx ended.
func (r *Recorder) rest(ctx context.Context, begun time.Time, records int) bool {
	fill := float64(r.spool.Size()) / float64(r.cfg.Spool.MaxBytes)
	calm := max(1-fill/restFill, 0)
	every := min(time.Duration(float64(records)/restRate*float64(time.Second)), restShare*time.Since(begun))
	every = max(every, restLeast)
	wait := time.Until(begun.Add(time.Duration(calm * float64(every))))
	if wait <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// deliver sends a batch until the sink has it, and confirms it; false when ctx ended before.
func (r *Recorder) deliver(ctx context.Context, batch spool.Batch) bool {
	items := r.items[:0]
	defer func() { clear(items); r.items = items }()
	for _, b := range batch.Records {
		i, err := decode(b)
		if err != nil {
			r.m.damagedBytes.Add(float64(len(b)))
			r.log.Error("a record of the recorder's spool cannot be read and is skipped", "bytes", len(b), "error", err)
			continue
		}
		items = append(items, i)
	}
	if len(items) > 0 {
		r.noteOldest(items[0].Time)
		if !r.send(ctx, items) {
			return false
		}
	}
	return r.persist(ctx, func() error {
		err := r.spool.Confirm(batch.End)
		if err != nil {
			r.m.spoolFailures.Inc()
			r.log.Error("what the sink has could not be confirmed in the spool; it is tried again", "error", err)
			return err
		}
		r.mu.Lock()
		r.noteAlarm()
		r.change() // there may be room
		r.mu.Unlock()
		signal(r.written)
		return nil
	})
}

// send writes interactions to the sink until they are there. What the sink can never keep is searched for by halves, and put aside.
func (r *Recorder) send(ctx context.Context, items []Interaction) bool {
	invalid := false
	ok := r.persist(ctx, func() error {
		begin := time.Now()
		wctx, cancel := context.WithTimeout(ctx, writeTimeMax)
		defer cancel()
		added, err := r.sink.Write(wctx, items)
		r.m.sinkSeconds.Observe(time.Since(begin).Seconds())
		if fault.Is(err, fault.Invalid) {
			invalid = true
			if len(items) == 1 {
				r.reject(&items[0], err)
			}
			return nil
		}
		if ctx.Err() == nil {
			r.noteSink(err)
		}
		if err != nil {
			return err
		}
		r.m.shipped.Add(float64(len(items)))
		r.m.repeated.Add(float64(len(items) - added))
		r.mu.Lock()
		r.shipped += uint64(len(items))
		r.mu.Unlock()
		return nil
	})
	if !ok || !invalid || len(items) == 1 {
		return ok
	}
	half := len(items) / 2
	return r.send(ctx, items[:half]) && r.send(ctx, items[half:])
}

// persist does something until it succeeds, ever more slowly; false when ctx ended before.
func (r *Recorder) persist(ctx context.Context, do func() error) bool {
	for wait := retryFirst; do() != nil; wait = min(2*wait, retryLast) {
		select {
		case <-time.After(wait + rand.N(wait/4+1)):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// noteSink keeps how the sink does, and says when that changes.
func (r *Recorder) noteSink(err error) {
	if err != nil {
		r.m.sinkFailures.Inc()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && r.sinkErr == nil:
		r.sinkSince = time.Now()
		r.log.Warn("the recorder's sink fails; interactions wait in the spool", "error", err)
	case err == nil && r.sinkErr != nil:
		r.log.Info("the recorder's sink works again", "failed_for", time.Since(r.sinkSince).Round(time.Second))
		r.sinkSince = time.Time{}
	}
	r.sinkErr = err
}

func (r *Recorder) noteOldest(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.oldest = t
}

// reject puts aside what the sink can never keep, so that it does not stand in the way of all that follows.
func (r *Recorder) reject(i *Interaction, why error) {
	r.m.rejected.Inc()
	name := filepath.Join(r.cfg.Spool.Dir, rejectedName)
	err := appendLine(name, i)
	r.log.Error("the sink can never keep an interaction; it was put aside", "id", i.ID, "file", name, "error", why, "put_aside", text(err))
}

func appendLine(name string, i *Interaction) error {
	line, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("recorder: put aside: %w", err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("recorder: put aside: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size()+int64(len(line)) > rejectedBytesMax {
		err = fault.New(fault.Exhausted, "recorder: put aside: %s has %d bytes; remove it once it was read", name, st.Size())
	}
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	return errors.Join(err, f.Close())
}

// prune removes from the sink what is too old or too much.
func (r *Recorder) prune(ctx context.Context) {
	keep := Retention{MaxBytes: int64(r.cfg.Retention.MaxBytes)}
	if age := r.cfg.Retention.MaxAge; age > 0 {
		keep.Before = time.Now().Add(-age)
	}
	ctx, cancel := context.WithTimeout(ctx, pruneTimeMax)
	defer cancel()
	n, err := r.sink.Prune(ctx, keep)
	r.m.pruned.Add(float64(n))
	if err != nil && ctx.Err() == nil {
		r.log.Warn("old interactions could not be removed; it is tried again", "in", pruneEvery, "error", err)
	}
}
