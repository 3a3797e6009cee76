// Cutting a log off: what stays is whole, and the numbers go on from there.
package outputlog

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestTruncateAtEveryLine(t *testing.T) {
	const last = 20
	make1 := func() string {
		dir := t.TempDir()
		w := openLog(t, dir, Options{Epoch: 1, SegmentBytes: 200})
		for i := range uint64(last) {
			if err := w.Mark(i+1, 1); err != nil {
				t.Fatal(err)
			}
			w.Line(Stdout, fmt.Appendf(nil, "line %d", i+1), false, 1)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		return dir
	}
	for line := range uint64(last + 3) {
		dir := make1()
		if line%2 == 1 { // a tail that was torn while it was captured
			names, _ := filepath.Glob(filepath.Join(dir, "*.seg"))
			f, err := os.OpenFile(names[len(names)-1], os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteString("half a rec")
			f.Close()
		}
		if err := Truncate(dir, line); err != nil {
			t.Fatal(err)
		}
		w := openLog(t, dir, Options{Epoch: 2, Base: line})
		if w.Last() != line {
			t.Fatalf("cut behind %d, the writer goes on after %d", line, w.Last())
		}
		w.Notice("cut", 2)
		w.Line(Stdout, []byte("next"), false, 2)
		w.Close()
		var lines []string
		for _, l := range dump(t, dir, 1) {
			var at, seq uint64
			if n, _ := fmt.Sscanf(l, "%d< %d", &at, &seq); n == 2 {
				continue // an input marker
			}
			lines = append(lines, l)
		}
		var want []string
		for i := range min(line, last) {
			want = append(want, fmt.Sprintf("%d e1 k1 line %d", i+1, i+1))
		}
		if line > last {
			want = append(want, fmt.Sprintf("hole %d-%d", last+1, line))
		}
		want = append(want, fmt.Sprintf("%d e2 k4 cut", line), fmt.Sprintf("%d e2 k1 next", line+1))
		equal(t, lines, want...)
	}
}

func TestTruncateOfNothing(t *testing.T) {
	if err := Truncate(filepath.Join(t.TempDir(), "none"), 5); err != nil {
		t.Fatal(err)
	}
}
