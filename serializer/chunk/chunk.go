// Package chunk is the unit of stored bytes: content under the name of its hash, in a small frame.
//
//	id    = BLAKE3-256 of the content
//	frame = "ORCC" · version 1 · coding · content length, 4 bytes big-endian · coded content
//
// The frame is what stores keep and the wire carries; the hash is over the content, so a chunk has one name whatever its coding. A
// frame says how long its content is before anything is decoded, and more than MaxContentBytes is refused: a small
// frame cannot become a large memory.
package chunk

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// Sizes in bytes.
const (
	// MaxContentBytes is the longest content of a chunk.
	MaxContentBytes = 1 << 20
	// HeaderBytes is the length of a frame before its coded content.
	HeaderBytes = 10
	// MaxFrameBytes is the longest frame: content that does not shrink is kept as it is.
	MaxFrameBytes = HeaderBytes + MaxContentBytes
)

const (
	magic   = "ORCC"
	version = 1

	codingPlain = 0
	codingZstd  = 1
)

// ErrCorrupt says that a frame is none, or that its content is not what its name says.
var ErrCorrupt = errors.New("chunk: corrupt")

// ID names a chunk.
type ID [32]byte

// Sum returns the id of content.
func Sum(content []byte) ID { return blake3.Sum256(content) }

// String returns the id in hexadecimal, 64 digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Parse is the inverse of String.
func Parse(s string) (id ID, err error) {
	if len(s) != 2*len(id) {
		return id, fmt.Errorf("chunk: the id %.80q has not %d hexadecimal digits", s, 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("chunk: the id %q: %w", s, err)
	}
	return id, nil
}

// FromBytes returns the id that 32 bytes are.
func FromBytes(b []byte) (id ID, err error) {
	if len(b) != len(id) {
		return id, fmt.Errorf("chunk: an id of %d bytes, want %d", len(b), len(id))
	}
	return ID(b), nil
}

// encoders and decoders cost megabytes each; they are kept, and one is used by one goroutine at a time.
var (
	encoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(MaxContentBytes), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	}}
	decoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxContentBytes), zstd.WithDecoderMaxWindow(MaxContentBytes))
		if err != nil {
			panic(err) // as above
		}
		return d
	}}
)

// Seal returns the frame of content, compressed when that is shorter. It panics when the content is longer than
// MaxContentBytes, which is the caller's to cut.
func Seal(content []byte) []byte {
	if len(content) > MaxContentBytes {
		panic(fmt.Sprintf("chunk: %d bytes of content, at most %d", len(content), MaxContentBytes))
	}
	frame := make([]byte, HeaderBytes, HeaderBytes+len(content))
	e := encoders.Get().(*zstd.Encoder)
	frame = e.EncodeAll(content, frame)
	encoders.Put(e)
	coding := byte(codingZstd)
	if len(frame) >= HeaderBytes+len(content) {
		coding, frame = codingPlain, append(frame[:HeaderBytes], content...)
	}
	copy(frame, magic)
	frame[4], frame[5] = version, coding
	binary.BigEndian.PutUint32(frame[6:], uint32(len(content)))
	return frame
}

// Open returns the content of a frame, appended to dst, when it is the content that id names; else an error that matches
// ErrCorrupt.
func Open(dst []byte, id ID, frame []byte) ([]byte, error) {
	n, err := ContentBytes(frame)
	if err != nil {
		return dst, err
	}
	start, body := len(dst), frame[HeaderBytes:]
	switch frame[5] {
	case codingPlain:
		dst = append(dst, body...)
	case codingZstd:
		var h zstd.Header
		if err := h.Decode(body); err != nil || !h.HasFCS || h.FrameContentSize != uint64(n) {
			return dst, fmt.Errorf("%w: chunk %s: the compressed part does not say that it holds %d bytes", ErrCorrupt, id, n)
		}
		d := decoders.Get().(*zstd.Decoder)
		dst = slices.Grow(dst, n)
		content, err := d.DecodeAll(body, dst[start:start]) // its bound on memory counts what stands before, too
		decoders.Put(d)
		dst = append(dst[:start], content...)
		if err != nil {
			return dst[:start], fmt.Errorf("%w: chunk %s: %w", ErrCorrupt, id, err)
		}
	default:
		return dst, fmt.Errorf("%w: chunk %s: its coding %d is not known", ErrCorrupt, id, frame[5])
	}
	if content := dst[start:]; len(content) != n || Sum(content) != id {
		return dst[:start], fmt.Errorf("%w: chunk %s holds something else", ErrCorrupt, id)
	}
	return dst, nil
}

// ContentBytes returns the length of a frame's content by its header.
func ContentBytes(frame []byte) (int, error) {
	switch {
	case len(frame) < HeaderBytes || string(frame[:4]) != magic:
		return 0, fmt.Errorf("%w: not the frame of a chunk", ErrCorrupt)
	case frame[4] != version:
		return 0, fmt.Errorf("%w: a frame of version %d; this release reads version %d", ErrCorrupt, frame[4], version)
	case len(frame) > MaxFrameBytes:
		return 0, fmt.Errorf("%w: a frame of %d bytes, at most %d", ErrCorrupt, len(frame), MaxFrameBytes)
	}
	n := binary.BigEndian.Uint32(frame[6:])
	if n > MaxContentBytes {
		return 0, fmt.Errorf("%w: %d bytes of content, at most %d", ErrCorrupt, n, MaxContentBytes)
	}
	return int(n), nil
}
