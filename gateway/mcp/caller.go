// Who asks: found out before anything else, and carried along to whatever is done.

package mcp

import (
	"context"
	"net/http"
	"strings"

	"github.com/gorilla/websocket"
	sdkauth "github.com/modelcontextprotocol/go-sdk/auth"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
)

// callerKey carries the caller in a context.
type callerKey struct{}

// caller is who asks, and what it showed.
type caller struct {
	who  auth.Identity
	cred auth.Credential
}

// tokenInfo is the caller as the SDK knows it: the user's id is what binds a session to its caller.
func (c caller) tokenInfo() *sdkauth.TokenInfo {
	return &sdkauth.TokenInfo{UserID: c.who.TokenID + " " + c.who.String() + " " + c.who.Namespace, Extra: map[string]any{credentialKey: c}}
}

// known hands on to the SDK what ServeHTTP found out.
func known(ctx context.Context, _ string, _ *http.Request) (*sdkauth.TokenInfo, error) {
	c, ok := ctx.Value(callerKey{}).(caller)
	if !ok {
		return nil, sdkauth.ErrInvalidToken
	}
	return c.tokenInfo(), nil
}

// callerOf is who makes a request.
func callerOf(x *sdk.RequestExtra) (caller, error) {
	if x != nil && x.TokenInfo != nil {
		if c, ok := x.TokenInfo.Extra[credentialKey].(caller); ok {
			return c, nil
		}
	}
	return caller{}, fault.New(fault.Unauthenticated, "nobody is known to ask for it")
}

// tokenSubprotocol begins the subprotocol by which a web page, which cannot set headers, shows its token: new WebSocket(url,
// ["mcp", "bearer." + token]). It is never chosen, so that it is not sent back.
const tokenSubprotocol = "bearer."

// authenticate finds out who asks, by token or certificate.
func (h *Handler) authenticate(r *http.Request) (c caller, err error) {
	c.cred.TLS = r.TLS
	header := r.Header.Get("Authorization")
	if header == "" && websocket.IsWebSocketUpgrade(r) {
		for _, p := range websocket.Subprotocols(r) {
			if token, ok := strings.CutPrefix(p, tokenSubprotocol); ok {
				header = "Bearer " + token
			}
		}
	}
	if c.cred.Token, err = auth.Bearer(header); err != nil {
		return c, err
	}
	c.who, err = h.o.Access.Identify(c.cred)
	return c, err
}
