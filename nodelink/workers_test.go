// Tests of the goroutines that are kept.

package nodelink

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestWorkersRunEveryJobOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorkers()
		var done atomic.Int32
		release := make(chan struct{})
		const jobs = 4 * idleWorkersMax
		for range jobs {
			w.run(func() { <-release; done.Add(1) })
		}
		close(release)
		synctest.Wait()
		if done.Load() != jobs {
			t.Errorf("%d of %d jobs were done", done.Load(), jobs)
		}
		if w.idle != idleWorkersMax {
			t.Errorf("%d workers wait for a job, want %d", w.idle, idleWorkersMax)
		}
		w.run(func() { done.Add(1) })
		synctest.Wait()
		w.close()
		if w.idle != 0 || done.Load() != jobs+1 {
			t.Errorf("%d workers are left; %d jobs were done", w.idle, done.Load())
		}
	})
}

// Jobs that come after the end, or at the same time, are done all the same.
func TestWorkersAfterClose(t *testing.T) {
	w := newWorkers()
	var jobs sync.WaitGroup
	jobs.Add(200)
	go func() {
		for range 100 {
			w.run(jobs.Done)
		}
	}()
	w.close()
	for range 100 {
		w.run(jobs.Done)
	}
	jobs.Wait()
	w.close()
}
