// What the log promises: every line once and in order, numbers that never go back, holes that are told, torn tails that
// harm nothing.
package outputlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openLog(t testing.TB, dir string, o Options) *Writer {
	t.Helper()
	w, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// dump reads everything from a line on as one text per record.
func dump(t testing.TB, dir string, from uint64) []string {
	t.Helper()
	r, err := NewReader(dir, from)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out []string
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		switch rec.Kind {
		case Hole:
			out = append(out, fmt.Sprintf("hole %d-%d", rec.Number, rec.Last))
		case Input:
			out = append(out, fmt.Sprintf("%d< %d", rec.Number, rec.Sequence()))
		default:
			out = append(out, fmt.Sprintf("%d e%d k%d %s", rec.Number, rec.Epoch, rec.Kind, rec.Data))
		}
	}
}

func equal(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNumbersGoOnAcrossEpochsAndNodes(t *testing.T) {
	dir := t.TempDir()
	w := openLog(t, dir, Options{Epoch: 1})
	w.Line(Stdout, []byte("a"), false, 1)
	w.Line(Stderr, []byte("b"), false, 2)
	if err := w.Mark(7, 3); err != nil {
		t.Fatal(err)
	}
	w.Close()
	w = openLog(t, dir, Options{Epoch: 2, Base: 1}) // a base that is behind counts for nothing
	w.Line(Stdout, []byte("c"), false, 4)
	w.Close()
	w = openLog(t, dir, Options{Epoch: 4, Base: 10}) // epoch 3 ran elsewhere and wrote 4–10
	if w.Last() != 10 {
		t.Fatalf("last is %d, want 10", w.Last())
	}
	w.Line(Stdout, []byte("d"), false, 5)
	w.Close()
	equal(t, dump(t, dir, 0), "1 e1 k1 a", "2 e1 k2 b", "2< 7", "3 e2 k1 c", "hole 4-10", "11 e4 k1 d")
	equal(t, dump(t, dir, 3), "2< 7", "3 e2 k1 c", "hole 4-10", "11 e4 k1 d")
	equal(t, dump(t, dir, 8), "hole 8-10", "11 e4 k1 d")
	equal(t, dump(t, dir, 11), "11 e4 k1 d")
	equal(t, dump(t, dir, 99))
}

func TestOldestSegmentsGoAndTheHoleIsTold(t *testing.T) {
	dir := t.TempDir()
	w := openLog(t, dir, Options{SegmentBytes: 1 << 10, TotalBytes: 4 << 10})
	text := bytes.Repeat([]byte("x"), 68) // 100 bytes a record
	slow, err := NewReader(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	for range 1000 {
		w.Line(Stdout, text, false, 1)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	var total int64
	files, _ := filepath.Glob(filepath.Join(dir, "*.seg"))
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if total > 4<<10 || total < 2<<10 {
		t.Fatalf("%d bytes are kept in %d segments, want at most 4096 and not much less", total, len(files))
	}
	for name, r := range map[string]*Reader{"a reader whose segment was dropped": slow, "a new reader": nil} {
		if r == nil {
			if r, err = NewReader(dir, 1); err != nil {
				t.Fatal(err)
			}
			defer r.Close()
		}
		next := uint64(1)
		for {
			rec, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if rec.Number != next {
				t.Fatalf("%s: got %d, want %d", name, rec.Number, next)
			}
			next++
			if rec.Kind == Hole {
				next = rec.Last + 1
			}
		}
		if next != 1001 {
			t.Fatalf("%s: ended before %d, want 1001", name, next)
		}
	}
}

// Cut the file anywhere: the records before the cut are read, the next writer goes on after them.
func TestTornTailAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	w := openLog(t, dir, Options{})
	for i := range 3 {
		w.Line(Stdout, fmt.Appendf(nil, "line %d", i+1), false, 1)
	}
	w.Close()
	path := segmentPath(dir, 1)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const record = headerBytes + 6
	for cut := range len(whole) + 1 {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		lines := 0
		if cut >= headerBytes {
			lines = (cut - headerBytes) / record
		}
		if got := dump(t, dir, 1); len(got) != lines {
			t.Fatalf("cut at %d: read %d lines, want %d", cut, len(got), lines)
		}
		w := openLog(t, dir, Options{})
		if w.Last() != uint64(lines) {
			t.Fatalf("cut at %d: the writer goes on after %d, want %d", cut, w.Last(), lines)
		}
		w.Line(Stdout, []byte("after"), false, 1)
		w.Close()
		got := dump(t, dir, 1)
		if len(got) != lines+1 || !strings.HasSuffix(got[lines], "after") {
			t.Fatalf("cut at %d: then read %q", cut, got)
		}
	}
}

func TestDamagedByteStopsNothingThatFollowsInTheNextSegment(t *testing.T) {
	dir := t.TempDir()
	w := openLog(t, dir, Options{SegmentBytes: 128})
	for i := range 6 { // three a segment
		w.Line(Stdout, fmt.Appendf(nil, "%d", i+1), false, 1)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	path := segmentPath(dir, 1)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[headerBytes+headerBytes+1+headerBytes] ^= 1 // the second line's text
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got := dump(t, dir, 1)
	if got[0] != "1 e0 k1 1" || !strings.HasPrefix(got[1], "hole 2-") || got[len(got)-1] != "6 e0 k1 6" {
		t.Fatalf("got %q", got)
	}
}

func TestNewerVersionIsRefused(t *testing.T) {
	dir := t.TempDir()
	h := segmentHeader(1, 1)
	h[4] = 9
	binary.LittleEndian.PutUint32(h[28:], crc32.ChecksumIEEE(h[:28]))
	if err := os.WriteFile(segmentPath(dir, 1), h, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, errVersion) {
		t.Fatalf("writer: %v", err)
	}
	if _, err := NewReader(dir, 1); !errors.Is(err, errVersion) {
		t.Fatalf("reader: %v", err)
	}
}

func TestOutputWaitsForAFullDisk(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines int // of 1,000 bytes, while nothing can be written
		want  []string
	}{
		{"little waits", 2, []string{"1 e0 k1 kept", "2 e0 k1 x", "3 e0 k1 x", "4 e0 k1 again"}},
		{"too much leaves a hole and a notice", 1200, []string{"1 e0 k1 kept", "hole 2-", "output was lost", "e0 k1 again"}},
	} {
		t.Run(c.name, func(t *testing.T) { testFullDisk(t, c.lines, c.want) })
	}
}

func testFullDisk(t *testing.T, lines int, want []string) {
	dir := t.TempDir()
	w := openLog(t, dir, Options{SegmentBytes: 8 << 20})
	w.Line(Stdout, []byte("kept"), false, 1)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	good := w.f
	broken, err := os.Open(good.Name()) // cannot be written
	if err != nil {
		t.Fatal(err)
	}
	w.f = broken
	text := bytes.Repeat([]byte("x"), 1000)
	for range lines {
		w.Line(Stdout, text, false, 1)
		if _ = w.Flush(); w.err == nil { // nothing may be left to write
			t.Fatal("a write to a file that cannot be written succeeded")
		}
		if len(w.batch) > waitingBytesMax+len(text)+100 {
			t.Fatalf("%d bytes wait", len(w.batch))
		}
	}
	if err := w.Mark(3, 1); err == nil {
		t.Fatal("a marker was acknowledged that is not in the log")
	}
	broken.Close()
	w.f = good
	w.Line(Stdout, []byte("again"), false, 1)
	w.Close()
	got := dump(t, dir, 1)
	found := 0
	for _, line := range got {
		if strings.Contains(line, " k3 ") && lines < 1000 { // the marker that was refused
			t.Errorf("found %q", line)
		}
		if found < len(want) && strings.Contains(line, want[found]) {
			found++
		}
	}
	if found < len(want) || len(got) > lines+4 {
		t.Fatalf("%d lines, and no %q after what was asked for before", len(got), want[found])
	}
}

func TestReaderFollowsAWriter(t *testing.T) {
	dir := t.TempDir()
	w := openLog(t, dir, Options{SegmentBytes: 4 << 10, TotalBytes: 1 << 30})
	const lines = 20000
	var written atomic.Uint64
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for i := range lines {
			w.Line(Stdout, fmt.Appendf(nil, "%d", i+1), false, 1)
			if i%7 == 0 || i == lines-1 {
				if err := w.Flush(); err != nil {
					failed <- err
					return
				}
				written.Store(uint64(i + 1))
			}
		}
		if err := w.Close(); err != nil {
			failed <- err
		}
	}()
	r, err := NewReader(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for n := uint64(1); n <= lines; {
		seen := written.Load()
		rec, err := r.Next()
		if err == io.EOF {
			if seen >= n {
				t.Fatalf("line %d was written and is not read", n)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Number != n || string(rec.Data) != fmt.Sprint(n) {
			t.Fatalf("got line %d %q, want %d", rec.Number, rec.Data, n)
		}
		n++
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

// Whatever the chunks, the pieces joined are the stream, no piece is too long, and only too long lines are split.
func TestSplitterKeepsEveryByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream, joined []byte
		var s Splitter
		check := func(text []byte, partial bool) {
			if len(text) > MaxLineBytes || bytes.IndexByte(text, '\n') >= 0 {
				t.Fatalf("a piece of %d bytes", len(text))
			}
			if partial && len(text) != MaxLineBytes {
				t.Fatalf("a partial piece of only %d bytes", len(text))
			}
			joined = append(joined, text...)
			if !partial {
				joined = append(joined, '\n')
			}
		}
		for range rapid.IntRange(1, 6).Draw(t, "chunks") {
			n := rapid.SampledFrom([]int{0, 1, 5, 100, MaxLineBytes - 1, MaxLineBytes, MaxLineBytes + 1, 2*MaxLineBytes + 3}).Draw(t, "bytes")
			chunk := bytes.Repeat([]byte("y"), n)
			if rapid.Bool().Draw(t, "newline") {
				chunk = append(chunk, '\n')
			}
			stream = append(stream, chunk...)
			s.Write(chunk, check)
		}
		s.Flush(false, check)
		if !bytes.Equal(bytes.TrimSuffix(stream, []byte("\n")), bytes.TrimSuffix(joined, []byte("\n"))) {
			t.Fatalf("%d bytes in, %d out", len(stream), len(joined))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	dir := b.TempDir()
	w := openLog(b, dir, Options{})
	text := bytes.Repeat([]byte("x"), 100)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		w.Line(Stdout, text, false, 1)
	}
	w.Close()
}

// TestReaderOfWhatWasCutOff: a record of which only a part fitted onto the disk is cut off and another one takes its place; a reader that saw
// the part sees the other one.
func TestReaderOfWhatWasCutOff(t *testing.T) {
	for _, first := range []string{"", "before"} { // the part is read alone, or behind a whole record
		dir := t.TempDir()
		w := openLog(t, dir, Options{})
		w.Line(Stdout, []byte("one"), false, 1)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if first != "" {
			w.Line(Stdout, []byte(first), false, 1)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		part := appendRecord(nil, &Record{Kind: Input, Number: w.Last(), Time: 1, Data: make([]byte, 8)})
		if _, err := w.f.WriteAt(part[:headerBytes+3], w.size); err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(dir, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if rec, err := r.Next(); err != nil || string(rec.Data) != "one" {
			t.Fatalf("got %q, %v", rec.Data, err)
		}
		if first == "" {
			if _, err := r.Next(); !errors.Is(err, io.EOF) {
				t.Fatalf("a part of a record: %v", err)
			}
		}
		if err := w.f.Truncate(w.size); err != nil {
			t.Fatal(err)
		}
		w.Line(Stdout, []byte("another, and a longer one"), false, 1)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		last := ""
		for {
			rec, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			last = string(rec.Data)
		}
		if last != "another, and a longer one" {
			t.Errorf("with %q before it, the last line read is %q", first, last)
		}
	}
}
