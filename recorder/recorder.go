// The recorder: handing over, waiting for room, and how it does.

package recorder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder/redact"
	"github.com/neolith/orchestrator/recorder/spool"
)

const (
	// queueBytesMax bounds what waits in memory for the spool.
	queueBytesMax = 16 << 20
	// alarmHysteresis is how many percent below the alarm the spool must be before the alarm ends.
	alarmHysteresis = 10
	// spareMax bounds, in interactions, the room that is kept for the next queue: a burst must not cost its memory for ever.
	spareMax = 4096
	// roomShare and roomBytesMax say how much of the spool Room leaves to what is under way.
	roomShare, roomBytesMax = 16, 64 << 20
)

// Options of a recorder.
type Options struct {
	Config     Config // valid, and with Spool.Dir
	Sink       Sink   // stays the caller's to close
	Logger     *slog.Logger
	Registerer prometheus.Registerer // may be nil
}

// Recorder takes interactions from any goroutine. Serve must run for them to go anywhere.
type Recorder struct {
	cfg     Config
	sink    Sink
	log     *slog.Logger
	m       *metrics
	redact  *redact.Redactor
	spool   *spool.Spool
	written chan struct{} // wakes the writer
	durable chan struct{} // wakes the shipper

	mu         sync.Mutex
	queue      []Interaction
	spare      []Interaction // the room of a queue that the writer has emptied
	queueBytes int64         // of queue, and of what the writer has in hand
	taken      uint64
	synced     uint64        // how many of taken are durable
	changed    chan struct{} // closed, and made anew, when there may be room or something has become durable
	closed     bool
	released   bool // nobody waits for room any more
	alarm      bool
	dropping   uint64 // since the spool was full; 0 while it is not
	drops      uint64 // ever
	spoolErr   error
	sinkErr    error
	sinkSince  time.Time // of sinkErr
	oldest     time.Time
	shipped    uint64

	// Of the shipper.
	items []Interaction // the room of a batch

	// Of the writer.
	inHand   []encoded
	appended uint64
	lastSync time.Time
}

// encoded is an interaction on its way to the spool.
type encoded struct {
	data   []byte
	queued int64 // what it counted for in queueBytes
}

