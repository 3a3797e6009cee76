// What waits to be written to one WebSocket: so many messages, and so many bytes.

package mcp

import (
	"context"
	"io"
	"sync"
)

// queue is filled by many goroutines and emptied by one.
type queue struct {
	maxFrames, maxBytes int
	news                chan struct{} // holds one when something was put

	mu     sync.Mutex
	frames [][]byte
	bytes  int
	room   chan struct{} // closed when there is room again; nil where nobody waits for it
}

func newQueue(maxFrames, maxBytes int) *queue {
	return &queue{maxFrames: maxFrames, maxBytes: maxBytes, news: make(chan struct{}, 1)}
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

// put adds a message; it waits for room until ctx ends, or gone is closed.
func (q *queue) put(ctx context.Context, gone <-chan struct{}, data []byte) error {
	for {
		q.mu.Lock()
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
		case <-ctx.Done():
			return ctx.Err()
		case <-gone:
			return io.ErrClosedPipe
		}
	}
}

// wait waits for room, or until gone is closed.
func (q *queue) wait(gone <-chan struct{}) {
	q.mu.Lock()
	room := q.full(1)
	q.mu.Unlock()
	if room == nil {
		return
	}
	select {
	case <-room:
	case <-gone:
	}
}

// take returns what waits longest.
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
