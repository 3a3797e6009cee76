// That goroutines are used again, and end when nobody needs them.
package socket

import (
	"sync"
	"testing"
	"testing/synctest"
)

func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pool{}
		idle := func() int {
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.idle)
		}
		crowd := func(count int) {
			gate := make(chan struct{})
			var ran sync.WaitGroup
			for range count {
				ran.Add(1)
				p.run(func() { defer ran.Done(); <-gate })
			}
			close(gate)
			ran.Wait()
		}
		crowd(maxIdleWorkers + 10)
		if n := idle(); n != maxIdleWorkers {
			t.Fatalf("%d wait for work, rather than %d", n, maxIdleWorkers)
		}
		for range 1000 { // one after the other, in one goroutine
			crowd(1)
			synctest.Wait()
		}
		if n := idle(); n != maxIdleWorkers {
			t.Fatalf("%d are left", n)
		}
		p.sweep() // all were needed before it
		crowd(3)
		if n := idle(); n != maxIdleWorkers {
			t.Fatalf("%d are left after a sweep", n)
		}
		p.sweep()
		if n := idle(); n != 3 {
			t.Fatalf("%d are left of which 3 were needed", n)
		}
		p.sweep()
		if n := idle(); n != 0 {
			t.Fatalf("%d are left of which none was needed", n)
		}
		crowd(5)
		p.close()
	})
}
