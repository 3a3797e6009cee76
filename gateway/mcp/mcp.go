// The handler: authentication first, then the SDK, then the tools.

package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	sdkauth "github.com/modelcontextprotocol/go-sdk/auth"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

// The bounds of MCP.
const (
	SessionTimeout   = 10 * time.Minute // without a request
	MaxSessions      = 1000             // of this server
	eventStoreBytes  = 64 << 20         // of answers that are kept for clients whose stream broke
	progressEvery    = 8 * time.Second
	defaultCallTime  = 5 * time.Minute
	credentialKey    = "credential" // in what the SDK hands on with a request
	anonymousBearer  = "-"          // stands for who needs no token, towards the SDK only
	sessionIDHeader  = "Mcp-Session-Id"
	initializeNeeded = "" // no session yet
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
	// Begin counts a call in; end counts it out.
	Begin() (end func(), err error)
}

// Options are what the handler works with.
type Options struct {
	Server, Version string
	Tools           *tools.Set
	Access          Access
	Door            Door
	MaxBodyBytes    int64
	Logger          *slog.Logger
}

// Handler serves MCP.
type Handler struct {
	o      Options
	server *sdk.Server
	http   http.Handler
	life   context.Context // of requests
	end    context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex
	ended bool
}

// New makes the handler; Close ends it.
func New(o Options) (*Handler, error) {
	h := &Handler{o: o}
	h.life, h.end = context.WithCancel(context.Background())
	h.server = sdk.NewServer(&sdk.Implementation{Name: "orchestrator", Title: "Orchestrator of agent sessions", Version: o.Version}, &sdk.ServerOptions{
		Instructions: "Sessions are long-lived agents on a cluster. session_spawn starts one, session_send speaks to it and answers with its result; they survive failures of machines and can be moved, saved, forked and paused.",
		Capabilities: &sdk.ServerCapabilities{Tools: &sdk.ToolCapabilities{}},
	})
	for _, t := range o.Tools.List() {
		schema, err := t.Schema.MarshalJSON()
		if err != nil {
			return nil, fault.New(fault.Internal, "write the schema of %s: %w", t.Name, err)
		}
		destructive, closed := t.Destructive, false
		h.server.AddTool(&sdk.Tool{
			Name: t.Name, Description: t.Description, InputSchema: json.RawMessage(schema),
			Annotations: &sdk.ToolAnnotations{ReadOnlyHint: t.ReadOnly, DestructiveHint: &destructive, OpenWorldHint: &closed},
		}, h.tool(&t))
	}
	events := sdk.NewMemoryEventStore(nil)
	events.SetMaxBytes(eventStoreBytes)
	inner := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return h.server }, &sdk.StreamableHTTPOptions{
		EventStore: events, SessionTimeout: SessionTimeout, MaxRequestBodyBytes: o.MaxBodyBytes, PropagateRequestCancellation: true,
		// The origin was judged before; behind a proxy on this machine the host is another one.
		DisableLocalhostProtection: true,
	})
	h.http = sdkauth.RequireBearerToken(known, &sdkauth.RequireBearerTokenOptions{AllowMissingExpiration: true})(inner)
	return h, nil
}

// callerKey carries who asks from ServeHTTP to known.
type callerKey struct{}

// caller is who asks, and what it showed.
type caller struct {
	who  auth.Identity
	cred auth.Credential
}

// known hands on to the SDK what ServeHTTP found out; the user's id is what binds a session to its caller.
func known(ctx context.Context, _ string, _ *http.Request) (*sdkauth.TokenInfo, error) {
	c, ok := ctx.Value(callerKey{}).(caller)
	if !ok {
		return nil, sdkauth.ErrInvalidToken
	}
	return &sdkauth.TokenInfo{UserID: c.who.TokenID + " " + c.who.String() + " " + c.who.Namespace, Extra: map[string]any{credentialKey: c.cred}}, nil
}

// ServeHTTP serves one request of MCP.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.enter() {
		refuse(w, fault.New(fault.Unavailable, "server %s is stopping; ask another one", h.o.Server).WithRetry(time.Second))
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
	if err == nil && r.Header.Get(sessionIDHeader) == initializeNeeded && h.sessions() >= MaxSessions {
		err = fault.New(fault.Exhausted, "there are %d MCP sessions, which is as many as may be", MaxSessions).WithRetry(time.Second)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), callerKey{}, c))
	defer cancel()
	defer context.AfterFunc(h.life, cancel)() // streams end with the server
	r = r.Clone(ctx)
	if c.cred.Token == "" {
		r.Header.Set("Authorization", "Bearer "+anonymousBearer)
	}
	h.http.ServeHTTP(w, r)
}

