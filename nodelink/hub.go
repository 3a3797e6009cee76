// The server's end of all its nodes' links.
//
//	            ┌──────────────── Hub ────────────────┐
//	node ──ws──►│ socket ─┐                           │
//	node ──ws──►│ socket ─┼─► mode: leading ──► Handler (the leader's loops)
//	            │         │        following ─► RelayStream ─► the leader's Hub (ServeRelay)
//	follower ──►│ relay ──┘        paused ───► nobody: frames are dropped, and counted
//	            └─────────────────────────────────────┘
//
// The sockets stay when the mode changes: a node keeps its link while leaders come and go. A frame that comes while
// nobody leads is dropped; all that a node sends is said again to the next leader.

package nodelink

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// The bounds of a hub.
const (
	DefaultMaxLinks = 20_000
	maxIDBytes      = 253 // of node ids and names
)

// HubOptions say how a server accepts links. ServerID is required.
type HubOptions struct {
	ServerID string
	// Authorize lets a request in; nil lets in everybody.
	Authorize Authorize
	// Admit looks at the hello of a link that Authorize let in, with the identity that it gave; its error goes to the
	// node, and the link is closed. nil admits all.
	Admit         func(identity string, hello *nodev1.Hello) error
	Logger        *slog.Logger
	MaxLinks      int            // DefaultMaxLinks when 0
	HelloTimeout  time.Duration  // from the handshake to the hello; DefaultHelloTimeout when 0
	NoCompression bool           // do not accept permessage-deflate
	Rand          func() float64 // jitter of the relay's backoff
}

// Hub holds the links of one server. A new one is paused.
type Hub struct {
	opts     HubOptions
	log      *slog.Logger
	acceptor *acceptor
	stats    counters

	switching sync.Mutex   // one change of mode at a time
	modeMu    sync.RWMutex // read-locked by every call into the mode; so a change waits for the calls, and they for it
	mode      mode

	mu      sync.Mutex
	sockets map[uint64]*socket
	arrived int                  // in their handshake
	opening map[carrier]struct{} // before their hello
	nextID  uint64
	closed  bool
	wg      sync.WaitGroup
}

// mode is what a hub does with its links. up, frame and down are called under modeMu, for one socket by one goroutine
// at a time.
type mode interface {
	up(s *socket)
	frame(s *socket, f *nodev1.Frame, binary []byte)
	down(s *socket, reason string)
	// start takes over the sockets that are there, in the order in which they came. No other call is under way.
	start(sockets []*socket)
	// stop ends it. No other call is under way, and none follows.
	stop()
}

// socket is a node's link that this server holds.
type socket struct {
	id     uint64
	conn   carrier
	nodeID string
	hello  []byte      // the hello frame in its binary form
	lead   *leaderLink // of the mode leading
}

// NewHub returns a paused hub.
func NewHub(o HubOptions) *Hub {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxLinks == 0 {
		o.MaxLinks = DefaultMaxLinks
	}
	if o.HelloTimeout == 0 {
		o.HelloTimeout = DefaultHelloTimeout
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	h := &Hub{
		opts: o, log: o.Logger, acceptor: newAcceptor(o.Authorize, o.NoCompression),
		sockets: make(map[uint64]*socket), opening: make(map[carrier]struct{}),
	}
	h.mode = paused{h}
	return h
}

// ServeHTTP makes a link of a request. It returns once the handshake is done: the request's goroutine and buffers are
// too dear to be kept for each idle node.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.room(); err != nil {
		writeRefusal(w, http.StatusServiceUnavailable, err)
		return
	}
	conn, identity, err := h.acceptor.accept(w, r)
	if err != nil {
		h.leave()
		h.stats.refused.Add(1)
		h.log.Warn("node link: handshake refused", "remote", r.RemoteAddr, "err", err)
		return
	}
	if err := h.begin(conn, identity); err != nil {
		conn.closeWith(CloseGoingAway, err.Error())
		conn.wait()
	}
}

// AttachConn takes a link that did not come by WebSocket, as if its node had dialled this server. It does not wait for
// the hello.
func (h *Hub) AttachConn(conn Conn) error {
	err := h.room()
	if err == nil {
		err = h.begin(asCarrier(conn), "")
	}
	if err != nil {
		conn.Close(err.Error())
	}
	return err
}

