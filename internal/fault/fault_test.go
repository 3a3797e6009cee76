// Tests of what an error wraps.

package fault

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"
)

func TestNewWraps(t *testing.T) {
	one := New(Unavailable, "read: %w", io.EOF)
	two := New(Unavailable, "read: %w after %w", io.EOF, fs.ErrClosed)
	for _, err := range []error{one, two, fmt.Errorf("outer: %w", two)} {
		if !errors.Is(err, io.EOF) || !Is(err, Unavailable) {
			t.Errorf("%v: lost its cause or its kind", err)
		}
	}
	if !errors.Is(two, fs.ErrClosed) || errors.Is(one, fs.ErrClosed) {
		t.Error("the second cause")
	}
	if New(Invalid, "no cause: %v", io.EOF).Unwrap() != nil {
		t.Error("a cause that was only printed")
	}
}
