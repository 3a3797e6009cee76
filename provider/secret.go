// Keys: read from files, never shown.

package provider

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
)

// keyBytesMax bounds a key file.
const keyBytesMax = 16 << 10

// masked stands where a key would.
const masked = "…"

// secret is a key. However it is printed, logged or marshalled, it is masked; reveal gives it.
type secret struct{ text string }

func (s secret) reveal() string                     { return s.text }
func (secret) String() string                       { return masked }
func (secret) GoString() string                     { return masked }
func (secret) LogValue() slog.Value                 { return slog.StringValue(masked) }
func (secret) MarshalText() ([]byte, error)         { return []byte(masked), nil }
func (secret) Format(f fmt.State, _ rune)           { _, _ = io.WriteString(f, masked) }
func (s secret) empty() bool                        { return s.text == "" }
func (s secret) same(other secret) bool             { return s.text == other.text }
func (s secret) scrub(from string) (without string) { return scrub(from, s.text) }

// scrub removes a key from text, also where only its beginning or its end is shown, as providers do.
func scrub(from, key string) string {
	if key == "" {
		return from
	}
	from = strings.ReplaceAll(from, key, masked)
	const part = 8 // of a key of 30 and more; what is left is no help to anybody
	if len(key) < 3*part {
		return from
	}
	for n := len(key) - 1; n >= part; n-- {
		from = strings.ReplaceAll(from, key[:n], masked)
		from = strings.ReplaceAll(from, key[len(key)-n:], masked)
	}
	return from
}

// readKey reads a key's file; what names it is the setting's path, for errors. No file is an empty key.
func readKey(what, file string) (secret, error) {
	if file == "" {
		return secret{}, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return secret{}, fault.New(fault.Invalid, "%s: %w; make it readable for this user", what, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return secret{}, fault.New(fault.Invalid, "%s: %w; make it readable for this user", what, err)
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return secret{}, fault.New(fault.Invalid, "%s: every user of this machine may read %s (mode %04o); chmod 600 it, and consider the key known", what, file, mode)
	}
	b, err := io.ReadAll(io.LimitReader(f, keyBytesMax+1))
	if err != nil {
		return secret{}, fault.New(fault.Invalid, "%s: %w; make it readable for this user", what, err)
	}
	key := strings.TrimSpace(string(b))
	if key == "" || len(b) > keyBytesMax || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return secret{}, fault.New(fault.Invalid, "%s: %s holds no single word; put the key there and nothing else", what, file)
	}
	return secret{key}, nil
}
