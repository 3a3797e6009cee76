// What waits to be written to one WebSocket: so many messages, and so many bytes; and so many bytes to all of them.

package mcp

import (
	"context"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"
)

// budget bounds the bytes that wait to be written to all WebSockets.
type budget struct {
	total int64
	*semaphore.Weighted
}

func newBudget(total int) *budget { return &budget{int64(total), semaphore.NewWeighted(int64(total))} }

// weight is what a message takes; one that is larger than all there is takes all.
func (b *budget) weight(data []byte) int64 { return min(int64(len(data)), b.total) }

// take waits for what a message takes until ctx or life ends.
func (b *budget) take(ctx, life context.Context, data []byte) error {
	if b.TryAcquire(b.weight(data)) {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	return b.Acquire(ctx, b.weight(data))
}

// give gives it back.
func (b *budget) give(data []byte) { b.Release(b.weight(data)) }

// queue is filled by many goroutines and emptied by one.
type queue struct {
	maxFrames, maxBytes int
	all                 *budget
	news                chan struct{} // holds one when something was put

	mu     sync.Mutex
	frames [][]byte
	bytes  int
	room   chan struct{} // closed when there is room again; nil where nobody waits for it
	closed bool
}

func newQueue(maxFrames, maxBytes int, all *budget) *queue {
	return &queue{maxFrames: maxFrames, maxBytes: maxBytes, all: all, news: make(chan struct{}, 1)}
}

// full returns what is closed when there is room, nil when there is. A message that is larger than all may be is let in alone.
// q.mu is held.
func (q *queue) full(more int) <-chan struct{} {
	if len(q.frames) == 0 || len(q.frames) < q.maxFrames && q.bytes+more <= q.maxBytes {
		return nil
	}
	if q.room == nil {
		q.room = make(chan struct{})
	}
	return q.room
}

// put adds a message; it waits for room until ctx or the connection's life ends.
func (q *queue) put(ctx, life context.Context, data []byte) error {
	if err := q.all.take(ctx, life, data); err != nil {
		return err
	}
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			q.all.give(data)
			return io.ErrClosedPipe
		}
		room := q.full(len(data))
		if room == nil {
			q.frames, q.bytes = append(q.frames, data), q.bytes+len(data)
			q.mu.Unlock()
			select {
			case q.news <- struct{}{}:
			default:
			}
			return nil
		}
		q.mu.Unlock()
		select {
		case <-room:
			continue
		case <-ctx.Done():
		case <-life.Done():
		}
		q.all.give(data)
		if err := ctx.Err(); err != nil {
			return err
		}
		return io.ErrClosedPipe
	}
}

// wait waits for room, or until life ends.
func (q *queue) wait(life context.Context) {
	q.mu.Lock()
	room := q.full(1)
	q.mu.Unlock()
	if room == nil {
		return
	}
	select {
	case <-room:
	case <-life.Done():
	}
}

// take returns what waits longest. Who takes it says when it is written.
func (q *queue) take() (data []byte, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.frames) == 0 {
		return nil, false
	}
	data, q.frames[0], q.frames = q.frames[0], nil, q.frames[1:]
	q.bytes -= len(data)
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
	return data, true
}

// written gives back what a message took.
func (q *queue) written(data []byte) { q.all.give(data) }

// close drops what still waits, and takes nothing more.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	for data, ok := q.take(); ok; data, ok = q.take() {
		q.written(data)
	}
}
