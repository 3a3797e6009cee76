// The file: its encoding, the clock and the boot it belongs to, and reading it.

package lease

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	version   = 1
	slotBytes = 64
	fileBytes = 2 * slotBytes
	magic     = "ORLS"

	// readAttempts bounds how often a reader that finds no valid slot looks again before it calls the file damaged.
	readAttempts = 8
)

// ErrLapsed is returned by Read for a lease that is missing, damaged or of another boot; a deadline that has passed is
// for the caller to see.
var ErrLapsed = errors.New("lease: none is held")

// BootID is one boot of the machine.
type BootID [16]byte

// Now returns CLOCK_BOOTTIME in nanoseconds.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("lease: CLOCK_BOOTTIME cannot be read: " + err.Error()) // Linux has had it since 2.6.39
	}
	return ts.Nano()
}

// Boot returns the id of this boot.
func Boot() (BootID, error) {
	var id BootID
	var buf [64]byte
	text, err := readSmall("/proc/sys/kernel/random/boot_id", buf[:])
	if err != nil {
		return id, fmt.Errorf("lease: read the boot id: %w", err)
	}
	n := 0
	for _, c := range text {
		var v byte
		switch {
		case c >= '0' && c <= '9':
			v = c - '0'
		case c >= 'a' && c <= 'f':
			v = c - 'a' + 10
		default:
			continue
		}
		if n < 32 {
			id[n/2] = id[n/2]<<4 | v
		}
		n++
	}
	if n != 32 {
		return id, fmt.Errorf("lease: the boot id %q is not a UUID", text)
	}
	return id, nil
}

type slot struct {
	boot       BootID
	generation uint64
	deadline   int64
}

func (s slot) encode(b *[slotBytes]byte) {
	*b = [slotBytes]byte{}
	copy(b[0:], magic)
	b[4] = version
	copy(b[8:], s.boot[:])
	binary.LittleEndian.PutUint64(b[24:], s.generation)
	binary.LittleEndian.PutUint64(b[32:], uint64(s.deadline))
	binary.LittleEndian.PutUint32(b[60:], crc32.ChecksumIEEE(b[:60]))
}

func decode(b []byte) (slot, bool) {
	var s slot
	if len(b) < slotBytes || string(b[:4]) != magic || b[4] != version ||
		crc32.ChecksumIEEE(b[:60]) != binary.LittleEndian.Uint32(b[60:]) {
		return s, false
	}
	copy(s.boot[:], b[8:])
	s.generation = binary.LittleEndian.Uint64(b[24:])
	s.deadline = int64(binary.LittleEndian.Uint64(b[32:]))
	return s, true
}

// newest returns the valid slot with the higher generation.
func newest(b []byte) (slot, bool) {
	var best slot
	found := false
	for at := 0; at+slotBytes <= len(b); at += slotBytes {
		if s, ok := decode(b[at:]); ok && (!found || s.generation > best.generation) {
			best, found = s, true
		}
	}
	return best, found
}

// Read returns the deadline of the lease, which may have passed, or ErrLapsed.
func Read(path string) (deadline int64, err error) {
	boot, err := Boot()
	if err != nil {
		return 0, err
	}
	return read(path, boot)
}

func read(path string, boot BootID) (int64, error) {
	for attempt := range readAttempts {
		if attempt > 0 {
			time.Sleep(time.Duration(attempt) * 100 * time.Microsecond)
		}
		s, ok, err := readOnce(path)
		switch {
		case err != nil:
			return 0, err
		case ok && s.boot != boot:
			return 0, fmt.Errorf("%w: %s is of an earlier boot of the machine", ErrLapsed, path)
		case ok:
			return s.deadline, nil
		}
	}
	return 0, fmt.Errorf("%w: %s is damaged", ErrLapsed, path)
}

func readOnce(path string) (slot, bool, error) {
	var buf [fileBytes]byte
	b, err := readSmall(path, buf[:])
	if err != nil {
		return slot{}, false, fmt.Errorf("%w: %w", ErrLapsed, err)
	}
	s, ok := newest(b)
	return s, ok, nil
}

// readSmall reads the head of a file into buf: three system calls, for a shim that starts.
func readSmall(path string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return buf[:n], nil
}
