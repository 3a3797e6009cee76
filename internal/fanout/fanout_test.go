// What subscribers are told, and what they are told to have missed.

package fanout

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// told is an event of the tests.
type told struct {
	n      int
	missed uint64
}

func emit(f *Fanout[told], n int) {
	f.Emit(func(missed uint64) told { return told{n, missed} })
}

// A subscriber gets what there is room for, in order, and the numbers that it is told account for all the rest.
func TestNothingIsMissedInSilence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f Fanout[told]
		buffer := rapid.IntRange(0, 4).Draw(t, "buffer")
		ch, stop := f.Subscribe(buffer)
		next := 1 // the event that comes next, but for those that are missed
		take := func(e told) {
			if e.n != next+int(e.missed) {
				t.Fatalf("event %d came with %d missed, where %d was due", e.n, e.missed, next)
			}
			next = e.n + 1
		}
		emitted := 0
		for _, takes := range rapid.SliceOf(rapid.Bool()).Draw(t, "what happens") {
			if !takes {
				emitted++
				emit(&f, emitted)
				continue
			}
			select {
			case e := <-ch:
				take(e)
			default:
			}
		}
		for len(ch) > 0 {
			take(<-ch)
		}
		emitted++
		emit(&f, emitted)
		take(<-ch)
		if next != emitted+1 {
			t.Fatalf("%d of %d are accounted for", next-1, emitted)
		}
		stop()
	})
}

func TestEnds(t *testing.T) {
	var f Fanout[told]
	emit(&f, 0) // to nobody
	a, stopA := f.Subscribe(3)
	b, stopB := f.Subscribe(3)
	emit(&f, 1)
	stopA()
	stopA()
	emit(&f, 2)
	f.Close()
	f.Close()
	stopB()
	emit(&f, 3)
	late, stopLate := f.Subscribe(3)
	stopLate()
	var got []string
	for i, ch := range []<-chan told{a, b, late} {
		for e := range ch { // ends: it is closed
			got = append(got, fmt.Sprint(i, " had ", e.n))
		}
	}
	if want := []string{"0 had 1", "1 had 1", "1 had 2"}; !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
}
