// The Client: what its callers see. All of it is a message to the owner and the wait for an answer.

package toolclient

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// ErrClosed is what calls end with when their Client is closed.
var ErrClosed = errors.New("the client is closed")

// errClosed is ErrClosed as a fault.
func errClosed() error {
	return fault.New(fault.Aborted, "%w; what was in flight may go on", ErrClosed)
}

// Client is a session with the cluster. Its methods may be used by many goroutines.
type Client struct {
	cfg     Config
	session string
	prefix  string // of the request ids that it makes
	web     *http.Client
	proxy   func(*http.Request) (*url.URL, error)
	buffers sync.Pool // of the WebSocket library
	events  events
	count   counters

	calls    atomic.Uint64 // made so far
	admitted atomic.Int64  // that have not ended

	life  context.Context // ends with the client
	end   context.CancelFunc
	inbox chan event
	owner chan struct{}  // closed when the owner has ended
	work  sync.WaitGroup // attempts, readers, writers, HTTP requests

	mu     sync.RWMutex // held for reading while something is posted
	closed bool
}

// counters are read by Stats.
type counters struct{ connections, repeated, duplicates, gaps, overHTTP, truncated atomic.Uint64 }

// Stats are the numbers of a Client, which only grow, but for InFlight.
type Stats struct {
	InFlight    int    // calls that have not ended, waiting ones too
	Connections uint64 // WebSockets that were made
	Repeated    uint64 // calls that were asked for again
	Duplicates  uint64 // answers of calls that had ended; they were dropped
	Gaps        uint64 // in the numbers of messages
	OverHTTP    uint64 // calls that were asked over HTTP
	Truncated   uint64 // calls whose stream was not taken
}

// Stats returns the numbers of now.
func (c *Client) Stats() Stats {
	n := &c.count
	return Stats{
		InFlight: int(c.admitted.Load()), Connections: n.connections.Load(), Repeated: n.repeated.Load(), Duplicates: n.duplicates.Load(),
		Gaps: n.gaps.Load(), OverHTTP: n.overHTTP.Load(), Truncated: n.truncated.Load(),
	}
}

// New makes a Client, which connects at once and for as long as it is open. Errors are of kind fault.Invalid.
func New(cfg Config) (*Client, error) {
	var proxy func(*http.Request) (*url.URL, error)
	if cfg.Dial == nil {
		proxy = http.ProxyFromEnvironment
	}
	endpoints, err := cfg.check()
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, session: cfg.SessionID, prefix: rand.Text()[:16], proxy: proxy,
		events: events{state: Connecting},
		inbox:  make(chan event, inboxEvents), owner: make(chan struct{}),
	}
	if c.session == "" {
		c.session = rand.Text() + rand.Text() // 256 bits
	}
	c.web = &http.Client{
		Transport: &http.Transport{
			Proxy: proxy, DialContext: cfg.Dial, TLSClientConfig: c.tls(), TLSHandshakeTimeout: cfg.ConnectTimeout,
			MaxIdleConnsPerHost: cfg.MaxInFlight, IdleConnTimeout: time.Minute,
		},
		// A redirect would take the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.life, c.end = context.WithCancel(context.Background())
	o := newOwner(c, endpoints)
	go o.run()
	return c, nil
}

// SessionID is the session that its calls belong to.
func (c *Client) SessionID() string { return c.session }

// newID names a call that its caller did not.
func (c *Client) newID(n uint64) string { return c.prefix + "-" + strconv.FormatUint(n, 10) }

// Call calls a tool and waits for its result. Arguments are anything that is a JSON object, or nil for none.
//
// When ctx is cancelled, the call is cancelled at the server; a result that came before that took effect is returned all the same. At
// the deadline of ctx the call ends with kind fault.Timeout. Errors of the server are of the kind that their code stands for, and
// wrap an *Error.
func (c *Client) Call(ctx context.Context, name string, arguments any, opts ...Option) (*Result, error) {
	k, err := c.Start(ctx, name, arguments, opts...)
	if err != nil {
		return nil, err
	}
	return k.Wait(context.WithoutCancel(ctx)) // the owner ends the call with ctx
}

