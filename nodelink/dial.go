// The node's end of the WebSocket handshake.

package nodelink

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/internal/fault"
)

// DefaultConnectTimeout bounds a dial, from the name's resolution to the end of the handshake.
const DefaultConnectTimeout = 10 * time.Second

// DialOptions say how a node reaches a server. The zero value dials without TLS and without a token.
type DialOptions struct {
	TLS            func() (*tls.Config, error)                                       // asked at each dial, so that renewed certificates count; nil for no TLS
	Token          func() (string, error)                                            // the bearer token, asked at each dial; nil for none
	JSON           bool                                                              // JSON frames instead of binary ones
	NoCompression  bool                                                              // do not offer permessage-deflate
	ConnectTimeout time.Duration                                                     // DefaultConnectTimeout when 0
	NetDial        func(ctx context.Context, network, addr string) (net.Conn, error) // net.Dialer's when nil
}

// DialWebSocket returns a function that opens a link to a server, given as host:port. Its errors are of the kinds
// Unauthenticated and PermissionDenied when the server refused, Invalid when the other side speaks something else, and
// Unavailable otherwise.
func DialWebSocket(o DialOptions) func(ctx context.Context, server string) (Conn, error) {
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = DefaultConnectTimeout
	}
	pool := new(buffers)
	return func(ctx context.Context, server string) (Conn, error) {
		d := websocket.Dialer{
			NetDialContext: o.NetDial, HandshakeTimeout: o.ConnectTimeout,
			ReadBufferSize: readBufferBytes, WriteBufferSize: writeBufferBytes, WriteBufferPool: &pool.write,
			Subprotocols:      []string{SubprotocolBinary},
			EnableCompression: !o.NoCompression,
		}
		if o.JSON {
			d.Subprotocols = []string{SubprotocolJSON}
		}
		url, header := "ws://"+server+Path, make(http.Header)
		if o.TLS != nil {
			cfg, err := o.TLS()
			if err != nil {
				return nil, fault.New(fault.FailedPrecondition, "dial %s: certificates: %w", server, err)
			}
			d.TLSClientConfig, url = cfg, "wss://"+server+Path
		}
		if o.Token != nil {
			token, err := o.Token()
			if err != nil {
				return nil, fault.New(fault.FailedPrecondition, "dial %s: token: %w", server, err)
			}
			header.Set("Authorization", "Bearer "+token)
		}
		ws, resp, err := d.DialContext(ctx, url, header) //nolint:bodyclose // the library has read it
		if err != nil {
			return nil, dialError(server, resp, err)
		}
		codec, ok := codecFor(ws.Subprotocol())
		if !ok || ws.Subprotocol() != "" && ws.Subprotocol() != d.Subprotocols[0] || ws.Subprotocol() == "" && o.JSON {
			_ = ws.Close()
			return nil, fault.New(fault.Invalid, "dial %s: the server chose the subprotocol %.64q, which was not offered", server, ws.Subprotocol())
		}
		return newWSConn(ws, codec, pool), nil
	}
}

// dialError says why a dial failed, in the server's own words where it gave some.
func dialError(server string, resp *http.Response, err error) error {
	if resp == nil || !errors.Is(err, websocket.ErrBadHandshake) {
		return fault.New(fault.Unavailable, "dial %s: %w", server, err)
	}
	kind := fault.Invalid
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		kind = fault.Unauthenticated
	case http.StatusForbidden:
		kind = fault.PermissionDenied
	case http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout:
		kind = fault.Unavailable
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // what was read is enough
	var r refusal
	if json.Unmarshal(body, &r) == nil && r.Error != "" {
		return fault.New(kind, "dial %s: refused (%d): %s", server, resp.StatusCode, r.Error)
	}
	return fault.New(kind, "dial %s: refused (%s); is this a node link port?", server, resp.Status)
}
