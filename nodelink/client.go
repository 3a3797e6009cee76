// The node's end of the link: one link at a time, to whichever server will have it, for ever.

package nodelink

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// The defaults of ClientOptions.
const (
	DefaultBackoffMin   = time.Second
	DefaultBackoffMax   = time.Minute
	DefaultAttempts     = 10
	DefaultSlowInterval = time.Minute
	DefaultHelloTimeout = 15 * time.Second
	maxLearnedServers   = 64
	minSilence          = time.Second // a lease may be too short to be divided
)

// ClientOptions say what a Client connects, and to what. Servers, Dial and Hello are required.
//
// The callbacks are called one at a time, from one goroutine, and must not block: nothing is received meanwhile.
type ClientOptions struct {
	// Servers are link addresses, as host:port. Those that a hello_ack names are added, and forgotten with the next one.
	Servers []string
	Dial    func(ctx context.Context, server string) (Conn, error)
	// Hello makes the first frame of each link. Its protocol versions and link number are set by the Client.
	Hello func() *nodev1.Hello
	// OnAck: a leader has taken the node in; it is called before any OnFrame of that leader. It comes again on the same
	// link when another leader took over. The node then sends its inventory and every fact beyond ack.FactIndex; its
	// streams and requests under the earlier leader have ended.
	OnAck func(server string, ack *nodev1.HelloAck)
	// OnFrame: a frame came that is no hello_ack, no answer to a Request and not about a stream. Control frames come in
	// order.
	OnFrame func(f *nodev1.Frame)
	// OnDown: a link for which OnAck was called has ended.
	OnDown func(err error)
	// OnStream serves a stream that the leader opened; see StreamsOptions.Accept. nil refuses them.
	OnStream func(ctx context.Context, s *Stream)

	Logger       *slog.Logger
	BackoffMin   time.Duration // the first delay; it doubles to BackoffMax. Each is drawn between 0 and its bound
	BackoffMax   time.Duration
	Attempts     int           // failures in a row before the state is Failed
	SlowInterval time.Duration // between attempts then
	HelloTimeout time.Duration // from hello to hello_ack
	Rand         func() float64
}

// Client keeps a node linked. Make it with NewClient, then Run it once.
type Client struct {
	opts   ClientOptions
	log    *slog.Logger
	events broadcaster
	links  uint64 // dialled so far; of Run's goroutine
	ring   []string
	at     int
	lease  time.Duration // as the last hello_ack had it, and since when there is no link; of Run's goroutine
	downAt time.Time
	late   atomic.Uint64

	mu      sync.Mutex
	state   State
	server  string
	up      *session        // nil while no leader has acknowledged
	waiting []*nodev1.Frame // for a link; at most SendQueueMax
	bytes   int             // of waiting, roughly
	closed  bool
	// committed is the last fact that a leader is known to have. A leader that knows of fewer has forgotten the node.
	committed uint64
}

// session is one leader on one link.
type session struct {
	conn     carrier
	server   string
	req      *Requester
	streams  *Streams
	nextFact uint64 // one beyond the last that this leader has, or was sent on this link; guarded by Client.mu
}

// NewClient checks the options and fills in defaults.
func NewClient(o ClientOptions) (*Client, error) {
	if len(o.Servers) == 0 {
		return nil, fault.New(fault.Invalid, "nodelink: no servers to dial; give at least one host:port").WithField("servers")
	}
	if o.Dial == nil || o.Hello == nil {
		return nil, fault.New(fault.Invalid, "nodelink: Dial and Hello are required")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.BackoffMin, DefaultBackoffMin)
	def(&o.BackoffMax, DefaultBackoffMax)
	def(&o.SlowInterval, DefaultSlowInterval)
	def(&o.HelloTimeout, DefaultHelloTimeout)
	if o.Attempts <= 0 {
		o.Attempts = DefaultAttempts
	}
	if o.OnAck == nil {
		o.OnAck = func(string, *nodev1.HelloAck) {}
	}
	if o.OnFrame == nil {
		o.OnFrame = func(*nodev1.Frame) {}
	}
	if o.OnDown == nil {
		o.OnDown = func(error) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	return &Client{opts: o, log: o.Logger, state: Disconnected}, nil
}

// State is the link's state.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Server is the server of the present link, or of the attempt under way.
func (c *Client) Server() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server
}

