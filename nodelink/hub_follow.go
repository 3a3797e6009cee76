// The hub of a follower: every link is relayed to the leader over one stream.

package nodelink

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

const (
	relayBackoffMin = 50 * time.Millisecond // before a broken stream is opened again, doubling, with jitter
	relayBackoffMax = 2 * time.Second
	relayItemBytes  = 16 // what an item adds to its frame, about
)

// following is a hub's mode while another server leads.
type following struct {
	h      *Hub
	open   func(ctx context.Context) (RelayStream, error)
	cancel context.CancelFunc
	over   chan struct{} // closed when run has returned
	queue  *relayQueue[*clusterv1.LinkUp]

	mu        sync.Mutex
	sockets   map[uint64]*socket
	streaming bool // a stream is open, and the leader was told of all sockets
}

func newFollowing(h *Hub, open func(ctx context.Context) (RelayStream, error)) *following {
	return &following{
		h: h, open: open, over: make(chan struct{}), sockets: make(map[uint64]*socket),
		queue: newRelayQueue[*clusterv1.LinkUp](),
	}
}

func (t *following) start(sockets []*socket) {
	for _, s := range sockets {
		t.sockets[s.id] = s
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	go t.run(ctx)
}

func (t *following) stop() {
	t.cancel()
	<-t.over
}

func (t *following) up(s *socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sockets[s.id] = s
	if t.streaming {
		t.attach(s)
	}
}

// attach tells the leader of a socket. t.mu is held.
func (t *following) attach(s *socket) {
	t.queue.push(&clusterv1.LinkUp{LinkId: s.id, Kind: &clusterv1.LinkUp_Attached{Attached: s.hello}}, len(s.hello)+relayItemBytes, nil, true)
}

func (t *following) frame(s *socket, f *nodev1.Frame, binary []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.streaming {
		t.h.stats.dropped.Add(1)
		return
	}
	b := binaryForm(f, binary)
	if !t.queue.push(&clusterv1.LinkUp{LinkId: s.id, Kind: &clusterv1.LinkUp_Frame{Frame: b}}, len(b)+relayItemBytes, nil, false) && !isSpare(f) {
		t.h.overflow(s, "the relay to the leader is full")
	}
}

func (t *following) down(s *socket, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.sockets, s.id)
	if t.streaming {
		t.queue.push(&clusterv1.LinkUp{LinkId: s.id, Kind: &clusterv1.LinkUp_Detached{Detached: reason}}, len(reason)+relayItemBytes, nil, true)
	}
}

// overflow gives up a link whose frames find no room: the node dials again, and says everything again.
func (h *Hub) overflow(s *socket, reason string) {
	h.stats.overflowed.Add(1)
	h.log.Warn("node link: closed: a queue is full", "node", s.nodeID, "reason", reason)
	s.conn.closeWith(CloseLimit, reason)
}

// run keeps a stream open until ctx ends.
func (t *following) run(ctx context.Context) {
	defer close(t.over)
	for failures := 0; ; failures++ {
		began := time.Now()
		err := t.relay(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 2*relayBackoffMax {
			failures = 0
		}
		bound := min(relayBackoffMin<<min(failures, 10), relayBackoffMax)
		delay := time.Duration((0.5 + 0.5*t.h.opts.Rand()) * float64(bound))
		t.h.log.Warn("node link: the relay to the leader broke; opening it again", "err", err, "retry_in", delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
}

// relay is one stream from its opening to its end.
func (t *following) relay(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := t.open(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&clusterv1.LinkRequest{ServerId: t.h.opts.ServerID}); err != nil {
		return err
	}
	t.h.stats.relayOpened.Add(1)
	t.begin()
	defer t.end()
	received := make(chan error, 1)
	go func() { received <- t.receive(stream) }()
	for {
		select {
		case <-t.queue.ready:
			for batch := t.queue.take(); batch != nil; batch = t.queue.take() {
				t.h.stats.relayBatches.Add(1)
				t.h.stats.relayItems.Add(uint64(len(batch)))
				if err := stream.Send(&clusterv1.LinkRequest{Items: batch}); err != nil {
					cancel() // the receiver knows the true reason
					return <-received
				}
			}
		case err := <-received:
			return err
		}
	}
}

// begin tells the leader of every socket, oldest first; from here on it is told of every change.
func (t *following) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue.clear()
	all := make([]*socket, 0, len(t.sockets))
	for _, s := range t.sockets {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *socket) int { return cmp.Compare(a.id, b.id) })
	for _, s := range all {
		t.attach(s)
	}
	t.streaming = true
}

func (t *following) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.streaming = false
	t.h.stats.dropped.Add(uint64(t.queue.clear()))
}

// receive hands the leader's frames to the sockets until the stream ends.
func (t *following) receive(stream RelayStream) error {
	for {
		batch, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, item := range batch.GetItems() {
			t.mu.Lock()
			s := t.sockets[item.GetLinkId()]
			t.mu.Unlock()
			if s == nil {
				continue // it has ended, and the leader is being told
			}
			switch k := item.GetKind().(type) {
			case *clusterv1.LinkDown_Frame:
				if err := s.conn.sendBinary(k.Frame); err == ErrQueueFull { //nolint:errorlint // the bare sentinel
					t.h.overflow(s, "the node does not take its frames")
				}
			case *clusterv1.LinkDown_Close:
				s.conn.closeWith(cmp.Or(int(item.GetCloseCode()), CloseNormal), k.Close)
			}
		}
	}
}
