// Reading what is durable, and confirming what has arrived.

package spool

import (
	"errors"
	"fmt"
	"io"
)

// Batch is what one Next returned.
type Batch struct {
	Records [][]byte
	End     Position // to be confirmed once all records have arrived
	Damaged int64    // bytes that could not be read and were skipped
}

// Next returns the durable records behind the confirmed position: at least one where there is one, and otherwise at most so many records
// and bytes. It returns the same ones again until they are confirmed.
func (s *Spool) Next(recordsMax int, bytesMax int64) (Batch, error) {
	b := Batch{End: s.position()}
	bytes, w := int64(0), &window{}
	for len(b.Records) < recordsMax && bytes < bytesMax {
		g, ok := s.find(&b.End)
		if !ok {
			return b, nil
		}
		f, err := s.file(g.ordinal)
		if err != nil {
			return b, err
		}
		h, data, err := w.read(f, g.ordinal, b.End.Offset, g.durable)
		if errors.Is(err, errTorn) { // there is no telling where the next record begins
			b.Damaged += g.durable - b.End.Offset
			b.End.Offset = g.durable
			continue
		}
		if err != nil {
			return b, err
		}
		b.End.Offset += recordHeader + int64(len(data))
		if !whole(h, data) {
			b.Damaged += recordHeader + int64(len(data))
			continue
		}
		b.Records = append(b.Records, data)
		bytes += int64(len(data))
	}
	return b, nil
}

// position returns the confirmed position.
func (s *Spool) position() Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.confirmed
}

// find moves a position to where the next durable record begins, and returns a copy of that segment; false when there is none.
func (s *Spool) find(p *Position) (segment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		if g.ordinal < p.Segment {
			continue
		}
		at := int64(segmentHeader)
		if g.ordinal == p.Segment {
			at = p.Offset
		}
		if at < g.durable {
			*p = Position{g.ordinal, at}
			return *g, true
		}
		if !g.sealed {
			return segment{}, false
		}
	}
	return segment{}, false
}

// file opens a segment for reading; the last one stays open.
func (s *Spool) file(ordinal uint64) (file, error) {
	if s.reading != nil && s.readOf == ordinal {
		return s.reading, nil
	}
	s.closeReading()
	f, err := s.fs.Open(segmentName(ordinal))
	if err != nil {
		return nil, fmt.Errorf("spool: read: %w", err)
	}
	s.reading, s.readOf = f, ordinal
	return f, nil
}

func (s *Spool) closeReading() {
	if s.reading != nil {
		s.reading.Close()
		s.reading = nil
	}
}

// windowBytes is how much is read at once.
const windowBytes = 256 << 10

// window is a part of a segment that was read.
type window struct {
	ordinal uint64
	at      int64
	b       []byte
}

// read returns a record's header and data, which are parts of what was read with it; errTorn when there is no whole record before the end.
func (w *window) read(f file, ordinal uint64, at, end int64) (h, data []byte, err error) {
	if end-at < recordHeader {
		return nil, nil, errTorn
	}
	if h, err = w.bytes(f, ordinal, at, recordHeader, end); err != nil {
		return nil, nil, err
	}
	n, err := recordLength(h, ordinal)
	if err != nil || at+recordHeader+n > end {
		return nil, nil, errTorn
	}
	data, err = w.bytes(f, ordinal, at+recordHeader, n, end)
	return h, data, err
}

// bytes returns n bytes of a segment, and reads more than them, up to the end; a file that is shorter than it was is torn.
func (w *window) bytes(f file, ordinal uint64, at, n, end int64) ([]byte, error) {
	if from := at - w.at; w.ordinal == ordinal && from >= 0 && from+n <= int64(len(w.b)) {
		return w.b[from : from+n : from+n], nil
	}
	b := make([]byte, min(max(n, windowBytes), end-at))
	got, err := f.ReadAt(b, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("spool: read: %w", err)
	}
	if int64(got) < n {
		return nil, errTorn
	}
	w.ordinal, w.at, w.b = ordinal, at, b[:got]
	return b[:n:n], nil
}

// readFull fills b; a file that is shorter than it was is torn.
func readFull(f file, b []byte, at int64) error {
	n, err := f.ReadAt(b, at)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return errTorn
	}
	return fmt.Errorf("spool: read: %w", err)
}

// loadPosition finds where reading goes on.
func (s *Spool) loadPosition() error {
	f, err := s.fs.Open(positionName)
	if err != nil {
		names, lerr := s.fs.List()
		if _, there := names[positionName]; there || lerr != nil {
			return errors.Join(fmt.Errorf("spool: open: %w", err), lerr)
		}
		if f, err = s.fs.Create(positionName); err != nil {
			return fmt.Errorf("spool: open: %w", err)
		}
		s.slots = f
		if err := s.fs.Sync(); err != nil {
			return fmt.Errorf("spool: sync the directory: %w", err)
		}
		return nil
	}
	s.slots = f
	b := make([]byte, slotBytes)
	for _, at := range []int64{0, slotApart} {
		if err := readFull(f, b, at); errors.Is(err, errTorn) {
			continue
		} else if err != nil {
			return err
		}
		if number, p, ok := parseSlot(b); ok && number > s.slot {
			s.slot, s.confirmed = number, p
		}
	}
	// A disk that lied about its syncs can have a position that lies behind what it kept.
	for _, g := range s.segments {
		if g.ordinal == s.confirmed.Segment {
			s.confirmed.Offset = min(s.confirmed.Offset, g.durable)
		}
	}
	return nil
}

// Confirm says that all before a position has arrived; it will not be read again, also after a crash. Segments of which nothing is left to be
// read are removed. After an error the position counts until a crash, and what is behind it may be read again then.
func (s *Spool) Confirm(p Position) error {
	s.slot++
	_, err := s.slots.WriteAt(newSlot(s.slot, p), int64(s.slot%2)*slotApart)
	if err == nil {
		err = s.slots.Sync()
	}
	s.mu.Lock()
	s.confirmed = p
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("spool: confirm: %w", err)
	}
	return s.trim()
}

// trim removes the segments of which all is confirmed.
func (s *Spool) trim() error {
	for {
		s.mu.Lock()
		if len(s.segments) == 0 {
			s.mu.Unlock()
			return nil
		}
		g, p := s.segments[0], s.confirmed
		done := g.sealed && (g.ordinal < p.Segment || g.ordinal == p.Segment && p.Offset >= g.durable)
		s.mu.Unlock()
		if !done {
			return nil
		}
		if s.readOf == g.ordinal {
			s.closeReading()
		}
		if err := s.fs.Remove(segmentName(g.ordinal)); err != nil {
			return fmt.Errorf("spool: remove what has arrived: %w", err)
		}
		s.mu.Lock()
		s.segments = s.segments[1:]
		s.total -= g.size
		s.mu.Unlock()
	}
}

// Empty reports whether all that is durable is confirmed.
func (s *Spool) Empty() bool {
	p := s.position()
	_, more := s.find(&p)
	return !more
}
