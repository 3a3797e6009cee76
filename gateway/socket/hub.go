// The hub: all clients and connections of one server, and their common bounds.

package socket

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/queue"
)

// Access says who callers are and makes calls as them.
type Access interface {
	// Identify says who shows a credential; its errors are of kind fault.Unauthenticated.
	Identify(c auth.Credential) (auth.Identity, error)
	// Recheck says who somebody is now that showed a token before, which has a TokenID; its errors are of kind fault.Unauthenticated: the token is gone.
	Recheck(who auth.Identity) (auth.Identity, error)
	// As returns a context for calls as the holder of a credential.
	As(ctx context.Context, c auth.Credential) context.Context
	// AsCaller is As for somebody who was identified before, at this server or another.
	AsCaller(ctx context.Context, who auth.Identity) context.Context
}

// Tools are what clients may call.
type Tools interface {
	List() []tools.Tool
	Find(name string) (*tools.Tool, bool)
	Call(ctx context.Context, t *tools.Tool, c tools.Call) ([]tools.Output, error)
}

// Options are what a hub works with.
type Options struct {
	Server string // this server's name
	Tools  Tools
	Access Access
	// Calls keeps calls in the cluster; nil for none, and then all are kept by this server. Durable says that it keeps those that do not say.
	Calls   Calls
	Durable bool
	// Origins are the web pages that may connect, such as https://console.example.com, beside those of this server; * for all.
	Origins []string
	// TrustedProxies are believed about whom they speak for; see addressOf.
	TrustedProxies []netip.Prefix
	// Open says that nobody needs a token.
	Open bool
	// Ready says whether this server can serve, and why not.
	Ready  func() (bool, string)
	Limits Limits
	Logger *slog.Logger
}

// Hub is the client gateway of one server.
type Hub struct {
	o        Options
	tools    []toolInfo // as list_tools shows them
	upgrader websocket.Upgrader
	receive  sync.Pool // of *bytes.Buffer
	requests sync.Pool // of *request
	words    words
	batches  sync.Pool // of *batch
	buckets  *buckets

	memory  *memory
	cluster *replicated // nil for none
	worker  worker

	life  context.Context // ends with the hub
	end   context.CancelCauseFunc
	work  sync.WaitGroup // connections and calls
	pool  pool           // runs calls and writers
	count counters

	stopping atomic.Bool  // no new calls
	refusing atomic.Int64 // connections that are being told that there are too many

	mu      sync.Mutex
	ended   bool // no new connections
	conns   map[*conn]struct{}
	perIP   map[string]int
	clients map[clientKey]*client
}

// clientKey is whose a session is, and which: nobody gets another's answers by guessing an id.
type clientKey struct{ owner, session string }

// counters are read by metrics and written without a lock.
type counters struct {
	inFlight, durable, kept           atomic.Int64 // calls that this server keeps, and that the cluster does; bytes of results and of frames that wait
	accepted, refused, resumed        atomic.Uint64
	calls, joined, cached, cancelled  atomic.Uint64
	overCapacity, malformed, evicted  atomic.Uint64
	truncated                         atomic.Uint64 // streams
	framesIn, framesOut, bytesIn, out atomic.Uint64
}

// wrote counts a message out.
func (n *counters) wrote(data []byte) {
	n.framesOut.Add(1)
	n.out.Add(uint64(len(data)))
}

// New makes a hub. Sweep should be running; Close ends it.
func New(o Options) *Hub {
	h := &Hub{
		o: o, buckets: newBuckets(o.Limits), conns: map[*conn]struct{}{}, perIP: map[string]int{}, clients: map[clientKey]*client{},
	}
	h.upgrader = websocket.Upgrader{
		HandshakeTimeout: o.Limits.WriteTimeout, WriteBufferSize: writeBufferBytes, WriteBufferPool: new(sync.Pool),
		EnableCompression: true, Subprotocols: []string{Subprotocol},
		CheckOrigin: func(*http.Request) bool { return true }, // ServeHTTP has checked
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			refuse(w, status, failed(codeInvalidRequest, reason.Error()))
		},
	}
	h.words = newWords()
	for _, t := range o.Tools.List() {
		schema, err := t.Schema.MarshalJSON()
		if err != nil {
			panic("tool " + t.Name + ": " + err.Error()) // a defect of the program, found by its first test
		}
		h.tools = append(h.tools, toolInfo{t.Name, t.Description, schema})
		h.words.add(t.Name)
	}
	h.life, h.end = context.WithCancelCause(context.Background())
	h.worker, h.memory = worker{o.Tools, o.Limits.ResultBytes, o.Logger}, &memory{h}
	if o.Calls != nil {
		h.cluster = &replicated{h, o.Calls}
	}
	return h
}

