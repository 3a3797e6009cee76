// Cutting a log off behind some line, for a session that goes on from there.

package outputlog

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Truncate makes the line of that number the last of the log in dir, which nobody may be appending to. What was recorded
// behind it is gone. A log that ends before it, or has nothing of it, stays as it is.
func Truncate(dir string, line uint64) error {
	ordinals, err := segments(dir)
	if err != nil {
		return err
	}
	for i := len(ordinals) - 1; i >= 0; i-- {
		path := segmentPath(dir, ordinals[i])
		begins, err := cut(path, line)
		if err != nil {
			return fmt.Errorf("outputlog: cut %s off behind line %d: %w", path, line, err)
		}
		if begins {
			return nil
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("outputlog: cut off behind line %d: %w", line, err)
		}
	}
	return nil
}

// cut cuts one segment off, and reports whether anything of it is to stay.
func cut(path string, line uint64) (begins bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := Reader{f: f}
	if err := r.header(); errors.Is(err, errTorn) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if r.first > line {
		return false, nil
	}
	for {
		at := r.at
		rec, err := r.record()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if errors.Is(err, errTorn) || err == nil && rec.Number > line {
			return true, f.Truncate(at)
		}
		if err != nil {
			return false, err
		}
	}
}
