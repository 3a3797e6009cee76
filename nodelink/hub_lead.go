// The hub of the leader: every node's link, here or at a follower, becomes a Link of the Handler.

package nodelink

import (
	"cmp"
	"strconv"
	"sync"
	"sync/atomic"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// reasonSuperseded is why an older link is closed.
const reasonSuperseded = "the node has a newer link"

// leading is a hub's mode for one term of leadership, or one part of it.
type leading struct {
	h       *Hub
	handler Handler
	over    chan struct{} // closed when the term ends
	ended   atomic.Bool

	mu     sync.Mutex
	nextID uint64
	byNode map[string]*leaderLink
	relays map[string]*relaySession // by the follower's server id
}

// leaderLink implements Link.
type leaderLink struct {
	term   *leading
	id     string
	server string
	hello  *nodev1.Hello
	dead   atomic.Bool
	send   func(f *nodev1.Frame) error
	close  func(code int, reason string)

	mu sync.Mutex // makes the handler's calls for this link one after the other
	up bool       // LinkUp was called, and LinkDown was not
}

func newLeading(h *Hub, handler Handler) *leading {
	return &leading{
		h: h, handler: handler, over: make(chan struct{}),
		byNode: make(map[string]*leaderLink), relays: make(map[string]*relaySession),
	}
}

func (t *leading) start(sockets []*socket) {
	for _, s := range sockets {
		t.up(s)
	}
}

func (t *leading) stop() {
	t.ended.Store(true)
	close(t.over)
	t.h.stats.relayedLinks.Store(0)
}

func (t *leading) up(s *socket) {
	s.lead = nil // an earlier term's
	f, err := Binary{}.Decode(s.hello)
	if err != nil {
		s.conn.closeWith(CloseInternal, "the hello could not be read again: "+err.Error())
		return
	}
	s.lead = t.newLink(t.h.opts.ServerID, f.GetHello(), s.conn.Send, s.conn.closeWith)
	t.linkUp(s.lead)
}

func (t *leading) frame(s *socket, f *nodev1.Frame, _ []byte) { t.linkFrame(s.lead, f) }

func (t *leading) down(s *socket, reason string) { t.linkDown(s.lead, reason) }

func (t *leading) newLink(server string, hello *nodev1.Hello, send func(*nodev1.Frame) error, closeWith func(int, string)) *leaderLink {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nextID++
	return &leaderLink{term: t, id: server + "/" + strconv.FormatUint(t.nextID, 10), server: server, hello: hello, send: send, close: closeWith}
}

// linkUp gives the link to the handler, unless the node has a newer one. An older one is taken from it first.
func (t *leading) linkUp(l *leaderLink) {
	l.mu.Lock() // until LinkUp has been called: whoever supersedes this link waits for it
	defer l.mu.Unlock()
	t.mu.Lock()
	older := t.byNode[l.hello.GetNodeId()]
	if older != nil && compareHello(older.hello, l.hello) > 0 {
		t.mu.Unlock()
		l.dead.Store(true)
		t.supersede(l)
		return
	}
	t.byNode[l.hello.GetNodeId()] = l
	t.mu.Unlock()
	if older != nil {
		t.linkDown(older, reasonSuperseded)
		t.supersede(older)
	}
	l.up = true
	t.handler.LinkUp(l)
}

// supersede closes the link of a node that has a newer one.
func (t *leading) supersede(l *leaderLink) {
	t.h.stats.superseded.Add(1)
	t.h.log.Warn("node link: the node has a newer link; the older one is closed", "node", l.hello.GetNodeId(), "name", l.hello.GetName(), "server", l.server)
	l.close(CloseSuperseded, reasonSuperseded)
}

// compareHello orders the links of one node by their age.
func compareHello(a, b *nodev1.Hello) int {
	return cmp.Or(cmp.Compare(a.GetIncarnation(), b.GetIncarnation()), cmp.Compare(a.GetLinkNumber(), b.GetLinkNumber()))
}

func (t *leading) linkFrame(l *leaderLink, f *nodev1.Frame) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up {
		t.handler.LinkFrame(l, f)
	}
}

func (t *leading) linkDown(l *leaderLink, reason string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up {
		return
	}
	l.up = false
	l.dead.Store(true)
	t.mu.Lock()
	if t.byNode[l.hello.GetNodeId()] == l {
		delete(t.byNode, l.hello.GetNodeId())
	}
	t.mu.Unlock()
	t.handler.LinkDown(l, reason)
}

// ID implements Link.
func (l *leaderLink) ID() string { return l.id }

// Hello implements Link.
func (l *leaderLink) Hello() *nodev1.Hello { return l.hello }

// Server implements Link.
func (l *leaderLink) Server() string { return l.server }

// Send implements Link. It refuses once the term is over, so that an earlier leader's word does not reach a node behind
// that of its successor.
func (l *leaderLink) Send(f *nodev1.Frame) error {
	if l.dead.Load() || l.term.ended.Load() {
		return ErrClosed
	}
	return l.send(f)
}

// Close implements Link. LinkDown follows when the socket has ended.
func (l *leaderLink) Close(code int, reason string) {
	if !l.term.ended.Load() {
		l.close(code, reason)
	}
}