// Subprotocol may be offered by clients; none is spoken alike.
const Subprotocol = "orchestrator.client.v1"

// newSessionID makes an id that nobody guesses: 256 random bits.
func newSessionID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// validSessionID reports whether a client may choose an id: 3–64 characters of A–Z a–z 0–9 _ -.
func validSessionID(s string) bool {
	if len(s) < 3 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// ownerOf is whose a client is: the holder of a token or a certificate.
func ownerOf(id auth.Identity) string { return id.Owner() }

// admit counts a connection in; the refusal says why not.
func (h *Hub) admit(c *conn) *failure {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stopping.Load():
		return failed(codeUnavailable, "server "+h.o.Server+" is stopping; connect to another one")
	case len(h.conns) >= h.o.Limits.Connections:
		return full("this server has as many connections as it may; connect to another one, or later", time.Second)
	case h.perIP[c.ip] >= h.o.Limits.ConnectionsPerIP:
		return full("there are as many connections from this address as there may be; use one for many calls", time.Second)
	}
	h.conns[c] = struct{}{}
	h.perIP[c.ip]++
	h.count.accepted.Add(1)
	return nil
}

// dismiss counts it out.
func (h *Hub) dismiss(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.conns[c]; !ok {
		return
	}
	delete(h.conns, c)
	if h.perIP[c.ip]--; h.perIP[c.ip] <= 0 {
		delete(h.perIP, c.ip)
	}
}

// clientOf returns the client of a session, a new one where it is not known. known reports which.
func (h *Hub) clientOf(who auth.Identity, cred auth.Credential, session string) (c *client, known bool, f *failure) {
	if !validSessionID(session) {
		session = newSessionID()
	}
	key := clientKey{ownerOf(who), session}
	h.mu.Lock()
	defer h.mu.Unlock()
	if c = h.clients[key]; c != nil {
		c.renew(who, cred)
		return c, true, nil
	}
	if h.stopping.Load() {
		return nil, false, failed(codeUnavailable, "server "+h.o.Server+" is stopping; connect to another one")
	}
	if len(h.clients) >= h.o.Limits.Clients {
		return nil, false, full("this server keeps as many sessions of clients as it may; connect to another one, or later", h.o.Limits.ResultTTL/10)
	}
	c = newClient(h, key, who, cred)
	h.clients[key] = c
	return c, false, nil
}

// lookup returns a client that is there.
func (h *Hub) lookup(who auth.Identity, session string) *client {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clients[clientKey{ownerOf(who), session}]
}

// rekey gives a client to the holder of another credential, who has shown both.
func (h *Hub) rekey(c *client, who auth.Identity, cred auth.Credential) *failure {
	key := clientKey{ownerOf(who), c.session}
	h.mu.Lock()
	if other := h.clients[key]; other != nil && other != c {
		h.mu.Unlock()
		return failed(codeDuplicate, "the new token has a session of this id already; connect anew with the new token")
	}
	h.clients[key] = c // nobody else may take it meanwhile
	was := clientKey{c.owner, c.session}
	h.mu.Unlock()
	f := c.rekeyInCluster(queue.ClientKey{Owner: key.owner, Session: key.session}, who)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case was == key:
	case f != nil:
		delete(h.clients, key)
		return f
	default:
		delete(h.clients, was)
	}
	c.owner = key.owner
	c.renew(who, cred)
	return nil
}

// forget drops a client that has nothing any more.
func (h *Hub) forget(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if key := (clientKey{c.owner, c.session}); h.clients[key] == c && c.retire() {
		delete(h.clients, key)
	}
}

