// The leader's end of the relay: a follower's links, all over one stream, with two goroutines however many they are.

package nodelink

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// relaySession is one stream of one follower.
type relaySession struct {
	term   *leading
	server string
	queue  *relayQueue[*clusterv1.LinkDown]
	over   chan struct{} // closed when the session ends
	once   sync.Once

	mu    sync.Mutex
	links map[uint64]*leaderLink // by the follower's number; nil once the session has ended
}

// ServeRelay serves RelayService.Link for a follower until either side ends it. Without leadership it refuses with
// FailedPrecondition; when it is lost, the stream ends with Unavailable.
func (h *Hub) ServeRelay(stream RelayServerStream) error {
	if _, ok := h.leadingMode(); !ok {
		return status.Errorf(codes.FailedPrecondition, "server %s does not lead; ask for the leader again", h.opts.ServerID)
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetServerId() == "" {
		return status.Error(codes.InvalidArgument, "the first request of a relay must name its server")
	}
	s, err := h.openRelay(first.GetServerId())
	if err != nil {
		return err
	}
	h.stats.relaysAccepted.Add(1)
	h.log.Info("node link: relay opened", "follower", s.server)
	go h.receiveRelay(s, first, stream)
	defer s.finish()
	for {
		select {
		case <-s.queue.ready:
			for batch := s.queue.take(); batch != nil; batch = s.queue.take() {
				h.stats.relayBatches.Add(1)
				h.stats.relayItems.Add(uint64(len(batch)))
				if err := stream.Send(&clusterv1.LinkResponse{Items: batch}); err != nil {
					return err
				}
			}
		case <-s.term.over:
			return status.Errorf(codes.Unavailable, "server %s does not lead any more", h.opts.ServerID)
		case <-s.over:
			return status.Error(codes.Aborted, "the relay was ended, or opened again")
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

func (h *Hub) leadingMode() (*leading, bool) {
	h.modeMu.RLock()
	defer h.modeMu.RUnlock()
	t, ok := h.mode.(*leading)
	return t, ok
}

// openRelay registers a session, and ends the one that the same follower had before.
func (h *Hub) openRelay(server string) (*relaySession, error) {
	h.modeMu.RLock()
	defer h.modeMu.RUnlock()
	t, ok := h.mode.(*leading)
	if !ok {
		return nil, status.Errorf(codes.FailedPrecondition, "server %s does not lead; ask for the leader again", h.opts.ServerID)
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, status.Errorf(codes.Unavailable, "server %s is shutting down", h.opts.ServerID)
	}
	h.wg.Add(1) // for receiveRelay
	h.mu.Unlock()
	s := &relaySession{
		term: t, server: server, over: make(chan struct{}), links: make(map[uint64]*leaderLink),
		queue: newRelayQueue[*clusterv1.LinkDown](),
	}
	t.mu.Lock()
	earlier := t.relays[server]
	t.relays[server] = s
	t.mu.Unlock()
	if earlier != nil {
		t.dropRelay(earlier, "its server opened the relay again") // before its stream ends, which would be another reason
		earlier.finish()
	}
	return s, nil
}

func (s *relaySession) finish() { s.once.Do(func() { close(s.over) }) }

// receiveRelay hands a follower's frames to the handler until the stream ends, which it does when ServeRelay returns.
func (h *Hub) receiveRelay(s *relaySession, first *clusterv1.LinkRequest, stream RelayServerStream) {
	defer h.wg.Done()
	defer s.finish()
	t, reason := s.term, "the relay broke"
	for batch := first; ; {
		h.modeMu.RLock()
		current := h.mode == mode(t)
		if current {
			s.handle(batch.GetItems())
		}
		h.modeMu.RUnlock()
		if !current {
			return
		}
		var err error
		if batch, err = stream.Recv(); err != nil {
			reason += ": " + status.Convert(err).Message()
			break
		}
	}
	h.modeMu.RLock()
	defer h.modeMu.RUnlock()
	if h.mode == mode(t) {
		t.mu.Lock()
		if t.relays[s.server] == s {
			delete(t.relays, s.server)
		}
		t.mu.Unlock()
		t.dropRelay(s, reason)
	}
}

// dropRelay takes all links of a session from the handler.
func (t *leading) dropRelay(s *relaySession, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links == nil {
		return
	}
	t.h.log.Warn("node link: relay ended", "follower", s.server, "links", len(s.links), "reason", reason)
	for _, id := range slices.Sorted(maps.Keys(s.links)) {
		t.linkDown(s.links[id], reason)
	}
	t.h.stats.relayedLinks.Add(-int64(len(s.links)))
	s.links = nil
}

// handle takes one batch.
func (s *relaySession) handle(items []*clusterv1.LinkUp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links == nil {
		return
	}
	t := s.term
	for _, item := range items {
		switch k := item.GetKind().(type) {
		case *clusterv1.LinkUp_Attached:
			f, err := Binary{}.Decode(k.Attached)
			if err != nil || f.GetHello() == nil || s.links[item.GetLinkId()] != nil {
				s.closeLink(item.GetLinkId(), CloseInternal, "the relay said something that is no hello, or said it twice")
				continue
			}
			l := s.newLink(item.GetLinkId(), f.GetHello())
			s.links[item.GetLinkId()] = l
			t.h.stats.relayedLinks.Add(1)
			t.linkUp(l)
		case *clusterv1.LinkUp_Frame:
			f, err := Binary{}.Decode(k.Frame)
			if err != nil {
				s.closeLink(item.GetLinkId(), CloseInternal, "the relay said something that is no frame: "+err.Error())
				continue
			}
			t.linkFrame(s.links[item.GetLinkId()], f)
		case *clusterv1.LinkUp_Detached:
			if l := s.links[item.GetLinkId()]; l != nil {
				delete(s.links, item.GetLinkId())
				t.h.stats.relayedLinks.Add(-1)
				t.linkDown(l, k.Detached)
			}
		}
	}
}

// newLink makes the Link of a follower's socket. The frames of each wait in the stream's queue, within its own bound.
func (s *relaySession) newLink(id uint64, hello *nodev1.Hello) *leaderLink {
	waiting := new(atomic.Int32)
	send := func(f *nodev1.Frame) error {
		b, err := Binary{}.Encode(f)
		if err != nil {
			return err
		}
		select {
		case <-s.over:
			return ErrClosed
		default:
		}
		if !s.queue.push(&clusterv1.LinkDown{LinkId: id, Kind: &clusterv1.LinkDown_Frame{Frame: b}}, len(b)+relayItemBytes, waiting, false) {
			return ErrQueueFull
		}
		return nil
	}
	return s.term.newLink(s.server, hello, send, func(code int, reason string) { s.closeLink(id, code, reason) })
}

func (s *relaySession) closeLink(id uint64, code int, reason string) {
	s.queue.push(&clusterv1.LinkDown{LinkId: id, Kind: &clusterv1.LinkDown_Close{Close: reason}, CloseCode: uint32(code)}, len(reason)+relayItemBytes, nil, true)
}