// authenticate finds out who asks, by token or certificate.
func (h *Handler) authenticate(r *http.Request) (c caller, err error) {
	c.cred.TLS = r.TLS
	if c.cred.Token, err = auth.Bearer(r.Header.Get("Authorization")); err != nil {
		return c, err
	}
	c.who, err = h.o.Access.Identify(c.cred)
	return c, err
}

// refuse answers before MCP has begun.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch fault.KindOf(err) {
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

// sessions counts the sessions there are.
func (h *Handler) sessions() (n int) {
	for range h.server.Sessions() {
		n++
	}
	return n
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

// Close ends all sessions, and returns when nothing is served any more. Calls in flight end.
func (h *Handler) Close() {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	h.end()
	for s := range h.server.Sessions() {
		_ = s.Close()
	}
	h.work.Wait()
}

// tool makes a tool one of MCP. What is wrong with a call is told to the model, which may do better.
func (h *Handler) tool(t *tools.Tool) sdk.ToolHandler {
	return func(ctx context.Context, req *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		out, err := h.call(ctx, t, req)
		if err != nil {
			r := &sdk.CallToolResult{}
			r.SetError(err)
			return r, nil
		}
		r := &sdk.CallToolResult{}
		for _, o := range out {
			r.Content = append(r.Content, &sdk.TextContent{Text: o.Text})
		}
		if len(out) == 1 && json.Valid([]byte(out[0].Text)) {
			r.StructuredContent = json.RawMessage(out[0].Text)
		}
		return r, nil
	}
}

func (h *Handler) call(ctx context.Context, t *tools.Tool, req *sdk.CallToolRequest) ([]tools.Output, error) {
	if req.Extra == nil || req.Extra.TokenInfo == nil {
		return nil, fault.New(fault.Unauthenticated, "%s: nobody is known to call it", t.Name)
	}
	cred, ok := req.Extra.TokenInfo.Extra[credentialKey].(auth.Credential)
	if !ok {
		return nil, fault.New(fault.Unauthenticated, "%s: nobody is known to call it", t.Name)
	}
	arguments := req.Params.Arguments
	if len(arguments) == 0 || string(arguments) == "null" {
		arguments = json.RawMessage("{}")
	}
	if err := t.Schema.Check(arguments); err != nil {
		return nil, err
	}
	done, err := h.o.Door.Begin()
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, defaultCallTime)
	defer cancel()
	ctx, stop := cancellable(ctx)
	defer stop()
	say, quiet := h.progress(ctx, t.Name, req)
	defer quiet()
	return h.o.Tools.Call(h.o.Access.As(ctx, cred), t, tools.Call{Arguments: arguments, Progress: say})
}

// cancellable makes the end of a call by its caller known as one to tools, so that they undo what they can.
func cancellable(ctx context.Context) (context.Context, func()) {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	unwatch := context.AfterFunc(ctx, func() {
		if ctx.Err() == context.Canceled { //nolint:errorlint // a context's own error
			cancel(tools.ErrCancelled)
			return
		}
		cancel(ctx.Err())
	})
	return out, func() { unwatch(); cancel(nil) }
}

// progress returns what a tool tells its progress to. A client that asked for progress hears of a long call at least every
// progressEvery; quiet ends that and waits for it.
func (h *Handler) progress(ctx context.Context, name string, req *sdk.CallToolRequest) (say func(string), quiet func()) {
	token := req.Params.GetProgressToken()
	if token == nil {
		return nil, func() {}
	}
	notes, done, start := make(chan string, 1), make(chan struct{}), time.Now()
	var work sync.WaitGroup
	work.Go(func() {
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		for n := 1.0; ; n++ {
			note := ""
			select {
			case note = <-notes:
			case <-t.C:
				note = fmt.Sprintf("%s has been at it for %s", name, time.Since(start).Round(time.Second))
			case <-done:
				return
			}
			_ = req.Session.NotifyProgress(ctx, &sdk.ProgressNotificationParams{ProgressToken: token, Progress: n, Message: note}) // it may be gone
		}
	})
	say = func(note string) {
		select {
		case notes <- note:
		default: // the one before has not been told yet
		}
	}
	return say, func() { close(done); work.Wait() }
}
