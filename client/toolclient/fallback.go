// The fallback where no WebSocket can be held: the same messages, one HTTP request each.

package toolclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// route is a server that answers over HTTP.
type route struct {
	e     *endpoint
	token string
}

// errElsewhere is a server that refuses to be asked at all.
var errElsewhere = errors.New("the server sends its clients elsewhere")

// elsewhere is errElsewhere when that is what the message says.
func (m *message) elsewhere() error {
	if f := m.failure(); m.Op == "error" && f != nil && f.Code == codeUnavailable {
		return fmt.Errorf("%w: %w", errElsewhere, f)
	}
	return nil
}

// helloHTTP finds out whether a server answers over HTTP.
func (c *Client) helloHTTP(ctx context.Context, e *endpoint, hello greeting) (*route, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout)
	defer cancel()
	r := &route{e: e, token: hello.Token}
	m, err := c.roundTrip(ctx, r, http.MethodPost, "/v1/hello", request{Op: "hello", SessionID: hello.SessionID})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "ask %s over HTTP: %w", e.name, err)
	}
	if f := m.failure(); f != nil {
		kind := f.fault().Kind
		if f.Code == codeUnauthorized {
			kind = fault.Unauthenticated
		}
		return nil, fault.New(kind, "ask %s over HTTP: hello: %w", e.name, f)
	}
	if m.Op != "hello_ack" || !m.OK {
		return nil, fault.New(fault.Unavailable, "ask %s over HTTP: hello was answered with %.40q", e.name, m.Op)
	}
	return r, nil
}

// roundTrip makes one request and reads the message that answers it.
func (c *Client) roundTrip(ctx context.Context, r *route, method, path string, body any) (*message, error) {
	var in io.Reader
	if body != nil {
		in = bytes.NewReader(encode(body))
	}
	req, err := http.NewRequestWithContext(ctx, method, r.e.http+path, in)
	if err != nil {
		return nil, err
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	req.Header.Set(sessionHeader, c.session)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.web.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, int64(c.cfg.MaxAnswerBytes)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > c.cfg.MaxAnswerBytes {
		return nil, fmt.Errorf("the answer is larger than %d bytes", c.cfg.MaxAnswerBytes)
	}
	m := &message{}
	if err := json.Unmarshal(b, m); err != nil || m.Op == "" {
		return nil, fmt.Errorf("answered %s, and not in the protocol; is this a client port?", resp.Status)
	}
	return m, nil
}

// ask makes a call over HTTP and asks for its result until it is there. An error is of the way, not of the call.
func (c *Client) ask(ctx context.Context, r *route, k *Pending) (*message, error) {
	wait := "?wait_ms=" + strconv.FormatInt(httpPoll.Milliseconds(), 10)
	made := false
	for {
		reqCtx, cancel := context.WithTimeout(ctx, httpPoll+c.cfg.ConnectTimeout)
		var m *message
		var err error
		if made {
			m, err = c.roundTrip(reqCtx, r, http.MethodGet, "/v1/results/"+url.PathEscape(k.id)+wait, nil)
		} else {
			m, err = c.roundTrip(reqCtx, r, http.MethodPost, "/v1/call_tool"+wait, k.request(time.Until(k.deadline), c.session))
		}
		cancel()
		if err != nil {
			return nil, err
		}
		if err := m.elsewhere(); err != nil {
			return nil, err
		}
		f := m.failure()
		switch {
		case m.Op == "call_tool_ack":
			made = true
		case made && f != nil && f.Code == codeNotFound && k.unwanted.Load(): // it was cancelled, and those are not kept
			return &message{Op: "cancelled", RequestID: k.id, Error: m.Error}, nil
		case made && f != nil && f.Code == codeNotFound: // the call is not known there, or its result is that: making it again tells
			made = false
		case m.Op == "call_tool_res" || m.Op == "cancelled" || f != nil:
			return m, nil
		default:
			return nil, fmt.Errorf("a call was answered with %.40q", m.Op)
		}
	}
}

// cancel has a call ended, and waits until it has. An error is of the way.
func (c *Client) cancel(ctx context.Context, r *route, id string) (*message, error) {
	wait := min(c.cfg.CancelPatience, httpPoll)
	ctx, cancel := context.WithTimeout(ctx, wait+c.cfg.ConnectTimeout)
	defer cancel()
	m, err := c.roundTrip(ctx, r, http.MethodPost, "/v1/cancel?wait_ms="+strconv.FormatInt(wait.Milliseconds(), 10), request{Op: "cancel", RequestID: id, SessionID: c.session})
	return m.expected("cancelled", err)
}

// tools asks for the list of tools. An error is of the way.
func (c *Client) tools(ctx context.Context, r *route) (*message, error) {
	m, err := c.roundTrip(ctx, r, http.MethodGet, "/v1/tools", nil)
	return m.expected("list_tools_res", err)
}

// expected returns the message where it is of an op, or a refusal that is not of the way.
func (m *message) expected(op string, err error) (*message, error) {
	if err != nil {
		return nil, err
	}
	if err := m.elsewhere(); err != nil {
		return nil, err
	}
	if m.Op != op && m.failure() == nil {
		return nil, fmt.Errorf("it was answered with %.40q, not with %s", m.Op, op)
	}
	return m, nil
}
