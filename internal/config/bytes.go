// Sizes in bytes, as people write them.

package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size in bytes, written as "64MiB", "1.5GiB", "10MB" or plain bytes.
type Bytes int64

var units = []struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"B", 1},
}

// ParseBytes reads a size.
func ParseBytes(s string) (Bytes, error) {
	number, factor := strings.TrimSpace(s), 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, factor = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil && factor == 1 {
		if n < 0 {
			return 0, fmt.Errorf("%q is negative", s)
		}
		return Bytes(n), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange) || strings.ContainsAny(number, "xXpPnN_"):
		return 0, fmt.Errorf("%q is not a size; write bytes or a unit, such as 64MiB", s)
	case f < 0:
		return 0, fmt.Errorf("%q is negative", s)
	case f*factor >= math.MaxInt64:
		return 0, fmt.Errorf("%q is too large", s)
	case f*factor != math.Trunc(f*factor):
		return 0, fmt.Errorf("%q is not a whole number of bytes", s)
	}
	return Bytes(f * factor), nil
}

// String writes the size in the largest binary unit that divides it.
func (b Bytes) String() string {
	for i := 3; i >= 0; i-- {
		if u := Bytes(units[i].bytes); b != 0 && b%u == 0 {
			return strconv.FormatInt(int64(b/u), 10) + units[i].suffix
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// UnmarshalText reads what String writes.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}

// MarshalText is String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }
