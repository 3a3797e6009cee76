// The handler: authentication first, then the SDK, then the tools and resources.

package mcp

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	sdkauth "github.com/modelcontextprotocol/go-sdk/auth"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/grpc"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

// The bounds of MCP that nobody needs to set.
const (
	SessionTimeout   = 10 * time.Minute // without a request, over HTTP
	MaxSessions      = 1000             // of this server
	eventStoreBytes  = 64 << 20         // of answers that are kept for clients whose stream broke
	credentialKey    = "credential"     // in what the SDK hands on with a request
	anonymousBearer  = "-"              // stands for who needs no token, towards the SDK only
	sessionIDHeader  = "Mcp-Session-Id"
	versionHeader    = "Mcp-Protocol-Version"
	sessionless      = "2026-07-28" // from this version of the protocol on, HTTP has no sessions
	initializeNeeded = ""           // no session yet
)

// Access says who callers are and makes calls as them.
type Access interface {
	Identify(c auth.Credential) (auth.Identity, error)
	As(ctx context.Context, c auth.Credential) context.Context
}

// Door is what all ways of speaking to clients have in common: their limits.
type Door interface {
	// Allows reports whether a request may come from its origin.
	Allows(r *http.Request) bool
	// Pace takes from the rates of a caller; its errors are of kind fault.Exhausted and say when to come back.
	Pace(r *http.Request, who auth.Identity) error
	// Admit counts a connection in; leave counts it out.
	Admit(r *http.Request) (leave func(), err error)
	// Begin counts a call in; end counts it out.
	Begin() (end func(), err error)
}

// Limits bound what one client may have. All must be positive.
type Limits struct {
	MessageBytes  int           // of a message from a client, after decompression
	QueueFrames   int           // messages that wait to be written to one WebSocket
	QueueBytes    int           // of them
	QueuedBytes   int           // of all messages that wait to be written to WebSockets
	InFlight      int           // calls on one WebSocket
	CallTimeout   time.Duration // of a call
	ProgressEvery time.Duration // how often a long call says that it goes on
	PingEvery     time.Duration // a WebSocket that misses three is closed
	WriteTimeout  time.Duration // for one message to be taken by the client
}

// Options are what the handler works with.
type Options struct {
	Server, Version string
	Tools           *tools.Set
	API             grpc.ClientConnInterface // what resources are read through, as whoever asks
	Access          Access
	Door            Door
	Limits          Limits
	Logger          *slog.Logger
}

// Handler serves MCP.
type Handler struct {
	o        Options
	sessions apiv1.SessionServiceClient
	server   *sdk.Server
	stateful http.Handler // the versions that have sessions
	each     http.Handler // those where each request stands for itself
	upgrader websocket.Upgrader
	watched  subscriptions
	queued   *budget         // of what waits for all WebSockets
	reading  chan struct{}   // holds one for each resource that is being read
	life     context.Context // of requests
	end      context.CancelFunc
	work     sync.WaitGroup

	mu    sync.Mutex
	ended bool
	wires map[*wire]struct{}
}

// New makes the handler; Close ends it.
func New(o Options) (*Handler, error) {
	h := &Handler{o: o, sessions: apiv1.NewSessionServiceClient(o.API), wires: map[*wire]struct{}{}, queued: newBudget(o.Limits.QueuedBytes), reading: make(chan struct{}, maxReads)}
	h.life, h.end = context.WithCancel(context.Background())
	h.watched.init()
	h.server = sdk.NewServer(&sdk.Implementation{Name: "orchestrator", Title: "Orchestrator of agent sessions", Version: o.Version}, &sdk.ServerOptions{
		Instructions: "Sessions are long-lived agents on a cluster. session_spawn starts one, session_send speaks to it and answers with its result; they survive failures of machines and can be moved, saved, forked and paused. " +
			"The resource session://ID/log is what a session has written, and session://ID/workspace/ are its files as of its last checkpoint.",
		Capabilities:       &sdk.ServerCapabilities{Tools: &sdk.ToolCapabilities{}, Resources: &sdk.ResourceCapabilities{Subscribe: true}},
		SubscribeHandler:   h.subscribe,
		UnsubscribeHandler: h.unsubscribe,
	})
	if err := h.addTools(); err != nil {
		return nil, err
	}
	for _, t := range templates() {
		h.server.AddResourceTemplate(t, h.readResource)
	}
	h.server.AddReceivingMiddleware(h.receive)
	h.server.AddSendingMiddleware(h.send)
	events := sdk.NewMemoryEventStore(nil)
	events.SetMaxBytes(eventStoreBytes)
	overHTTP := func(stateless bool) http.Handler {
		inner := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return h.server }, &sdk.StreamableHTTPOptions{
			Stateless: stateless, EventStore: events, SessionTimeout: SessionTimeout, MaxRequestBodyBytes: int64(o.Limits.MessageBytes), PropagateRequestCancellation: true,
			// The origin was judged before; behind a proxy on this machine the host is another one.
			DisableLocalhostProtection: true,
		})
		return sdkauth.RequireBearerToken(known, &sdkauth.RequireBearerTokenOptions{AllowMissingExpiration: true})(inner)
	}
	h.stateful, h.each = overHTTP(false), overHTTP(true)
	h.upgrader = h.newUpgrader()
	return h, nil
}

