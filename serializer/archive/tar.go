// The headers of the tar: each file has one block of 512 bytes, of which only name, size and time differ, and no other form is read.

package archive

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
)

const (
	blockBytes = 512
	nameBytes  = 100
	maxOctal   = 1<<33 - 1 // 11 octal digits
)

// tarHeader returns the block before a file, as POSIX has it (ustar).
func tarHeader(name string, size int64, mtime time.Time) (b [blockBytes]byte) {
	copy(b[:nameBytes], name)
	copy(b[100:], "0000600\x00"+"0000000\x00"+"0000000\x00") // mode, uid, gid
	copy(b[124:], fmt.Sprintf("%011o\x00%011o\x00", size, mtime.Unix()))
	b[156] = '0' // a regular file
	copy(b[257:], "ustar\x0000")
	copy(b[329:], "0000000\x00"+"0000000\x00") // of devices
	copy(b[148:], fmt.Sprintf("%06o\x00 ", tarSum(b[:])))
	return b
}

// tarSum returns the sum of a block's bytes, its own field counted as blanks.
func tarSum(b []byte) (sum int) {
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	return sum
}

// tarTypes are what a block may say that follows it; people read that when it is refused.
var tarTypes = map[byte]string{
	'1': "a hard link", '2': "a symbolic link", '3': "a character device", '4': "a block device", '5': "a directory", '6': "a named pipe",
	'7': "a contiguous file", 'g': "a header of the pax format", 'x': "a header of the pax format", 'L': "a long name of GNU tar",
	'K': "a long link of GNU tar", 'S': "a sparse file",
}

// readTarHeader returns what a block says, when it is in the one form that is read. A nil mtime takes any time; it is returned, too.
func readTarHeader(b *[blockBytes]byte, mtime *time.Time) (name string, size int64, when time.Time, err error) {
	name = string(b[:nameBytes])
	if i := bytes.IndexByte(b[:nameBytes], 0); i >= 0 {
		name = name[:i]
	}
	if sum, err := octal(b[148:154]); err != nil || sum != int64(tarSum(b[:])) {
		return "", 0, when, corrupt("no tar header where one should be")
	}
	if kind := b[156]; kind != '0' {
		what, ok := tarTypes[kind]
		if !ok {
			what = fmt.Sprintf("of type %q", kind)
		}
		return "", 0, when, corrupt("%.120q is %s; an archive holds plain files only", name, what)
	}
	size, err = octal(b[124:135])
	if err != nil {
		return "", 0, when, corrupt("the size of %.120q: %w", name, err)
	}
	seconds, err := octal(b[136:147])
	if err != nil {
		return "", 0, when, corrupt("the time of %.120q: %w", name, err)
	}
	when = time.Unix(seconds, 0).UTC()
	if mtime != nil && !mtime.Equal(when) {
		return "", 0, when, corrupt("%.120q has another time than the archive", name)
	}
	if tarHeader(name, size, when) != *b {
		return "", 0, when, corrupt("the tar header of %.120q is not in the one form that an archive has", name)
	}
	return name, size, when, nil
}

// octal reads a number that has all its digits.
func octal(b []byte) (int64, error) {
	n, err := strconv.ParseUint(string(b), 8, 33)
	if err != nil {
		return 0, fmt.Errorf("%q is no octal number", b)
	}
	return int64(n), nil
}

// padding returns how many zeros follow a file.
func padding(size int64) int { return int(-size & (blockBytes - 1)) }
