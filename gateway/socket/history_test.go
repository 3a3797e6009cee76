// That the history holds the last frames, in order, and no more than it may.
package socket

import (
	"testing"

	"pgregory.net/rapid"
)

func TestHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h history
		var want []frame // all since the last one that was too large
		for seq := range uint64(rapid.IntRange(0, 3*maxHistoryFrames).Draw(t, "frames")) {
			size := rapid.SampledFrom([]int{0, 1, 100, 10_000, maxHistoryBytes / 3, maxHistoryBytes - frameOverhead, maxHistoryBytes}).Draw(t, "size")
			f := frame{seq: seq + 1, data: make([]byte, size)}
			h.remember(&f)
			if want = append(want, f); f.size() > maxHistoryBytes {
				want = nil
			}
		}
		bytes, keep := 0, 0
		for keep < len(want) && keep < maxHistoryFrames && bytes+want[len(want)-1-keep].size() <= maxHistoryBytes {
			bytes += want[len(want)-1-keep].size()
			keep++
		}
		want = want[len(want)-keep:]
		if h.count != keep || h.bytes != bytes || len(h.ring) > maxHistoryFrames {
			t.Fatalf("%d frames of %d bytes in a ring of %d, rather than %d of %d", h.count, h.bytes, len(h.ring), keep, bytes)
		}
		i := 0
		for f := range h.all {
			if f.seq != want[i].seq {
				t.Fatalf("the frame at %d is %d rather than %d", i, f.seq, want[i].seq)
			}
			i++
		}
	})
}
