// The zstd frame around the tar: how it is written, and where it ends.
//
// What is exported is compressed already, so the writer stores: its frame has raw blocks, and blocks of zeros for what a tar pads with. No
// encoder would win more than a hundredth. In return the same archive has the same bytes in every release, and no archive
// that was written can ever look like a bomb. A reader takes any frame, so that people may compress one again.

package archive

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/cespare/xxhash/v2"
)

const (
	zstdMagic     = 0xfd2fb528
	zstdChecksum  = 1 << 2
	zstdWindowLog = 17      // the smallest that lets blocks be as long as they may
	zstdMaxBlock  = 1 << 17 // bytes
	zstdRaw       = 0
	zstdRLE       = 1
	zstdReserved  = 3
	shortRun      = 16 // zeros that are not worth a block
)

// frameWriter writes a zstd frame.
type frameWriter struct {
	w     io.Writer
	sum   *xxhash.Digest
	block []byte // 3 bytes for its header, then what was written and is not out yet
	err   error
}

func newFrameWriter(w io.Writer) *frameWriter {
	f := &frameWriter{w: w, sum: xxhash.New(), block: make([]byte, 3, 3+zstdMaxBlock)}
	head := binary.LittleEndian.AppendUint32(nil, zstdMagic)
	_, f.err = w.Write(append(head, zstdChecksum, (zstdWindowLog-10)<<3))
	return f
}

// Write writes content.
func (f *frameWriter) Write(p []byte) (n int, err error) {
	n = len(p)
	_, _ = f.sum.Write(p) // never fails
	for len(p) > 0 && f.err == nil {
		if len(f.block) == cap(f.block) {
			f.flush(false)
		}
		k := copy(f.block[len(f.block):cap(f.block)], p)
		f.block = f.block[:len(f.block)+k]
		p = p[k:]
	}
	return n, f.err
}

// zeros writes n zeros, at most a tar's block of them.
func (f *frameWriter) zeros(n int) {
	var none [blockBytes]byte
	if n < shortRun {
		_, _ = f.Write(none[:n]) // the error stays
		return
	}
	_, _ = f.sum.Write(none[:n])
	if len(f.block) > 3 {
		f.flush(false)
	}
	if f.err == nil {
		_, f.err = f.w.Write(append(blockHeader(false, zstdRLE, n), 0))
	}
}

func blockHeader(last bool, kind, n int) []byte {
	h := n<<3 | kind<<1
	if last {
		h |= 1
	}
	return []byte{byte(h), byte(h >> 8), byte(h >> 16)}
}

func (f *frameWriter) flush(last bool) {
	if f.err != nil {
		return
	}
	copy(f.block, blockHeader(last, zstdRaw, len(f.block)-3))
	_, f.err = f.w.Write(f.block)
	f.block = f.block[:3]
}

// Close ends the frame.
func (f *frameWriter) Close() error {
	f.flush(true)
	if f.err == nil {
		_, f.err = f.w.Write(binary.LittleEndian.AppendUint32(nil, uint32(f.sum.Sum64())))
	}
	return f.err
}

// frameReader passes on one zstd frame, and ends behind it: a decoder alone would go on to the next, and skip what is none.
type frameReader struct {
	src    *bufio.Reader
	state  func(*frameReader) error // reads the next header
	head   []byte                   // of it, not passed on yet
	left   int                      // bytes of the block
	summed bool
	last   bool
	done   bool
	count  int64 // bytes passed on
	err    error // why no more come: a corruption, or the source's own
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{src: bufio.NewReaderSize(r, 64<<10), state: (*frameReader).begin}
}

// Read passes on.
func (f *frameReader) Read(p []byte) (int, error) {
	for len(f.head) == 0 && f.left == 0 && f.err == nil {
		if f.done {
			return 0, io.EOF
		}
		f.err = f.state(f)
	}
	if f.err != nil {
		return 0, f.err
	}
	var n int
	if len(f.head) > 0 {
		n = copy(p, f.head)
		f.head = f.head[n:]
	} else {
		var err error
		n, err = f.src.Read(p[:min(len(p), f.left)])
		f.left -= n
		if err != nil && n == 0 {
			f.err = f.broken(err)
			return 0, f.err
		}
	}
	f.count += int64(n)
	return n, nil
}

// broken is the error where the source ends or fails within the frame.
func (f *frameReader) broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("it is cut off after %d bytes", f.count)
	}
	return err
}

// take adds n bytes to the head.
func (f *frameReader) take(n int) ([]byte, error) {
	at := len(f.head)
	f.head = append(f.head, make([]byte, n)...)
	if k, err := io.ReadFull(f.src, f.head[at:]); err != nil {
		f.count += int64(at + k)
		return nil, f.broken(err)
	}
	return f.head[at:], nil
}

// begin reads the frame's header.
func (f *frameReader) begin() error {
	b, err := f.take(5)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != zstdMagic {
		return corrupt("it is not compressed with zstd")
	}
	flags := b[4]
	if flags&0b11011 != 0 {
		return corrupt("its compression needs a dictionary, or something unknown (%#x)", flags)
	}
	sizeBytes, single := 1<<(flags>>6), flags&(1<<5) != 0
	if sizeBytes == 1 && !single {
		sizeBytes = 0
	}
	if !single {
		sizeBytes++ // the window
	}
	if _, err := f.take(sizeBytes); err != nil {
		return err
	}
	f.summed, f.state = flags&zstdChecksum != 0, (*frameReader).next
	return nil
}

// next reads a block's header, or the checksum behind the last.
func (f *frameReader) next() error {
	f.head = f.head[:0]
	if f.last {
		f.done = true
		if f.summed {
			_, err := f.take(4)
			return err
		}
		return nil
	}
	b, err := f.take(3)
	if err != nil {
		return err
	}
	h := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	f.last, f.left = h&1 != 0, h>>3
	switch kind := h >> 1 & 3; {
	case kind == zstdReserved || f.left > zstdMaxBlock:
		return corrupt("its compression has a block of %d bytes of kind %d", f.left, kind)
	case kind == zstdRLE:
		f.left = 1
	}
	return nil
}

// end makes sure that nothing follows the frame.
func (f *frameReader) end() error {
	switch _, err := f.src.ReadByte(); {
	case err == nil:
		return corrupt("something follows its end after %d bytes", f.count)
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}