// Open opens the spool. Nothing leaves it until Serve runs.
func Open(o Options) (*Recorder, error) {
	if o.Config.Spool.Dir == "" {
		return nil, fault.New(fault.Invalid, "recorder: no directory for the spool is given")
	}
	if err := o.Config.Validate("recorder"); err != nil {
		return nil, err
	}
	clean, err := redact.New(o.Config.Redact...)
	if err != nil {
		return nil, err
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s, err := spool.Open(o.Config.Spool.Dir, spool.Options{MaxBytes: int64(o.Config.Spool.MaxBytes), SegmentBytes: segmentBytes, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("recorder: %w", err)
	}
	r := &Recorder{
		cfg: o.Config, sink: o.Sink, log: log, m: newMetrics(), redact: clean, spool: s,
		written: make(chan struct{}, 1), durable: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	if err := r.m.register(o.Registerer, r); err != nil {
		return nil, errors.Join(fmt.Errorf("recorder: register metrics: %w", err), s.Close())
	}
	return r, nil
}

// Record hands an interaction over. With the policy Block it waits until there is room, or Release. It returns Invalid for one that is none, Exhausted
// when it was dropped and counted, and Unavailable once the recorder is closed.
func (r *Recorder) Record(i Interaction) error { return r.Take(&i) }

// Take is Record for those who have an interaction in a place of their own: it completes it and does not keep the pointer. An interaction is half a
// kilobyte, and each copy on the way makes the stack of a short-lived goroutine grow, which costs more than all the rest.
func (r *Recorder) Take(i *Interaction) error {
	if err := i.check(); err != nil {
		return err
	}
	i.complete(time.Now())
	r.bound(i)
	bytes := i.bytes()
	var since time.Time
	for {
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return fault.New(fault.Unavailable, "recorder: it is closed")
		}
		if r.queueBytes+bytes <= queueBytesMax && r.spool.Size()+r.queueBytes+bytes <= int64(r.cfg.Spool.MaxBytes) {
			first := len(r.queue) == 0
			r.take(i, bytes)
			r.mu.Unlock()
			if first {
				signal(r.written)
			}
			if !since.IsZero() {
				r.m.blockedSeconds.Add(time.Since(since).Seconds())
			}
			return nil
		}
		if r.cfg.Spool.WhenFull == DropAndCount || r.released {
			r.drop()
			r.mu.Unlock()
			return fault.New(fault.Exhausted, "recorder: the spool is full (%s); the interaction is not recorded, and counted", r.cfg.Spool.MaxBytes)
		}
		changed := r.changed
		r.mu.Unlock()
		if since.IsZero() {
			since = time.Now()
		}
		<-changed
	}
}

// Room waits, with the policy Block, until there is room for what is about to be done, so that nothing is done that could not be recorded. It keeps a
// reserve free for what is under way. It returns Timeout when ctx ended before. With DropAndCount nobody waits.
func (r *Recorder) Room(ctx context.Context) error {
	if r.cfg.Spool.WhenFull == DropAndCount {
		return nil
	}
	limit := int64(r.cfg.Spool.MaxBytes)
	limit -= min(limit/roomShare, roomBytesMax)
	var since time.Time
	for {
		r.mu.Lock()
		ok := r.released || r.spool.Size()+r.queueBytes <= limit && r.queueBytes <= queueBytesMax/2
		changed := r.changed
		r.mu.Unlock()
		if ok {
			if !since.IsZero() {
				r.m.blockedSeconds.Add(time.Since(since).Seconds())
			}
			return nil
		}
		if since.IsZero() {
			since = time.Now()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			r.m.blockedSeconds.Add(time.Since(since).Seconds())
			return fault.New(fault.Timeout, "recorder: the spool is full (%s), and nothing is done that cannot be recorded; look after the record's database, or set recorder.spool.when_full: %s", r.cfg.Spool.MaxBytes, DropAndCount)
		}
	}
}

// Release ends all waiting for room, for the end of a server: what finds none from now on is dropped and counted.
func (r *Recorder) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released = true
	r.change()
}

// take puts an interaction into the queue; r.mu is held.
func (r *Recorder) take(i *Interaction, bytes int64) {
	if r.dropping > 0 {
		r.log.Warn("interactions are recorded again", "not_recorded", r.dropping)
		r.dropping = 0
	}
	r.queue = append(r.queue, *i)
	r.queueBytes += bytes
	r.taken++
	r.m.records.Inc()
}

// drop counts an interaction that is not recorded; r.mu is held.
func (r *Recorder) drop() {
	if r.dropping == 0 {
		r.log.Error("the recorder's spool is full: interactions are not recorded from now on, and counted; look after the sink, or raise recorder.spool.max_bytes",
			"max_bytes", int64(r.cfg.Spool.MaxBytes), "sink_error", text(r.sinkErr))
	}
	r.dropping++
	r.drops++
	r.m.dropped.Inc()
}

// bound lets go of what will not be kept, and could be 32 MiB.
func (r *Recorder) bound(i *Interaction) {
	keep := int(r.cfg.MaxPayloadBytes)
	i.RequestBytes, i.ResponseBytes = max(i.RequestBytes, int64(len(i.Request))), max(i.ResponseBytes, int64(len(i.Response)))
	i.RequestTruncated, i.ResponseTruncated = i.RequestBytes > int64(keep), i.ResponseBytes > int64(keep)
	i.Redactions = 0
	window(&i.Request, keep)
	window(&i.Response, keep)
	for _, t := range i.texts() {
		window(t, errorBytesMax)
	}
}

// window keeps what redact needs of a text, and not the rest of its memory.
func window(text *string, bytesMax int) {
	if w := redact.Window(*text, bytesMax); len(w) < len(*text) {
		*text = strings.Clone(w)
	}
}

// Flush waits until all that was handed over before is durable, here; it need not have arrived at the sink.
func (r *Recorder) Flush(ctx context.Context) error {
	r.mu.Lock()
	want := r.taken
	r.mu.Unlock()
	return r.wait(ctx, "flush", func() bool { return r.synced >= want })
}

// Drain waits until the sink has confirmed all that was handed over before, and all that was in the spool.
func (r *Recorder) Drain(ctx context.Context) error {
	if err := r.Flush(ctx); err != nil {
		return err
	}
	return r.wait(ctx, "drain", r.spool.Empty)
}

// wait waits for something that is true under r.mu.
func (r *Recorder) wait(ctx context.Context, verb string, done func() bool) error {
	for {
		r.mu.Lock()
		ok, changed := done(), r.changed
		r.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.New(fault.Timeout, "recorder: %s: %w", verb, ctx.Err())
		}
	}
}

