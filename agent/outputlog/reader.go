// Reading, also while somebody appends.

package outputlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Reader reads a log from some line on. It is for one goroutine.
type Reader struct {
	dir     string
	from    uint64 // records before this line are skipped
	want    uint64 // the number that the next line should have
	f       *os.File
	ordinal uint64
	first   uint64 // of the open segment
	at      int64  // where the next record of the open segment begins
	buf     []byte // bytes from at on, within back
	back    []byte
	full    bool // the last read filled back: more is waiting
	held    *Record
	keep    []byte // backs held.Data
}

const (
	readBytes = 64 << 10
	idleBytes = 4 << 10
)

// NewReader returns a reader that begins with the line of the given number; 0 and 1 both mean the first. Lines that are
// no longer kept come as one Hole record.
func NewReader(dir string, from uint64) (*Reader, error) {
	r := &Reader{dir: dir, from: max(from, 1)}
	r.want = r.from
	ordinals, err := segments(dir)
	if err != nil {
		return nil, err
	}
	// Backwards: readers mostly want the end.
	for i := len(ordinals) - 1; i >= 0; i-- {
		if err := r.open(ordinals[i]); err != nil {
			if errors.Is(err, errTorn) || errors.Is(err, os.ErrNotExist) {
				continue
			}
			r.Close()
			return nil, err
		}
		if r.first <= r.from {
			break
		}
	}
	return r, nil
}

// open opens a segment and reads its header.
func (r *Reader) open(ordinal uint64) error {
	f, err := os.Open(segmentPath(r.dir, ordinal))
	if err != nil {
		return fmt.Errorf("outputlog: open: %w", err)
	}
	next := Reader{f: f}
	if err := next.header(); err != nil {
		f.Close()
		return err
	}
	r.Close()
	r.f, r.ordinal, r.first, r.at, r.buf = f, ordinal, next.first, next.at, r.buf[:0]
	return nil
}

func (r *Reader) header() error {
	var b [headerBytes]byte
	if _, err := io.ReadFull(io.NewSectionReader(r.f, 0, headerBytes), b[:]); err != nil {
		return errTorn
	}
	first, err := parseHeader(b[:])
	r.first, r.at = first, headerBytes
	return err
}

// Close frees the open file.
func (r *Reader) Close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}

// Next returns the next record, or io.EOF when there is none yet: more may come later, and Next may be called again.
func (r *Reader) Next() (Record, error) {
	if r.held != nil {
		rec := *r.held
		r.held = nil
		return rec, nil
	}
	for {
		if r.f == nil {
			if ok, err := r.oldest(0); !ok || err != nil {
				return Record{}, eof(err)
			}
		}
		rec, err := r.record()
		if errors.Is(err, io.EOF) || errors.Is(err, errTorn) {
			moved, err := r.advance()
			if err != nil || !moved {
				return Record{}, eof(err)
			}
			continue
		}
		if err != nil {
			return Record{}, err
		}
		switch {
		case rec.Kind < Stdout || rec.Kind > Notice:
		case rec.IsLine() && rec.Number < r.want, !rec.IsLine() && rec.Number+1 < r.from:
		case rec.IsLine() && rec.Number > r.want:
			return r.hole(rec, rec.Number-1), nil
		case !rec.IsLine() && rec.Number >= r.want: // lines before it are missing, and come before it
			return r.hole(rec, rec.Number), nil
		default:
			if rec.IsLine() {
				r.want++
			}
			return rec, nil
		}
	}
}

// hole returns the hole up to last and holds the record after it back for the next call.
func (r *Reader) hole(rec Record, last uint64) Record {
	h := Record{Kind: Hole, Epoch: rec.Epoch, Number: r.want, Last: last, Data: holeText(r.want, last)}
	r.want = last + 1
	if rec.IsLine() {
		r.want = rec.Number + 1
	}
	r.keep = append(r.keep[:0], rec.Data...)
	rec.Data = r.keep
	r.held = &rec
	return h
}

