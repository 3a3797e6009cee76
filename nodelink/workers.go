// Goroutines that are kept for short jobs.
//
// A fresh goroutine's stack grows while it decodes a frame, which costs as much as the frame; ten thousand nodes send a
// thousand a second. A worker that has grown its stack is used again.

package nodelink

import "sync"

// idleWorkersMax is how many workers wait for a job; more come and go with the load.
const idleWorkersMax = 64

// workers runs jobs. A nil one starts a goroutine for each.
type workers struct {
	jobs chan func() // taken by an idle worker, or by nobody
	stop chan struct{}

	mu     sync.Mutex
	idle   int
	closed bool
	wg     sync.WaitGroup // the idle ones; those at work are their jobs' owners' to wait for
}

func newWorkers() *workers {
	return &workers{jobs: make(chan func()), stop: make(chan struct{})}
}

// run has the job done, by a goroutine that is there or by a new one. It does not wait.
func (w *workers) run(job func()) {
	if w == nil {
		go job()
		return
	}
	select {
	case w.jobs <- job:
	default:
		go w.work(job)
	}
}

func (w *workers) work(job func()) {
	for job != nil {
		job()
		job = w.next()
	}
}

// next waits for another job; nil when the worker is not needed any more.
func (w *workers) next() func() {
	w.mu.Lock()
	if w.closed || w.idle == idleWorkersMax {
		w.mu.Unlock()
		return nil
	}
	w.idle++
	w.wg.Add(1)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.idle--
		w.mu.Unlock()
		w.wg.Done()
	}()
	select {
	case job := <-w.jobs:
		return job
	case <-w.stop:
		return nil
	}
}

// close ends the idle workers and waits for them. Jobs may still be run; each gets a goroutine of its own.
func (w *workers) close() {
	w.mu.Lock()
	defer w.wg.Wait()
	defer w.mu.Unlock()
	if !w.closed {
		w.closed = true
		close(w.stop)
	}
}