// Subscribe returns events from now on, and a function that ends the subscription. A subscriber that lets its buffer
// fill misses events. The channel is closed when Run returns.
func (c *Client) Subscribe(buffer int) (<-chan Event, func()) { return c.events.Subscribe(buffer) }

// LateAnswers counts answers that came after their request had been given up.
func (c *Client) LateAnswers() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.late.Load()
	if c.up != nil {
		n += c.up.req.Late()
	}
	return n
}

// Send queues a frame for the leader. While there is no link, facts and delivered frames wait for the next one, at most
// SendQueueMax of them; they name their incarnation or epoch and their numbers, so a late or second arrival does no harm.
// Every other frame belongs to a link, and is refused with ErrClosed: a heartbeat or an answer that comes late is worse
// than none. With ErrQueueFull nothing was queued.
//
// What Send took may still be lost with its link. Facts are kept by their sender until they are acked, and go to each
// leader without a gap: those that would leave one, because their sender has not heard of this link yet and the facts
// before them went down with the last, are refused with ErrClosed.
func (c *Client) Send(f *nodev1.Frame) error {
	c.mu.Lock()
	up := c.up
	var err error
	switch {
	case up == nil:
		defer c.mu.Unlock()
		return c.wait(f)
	case f.GetFacts() != nil:
		err = up.sendFacts(f)
		c.mu.Unlock()
	default:
		c.mu.Unlock()
		err = up.conn.Send(f)
	}
	if err == nil {
		c.events.sent(up.server, f)
	}
	return err
}

// sendFacts sends facts if none is missing before them. Client.mu is held, so that they stay in order.
func (s *session) sendFacts(f *nodev1.Frame) error {
	facts := f.GetFacts().GetFacts()
	if len(facts) > 0 && facts[0].GetIndex() > s.nextFact {
		return ErrClosed
	}
	err := s.conn.Send(f)
	if err == nil && len(facts) > 0 {
		s.nextFact = max(s.nextFact, facts[len(facts)-1].GetIndex()+1)
	}
	return err
}

// wait queues a frame for the next link. c.mu is held.
func (c *Client) wait(f *nodev1.Frame) error {
	if c.closed || !outlivesLink(f) {
		return ErrClosed
	}
	b, err := Binary{}.Encode(f)
	if err != nil {
		return err
	}
	if len(c.waiting) >= SendQueueMax || c.bytes+len(b) > SendQueueMaxBytes {
		return ErrQueueFull
	}
	c.waiting, c.bytes = append(c.waiting, f), c.bytes+len(b)
	return nil
}

// Request sends a request to the leader and returns its answer; see Requester.Do. Without a link it fails at once: a
// request is never kept for later.
func (c *Client) Request(ctx context.Context, f *nodev1.Frame) (*nodev1.Frame, error) {
	c.mu.Lock()
	up := c.up
	c.mu.Unlock()
	if up == nil {
		return nil, fault.New(fault.Unavailable, "nodelink: request %s: there is no link", FrameType(f))
	}
	return up.req.Do(ctx, f)
}

func (c *Client) setState(s State, server string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.server = s, server
}