func eof(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

func holeText(first, last uint64) []byte {
	if first == last {
		return fmt.Appendf(nil, "line %d is not kept on this node", first)
	}
	return fmt.Appendf(nil, "lines %d–%d are not kept on this node", first, last)
}

// record returns the record at r.at; io.EOF when nothing is there yet.
func (r *Reader) record() (Record, error) {
	early := len(r.buf) > 0
	rec, n, err := r.parse()
	if err != nil && early {
		// What was read earlier may be the beginning of a record that did not fit onto the disk; the writer has cut it off, and written
		// another one in its place.
		r.buf = r.buf[:0]
		rec, n, err = r.parse()
	}
	if err != nil {
		r.buf = r.buf[:0] // it may be whole the next time
		return Record{}, err
	}
	r.buf = r.buf[n:]
	r.at += int64(n)
	return rec, nil
}

// parse returns the record at r.at and its length.
func (r *Reader) parse() (rec Record, n int, err error) {
	if err := r.fill(headerBytes); err != nil {
		return rec, 0, err
	}
	if n, err = recordBytes(r.buf); err != nil {
		return rec, 0, err
	}
	if err := r.fill(n); err != nil {
		return rec, 0, err
	}
	rec, err = parseRecord(r.buf[:n:n])
	return rec, n, err
}

// fill makes r.buf hold at least n bytes from r.at on. An idle reader keeps no more than idleBytes.
func (r *Reader) fill(n int) error {
	if len(r.buf) >= n {
		return nil
	}
	size := max(n, idleBytes)
	if r.full {
		size = max(n, readBytes)
	}
	if len(r.back) < size || (len(r.back) > size && len(r.back) > readBytes) {
		back := make([]byte, size)
		r.buf = back[:copy(back, r.buf)]
		r.back = back
	} else {
		r.buf = r.back[:copy(r.back, r.buf)]
	}
	have := len(r.buf)
	got, err := r.f.ReadAt(r.back[have:], r.at+int64(have))
	r.buf = r.back[:have+got]
	r.full = have+got == len(r.back)
	if len(r.buf) >= n {
		return nil
	}
	if len(r.buf) == 0 && len(r.back) > idleBytes {
		r.back, r.buf = nil, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.EOF
	}
	return fmt.Errorf("outputlog: read: %w", err)
}

// advance goes to the next segment when there is one, which also means that the open one is complete.
func (r *Reader) advance() (bool, error) {
	next := r.ordinal + 1
	_, err := os.Lstat(segmentPath(r.dir, next))
	switch {
	case err == nil:
		// What was appended between the end we saw and the next segment's start comes first.
		if rec, rerr := r.record(); rerr == nil {
			r.at -= int64(headerBytes + len(rec.Data))
			r.buf = r.buf[:0]
			return true, nil
		}
		err := r.open(next)
		if errors.Is(err, errTorn) { // its header is being written
			return false, nil
		}
		if errors.Is(err, os.ErrNotExist) { // dropped in this moment
			return r.oldest(next + 1)
		}
		return err == nil, err
	case !errors.Is(err, os.ErrNotExist):
		return false, fmt.Errorf("outputlog: look for the next segment: %w", err)
	case r.dropped():
		return r.oldest(next)
	}
	return false, nil
}

// dropped reports whether the open segment was removed, so that newer ones must exist.
func (r *Reader) dropped() bool {
	st, err := r.f.Stat()
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Nlink == 0
}

// oldest opens the oldest segment from the given ordinal on.
func (r *Reader) oldest(from uint64) (bool, error) {
	ordinals, err := segments(r.dir)
	if err != nil {
		return false, err
	}
	for _, o := range ordinals {
		if o < from {
			continue
		}
		err := r.open(o)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errTorn) {
			continue
		}
		return err == nil, err
	}
	return false, nil
}