// addTools makes the tools those of MCP.
func (h *Handler) addTools() error {
	for _, t := range h.o.Tools.List() {
		schema, err := t.Schema.MarshalJSON()
		if err != nil {
			return fault.New(fault.Internal, "write the schema of %s: %w", t.Name, err)
		}
		destructive, closed := t.Destructive, false
		h.server.AddTool(&sdk.Tool{
			Name: t.Name, Description: t.Description, InputSchema: json.RawMessage(schema),
			Annotations: &sdk.ToolAnnotations{ReadOnlyHint: t.ReadOnly, DestructiveHint: &destructive, OpenWorldHint: &closed},
		}, h.tool(&t))
	}
	return nil
}

// ServeHTTP serves one request of MCP, or takes a WebSocket and returns when the connection is made.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.enter() {
		refuse(w, h.stopping().WithRetry(time.Second))
		return
	}
	defer h.work.Done()
	if !h.o.Door.Allows(r) {
		refuse(w, fault.New(fault.PermissionDenied, "origin: pages of this origin may not call; add it to gateway.origins"))
		return
	}
	c, err := h.authenticate(r)
	if err == nil {
		err = h.o.Door.Pace(r, c.who)
	}
	if err == nil && r.Header.Get(sessionIDHeader) == initializeNeeded && h.open() >= MaxSessions {
		err = fault.New(fault.Exhausted, "there are %d MCP sessions, which is as many as may be", MaxSessions).WithRetry(time.Second)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	if websocket.IsWebSocketUpgrade(r) {
		h.take(w, r, c)
		return
	}
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), callerKey{}, c))
	defer cancel()
	defer context.AfterFunc(h.life, cancel)() // streams end with the server
	r = r.Clone(ctx)
	if c.cred.Token == "" {
		r.Header.Set("Authorization", "Bearer "+anonymousBearer)
	}
	if r.Header.Get(versionHeader) >= sessionless {
		h.each.ServeHTTP(w, r)
		return
	}
	h.stateful.ServeHTTP(w, r)
}

// stopping is the error of whatever is asked of a server that ends.
func (h *Handler) stopping() *fault.Error {
	return fault.New(fault.Unavailable, "server %s is stopping; ask another one", h.o.Server)
}

// refuse answers before MCP has begun.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch fault.KindOf(err) {
	case fault.Invalid:
		status = http.StatusBadRequest
	case fault.Unauthenticated:
		w.Header().Set("WWW-Authenticate", `Bearer realm="orchestrator"`)
		status = http.StatusUnauthorized
	case fault.PermissionDenied:
		status = http.StatusForbidden
	case fault.Exhausted:
		status = http.StatusTooManyRequests
	case fault.Unavailable:
		status = http.StatusServiceUnavailable
	}
	if f := fault.As(err); f != nil && f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((f.RetryAfter+time.Second-1)/time.Second), 10))
	}
	http.Error(w, err.Error(), status)
}

// open counts the sessions there are.
func (h *Handler) open() (n int) {
	for range h.server.Sessions() {
		n++
	}
	return n
}

// Stats are the numbers of MCP on this server.
type Stats struct {
	Sessions      int // over both transports
	WebSockets    int // of them
	Subscriptions int
}

// Stats returns the numbers of now.
func (h *Handler) Stats() Stats {
	h.mu.Lock()
	sockets := len(h.wires)
	h.mu.Unlock()
	return Stats{Sessions: h.open(), WebSockets: sockets, Subscriptions: h.watched.count()}
}

// enter counts a request in, unless the handler has ended.
func (h *Handler) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	h.work.Add(1)
	return true
}

// Close ends all sessions, and returns when nothing is served any more. Calls in flight end, and are answered; then WebSockets are
// closed with 1001, so that their clients go to another server.
func (h *Handler) Close() {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	h.end()
	h.mu.Lock()
	var all sync.WaitGroup
	for w := range h.wires {
		all.Go(w.leave)
	}
	h.mu.Unlock()
	all.Wait()
	for s := range h.server.Sessions() {
		_ = s.Close()
	}
	h.work.Wait()
}
