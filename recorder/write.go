// The writer: from the queue into the spool.

package recorder

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neolith/orchestrator/internal/fault"
)

// gatherTime is how long the writer waits for more after something came, so that it is not woken for each.
const gatherTime = 2 * time.Millisecond

// spoolRetry is how long the writer waits after the spool could not be written.
const spoolRetry = 200 * time.Millisecond

// Serve writes and ships until ctx ends, or something is wrong with the recorder itself; it may be started again then. When it returns, all that was
// handed over before ctx ended is durable, unless the spool cannot be written.
func (r *Recorder) Serve(ctx context.Context) error {
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error { return contained("write", func() error { return r.write(inner) }) })
	g.Go(func() error { return contained("ship", func() error { return r.ship(inner) }) })
	return g.Wait()
}

// contained makes an error of a panic, so that one of two goroutines does not take the program along.
func contained(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("recorder: %s: panic: %v\n%s", what, p, debug.Stack())
		}
	}()
	return f()
}

// write moves what is handed over into the spool as it comes, and syncs it every SyncEvery.
func (r *Recorder) write(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.written:
			if !gather(ctx) {
				return r.finish()
			}
		case <-timer.C:
		case <-ctx.Done():
			return r.finish()
		}
		if wait := r.step(); wait > 0 {
			timer.Reset(wait)
		}
	}
}

