// What both ends of a relay stream share: the interfaces, the bounds, and the queue that makes batches.

package nodelink

import (
	"context"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
)

// The bounds of a relay.
const (
	RelayMessageMaxBytes = 8 << 20   // gRPC clients and servers of RelayService must take messages of this size
	relayBatchBytes      = 1 << 20   // a message is sent once it has this much, or nothing more waits
	relayBatchItems      = 1024      // at most
	relayQueueMaxItems   = 100_000   // that wait in one direction of one stream
	relayQueueMaxBytes   = 128 << 20 // of them
)

// RelayStream is the follower's end of RelayService.Link; clusterv1.RelayService_LinkClient is one.
type RelayStream interface {
	Send(*clusterv1.LinkRequest) error
	Recv() (*clusterv1.LinkResponse, error)
	CloseSend() error
}

// RelayServerStream is the leader's end; clusterv1.RelayService_LinkServer is one.
type RelayServerStream interface {
	Context() context.Context
	Send(*clusterv1.LinkResponse) error
	Recv() (*clusterv1.LinkRequest, error)
}

// relayQueue collects items of one direction of a stream. Many push; one goroutine takes whatever is there, so that an
// idle relay adds no delay and a busy one makes large messages.
type relayQueue[T proto.Message] struct {
	ready chan struct{} // holds a token when something waits

	mu    sync.Mutex
	items []relayItem[T]
	bytes int
}

type relayItem[T proto.Message] struct {
	msg     T
	bytes   int
	waiting *atomic.Int32 // the link's own count of waiting frames; may be nil
}

func newRelayQueue[T proto.Message]() *relayQueue[T] {
	return &relayQueue[T]{ready: make(chan struct{}, 1)}
}

// push reports whether there was room. What must not be lost, the ends of links, is forced in.
func (q *relayQueue[T]) push(msg T, bytes int, waiting *atomic.Int32, force bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !force && (len(q.items) >= relayQueueMaxItems || q.bytes+bytes > relayQueueMaxBytes) {
		return false
	}
	if waiting != nil {
		if !force && waiting.Load() >= SendQueueMax {
			return false
		}
		waiting.Add(1)
	}
	q.items = append(q.items, relayItem[T]{msg, bytes, waiting})
	q.bytes += bytes
	signal(q.ready)
	return true
}

// take returns the next batch, nil when nothing waits.
func (q *relayQueue[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	var batch []T
	n, size := 0, 0
	for n < len(q.items) && n < relayBatchItems && (n == 0 || size+q.items[n].bytes <= relayBatchBytes) {
		it := q.items[n]
		batch = append(batch, it.msg)
		size += it.bytes
		if it.waiting != nil {
			it.waiting.Add(-1)
		}
		n++
	}
	clear(q.items[:n])
	q.items, q.bytes = q.items[n:], q.bytes-size
	if len(q.items) == 0 {
		q.items = nil
	} else {
		signal(q.ready)
	}
	return batch
}

// clear drops everything, and returns how many items that were.
func (q *relayQueue[T]) clear() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.items)
	q.items, q.bytes = nil, 0
	return n
}
