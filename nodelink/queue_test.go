// The bounded send queue against a model.

package nodelink

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// The queue against a model: two lists, control first, the bounds as documented.
func TestSendQueueModel(t *testing.T) {
	large := make([]byte, 8*MaxFrameBytes) // only the first bytes of each are touched; at most four wait at a time
	rapid.Check(t, func(t *rapid.T) {
		var q sendQueue
		var control, bulk []string
		bytes, n, larges := 0, 0, 0
		for range rapid.IntRange(1, 2000).Draw(t, "steps") {
			switch {
			case rapid.IntRange(0, 99).Draw(t, "op") < 70:
				isBulk := rapid.Bool().Draw(t, "bulk")
				size := rapid.SampledFrom([]int{8, 8, 8, 8, 8, 8, 8, 8, MaxFrameBytes}).Draw(t, "size")
				b := make([]byte, 8)
				if size > 8 {
					at := larges % 8 * MaxFrameBytes
					b = large[at : at+size]
				}
				copy(b, fmt.Sprintf("%08d", n))
				n++
				have := len(control) + len(bulk)
				fits := have < SendQueueMax && (have == 0 || bytes+size <= SendQueueMaxBytes)
				if isBulk {
					fits = have < SendQueueMax/2 && (have == 0 || bytes+size <= SendQueueMaxBytes/2)
				}
				if got := q.push(b, isBulk); got != fits {
					t.Fatalf("push with %d frames, %d bytes: %t, want %t", have, bytes, got, fits)
				}
				if !fits {
					continue
				}
				bytes += size
				if size > 8 {
					larges++
				}
				if isBulk {
					bulk = append(bulk, string(b[:8]))
				} else {
					control = append(control, string(b[:8]))
				}
			default:
				got := q.pop()
				var want string
				switch {
				case len(control) > 0:
					want, control = control[0], control[1:]
				case len(bulk) > 0:
					want, bulk = bulk[0], bulk[1:]
				default:
					if got != nil {
						t.Fatal("an empty queue gave a frame")
					}
					continue
				}
				bytes -= len(got)
				if string(got[:8]) != want {
					t.Fatalf("pop gave %s, want %s", got[:8], want)
				}
			}
			if q.len() != len(control)+len(bulk) || q.bytes != bytes {
				t.Fatalf("queue says %d frames, %d bytes; want %d, %d", q.len(), q.bytes, len(control)+len(bulk), bytes)
			}
		}
	})
}

func TestSendQueueReserve(t *testing.T) {
	var q sendQueue
	q.reserve(10)
	for i := range SendQueueMax + 10 {
		if !q.push([]byte("x"), false) {
			t.Fatalf("frame %d found no room", i)
		}
	}
	if q.push([]byte("x"), false) {
		t.Error("there was room beyond the reserve")
	}
	for q.pop() != nil {
	}
	for i := range SendQueueMax {
		if !q.push([]byte("x"), false) {
			t.Fatalf("frame %d found no room", i)
		}
	}
	if q.push([]byte("x"), false) {
		t.Error("the reserve was still there after the queue had been empty")
	}
}
