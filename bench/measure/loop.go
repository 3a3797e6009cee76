// Load: callers that ask one thing after the other.

package measure

import (
	"sync"
	"sync/atomic"
	"time"
)

// errorPause keeps a caller whose operations fail from spinning.
const errorPause = 10 * time.Millisecond

// ClosedLoop has each of several callers call f, one call after the other, warms up, and then measures for a while. The
// argument of f is the caller's number. Operations count when they end within the measured time, and their latencies
// when they also began in it. Errors are counted and pause the caller a little.
func ClosedLoop(callers int, warm, length time.Duration, f func(caller int) error) Summary {
	const (
		warming = iota
		measuring
		over
	)
	var phase atomic.Int32
	var mu sync.Mutex
	var wait sync.WaitGroup
	var all Latencies
	done, failed, first := 0, 0, ""
	for caller := range callers {
		wait.Go(func() {
			var own Latencies
			operations, errors := 0, 0
			var problem error
			for {
				before := phase.Load()
				if before == over {
					break
				}
				start := time.Now()
				err := f(caller)
				took := time.Since(start)
				switch {
				case err != nil:
					errors, problem = errors+1, err
					time.Sleep(errorPause)
				case phase.Load() == measuring:
					operations++
					if before == measuring {
						own = append(own, took)
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all, done, failed = append(all, own...), done+operations, failed+errors
			if problem != nil && first == "" {
				first = problem.Error()
			}
		})
	}
	time.Sleep(warm)
	cpu, start := OwnCPUTime(), time.Now()
	phase.Store(measuring)
	time.Sleep(length)
	phase.Store(over)
	took, used := time.Since(start), OwnCPUTime()-cpu
	wait.Wait()
	s := all.Summarize(took)
	s.Operations, s.PerSecond = done, float64(done)/took.Seconds()
	s.Errors, s.FirstError, s.CPU = failed, first, used.Seconds()/took.Seconds()
	return s
}

// Each has callers call f for each number below n, and measures from the first call to the end of the last.
func Each(callers, n int, f func(i int) error) Summary {
	var next atomic.Int64
	var mu sync.Mutex
	var wait sync.WaitGroup
	var all Latencies
	failed, first := 0, ""
	cpu, start := OwnCPUTime(), time.Now()
	for range callers {
		wait.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				began := time.Now()
				err := f(i)
				took := time.Since(began)
				mu.Lock()
				if err == nil {
					all = append(all, took)
				} else if failed++; first == "" {
					first = err.Error()
				}
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	took, used := time.Since(start), OwnCPUTime()-cpu
	s := all.Summarize(took)
	s.Errors, s.FirstError, s.CPU = failed, first, used.Seconds()/took.Seconds()
	return s
}