// Start begins a call whose result is waited for later, or not at all. When ctx is cancelled, so is the call.
//
// Errors are of kind Invalid for what no server would take, Exhausted when as many calls wait as may, and Aborted when the client is closed.
func (c *Client) Start(ctx context.Context, name string, arguments any, opts ...Option) (*Pending, error) {
	k, err := c.newCall(ctx, name, arguments, opts)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fault.New(kindOf(ctx.Err()), "%s: %w; it was not sent", name, ctx.Err())
	}
	if limit := int64(c.cfg.MaxInFlight + c.cfg.MaxWaiting); c.admitted.Add(1) > limit {
		c.admitted.Add(-1)
		return nil, fault.New(fault.Exhausted, "%s: %d calls have not ended, which is as many as may be; wait for some, or raise MaxWaiting", name, limit).WithRetry(time.Second)
	}
	k.stop = context.AfterFunc(ctx, func() { c.post(cancelCall{k, ctx.Err()}) })
	if !c.post(startCall{k}) {
		k.stop()
		c.admitted.Add(-1)
		return nil, errClosed()
	}
	return k, nil
}

// ListTools returns the tools that can be called, over a WebSocket or HTTP.
func (c *Client) ListTools(ctx context.Context) ([]Tool, error) {
	m, err := c.query(ctx, request{Op: "list_tools"}, "")
	if err != nil {
		return nil, err
	}
	return m.Tools, nil
}

// Health tells how the server does that the client is connected to. It needs a WebSocket: where only HTTP gets through it fails with kind Unavailable.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	m, err := c.query(ctx, request{Op: "health"}, "")
	if err != nil {
		return nil, err
	}
	if m.Health == nil {
		return &Health{}, nil
	}
	return m.Health, nil
}

// RotateToken gives the session to another token, without a new connection, and uses that one from then on instead of Config.Token; the former
// may be revoked then. It is refused while calls go over HTTP. When the answer is lost with the connection, the error is of
// kind Unavailable, and the new token is used.
func (c *Client) RotateToken(ctx context.Context, token string) error {
	if token == "" {
		return fault.New(fault.Invalid, "rotate the token: the new one is empty").WithField("new")
	}
	_, err := c.query(ctx, request{Op: "rotate_token", New: &token}, token)
	return err
}

// query asks something that is no call, and asks again while the server is too busy for it.
func (c *Client) query(ctx context.Context, r request, token string) (*message, error) {
	for {
		m, err := c.queryOnce(ctx, r, token)
		f := fault.As(err)
		if f == nil || f.Kind != fault.Exhausted || f.RetryAfter <= 0 {
			return m, err
		}
		t := time.NewTimer(f.RetryAfter)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, err
		case <-c.life.Done():
			t.Stop()
			return nil, errClosed()
		}
	}
}

func (c *Client) queryOnce(ctx context.Context, r request, token string) (*message, error) {
	r.RequestID = c.newID(c.calls.Add(1))
	q := &query{request: r, token: token, answer: make(chan answer, 1)}
	if !c.post(startQuery{q}) {
		return nil, errClosed()
	}
	select {
	case a := <-q.answer:
		return a.m, a.err
	case <-ctx.Done():
		c.post(dropQuery{q})
		return nil, fault.New(kindOf(ctx.Err()), "%s: %w", r.Op, ctx.Err())
	}
}

// post sends the owner an event; false when the client is closed.
func (c *Client) post(e event) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return false
	}
	select {
	case c.inbox <- e:
		return true
	case <-c.life.Done():
		return false
	}
}

// Close ends the connection, and all calls with ErrClosed; what they began goes on at the servers. It returns when all of the
// client's goroutines have ended. It has no error.
func (c *Client) Close() error {
	c.end()
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	<-c.owner
	c.work.Wait()
	if first {
		for { // what was posted and not seen any more
			select {
			case e := <-c.inbox:
				e.dropped()
				continue
			default:
			}
			break
		}
		c.web.CloseIdleConnections()
		c.events.emit(Event{State: Closed})
	}
	return nil
}