// ack begins a leader's session on the link: the first, or another leader's.
func (c *Client) ack(conn carrier, server string, ack *nodev1.HelloAck, n uint64) *session {
	s := &session{conn: conn, server: server}
	s.req = NewRequester("n"+strconv.FormatUint(n, 10)+"-", 0, conn.Send)
	s.streams = NewStreams(StreamsOptions{Send: conn.Send, Accept: c.opts.OnStream, Logger: c.log})
	c.lease = ack.GetLease().AsDuration()
	if lease := c.lease; lease > 0 {
		// Half the lease is for noticing that the server is silent, the other half for finding another one. Heartbeats are
		// answered each quarter of a lease: a ping is for when one was not.
		silence := max(lease/2, minSilence)
		conn.setLiveness(silence*2/3, silence)
	}
	c.learn(ack.GetServers())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != Connected {
		c.events.emit(Event{Type: EventConnected, Server: server})
	}
	c.committed = max(c.committed, ack.GetFactIndex())
	s.nextFact = c.committed + 1
	c.up, c.state, c.server = s, Connected, server
	c.flush(s, ack)
	return s
}

// flush sends what waited for a link, but for facts that the leader says it has, and those before which others are
// missing: they were on the link that broke, and their sender sends them all again. c.mu is held, so that nothing overtakes.
func (c *Client) flush(s *session, ack *nodev1.HelloAck) {
	frames, known := c.waiting, ack.GetFactIndex()
	c.waiting, c.bytes = nil, 0
	s.conn.reserve(len(frames))
	for i, f := range frames {
		if facts := f.GetFacts().GetFacts(); len(facts) > 0 {
			last := facts[len(facts)-1].GetIndex()
			if last <= known || facts[0].GetIndex() > known+1 {
				continue
			}
			known = last
		}
		send := s.conn.Send
		if f.GetFacts() != nil {
			send = s.sendFacts
		}
		if err := send(f); err != nil {
			c.log.Warn("node link: frames that waited for a link are dropped; their sender sends them again", "server", s.server, "frames", len(frames)-i, "err", err)
			return
		}
		c.events.sent(s.server, f)
	}
}

// drop ends a leader's session.
func (c *Client) drop(s *session, err error) {
	c.mu.Lock()
	if c.up == s {
		c.up = nil
	}
	c.mu.Unlock()
	s.req.Close(err)
	c.late.Add(s.req.Late())
	s.streams.Close(err)
	s.streams.Wait()
}

// learn replaces the servers that earlier acks named.
func (c *Client) learn(servers []string) {
	ring := append([]string(nil), c.opts.Servers...)
	seen := make(map[string]bool, len(ring))
	for _, s := range ring {
		seen[s] = true
	}
	for _, s := range servers[:min(len(servers), maxLearnedServers)] {
		if s != "" && !seen[s] {
			seen[s] = true
			ring = append(ring, s)
		}
	}
	c.ring = ring
}

// nextServer rotates through all servers, beginning anywhere, so that many nodes spread over them.
func (c *Client) nextServer() string {
	if c.ring == nil {
		c.ring = c.opts.Servers
		c.at = int(c.opts.Rand() * float64(len(c.ring)))
	} else {
		c.at++
	}
	return c.ring[c.at%len(c.ring)]
}

// backoff is the delay before the next attempt, after this many failures in a row: full jitter up to a doubling bound,
// so that ten thousand nodes that lost one server do not come back at once.
func (c *Client) backoff(attempt int) time.Duration {
	if attempt >= c.opts.Attempts {
		return time.Duration((0.75 + 0.5*c.opts.Rand()) * float64(c.opts.SlowInterval))
	}
	bound := c.opts.BackoffMax
	if shift := max(attempt-1, 0); shift < 30 {
		bound = min(c.opts.BackoffMin<<shift, c.opts.BackoffMax)
	}
	if c.lease > 0 && time.Since(c.downAt) < c.lease {
		// What the node runs ends with its lease: until then it is worth some attempts more.
		bound = min(bound, c.lease/4)
	}
	return time.Duration(c.opts.Rand() * float64(bound))
}

// superseded reports whether the link was closed because the node has a newer one: another agent runs with this node's
// identity, for this Client never has two.
func superseded(err error) bool {
	var ce *CloseError
	return errors.As(err, &ce) && ce.Code == CloseSuperseded
}
