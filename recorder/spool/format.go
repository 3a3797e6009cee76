// The bytes of segments, records and the position; doc.go has the tables.

package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	// RecordBytesMax bounds one record.
	RecordBytesMax = 8 << 20

	version       = 1
	segmentHeader = 32
	recordHeader  = 12

	segmentSuffix = ".seg"
	damagedSuffix = ".damaged"

	positionName = "position"
	slotBytes    = 32
	slotApart    = 4096 // slots share no block of the disk, so that a torn write harms one of them
)

var (
	le    = binary.LittleEndian
	table = crc32.MakeTable(crc32.Castagnoli)

	// errTorn is a header or record that is not whole.
	errTorn = errors.New("torn")
)

func segmentName(ordinal uint64) string { return fmt.Sprintf("%016d%s", ordinal, segmentSuffix) }

// parseSegmentName reads what segmentName wrote.
func parseSegmentName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0
}

func newSegmentHeader(ordinal uint64, nanos int64) []byte {
	h := make([]byte, segmentHeader)
	copy(h, "RSPL")
	h[4] = version
	le.PutUint64(h[8:], ordinal)
	le.PutUint64(h[16:], uint64(nanos))
	le.PutUint32(h[28:], crc32.Checksum(h[:28], table))
	return h
}

// checkSegmentHeader returns errTorn for what is no header of this segment, and FailedPrecondition for one of a newer version.
func checkSegmentHeader(h []byte, ordinal uint64) error {
	if len(h) < segmentHeader || string(h[:4]) != "RSPL" || crc32.Checksum(h[:28], table) != le.Uint32(h[28:]) || le.Uint64(h[8:]) != ordinal {
		return errTorn
	}
	if h[4] != version {
		return fault.New(fault.FailedPrecondition, "spool: %s is of format %d and this build reads format %d; start the build that wrote it", segmentName(ordinal), h[4], version)
	}
	return nil
}

// appendRecord adds a record of a segment to b.
func appendRecord(b []byte, ordinal uint64, data []byte) []byte {
	var h [recordHeader]byte
	le.PutUint32(h[:], uint32(len(data)))
	le.PutUint32(h[4:], crc32.Checksum(data, table))
	le.PutUint32(h[8:], crc32.Update(uint32(ordinal), table, h[:8]))
	return append(append(b, h[:]...), data...)
}

// recordLength returns the length of the data behind a record's header.
func recordLength(h []byte, ordinal uint64) (int64, error) {
	if len(h) < recordHeader || le.Uint32(h[8:]) != crc32.Update(uint32(ordinal), table, h[:8]) {
		return 0, errTorn
	}
	n := int64(le.Uint32(h))
	if n < 1 || n > RecordBytesMax {
		return 0, errTorn
	}
	return n, nil
}

// whole reports whether a record's data is what was written.
func whole(h, data []byte) bool { return le.Uint32(h[4:]) == crc32.Checksum(data, table) }

// Position is a place between two records; all before it is confirmed.
type Position struct {
	Segment uint64 // its ordinal
	Offset  int64  // in bytes
}

func newSlot(number uint64, p Position) []byte {
	b := make([]byte, slotBytes)
	copy(b, "RPOS")
	le.PutUint64(b[8:], number)
	le.PutUint64(b[16:], p.Segment)
	le.PutUint64(b[24:], uint64(p.Offset))
	le.PutUint32(b[4:], crc32.Checksum(b[8:], table))
	return b
}

func parseSlot(b []byte) (number uint64, p Position, ok bool) {
	if len(b) < slotBytes || string(b[:4]) != "RPOS" || crc32.Checksum(b[8:slotBytes], table) != le.Uint32(b[4:]) {
		return 0, Position{}, false
	}
	return le.Uint64(b[8:]), Position{le.Uint64(b[16:]), int64(le.Uint64(b[24:]))}, true
}
