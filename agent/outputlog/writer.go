// Appending: one writer per log, the shim.

package outputlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Options of a Writer; zero values mean the defaults.
type Options struct {
	Epoch uint32
	// Base is the number of the last line that earlier epochs are known to have written, here or elsewhere.
	Base         uint64
	SegmentBytes int64
	TotalBytes   int64
}

// Writer appends to a log. It is for one goroutine.
type Writer struct {
	dir   string
	opt   Options
	f     *os.File // nil before the first record of a new log
	size  int64    // of the open segment, without what waits in batch
	last  uint64
	batch []byte
	// The kept segments, oldest first; the last one is open.
	kept  []kept
	total int64 // bytes of all but the open one
	err   error // of the last write that failed, until a notice says what was lost
	lost  uint64
}

type kept struct {
	ordinal uint64
	bytes   int64
}

const (
	// batchBytesMax bounds what waits in memory before it is written.
	batchBytesMax = 256 << 10
	// waitingBytesMax bounds what waits in memory while nothing can be written, such as on a full disk.
	waitingBytesMax = 1 << 20
)

// Open opens the log in dir, which must exist, for appending; it cuts off a torn tail. Numbers go on from the last
// record or from opt.Base, whichever is higher.
func Open(dir string, opt Options) (*Writer, error) {
	if opt.SegmentBytes <= 0 {
		opt.SegmentBytes = DefaultSegmentBytes
	}
	if opt.TotalBytes <= 0 {
		opt.TotalBytes = DefaultTotalBytes
	}
	w := &Writer{dir: dir, opt: opt}
	ordinals, err := segments(dir)
	if err != nil {
		return nil, err
	}
	for _, o := range ordinals {
		st, err := os.Stat(segmentPath(dir, o))
		if err != nil {
			return nil, fmt.Errorf("outputlog: open: %w", err)
		}
		w.kept = append(w.kept, kept{o, st.Size()})
		w.total += st.Size()
	}
	if err := w.resume(); err != nil {
		return nil, err
	}
	return w, nil
}

// resume finds the last whole record and opens the segment to append to.
func (w *Writer) resume() error {
	for len(w.kept) > 0 {
		k := w.kept[len(w.kept)-1]
		f, err := os.OpenFile(segmentPath(w.dir, k.ordinal), os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("outputlog: open: %w", err)
		}
		last, size, err := scan(f)
		if errors.Is(err, errTorn) { // not even its header is whole: the one before it is the last
			f.Close()
			if err := os.Remove(f.Name()); err != nil {
				return fmt.Errorf("outputlog: remove a torn segment: %w", err)
			}
			w.kept, w.total = w.kept[:len(w.kept)-1], w.total-k.bytes
			continue
		}
		if err == nil && size < k.bytes {
			err = f.Truncate(size)
		}
		if err != nil {
			f.Close()
			return fmt.Errorf("outputlog: open %s: %w", f.Name(), err)
		}
		w.f, w.size, w.last = f, size, last
		w.total -= k.bytes
		break
	}
	if w.f != nil && w.opt.Base > w.last {
		w.size = max(w.size, w.opt.SegmentBytes) // the numbers jump: a segment begins with the next line
	}
	w.last = max(w.last, w.opt.Base)
	return nil
}

// scan returns the number of the last line in a segment and the length of its whole records.
func scan(f *os.File) (last uint64, size int64, err error) {
	r := Reader{f: f}
	if err := r.header(); err != nil {
		return 0, 0, err
	}
	last = r.first - 1
	for {
		rec, err := r.record()
		if errors.Is(err, io.EOF) || errors.Is(err, errTorn) {
			return last, r.at, nil
		}
		if err != nil {
			return 0, 0, err
		}
		last = max(last, rec.Number)
	}
}

// roll closes the open segment, starts the next and drops the oldest ones that are too much.
func (w *Writer) roll() error {
	ordinal := uint64(1)
	if n := len(w.kept); n > 0 {
		ordinal = w.kept[n-1].ordinal + 1
	}
	f, err := os.OpenFile(segmentPath(w.dir, ordinal), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("outputlog: start a segment: %w", err)
	}
	if _, err := f.Write(segmentHeader(w.last+1, time.Now().UnixNano())); err != nil {
		f.Close()
		_ = os.Remove(f.Name()) // an empty one would only be cut off by the next writer
		return fmt.Errorf("outputlog: start a segment: %w", err)
	}
	if w.f != nil {
		if st, err := w.f.Stat(); err == nil {
			w.kept[len(w.kept)-1].bytes = st.Size()
		}
		w.total += w.kept[len(w.kept)-1].bytes
		w.f.Close()
	}
	w.f, w.size = f, headerBytes
	w.kept = append(w.kept, kept{ordinal, headerBytes})
	for len(w.kept) > 1 && w.total+w.opt.SegmentBytes > w.opt.TotalBytes {
		if err := os.Remove(segmentPath(w.dir, w.kept[0].ordinal)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("outputlog: drop the oldest segment: %w", err)
		}
		w.total -= w.kept[0].bytes
		w.kept = w.kept[1:]
	}
	return nil
}

