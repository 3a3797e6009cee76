// Opening a spool, appending to it, and making it durable.

package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// Options of a spool.
type Options struct {
	// MaxBytes is of all segments together, at least four of one. On a disk that fails there may be one segment more: what it could neither
	// sync nor cut off is written again.
	MaxBytes     int64
	SegmentBytes int64 // of one segment; a record longer than it has one of its own
	Logger       *slog.Logger
}

// Spool is an open spool. Append, Sync and Close are for one goroutine, Next and Confirm for one other; Size is for any.
type Spool struct {
	opt Options
	fs  filesystem
	log *slog.Logger

	mu        sync.Mutex
	segments  []*segment // oldest first
	confirmed Position
	total     int64 // bytes of all segments

	// Of the goroutine that appends.
	open     file   // the last segment, nil before the first record
	unsynced []byte // its end, which is written and not durable
	counts   []int  // the lengths of the data of the records in unsynced
	newNames bool   // there are segments that the directory may forget
	buf      []byte // to be written

	// Of the goroutine that reads.
	reading file
	readOf  uint64 // its ordinal
	slots   file
	slot    uint64 // number of the last writing of the position
}

// segment is one of the files.
type segment struct {
	ordinal uint64
	durable int64 // where what may be read ends
	size    int64 // in bytes
	sealed  bool  // nothing will be appended
}

// Open opens the spool in a directory, which is made when it is not there (mode 0700), and cuts off what a crash left torn. A directory that
// another process has open, or of a newer format, is refused with FailedPrecondition.
func Open(dir string, o Options) (*Spool, error) {
	d, err := openDisk(dir)
	if err != nil {
		return nil, err
	}
	s, err := open(d, o)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return s, nil
}