// State is how a recorder does at one instant.
type State struct {
	QueueBytes    int64 // in memory
	SpoolBytes    int64 // on disk
	SpoolMaxBytes int64
	Alarm         bool      // the spool is fuller than it should be
	Dropping      bool      // the last interaction was dropped
	Taken         uint64    // since the start
	Dropped       uint64    // since the start
	Shipped       uint64    // confirmed by the sink since the start
	SpoolError    string    // of the last write to the spool; empty when it succeeded
	SinkError     string    // of the last write to the sink; empty when it succeeded
	SinkSince     time.Time // when the sink began to fail
	Oldest        time.Time // of what the shipper is trying to send; zero when nothing waits
}

// State may be called from any goroutine, at any time.
func (r *Recorder) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return State{
		QueueBytes: r.queueBytes, SpoolBytes: r.spool.Size(), SpoolMaxBytes: int64(r.cfg.Spool.MaxBytes), Alarm: r.alarm, Dropping: r.dropping > 0,
		Taken: r.taken, Dropped: r.drops, Shipped: r.shipped, SpoolError: text(r.spoolErr), SinkError: text(r.sinkErr), SinkSince: r.sinkSince, Oldest: r.oldest,
	}
}

// Health returns why somebody should look: the spool is fuller than recorder.spool.alarm_percent, or cannot be written. A sink that is
// away for a while is none; it is in State.
func (r *Recorder) Health() error {
	s := r.State()
	var why error
	if s.SinkError != "" {
		why = fmt.Errorf("; the sink has failed since %s: %s", s.SinkSince.UTC().Format(time.RFC3339), s.SinkError)
	}
	switch {
	case s.SpoolError != "":
		return fault.New(fault.Unavailable, "recorder: the spool cannot be written: %s", s.SpoolError)
	case s.Dropping:
		return fault.New(fault.Exhausted, "recorder: the spool is full, and %d interactions were not recorded%s", s.Dropped, text(why))
	case s.Alarm:
		return fault.New(fault.Exhausted, "recorder: %d of %d bytes of the spool are full%s", s.SpoolBytes, s.SpoolMaxBytes, text(why))
	}
	return nil
}

// Close makes durable what was handed over and closes the spool. Serve must have returned.
func (r *Recorder) Close() error {
	r.mu.Lock()
	r.closed = true
	r.change()
	r.mu.Unlock()
	err := r.finish()
	if left := r.spool.Size(); left > 0 {
		r.log.Info("interactions wait in the spool for the next start", "bytes", left)
	}
	if cerr := r.spool.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("recorder: close: %w", cerr))
	}
	return err
}

// change tells those who wait that something is different; r.mu is held.
func (r *Recorder) change() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// signal wakes who waits for a channel of length one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// text is an error's, or none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
