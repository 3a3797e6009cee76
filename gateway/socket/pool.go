// Goroutines that are used again: a new one pays for the growth of its stack each time, which is more than many calls cost otherwise.

package socket

import "sync"

// maxIdleWorkers bounds the goroutines of a pool that wait for work.
const maxIdleWorkers = 256

// pool runs functions beside their callers. Goroutines that nobody needed from one sweep to the next end.
type pool struct {
	mu      sync.Mutex
	idle    []chan func() // the last one to become idle is taken first
	least   int           // idle ones there have been at least since the last sweep
	closed  bool
	running sync.WaitGroup
}

// run has a function run at once.
func (p *pool) run(f func()) {
	p.mu.Lock()
	n := len(p.idle) - 1
	if n < 0 {
		p.mu.Unlock()
		p.running.Go(func() { p.work(f) })
		return
	}
	next := p.idle[n]
	p.idle[n], p.idle = nil, p.idle[:n]
	p.least = min(p.least, n)
	p.mu.Unlock()
	next <- f // there is room for it
}

// work is the life of one goroutine.
func (p *pool) work(f func()) {
	next := make(chan func(), 1)
	for f != nil {
		f()
		p.mu.Lock()
		if p.closed || len(p.idle) >= maxIdleWorkers {
			p.mu.Unlock()
			return
		}
		p.idle = append(p.idle, next)
		p.mu.Unlock()
		f = <-next
	}
}

// sweep ends the goroutines that were idle all the time since the last one.
func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(p.least)
	p.least = len(p.idle)
}

// end ends those that have been idle for longest. mu is held.
func (p *pool) end(count int) {
	for _, next := range p.idle[:count] {
		close(next)
	}
	stay := copy(p.idle, p.idle[count:])
	clear(p.idle[stay:])
	p.idle = p.idle[:stay]
}

// close ends all, and returns when they have. Nobody may run anything any more.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.end(len(p.idle))
	p.mu.Unlock()
	p.running.Wait()
}