// room takes a place for a link that arrives; begin or leave gives it back.
func (h *Hub) room() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return fault.New(fault.Unavailable, "node link: server %s is shutting down; dial another one", h.opts.ServerID)
	case len(h.sockets)+len(h.opening)+h.arrived >= h.opts.MaxLinks:
		h.stats.refused.Add(1)
		return fault.New(fault.Exhausted, "node link: server %s holds %d links already; dial another one", h.opts.ServerID, h.opts.MaxLinks)
	}
	h.arrived++
	return nil
}

// leave gives back what room took.
func (h *Hub) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.arrived--
}

// begin starts the goroutine that serves a link, the only one it has.
func (h *Hub) begin(conn carrier, identity string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.arrived--
	if h.closed {
		return fault.New(fault.Unavailable, "node link: server %s is shutting down; dial another one", h.opts.ServerID)
	}
	h.opening[conn] = struct{}{}
	h.wg.Add(1)
	go h.serve(conn, identity)
	return nil
}

// serve receives a link's frames until it ends. It is kept small, for its stack is most of what an idle link costs.
func (h *Hub) serve(conn carrier, identity string) {
	defer h.wg.Done()
	s := h.greet(conn, identity)
	if s == nil {
		h.mu.Lock()
		delete(h.opening, conn)
		h.mu.Unlock()
		conn.wait()
		return
	}
	h.attach(s)
	deliver := func(f *nodev1.Frame, binary []byte) { h.deliver(s, f, binary) }
	for {
		if err := conn.receive(context.Background(), deliver); err != nil {
			h.detach(s, err)
			conn.wait()
			return
		}
	}
}

// greet waits for the hello and checks it. nil when there was none; the node has been told why, then.
func (h *Hub) greet(conn carrier, identity string) *socket {
	timer := time.AfterFunc(h.opts.HelloTimeout, func() {
		refuse(conn, violates(CloseHelloTimeout, fault.Timeout, "no hello within %s", h.opts.HelloTimeout))
	})
	var s *socket
	var hello *nodev1.Hello
	err := conn.receive(context.Background(), func(f *nodev1.Frame, binary []byte) {
		if hello = f.GetHello(); hello == nil {
			refuse(conn, violates(CloseProtocol, fault.FailedPrecondition, "the first frame was %s; it must be hello", FrameType(f)))
			return
		}
		s = &socket{conn: conn, nodeID: hello.GetNodeId(), hello: binaryForm(f, binary)}
	})
	inTime := timer.Stop()
	if err == nil && s != nil && inTime {
		if v := h.checkHello(identity, hello); v != nil {
			refuse(conn, v)
			err, s = v, nil
		}
	}
	if s == nil || err != nil || !inTime {
		h.stats.refused.Add(1)
		h.log.Warn("node link: refused", "node", hello.GetNodeId(), "name", hello.GetName(), "err", err)
		drainUntilClosed(conn)
		return nil
	}
	return s
}

// drainUntilClosed reads until the link ends, so that the node gets to read why it was refused.
func drainUntilClosed(conn carrier) {
	for conn.receive(context.Background(), func(*nodev1.Frame, []byte) {}) == nil {
	}
}

// checkHello says what is wrong with a hello, nil when nothing is.
func (h *Hub) checkHello(identity string, hello *nodev1.Hello) *violation {
	if hello.GetProtocolMin() > ProtocolMax || hello.GetProtocolMax() < ProtocolMin {
		return violates(CloseProtocol, fault.FailedPrecondition,
			"no common protocol version: the node speaks %d to %d, server %s speaks %d to %d; upgrade the older of the two",
			hello.GetProtocolMin(), hello.GetProtocolMax(), h.opts.ServerID, ProtocolMin, ProtocolMax)
	}
	if n := len(hello.GetNodeId()); n == 0 || n > maxIDBytes {
		return violates(CloseProtocol, fault.Invalid, "hello: node_id has %d bytes; it must have 1 to %d", n, maxIDBytes)
	}
	if len(hello.GetName()) > maxIDBytes {
		return violates(CloseProtocol, fault.Invalid, "hello: name has %d bytes, more than %d", len(hello.GetName()), maxIDBytes)
	}
	if h.opts.Admit != nil {
		if err := h.opts.Admit(identity, hello); err != nil {
			return &violation{code: RefusalCode(err), err: fault.New(fault.KindOf(err), "%w", err)}
		}
	}
	return nil
}

func (h *Hub) attach(s *socket) {
	h.modeMu.RLock()
	defer h.modeMu.RUnlock()
	h.mu.Lock()
	h.nextID++
	s.id = h.nextID
	delete(h.opening, s.conn)
	h.sockets[s.id] = s
	if h.closed {
		s.conn.closeWith(CloseGoingAway, "server "+h.opts.ServerID+" is shutting down")
	}
	h.mu.Unlock()
	h.stats.accepted.Add(1)
	h.mode.up(s)
}

