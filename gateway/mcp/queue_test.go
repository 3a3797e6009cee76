// The queue's bounds, and those of all queues together.
package mcp

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
)

func TestQueuesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := newBudget(100)
		life, end := context.WithCancel(t.Context())
		q, other := newQueue(3, 60, all), newQueue(3, 60, all)
		put := func(q *queue, n int) chan error {
			done := make(chan error, 1)
			go func() { done <- q.put(t.Context(), life, make([]byte, n)) }()
			synctest.Wait()
			return done
		}
		has := func(what string, done chan error, want error) {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-done:
				if !errors.Is(err, want) {
					t.Errorf("%s: %v", what, err)
				}
			default:
				t.Errorf("%s: waits", what)
			}
		}
		waits := func(what string, done chan error) {
			t.Helper()
			synctest.Wait()
			if len(done) > 0 {
				t.Errorf("%s: %v", what, <-done)
			}
		}
		has("the first", put(q, 40), nil)
		second := put(q, 30)
		waits("more bytes than one queue holds", second)
		third := put(other, 40)
		waits("more bytes than all queues hold", third)
		data, _ := q.take()
		q.written(data)
		has("when there is room", second, nil)
		has("when there is room in all", third, nil)
		has("one that is larger than a queue may be, alone", put(newQueue(3, 10, all), 30), nil)
		giveUp, cancel := context.WithCancel(t.Context())
		late := make(chan error, 1)
		go func() { late <- q.put(giveUp, life, make([]byte, 10)) }()
		waits("none is left", late)
		cancel()
		has("given up", late, context.Canceled)
		last := put(q, 50)
		q.close()
		end()
		has("the end", last, context.Canceled)
		if err := q.put(t.Context(), t.Context(), nil); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("after the end: %v", err)
		}
		if n := len(q.frames); n != 0 {
			t.Errorf("%d messages stay", n)
		}
	})
}