func open(fs filesystem, o Options) (*Spool, error) {
	s := &Spool{opt: o, fs: fs, log: o.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if o.SegmentBytes <= segmentHeader || o.MaxBytes < 4*o.SegmentBytes {
		return nil, fault.New(fault.Invalid, "spool: %d bytes do not hold four segments of %d", o.MaxBytes, o.SegmentBytes)
	}
	err := s.load()
	if err == nil {
		err = s.loadPosition()
	}
	if err == nil {
		err = s.trim() // what a crash kept from being removed
	}
	if err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	return s, nil
}

// load finds the segments, and the end of the last one.
func (s *Spool) load() error {
	names, err := s.fs.List()
	if err != nil {
		return fmt.Errorf("spool: open: %w", err)
	}
	for name, size := range names {
		if ordinal, ok := parseSegmentName(name); ok {
			s.segments = append(s.segments, &segment{ordinal: ordinal, durable: size, size: size, sealed: true})
		}
	}
	slices.SortFunc(s.segments, func(a, b *segment) int { return int(int64(a.ordinal - b.ordinal)) })
	kept := s.segments[:0]
	for i, g := range s.segments {
		ok, err := s.inspect(g, i == len(s.segments)-1)
		if err != nil {
			return err
		}
		if ok {
			kept = append(kept, g)
			s.total += g.size
		}
	}
	s.segments = kept
	if err := s.fs.Sync(); err != nil {
		return fmt.Errorf("spool: sync the directory: %w", err)
	}
	return nil
}

// inspect checks a segment's header, and cuts off the torn tail of the last one. It returns false when the segment is no more.
func (s *Spool) inspect(g *segment, last bool) (bool, error) {
	name := segmentName(g.ordinal)
	f, err := s.fs.Open(name)
	if err != nil {
		return false, fmt.Errorf("spool: open: %w", err)
	}
	defer f.Close()
	h := make([]byte, segmentHeader)
	if _, err := f.ReadAt(h, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("spool: open %s: %w", name, err)
	}
	switch err := checkSegmentHeader(h, g.ordinal); {
	case errors.Is(err, errTorn) && (last || g.size <= segmentHeader): // its first sync did not end: nothing in it was durable
		return false, s.fs.Remove(name)
	case errors.Is(err, errTorn):
		s.log.Error("a segment of the recorder's spool is damaged and put aside; its records are lost", "segment", name, "bytes", g.size)
		return false, s.fs.Rename(name, name+damagedSuffix)
	case err != nil:
		return false, err
	case !last:
		return true, nil
	}
	end, err := s.scan(f, g)
	if err != nil {
		return false, err
	}
	if end < g.size {
		s.log.Info("the torn tail of the recorder's spool was cut off", "segment", name, "bytes", g.size-end)
		if err := f.Truncate(end); err != nil {
			return false, fmt.Errorf("spool: cut off the tail of %s: %w", name, err)
		}
	}
	if err := f.Sync(); err != nil { // a process that was killed wrote more than it synced
		return false, fmt.Errorf("spool: sync %s: %w", name, err)
	}
	g.durable, g.size = end, end
	return true, nil
}

// scan returns where the last whole record of a segment ends.
func (s *Spool) scan(f file, g *segment) (int64, error) {
	end, at := int64(segmentHeader), int64(segmentHeader)
	for w := (&window{}); ; {
		h, data, err := w.read(f, g.ordinal, at, g.size)
		if errors.Is(err, errTorn) {
			return end, nil
		}
		if err != nil {
			return 0, err
		}
		at += recordHeader + int64(len(data))
		if whole(h, data) {
			end = at
		}
	}
}

// Size returns the bytes of all segments.
func (s *Spool) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Append writes records, each of 1 to RecordBytesMax bytes, and returns how many of them were taken; those are durable after the next Sync
// that succeeds. When not all were, the error says why: Exhausted when the spool is full. The caller gives the rest again.
func (s *Spool) Append(records ...[]byte) (int, error) {
	if err := s.restore(); err != nil {
		return 0, err
	}
	for taken := 0; ; {
		n, err := s.appendSome(records[taken:])
		taken += n
		if err != nil || taken == len(records) {
			return taken, err
		}
	}
}

// appendSome writes as many records as fit into the open segment, in one write; it begins a new segment when none does.
func (s *Spool) appendSome(records [][]byte) (int, error) {
	var full error
	n := 0
	g := s.last()
	ordinal, at := s.nextOrdinal(), int64(segmentHeader)
	if g != nil {
		ordinal, at = g.ordinal, g.size
	}
	s.buf = s.buf[:0]
	for _, r := range records {
		bytes := int64(len(s.buf) + recordHeader + len(r))
		if longest := min(RecordBytesMax, s.opt.MaxBytes-s.opt.SegmentBytes-2*segmentHeader-recordHeader); len(r) < 1 || int64(len(r)) > longest {
			full = fault.New(fault.Invalid, "spool: append: a record has %d bytes; between 1 and %d are possible", len(r), longest)
			break
		}
		if at+bytes > s.opt.SegmentBytes && at+int64(len(s.buf)) > segmentHeader {
			break
		}
		if s.Size()+bytes+segmentHeader > s.opt.MaxBytes {
			full = fault.New(fault.Exhausted, "spool: append: %d bytes are full", s.opt.MaxBytes)
			break
		}
		s.buf = appendRecord(s.buf, ordinal, r)
		n++
	}
	if n == 0 {
		if full == nil {
			full = s.roll()
		}
		return 0, full
	}
	if g == nil {
		if err := s.begin(ordinal); err != nil {
			return 0, err
		}
		g = s.last()
	}
	if err := s.write(g, s.buf); err != nil {
		return 0, err
	}
	s.unsynced = append(s.unsynced, s.buf...)
	for _, r := range records[:n] {
		s.counts = append(s.counts, len(r))
	}
	if cap(s.buf) > bufBytesKept {
		s.buf = nil // a burst must not cost its memory for ever
	}
	return n, full
}

// bufBytesKept bounds the buffer that is kept between two writes.
const bufBytesKept = 1 << 20

// write appends bytes to the open segment. What was written of them when it fails is cut off again.
func (s *Spool) write(g *segment, b []byte) error {
	if _, err := s.open.WriteAt(b, g.size); err != nil {
		if cut := s.open.Truncate(g.size); cut != nil {
			s.abandon() // a torn record stands where the next one would
		}
		return fmt.Errorf("spool: append to %s: %w", segmentName(g.ordinal), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.size += int64(len(b))
	s.total += int64(len(b))
	return nil
}

// last returns the segment that is appended to, nil when none is.
func (s *Spool) last() *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return nil
	}
	return s.segments[len(s.segments)-1]
}

func (s *Spool) nextOrdinal() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.confirmed.Segment + 1
	if n := len(s.segments); n > 0 {
		next = max(next, s.segments[n-1].ordinal+1)
	}
	return next
}

