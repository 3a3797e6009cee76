// A client of the gateway: it calls tools over a WebSocket through the client Service, and comes back when its server has gone.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// visitor is a client at work. Its methods are for one goroutine.
type visitor struct {
	dial    func(ctx context.Context, address string) (net.Conn, error)
	access  *access
	session string
	ws      *websocket.Conn // nil while there is no connection
}

// said is what a server says.
type said struct {
	Op        string `json:"op"`
	OK        bool   `json:"ok"`
	RequestID string `json:"request_id"`
	Chunk     string `json:"chunk"`
	Tools     []struct{ Name string }
	Health    struct{ Server string }
	Outputs   []struct{ Text string }
	Error     json.RawMessage `json:"error"`
}

// visit makes a client; ask connects it.
func (t *test) visit(ctx context.Context, session string) (*visitor, error) {
	a, err := t.access(ctx)
	return &visitor{dial: t.dial, access: a, session: session}, err
}

func (v *visitor) leave() {
	if v.ws != nil {
		_ = v.ws.Close() // it may be broken
		v.ws = nil
	}
}

// arrive connects, unless it is connected, and says hello.
func (v *visitor) arrive(ctx context.Context) error {
	if v.ws != nil {
		return nil
	}
	d := websocket.Dialer{HandshakeTimeout: 10 * time.Second, TLSClientConfig: v.access.tls, NetDialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return v.dial(ctx, address)
	}}
	ws, answer, err := d.DialContext(ctx, "wss://"+net.JoinHostPort(v.access.ip, "8079")+"/mcp", nil)
	if answer != nil {
		defer answer.Body.Close()
	}
	if err != nil {
		return err
	}
	v.ws = ws
	m, err := v.exchange("hello_ack", map[string]any{"op": "hello", "token": v.access.token, "session_id": v.session})
	if err == nil && !m.OK {
		v.leave()
		err = fmt.Errorf("hello was answered with %s", m.Error)
	}
	return err
}

// exchange says something, and returns the answer of an op.
func (v *visitor) exchange(op string, message map[string]any) (said, error) {
	if err := v.ws.WriteJSON(message); err != nil {
		v.leave()
		return said{}, err
	}
	for {
		m, err := v.next()
		if err != nil || m.Op == op {
			return m, err
		}
	}
}

// next reads a message; an error means that the connection has gone.
func (v *visitor) next() (m said, err error) {
	_ = v.ws.SetReadDeadline(time.Now().Add(callLimit)) // what fails shows in the read
	if err = v.ws.ReadJSON(&m); err != nil {
		v.leave()
	}
	return m, err
}

// server is the name of the one that the client is connected to.
func (v *visitor) server(ctx context.Context) (string, error) {
	if err := v.arrive(ctx); err != nil {
		return "", err
	}
	m, err := v.exchange("health_res", map[string]any{"op": "health"})
	return m.Health.Server, err
}

// passing are the errors after which a client asks again.
var passing = []string{"OVER_CAPACITY", "SERVICE_UNAVAILABLE", "TIMEOUT"}

// ask makes a call under an id until it is answered, at whatever server; what it says is the answer's text, and what was streamed before.
func (v *visitor) ask(ctx context.Context, id, tool string, arguments map[string]any) (text, streamed string, err error) {
	var final error
	err = poll(ctx, callLimit, tool+" is answered", func(ctx context.Context) (bool, error) {
		if err := v.arrive(ctx); err != nil {
			return false, err
		}
		if err := v.ws.WriteJSON(map[string]any{"op": "call_tool", "request_id": id, "name": tool, "arguments": arguments}); err != nil {
			v.leave()
			return false, err
		}
		streamed = ""
		for {
			m, err := v.next()
			switch {
			case err != nil:
				return false, err
			case m.RequestID != id:
			case m.Op == "stream_chunk":
				streamed += m.Chunk
			case m.Op == "call_tool_res" && m.Error != nil:
				final = fmt.Errorf("%s was answered with %s", tool, m.Error)
				again := slices.ContainsFunc(passing, func(code string) bool { return strings.Contains(string(m.Error), `"`+code+`"`) })
				if again {
					return false, final
				}
				return true, nil
			case m.Op == "call_tool_res" && len(m.Outputs) == 1:
				text, final = m.Outputs[0].Text, nil
				return true, nil
			}
		}
	})
	return text, streamed, errors.Join(err, final)
}

// into decodes an answer.
func (v *visitor) into(ctx context.Context, out any, id, tool string, arguments map[string]any) (streamed string, err error) {
	text, streamed, err := v.ask(ctx, id, tool, arguments)
	if err == nil {
		err = json.Unmarshal([]byte(text), out)
	}
	return streamed, err
}

// adds sends an entry to the client's own ledger, and checks the sum that it answers.
func (v *visitor) adds(ctx context.Context, session, id, entry, sum string) error {
	var a struct{ Result string }
	if _, err := v.into(ctx, &a, id, "session_send", map[string]any{"id": session, "message": entry}); err != nil {
		return err
	}
	if a.Result != sum {
		return fmt.Errorf("%q was answered with %q, not %q", entry, a.Result, sum)
	}
	return nil
}