// Sweep drops what has been kept long enough, and connections whose clients are at other servers by now, until ctx or the hub ends.
func (h *Hub) Sweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			h.buckets.sweep()
			h.pool.sweep()
			h.mu.Lock()
			all := make([]*client, 0, len(h.clients))
			for _, c := range h.clients {
				all = append(all, c)
			}
			h.mu.Unlock()
			for _, c := range all {
				if h.cluster != nil {
					c.tookMore()
				}
				if c.expire(now) {
					h.forget(c)
				}
			}
			h.kickThoseElsewhere(all)
		case <-h.life.Done():
			return
		}
	}
}

// Close ends the gateway in good order: no call is taken any more; calls in flight may end until ctx does, and are answered; then
// every connection is closed with 1001, so that its client goes to another server, where those that the cluster keeps go on. It returns when all have ended.
func (h *Hub) Close(ctx context.Context) {
	h.stopping.Store(true)
	var calls sync.WaitGroup
	if h.cluster != nil {
		calls.Go(func() { h.cluster.calls.Close(ctx) })
	}
	h.quiesce(ctx)
	calls.Wait()
	h.end(errStopping) // calls that still run end now, and are answered
	farewell, cancel := context.WithTimeout(context.Background(), farewellTime)
	defer cancel()
	h.quiesce(farewell)
	h.mu.Lock()
	h.ended = true
	all := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		if c.ws != nil {
			all = append(all, c)
		}
	}
	h.mu.Unlock()
	for _, c := range all {
		c.kick(closeGoingAway, "server "+h.o.Server+" is stopping; connect to another one", farewellTime)
	}
	h.work.Wait()
	h.pool.close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.clients {
		c.leaveBehind()
	}
}

// farewellTime is how long what waits for a client may still be written when the server stops.
const farewellTime = time.Second

// quiescePoll is how often a hub that stops looks whether calls are still in flight.
const quiescePoll = 20 * time.Millisecond

// enter counts a request in, unless the hub ends.
func (h *Hub) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	h.work.Add(1)
	return true
}

// quiesce waits until no call is in flight, or ctx ends.
func (h *Hub) quiesce(ctx context.Context) {
	t := time.NewTicker(quiescePoll)
	defer t.Stop()
	for h.count.inFlight.Load() > 0 {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// health describes the server.
func (h *Hub) health() *health {
	out := &health{Status: "ok", Server: h.o.Server, InFlight: int(h.count.inFlight.Load() + h.count.durable.Load())}
	if ok, why := h.o.Ready(); !ok {
		out.Status, out.Reason = "degraded", why
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	out.Connections = len(h.conns)
	return out
}

// Stats are the numbers of a hub. Counters only grow.
type Stats struct {
	Connections, Clients, InFlight                int   // InFlight: all calls, those that wait for their turn, too
	Durable                                       int   // of them, those that the cluster keeps
	KeptBytes                                     int64 // of results and of frames that wait
	Accepted, Refused, Resumed                    uint64
	Calls, Joined, Cached, Cancelled              uint64
	OverCapacity, Malformed, Evicted, Truncated   uint64
	FramesReceived, FramesSent, Received, Written uint64 // the last two in bytes
}

// Stats returns the numbers of now.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	conns, clients := len(h.conns), len(h.clients)
	h.mu.Unlock()
	n := &h.count
	return Stats{
		Connections: conns, Clients: clients, InFlight: int(n.inFlight.Load() + n.durable.Load()), Durable: int(n.durable.Load()), KeptBytes: n.kept.Load(),
		Accepted: n.accepted.Load(), Refused: n.refused.Load(), Resumed: n.resumed.Load(),
		Calls: n.calls.Load(), Joined: n.joined.Load(), Cached: n.cached.Load(), Cancelled: n.cancelled.Load(),
		OverCapacity: n.overCapacity.Load(), Malformed: n.malformed.Load(), Evicted: n.evicted.Load(), Truncated: n.truncated.Load(),
		FramesReceived: n.framesIn.Load(), FramesSent: n.framesOut.Load(), Received: n.bytesIn.Load(), Written: n.out.Load(),
	}
}