// begin makes a segment.
func (s *Spool) begin(ordinal uint64) error {
	name := segmentName(ordinal)
	f, err := s.fs.Create(name)
	if err != nil {
		return fmt.Errorf("spool: begin a segment: %w", err)
	}
	if _, err := f.WriteAt(newSegmentHeader(ordinal, time.Now().UnixNano()), 0); err != nil {
		return errors.Join(fmt.Errorf("spool: begin %s: %w", name, err), f.Close(), s.fs.Remove(name))
	}
	s.open, s.newNames = f, true
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments = append(s.segments, &segment{ordinal: ordinal, durable: segmentHeader, size: segmentHeader})
	s.total += segmentHeader
	return nil
}

// roll makes the open segment durable and closes it; the next record begins another one.
func (s *Spool) roll() error {
	if err := s.Sync(); err != nil {
		return err
	}
	s.open.Close() // it is synced
	s.open = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments[len(s.segments)-1].sealed = true
	return nil
}

// abandon gives up the open segment behind what of it is durable; the rest is written again by restore. A failed sync may have thrown
// away what it could not write, and tell the next sync that all is well, so nothing of it is believed.
func (s *Spool) abandon() {
	g := s.last()
	if g == nil {
		return
	}
	name := segmentName(g.ordinal)
	cut := s.open.Truncate(g.durable) == nil // else a restart may find records that are also elsewhere
	s.open.Close()
	s.open = nil
	empty := g.durable == segmentHeader && s.fs.Remove(name) == nil // a disk that stays full must not gather them
	s.mu.Lock()
	defer s.mu.Unlock()
	if cut || empty {
		s.total -= g.size - g.durable
		g.size = g.durable
	}
	if empty {
		s.total -= g.size
		s.segments = s.segments[:len(s.segments)-1]
	}
	g.sealed = true
}

// restore writes what an abandoned segment did not keep into a new one.
func (s *Spool) restore() error {
	if s.open != nil || len(s.unsynced) == 0 {
		return nil
	}
	ordinal := s.nextOrdinal()
	if err := s.begin(ordinal); err != nil {
		return err
	}
	var again []byte
	at := 0
	for _, n := range s.counts {
		at += recordHeader
		again = appendRecord(again, ordinal, s.unsynced[at:at+n])
		at += n
	}
	if err := s.write(s.last(), again); err != nil {
		s.abandon()
		return err
	}
	s.unsynced = again
	return nil
}

// Sync makes durable what was appended, and shows it to the reader. When it fails, all that was taken since the last Sync is kept in memory
// and made durable by the next one that succeeds.
func (s *Spool) Sync() error {
	if err := s.restore(); err != nil {
		return err
	}
	g := s.last()
	if g == nil || len(s.unsynced) == 0 {
		return nil
	}
	if err := s.open.Sync(); err != nil {
		s.abandon()
		return fmt.Errorf("spool: sync %s: %w", segmentName(g.ordinal), err)
	}
	if s.newNames {
		if err := s.fs.Sync(); err != nil {
			return fmt.Errorf("spool: sync the directory: %w", err)
		}
		s.newNames = false
	}
	s.unsynced, s.counts = s.unsynced[:0], s.counts[:0]
	if cap(s.unsynced) > bufBytesKept {
		s.unsynced = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.durable = g.size
	return nil
}

// Unsynced returns the bytes that were taken and are not durable. It is for the goroutine that appends.
func (s *Spool) Unsynced() int { return len(s.unsynced) }

// Close makes durable what was appended, and lets go of the directory. Nobody may read any more.
func (s *Spool) Close() error {
	return errors.Join(s.Sync(), s.closeFiles(), s.fs.Close())
}

func (s *Spool) closeFiles() error {
	var errs []error
	for _, f := range []file{s.open, s.reading, s.slots} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	s.open, s.reading, s.slots = nil, nil, nil
	return errors.Join(errs...)
}