// Last is the number of the last line, written or waiting.
func (w *Writer) Last() uint64 { return w.last }

// Line adds a line, without its newline, under the next number; it is written by the next Flush. A text longer than
// MaxLineBytes must be split by the caller; see Splitter.
func (w *Writer) Line(kind Kind, text []byte, partial bool, nanos int64) {
	w.last++
	w.add(&Record{Kind: kind, Partial: partial, Number: w.last, Time: nanos, Data: text})
}

// Mark writes an input marker, and all that waits before it, at once. An error means that the marker is not in the log.
func (w *Writer) Mark(sequence uint64, nanos int64) error {
	if err := w.Flush(); err != nil {
		return err
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], sequence)
	w.add(&Record{Kind: Input, Number: w.last, Time: nanos, Data: b[:]})
	err := w.Flush()
	if err != nil {
		w.batch = w.batch[:0] // only the marker, which nobody may find later
	}
	return err
}

// Notice adds a text about the log itself.
func (w *Writer) Notice(text string, nanos int64) {
	w.add(&Record{Kind: Notice, Number: w.last, Time: nanos, Data: []byte(text)})
}

func (w *Writer) add(r *Record) {
	r.Epoch = w.opt.Epoch
	w.batch = appendRecord(w.batch, r)
	if len(w.batch) >= batchBytesMax {
		_ = w.Flush() // a failure is kept in w.err, and told by the next Flush that succeeds
	}
}

// Flush writes what waits, in one write. What cannot be written waits on, for another Flush, until it is too much; then it is lost: a
// process must not stand still because its log's disk is full. The numbers stay used, readers see a hole, and a notice
// says why once writing works again.
func (w *Writer) Flush() error {
	if len(w.batch) == 0 {
		return nil
	}
	batch := w.batch
	if w.lost > 0 {
		text := fmt.Sprintf("output was lost, %d times what fits into memory: %v", w.lost, w.err)
		batch = append(appendRecord(nil, &Record{Kind: Notice, Epoch: w.opt.Epoch, Number: w.lastBefore(batch), Time: time.Now().UnixNano(), Data: []byte(text)}), batch...)
	}
	err := w.write(batch)
	switch {
	case err == nil:
		w.err, w.lost = nil, 0
	case len(w.batch) <= waitingBytesMax:
		w.err = err
		return err
	default:
		w.err = err
		w.lost++
	}
	if w.batch = w.batch[:0]; cap(w.batch) > readBytes { // a burst must not cost its memory for ever
		w.batch = nil
	}
	return err
}

func (w *Writer) write(batch []byte) error {
	if w.f == nil || (w.size+int64(len(batch)) > w.opt.SegmentBytes && w.size > headerBytes) {
		if err := w.rollBefore(batch); err != nil {
			return err
		}
	}
	n, err := w.f.WriteAt(batch, w.size)
	if err != nil {
		// Cut the torn record off, so that what comes later can be read; or leave the segment to its torn tail.
		if n > 0 && w.f.Truncate(w.size) != nil {
			w.size = max(w.size+int64(n), w.opt.SegmentBytes)
		}
		return fmt.Errorf("outputlog: append: %w", err)
	}
	w.size += int64(n)
	return nil
}

// rollBefore starts a segment whose first line is the first one of batch.
func (w *Writer) rollBefore(batch []byte) error {
	last := w.last
	w.last = w.lastBefore(batch)
	err := w.roll()
	w.last = last
	return err
}

// lastBefore is the number of the last line before batch.
func (w *Writer) lastBefore(batch []byte) uint64 {
	n, err := recordBytes(batch)
	if err != nil {
		return w.last
	}
	rec, err := parseRecord(batch[:n])
	if err != nil {
		return w.last
	}
	if rec.IsLine() {
		return rec.Number - 1
	}
	return rec.Number
}

// Close writes what waits and closes the log.
func (w *Writer) Close() error {
	err := w.Flush()
	if w.f == nil {
		return err
	}
	if cerr := w.f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("outputlog: close: %w", cerr)
	}
	return err
}
