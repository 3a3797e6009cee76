// Loops count what they should.

package measure

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestClosedLoopCountsTheMeasuredTimeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ClosedLoop(4, time.Second, 10*time.Second, func(int) error {
			time.Sleep(10 * time.Millisecond)
			return nil
		})
		// Each caller ends an operation each 10 ms; one of each may fall on either end of the measured time.
		if s.Operations < 3996 || s.Operations > 4004 || s.Seconds != 10 {
			t.Errorf("%d operations in %v s, want 4000 in 10", s.Operations, s.Seconds)
		}
		if s.P50 != 10 || s.P99 != 10 || s.Errors != 0 {
			t.Errorf("p50 %v, p99 %v, %d errors", s.P50, s.P99, s.Errors)
		}
	})
}

func TestClosedLoopTellsOfErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ClosedLoop(1, 0, time.Second, func(int) error { return errors.New("refused") })
		if s.Operations != 0 || s.Errors < 90 || s.Errors > 110 || s.FirstError != "refused" {
			t.Errorf("%+v", s)
		}
	})
}

func TestEachCallsOnceForEachNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var called [1000]atomic.Int32
		s := Each(7, len(called), func(i int) error {
			called[i].Add(1)
			time.Sleep(time.Millisecond)
			if i == 500 {
				return errors.New("the middle one")
			}
			return nil
		})
		for i := range called {
			if n := called[i].Load(); n != 1 {
				t.Fatalf("number %d was called for %d times", i, n)
			}
		}
		if s.Operations != 999 || s.Errors != 1 || s.FirstError != "the middle one" || s.Seconds != 0.143 {
			t.Errorf("%+v", s)
		}
	})
}