// clients is the event: a provider of models is added, and a client talks to a session and to a model through any server.
func (t *test) clients(ctx context.Context) (string, error) {
	if err := t.offerModels(ctx); err != nil {
		return "", err
	}
	v, err := t.visit(ctx, "kubernetes-test")
	if err != nil {
		return "", err
	}
	defer v.leave()
	if err := v.seesTools(ctx); err != nil {
		return "", err
	}
	var session struct{ ID, Phase string }
	if _, err := v.into(ctx, &session, "spawn", "session_spawn", map[string]any{"name": "by-a-client", "command": []string{"/ledger"}, "checkpoint_every": "1s", "wait": true}); err != nil {
		return "", err
	}
	if session.Phase != "RUNNING" {
		return "", fmt.Errorf("the session that the client spawned is %s", session.Phase)
	}
	if err := errors.Join(v.adds(ctx, session.ID, "first", "one 3", "one 3"), v.chats(ctx), t.askedModels(ctx)); err != nil {
		return "", err
	}
	note, err := t.loseServerOf(ctx, v, session.ID)
	if err != nil {
		return "", err
	}
	if err := t.recorded(ctx, v.session, "spawn", "first", "chat", "second"); err != nil {
		return "", err
	}
	_, _, err = v.ask(ctx, "end", "session_terminate", map[string]any{"id": session.ID})
	return note, err
}

// seesTools lists the tools.
func (v *visitor) seesTools(ctx context.Context) error {
	if err := v.arrive(ctx); err != nil {
		return err
	}
	m, err := v.exchange("list_tools_res", map[string]any{"op": "list_tools"})
	if err != nil {
		return err
	}
	var names []string
	for _, tool := range m.Tools {
		names = append(names, tool.Name)
	}
	for _, want := range []string{"session_spawn", "session_send", "chat", "list_models"} {
		if !slices.Contains(names, want) {
			return fmt.Errorf("the tools are %s, without %s", strings.Join(names, ", "), want)
		}
	}
	return nil
}

// chats asks the model, which answers word by word.
func (v *visitor) chats(ctx context.Context) error {
	var a struct{ Text, Provider string }
	streamed, err := v.into(ctx, &a, "chat", "chat", map[string]any{"prompt": "is anybody there?", "provider": modelProvider, "stream": true})
	if err == nil && (a.Text != modelAnswer || streamed != modelAnswer || a.Provider != modelProvider) {
		err = fmt.Errorf("%s answered %q, and %q in pieces", a.Provider, a.Text, streamed)
	}
	return err
}

// loseServerOf deletes the server that the client is connected to, behind a call; the call is repeated at another one, and was made once.
func (t *test) loseServerOf(ctx context.Context, v *visitor, session string) (string, error) {
	if err := v.adds(ctx, session, "second", "two 4", "two 7"); err != nil {
		return "", err
	}
	server, err := v.server(ctx)
	if err != nil {
		return "", err
	}
	begun := time.Now()
	if _, err := t.kubectl(ctx, "-n", namespace, "delete", "pod", server, "--force", "--grace-period=0"); err != nil {
		return "", err
	}
	if err := poll(ctx, callLimit, "the client's connection has gone", func(context.Context) (bool, error) {
		if v.ws != nil {
			_, _ = v.next() // its end is what is waited for
		}
		return v.ws == nil, nil
	}); err != nil {
		return "", err
	}
	if err := v.adds(ctx, session, "second", "two 4", "two 7"); err != nil {
		return "", fmt.Errorf("asked again: %w", err)
	}
	took := time.Since(begun)
	now, err := v.server(ctx)
	if err != nil {
		return "", err
	}
	if err := v.adds(ctx, session, "third", "three 5", "three 12"); err != nil {
		return "", fmt.Errorf("after a call that was made twice: %w", err)
	}
	note := fmt.Sprintf("%s was deleted; %s after it %s gave the answer again", server, round(took), now)
	return note, errors.Join(t.awaitPods(ctx, "server", 3), t.settle(ctx))
}

// recorded waits until the record shows the calls that a client made at the server that has been deleted since: they are in its volume.
func (t *test) recorded(ctx context.Context, session string, calls ...string) error {
	return poll(ctx, callLimit, "the record shows the client's calls", func(ctx context.Context) (bool, error) {
		r, err := t.load.c.Record.ListInteractions(ctx, &apiv1.ListInteractionsRequest{Query: &apiv1.InteractionQuery{ClientSessionId: session, Kind: apiv1.Interaction_TOOL_CALL}})
		if err != nil {
			return false, err
		}
		if len(r.GetMissing()) > 0 {
			return false, fmt.Errorf("servers did not answer: %v", r.GetMissing())
		}
		have := map[string]bool{}
		for _, i := range r.GetInteractions() {
			have[i.GetRequestId()] = true
		}
		for _, id := range calls {
			if !have[id] {
				return false, fmt.Errorf("of %v the record lacks %s", calls, id)
			}
		}
		return true, nil
	})
}
