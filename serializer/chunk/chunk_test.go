// Tests of ids and frames.

package chunk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func contents() map[string][]byte {
	random := make([]byte, MaxContentBytes)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(random)
	return map[string][]byte{
		"nothing": nil, "a byte": {7}, "text": bytes.Repeat([]byte("a line of text\n"), 1000), "short text": bytes.Repeat([]byte("a line of text\n"), 15),
		"random": random, "zeros": make([]byte, MaxContentBytes),
	}
}

func TestSealAndOpen(t *testing.T) {
	for name, content := range contents() {
		frame := Seal(content)
		if len(frame) > HeaderBytes+len(content) {
			t.Errorf("%s: %d bytes became a frame of %d", name, len(content), len(frame))
		}
		got, err := Open([]byte("before"), Sum(content), frame)
		if err != nil || !bytes.Equal(got, append([]byte("before"), content...)) {
			t.Errorf("%s: opened as %d bytes, %v", name, len(got), err)
		}
	}
}

func TestOpenRefusesWhatIsNotTheChunk(t *testing.T) {
	text := contents()["text"]
	id := Sum(text)
	for at := range Seal(text) {
		frame := Seal(text)
		frame[at] ^= 0x10
		// A few bits of zstd's header mean nothing.
		if got, err := Open(nil, id, frame); !errors.Is(err, ErrCorrupt) && !bytes.Equal(got, text) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
	for n := range len(Seal(text)) {
		if _, err := Open(nil, id, Seal(text)[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := Open(nil, Sum(nil), Seal(text)); !errors.Is(err, ErrCorrupt) {
		t.Error("another chunk's frame:", err)
	}
}

// A frame that lies about its length must not cost memory.
func TestOpenBoundsWhatItDecodes(t *testing.T) {
	e, _ := zstd.NewWriter(nil)
	bomb := e.EncodeAll(make([]byte, 256<<20), nil)
	for _, said := range []byte{0, 16} {
		frame := append([]byte{'O', 'R', 'C', 'C', 1, 1, 0, said, 0, 0}, bomb...)
		if got, err := Open(nil, ID{}, frame); !errors.Is(err, ErrCorrupt) || cap(got) > 4*MaxContentBytes {
			t.Errorf("%d bytes of memory, %v", cap(got), err)
		}
	}
}

func TestParse(t *testing.T) {
	id := Sum([]byte("x"))
	if got, err := Parse(id.String()); err != nil || got != id {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "00", id.String() + "0", "zz" + id.String()[2:]} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if _, err := FromBytes([]byte{1}); err == nil {
		t.Error("one byte was taken")
	}
}

func FuzzOpen(f *testing.F) {
	for _, content := range contents() {
		if len(content) < 1<<16 {
			f.Add(Seal(content))
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if got, err := Open(nil, Sum(frame), frame); err == nil && Sum(got) != Sum(frame) {
			t.Error("opened as something else")
		}
	})
}
