// Requests, once it is known who makes them: tools, and what all requests have in common.

package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

// The causes of requests that end before they are done, besides tools.ErrCancelled.
var (
	errStopping = errors.New("the server is stopping")
	errGone     = errors.New("the connection was lost")
)

// receive is what every request goes through: it is made by somebody, and ends with the server.
func (h *Handler) receive(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
		c, err := callerOf(req.GetExtra())
		if err != nil {
			return nil, rpcError(err, nil)
		}
		ctx, stop := h.within(context.WithValue(ctx, callerKey{}, c))
		defer stop()
		switch r := req.(type) {
		case *sdk.ListResourcesRequest:
			return h.bounded(ctx, func() (sdk.Result, error) { return h.listResources(ctx, r) })
		case *sdk.ReadResourceRequest:
			ctx, err := asked(ctx, r)
			if err != nil {
				return nil, rpcError(err, nil)
			}
			return h.bounded(ctx, func() (sdk.Result, error) { return next(ctx, method, req) })
		}
		return next(ctx, method, req)
	}
}

// bounded runs a request that counts among the calls in flight.
func (h *Handler) bounded(ctx context.Context, do func() (sdk.Result, error)) (sdk.Result, error) {
	done, err := h.o.Door.Begin()
	if err != nil {
		return nil, rpcError(err, nil)
	}
	defer done()
	r, err := do()
	if err != nil && errors.Is(context.Cause(ctx), errStopping) {
		err = rpcError(h.stopping(), nil)
	}
	return r, err
}

// within returns a context that ends with the request or the server, and whose cause says what to make of it: a call that its caller
// cancelled is undone as far as it can be; one whose connection was lost is only no longer waited for.
func (h *Handler) within(ctx context.Context) (context.Context, func()) {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	end := func() {
		switch cause := context.Cause(ctx); {
		case h.life.Err() != nil:
			cancel(errStopping)
		case errors.Is(cause, context.Canceled): // notifications/cancelled, or a request whose stream was closed
			cancel(tools.ErrCancelled)
		default:
			cancel(errGone)
		}
	}
	first, second := context.AfterFunc(ctx, end), context.AfterFunc(h.life, end)
	return out, func() { first(); second(); cancel(nil) }
}

// tool makes a tool one of MCP. What is wrong with a call is told to the model, which may do better.
func (h *Handler) tool(t *tools.Tool) sdk.ToolHandler {
	return func(ctx context.Context, req *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		out, err := h.call(ctx, t, req)
		if err != nil {
			if errors.Is(context.Cause(ctx), errStopping) {
				err = fault.New(fault.Unavailable, "%s: %w", t.Name, h.stopping())
			}
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
	c, err := callerOf(req.Extra)
	if err != nil {
		return nil, err
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
	ctx, cancel := context.WithTimeout(ctx, h.o.Limits.CallTimeout)
	defer cancel()
	say, quiet := h.progress(ctx, t.Name, req)
	defer quiet()
	return h.o.Tools.Call(h.o.Access.As(ctx, c.cred), t, tools.Call{Origin: tools.Origin{Client: req.Session.ID()}, Arguments: arguments, Progress: say})
}

// progress returns what a tool tells its progress to. A client that asked for progress hears of a long call at least as often as
// the limits say; quiet ends that and waits for it.
func (h *Handler) progress(ctx context.Context, name string, req *sdk.CallToolRequest) (say func(string), quiet func()) {
	token := req.Params.GetProgressToken()
	if token == nil {
		return nil, func() {}
	}
	notes, done, start := make(chan string, 1), make(chan struct{}), time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(h.o.Limits.ProgressEvery)
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
	}()
	say = func(note string) {
		select {
		case notes <- note:
		default: // the one before has not been told yet
		}
	}
	return say, func() { close(done); <-ended }
}

// codeOf is what the protocol of docs/protocol/client-gateway.md calls each kind of fault.
var codeOf = map[fault.Kind]string{
	fault.Internal: "INTERNAL_ERROR", fault.Invalid: "VALIDATION_ERROR", fault.NotFound: "NOT_FOUND", fault.AlreadyExists: "DUPLICATE",
	fault.FailedPrecondition: "TOOL_EXECUTION_ERROR", fault.Exhausted: "OVER_CAPACITY", fault.Unavailable: "SERVICE_UNAVAILABLE",
	fault.Unauthenticated: "UNAUTHORIZED", fault.PermissionDenied: "UNAUTHORIZED", fault.Timeout: "TIMEOUT", fault.Aborted: "TOOL_EXECUTION_ERROR",
	fault.Unimplemented: "TOOL_EXECUTION_ERROR",
}

// codeRefused is the code in JSON-RPC of what is refused for another reason than the request itself; data says more.
const codeRefused = -32000

// rpcError is an error of a request that is no call of a tool. about, if any, is added to what it says for programs.
func rpcError(err error, about map[string]any) error {
	f := fault.As(err)
	if f == nil {
		return err
	}
	data := map[string]any{"code": codeOf[f.Kind]}
	for k, v := range about {
		data[k] = v
	}
	if f.RetryAfter > 0 {
		data["retry_after_ms"] = max(f.RetryAfter.Milliseconds(), 1)
	}
	if f.Field != "" {
		data["field"] = f.Field
	}
	text, _ := json.Marshal(data) // of strings and numbers
	out := &jsonrpc.Error{Code: codeRefused, Message: f.Error(), Data: text}
	switch f.Kind {
	case fault.Invalid, fault.NotFound: // the latter as for a resource that no template matches
		out.Code = jsonrpc.CodeInvalidParams
	case fault.Internal:
		out.Code = jsonrpc.CodeInternalError
	}
	return out
}