func (h *Hub) deliver(s *socket, f *nodev1.Frame, binary []byte) {
	h.stats.framesIn.Add(1)
	if f.GetHello() != nil {
		refuse(s.conn, violates(CloseProtocol, fault.FailedPrecondition, "hello was said already; it opens a link"))
		return
	}
	h.modeMu.RLock()
	defer h.modeMu.RUnlock()
	h.mode.frame(s, f, binary)
}

func (h *Hub) detach(s *socket, err error) {
	reason := err.Error()
	var ce *CloseError
	if errors.As(err, &ce) && ce.Reason != "" {
		reason = ce.Reason
	}
	h.modeMu.RLock()
	defer h.modeMu.RUnlock()
	h.mu.Lock()
	delete(h.sockets, s.id)
	h.mu.Unlock()
	h.log.Info("node link: ended", "node", s.nodeID, "reason", reason)
	h.mode.down(s, reason)
}

// Lead makes this server the leader: handler gets every link that is there, local ones now and relayed ones as their
// followers dial in, and all later ones. When it returns, calls to an earlier handler are over, and what that still sends
// on its links gets ErrClosed; it gets no LinkDown for them. Like Follow and Pause it must not be called from a handler.
func (h *Hub) Lead(handler Handler) { h.change(newLeading(h, handler)) }

// Follow makes this server a follower: every link is relayed to the leader over one stream, which open opens. When the
// stream ends, it is opened again, with backoff, and the leader gets every link anew. open must return when ctx ends,
// and so must the stream's methods. Calls to an earlier handler are over when Follow returns.
func (h *Hub) Follow(open func(ctx context.Context) (RelayStream, error)) {
	h.change(newFollowing(h, open))
}

// Pause says that no leader is known: the links stay, and nobody answers. Calls to an earlier handler are over when it
// returns.
func (h *Hub) Pause() { h.change(paused{h}) }

func (h *Hub) change(to mode) {
	h.switching.Lock()
	defer h.switching.Unlock()
	h.modeMu.Lock()
	defer h.modeMu.Unlock()
	h.mode.stop()
	h.mu.Lock()
	if h.closed {
		to = paused{h}
	}
	h.mu.Unlock()
	h.mode = to
	to.start(h.snapshot())
}

// snapshot returns the sockets, oldest first.
func (h *Hub) snapshot() []*socket {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*socket, 0, len(h.sockets))
	for _, s := range h.sockets {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *socket) int { return cmp.Compare(a.id, b.id) })
	return all
}

// Close says goodbye to all nodes and ends every link and relay. It returns when all is over; links that are not by the
// time ctx ends are broken off, and its error is returned.
func (h *Hub) Close(ctx context.Context) error {
	h.mu.Lock()
	h.closed = true
	open := make([]carrier, 0, len(h.sockets)+len(h.opening))
	for _, s := range h.sockets {
		open = append(open, s.conn)
	}
	for c := range h.opening {
		open = append(open, c)
	}
	h.mu.Unlock()
	reason := "server " + h.opts.ServerID + " is shutting down"
	for _, c := range open {
		_ = c.Send(&nodev1.Frame{Payload: &nodev1.Frame_Goodbye{Goodbye: &nodev1.Goodbye{Reason: reason}}}) // the close says it too
		c.closeWith(CloseGoingAway, reason)
	}
	h.Pause()
	defer h.acceptor.work.close()
	over := make(chan struct{})
	go func() { h.wg.Wait(); close(over) }()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		for _, c := range open {
			c.abort(reason)
		}
		<-over
		return context.Cause(ctx)
	}
}

// paused drops what comes.
type paused struct{ h *Hub }

func (paused) up(*socket)                             {}
func (p paused) frame(*socket, *nodev1.Frame, []byte) { p.h.stats.dropped.Add(1) }
func (paused) down(*socket, string)                   {}
func (paused) start([]*socket)                        {}
func (paused) stop()                                  {}

// binaryForm returns a frame's binary form, to keep.
func binaryForm(f *nodev1.Frame, binary []byte) []byte {
	if binary != nil {
		return slices.Clone(binary)
	}
	b, err := Binary{}.Encode(f)
	if err != nil {
		return nil // a JSON frame of nearly MaxFrameBytes may be larger in binary only if it is not UTF-8; it was checked
	}
	return b
}
