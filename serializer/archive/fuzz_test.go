// A fuzzer of what a stranger sends.

package archive

import (
	"bytes"
	"testing"

	"github.com/neolith/orchestrator/serializer/chunk"
)

// Whatever comes: there is no panic, every chunk that is given holds what its name says, and what is taken for whole was written by
// somebody with a key. In the second form the fuzzer is spared the compression and its checksum, in the third also the checksums of the files.
func FuzzReader(f *testing.F) {
	h, items := small()
	good := entries(f, h, items)
	f.Add(byte(0), stored(tarOf(good)))
	f.Add(byte(0), pressed(f, tarOf(good)))
	f.Add(byte(1), tarOf(good))
	f.Add(byte(2), tarPart(good[:len(good)-2]))
	for _, c := range hostile(f) {
		if len(c.data) < 16<<10 {
			f.Add(byte(0), c.data)
		}
	}
	f.Fuzz(func(t *testing.T, form byte, data []byte) {
		switch form % 3 {
		case 1:
			data = stored(data)
		case 2:
			files := plain(data)
			data = stored(append(data, tarOf(signed(t, files, testKey(1))[len(files):])...))
		}
		got, err := read(bytes.NewReader(data), ReaderOptions{})
		for _, i := range got.items {
			if _, err := chunk.Open(nil, i.id, i.frame); err != nil {
				t.Errorf("a chunk that is none is given: %v", err)
			}
		}
		if err != nil {
			return
		}
		if got.signer == nil || len(got.items) != got.header.Chunks || got.items[0].id != got.header.Manifest {
			t.Errorf("%d chunks, by %x, for %+v", len(got.items), got.signer, got.header)
		}
		again := write(t, got.header, got.items, testKey(1))
		back, err := read(bytes.NewReader(again), ReaderOptions{})
		if err != nil || len(back.items) != len(got.items) {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

// plain returns the files of a tar, as far as it is one, for the checksums that it should have.
func plain(tape []byte) (all []entry) {
	for len(tape) >= blockBytes {
		name, size, _, err := readTarHeader((*[blockBytes]byte)(tape), nil)
		end := blockBytes + size + int64(padding(size))
		if err != nil || end > int64(len(tape)) {
			break
		}
		all = append(all, entry{name: name, content: tape[blockBytes : blockBytes+size]})
		tape = tape[end:]
	}
	return all
}