// gather waits for gatherTime; false when ctx ended before.
func gather(ctx context.Context) bool {
	t := time.NewTimer(gatherTime)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// step does what there is to do, and returns when to come back if nobody wakes the writer before; 0 for not at all.
func (r *Recorder) step() time.Duration {
	full, err := r.appendAll()
	wait := time.Duration(0)
	if r.spool.Unsynced() > 0 {
		if wait = r.cfg.Spool.SyncEvery - time.Since(r.lastSync); wait <= 0 {
			wait = 0
			if serr := r.sync(); serr != nil {
				err = serr
			}
		}
	}
	r.noteSpool(err)
	switch {
	case err != nil:
		return spoolRetry
	case full && wait == 0:
		return r.cfg.Spool.SyncEvery // the shipper wakes the writer too
	}
	return wait
}

// appendAll gives the spool what is in the queue, as far as there is room.
func (r *Recorder) appendAll() (full bool, err error) {
	for {
		if len(r.inHand) == 0 {
			r.mu.Lock()
			batch := r.queue
			r.queue, r.spare = r.spare, nil
			r.mu.Unlock()
			if len(batch) == 0 {
				return false, nil
			}
			r.encode(batch)
			r.giveBack(batch)
		}
		records := make([][]byte, len(r.inHand))
		for i := range r.inHand {
			records[i] = r.inHand[i].data
		}
		n, err := r.spool.Append(records...)
		r.forget(n)
		if fault.Is(err, fault.Exhausted) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// encode takes a queue in hand, in one piece of memory.
func (r *Recorder) encode(batch []Interaction) {
	room := int64(0)
	for i := range batch {
		room += batch[i].bytes()
	}
	r.inHand = make([]encoded, len(batch))
	b := make([]byte, 0, room)
	for i := range batch {
		from, bytes := len(b), batch[i].bytes()
		b = r.prepare(b, &batch[i])
		r.inHand[i] = encoded{b[from:len(b):len(b)], bytes}
	}
}

// giveBack keeps the room of a queue for the next one.
func (r *Recorder) giveBack(batch []Interaction) {
	if cap(batch) > spareMax {
		return
	}
	clear(batch)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spare = batch[:0]
}

// forget lets go of the first n records in hand, which are in the spool.
func (r *Recorder) forget(n int) {
	freed := int64(0)
	for _, e := range r.inHand[:n] {
		freed += e.queued
	}
	r.inHand = r.inHand[n:]
	if len(r.inHand) == 0 {
		r.inHand = nil
	}
	r.appended += uint64(n)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queueBytes -= freed
}

// sync makes durable what was appended, and tells everybody.
func (r *Recorder) sync() error {
	begin := time.Now()
	if err := r.spool.Sync(); err != nil {
		return err
	}
	r.lastSync = time.Now()
	r.m.syncSeconds.Observe(r.lastSync.Sub(begin).Seconds())
	r.mu.Lock()
	r.synced = r.appended
	r.change()
	r.mu.Unlock()
	signal(r.durable)
	return nil
}

// finish makes durable what was handed over, as far as that is possible now.
func (r *Recorder) finish() error {
	full, err := r.appendAll()
	if serr := r.sync(); err == nil {
		err = serr
	}
	if err != nil {
		return fmt.Errorf("recorder: the last interactions were not written: %w", err)
	}
	if full {
		return fault.New(fault.Exhausted, "recorder: the spool is full, and %d interactions of the last moment are lost", len(r.inHand))
	}
	return nil
}

// noteSpool keeps how the spool does, and says when that changes.
func (r *Recorder) noteSpool(err error) {
	if err != nil {
		r.m.spoolFailures.Inc()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && r.spoolErr == nil:
		r.log.Error("the recorder's spool cannot be written; interactions wait in memory, and are tried again", "error", err)
	case err == nil && r.spoolErr != nil:
		r.log.Info("the recorder's spool is written again")
	}
	r.spoolErr = err
	r.noteAlarm()
}

// noteAlarm begins and ends the alarm; r.mu is held.
func (r *Recorder) noteAlarm() {
	percent := r.spool.Size() * 100 / int64(r.cfg.Spool.MaxBytes)
	limit := int64(r.cfg.Spool.AlarmPercent)
	switch {
	case !r.alarm && percent >= limit:
		r.alarm = true
		r.log.Error("the recorder's spool fills up; look after the sink, or raise recorder.spool.max_bytes", "percent", percent,
			"when_full", r.cfg.Spool.WhenFull, "sink_error", text(r.sinkErr))
	case r.alarm && percent < max(limit-alarmHysteresis, 1):
		r.alarm = false
		r.log.Info("the recorder's spool has room again", "percent", percent)
	}
}

// prepare takes secrets out of an interaction, cuts it, and appends it to b.
func (r *Recorder) prepare(b []byte, i *Interaction) []byte {
	if err := contained("redact", func() error { r.clean(i); return nil }); err != nil {
		r.log.Error("an interaction could not be redacted, and is kept without its texts", "id", i.ID, "error", err)
		*i = Interaction{ID: i.ID, Time: i.Time, Kind: i.Kind, Namespace: "unknown", Status: i.Status, Error: "could not be redacted"}
	}
	for _, cut := range [...]bool{i.RequestTruncated, i.ResponseTruncated} {
		if cut {
			r.m.truncated.Inc()
		}
	}
	if i.Redactions > 0 {
		r.m.redacted.Add(float64(i.Redactions))
	}
	return encode(b, i)
}

// clean takes secrets out and cuts to the bounds. Namespace, session and client are names that the house gave; they are only cut.
func (r *Recorder) clean(i *Interaction) {
	payload := int(r.cfg.MaxPayloadBytes)
	for _, f := range [...]struct {
		text     *string
		bytesMax int
	}{
		{&i.Request, payload}, {&i.Response, payload}, {&i.Error, errorBytesMax}, {&i.RequestID, fieldBytesMax}, {&i.Principal, fieldBytesMax},
		{&i.Tool, fieldBytesMax}, {&i.Provider, fieldBytesMax}, {&i.Model, fieldBytesMax}, {&i.Code, fieldBytesMax},
	} {
		if *f.text == "" {
			continue
		}
		clean, n := r.redact.Text(*f.text, f.bytesMax)
		*f.text = clean
		i.Redactions += n
	}
	for _, name := range [...]*string{&i.Namespace, &i.Session, &i.Client} {
		*name = r.redact.Printable(*name, fieldBytesMax)
	}
}
