// Records and segment headers as bytes.

package outputlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The bounds of a log.
const (
	MaxLineBytes        = 256 << 10
	DefaultSegmentBytes = 4 << 20
	DefaultTotalBytes   = 64 << 20
)

const (
	version     = 1
	magic       = "OLOG"
	headerBytes = 32 // of a segment, and of a record
	flagPartial = 1
	suffix      = ".seg"
)

// Kind says what a record is.
type Kind uint8

// The kinds. Hole is never stored.
const (
	Stdout Kind = 1
	Stderr Kind = 2
	Input  Kind = 3 // a message was given to the process
	Notice Kind = 4 // about the log itself
	Hole   Kind = 255
)

// Record is one entry of the log.
type Record struct {
	Kind    Kind
	Partial bool // the line goes on in the next number
	Epoch   uint32
	// Number is the line's number; of the last line before it for Input and Notice; of the first missing line for Hole.
	Number uint64
	// Last is the number of the last missing line of a Hole.
	Last uint64
	Time int64 // Unix nanoseconds; 0 for Hole
	// Data is valid until the next call of Next.
	Data []byte
}

// IsLine reports whether the record is a numbered line of output.
func (r *Record) IsLine() bool { return r.Kind == Stdout || r.Kind == Stderr }

// Sequence is the message's of an Input record.
func (r *Record) Sequence() uint64 {
	if r.Kind != Input || len(r.Data) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(r.Data)
}

var (
	errTorn    = errors.New("outputlog: the record is torn")
	errVersion = errors.New("outputlog: a segment is of a version that this build does not know")
)

// appendRecord appends the record's bytes to b.
func appendRecord(b []byte, r *Record) []byte {
	at := len(b)
	b = append(b, make([]byte, headerBytes)...)
	h := b[at:]
	binary.LittleEndian.PutUint32(h[4:], uint32(len(r.Data)))
	h[8] = byte(r.Kind)
	if r.Partial {
		h[9] = flagPartial
	}
	binary.LittleEndian.PutUint32(h[12:], r.Epoch)
	binary.LittleEndian.PutUint64(h[16:], r.Number)
	binary.LittleEndian.PutUint64(h[24:], uint64(r.Time))
	b = append(b, r.Data...)
	binary.LittleEndian.PutUint32(b[at:], crc32.ChecksumIEEE(b[at+4:]))
	return b
}

// recordBytes says how long the record at the head of b is; it needs headerBytes of b.
func recordBytes(b []byte) (int, error) {
	n := binary.LittleEndian.Uint32(b[4:])
	if n > MaxLineBytes {
		return 0, errTorn
	}
	return headerBytes + int(n), nil
}

// parseRecord reads a whole record; its data stays in b.
func parseRecord(b []byte) (Record, error) {
	if crc32.ChecksumIEEE(b[4:]) != binary.LittleEndian.Uint32(b) {
		return Record{}, errTorn
	}
	return Record{
		Kind: Kind(b[8]), Partial: b[9]&flagPartial != 0, Epoch: binary.LittleEndian.Uint32(b[12:]),
		Number: binary.LittleEndian.Uint64(b[16:]), Time: int64(binary.LittleEndian.Uint64(b[24:])), Data: b[headerBytes:],
	}, nil
}

func segmentHeader(first uint64, nanos int64) []byte {
	b := make([]byte, headerBytes)
	copy(b, magic)
	b[4] = version
	binary.LittleEndian.PutUint64(b[8:], first)
	binary.LittleEndian.PutUint64(b[16:], uint64(nanos))
	binary.LittleEndian.PutUint32(b[28:], crc32.ChecksumIEEE(b[:28]))
	return b
}

// parseHeader returns the number of the segment's first line.
func parseHeader(b []byte) (first uint64, err error) {
	if len(b) < headerBytes || string(b[:4]) != magic || crc32.ChecksumIEEE(b[:28]) != binary.LittleEndian.Uint32(b[28:]) {
		return 0, errTorn
	}
	if b[4] != version {
		return 0, fmt.Errorf("%w: %d", errVersion, b[4])
	}
	return binary.LittleEndian.Uint64(b[8:]), nil
}

func segmentPath(dir string, ordinal uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%016d%s", ordinal, suffix))
}

// segments returns the ordinals in dir, rising; none when dir does not exist.
func segments(dir string) ([]uint64, error) {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("outputlog: list: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("outputlog: list: %w", err)
	}
	var out []uint64
	for _, n := range names {
		base, ok := strings.CutSuffix(n, suffix)
		if !ok {
			continue
		}
		if o, err := strconv.ParseUint(base, 10, 64); err == nil {
			out = append(out, o)
		}
	}
	slices.Sort(out)
	return out, nil
}
