// What clients may say, one function for each op.

package socket

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/queue/dispatch"
)

// tooFast is the refusal of who asks more often than it may.
func tooFast(retry time.Duration) *failure {
	return full("more is asked than the rate allows; ask again later", retry)
}

// handshake reads the hello and connects the client. It answers and closes what is no hello.
func (c *conn) handshake() bool {
	c.hear(c.start.Add(c.hub.o.Limits.HelloTimeout))
	b, err := c.read()
	if err != nil {
		code, reason := c.whyEnded(err)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			code, reason = closeHelloTimeout, "no hello came in time"
		}
		if e := c.ending.Load(); e != nil {
			code, reason = e.code, e.reason
		}
		c.refuseHello(code, reason, "missing_hello")
		return false
	}
	r := &request{words: c.hub.words}
	err = r.parse(bytes.Clone(b.Bytes()))
	c.give(b)
	switch {
	case err != nil:
		c.hub.count.malformed.Add(1)
		c.refuseHello(closeBadJSON, err.Error(), "missing_hello")
		return false
	case r.op != "hello":
		c.hub.count.malformed.Add(1)
		c.refuseHello(closeProtocol, "the first message must be a hello", "missing_hello")
		return false
	}
	cred, who, err := c.hub.credential(r, c)
	if err != nil {
		c.refuseHello(closeUnauthorized, "unauthorized", "unauthorized")
		return false
	}
	session, _ := r.text("session_id", maxRequestIDBytes) // what is no id gets a new one
	return c.welcome(who, cred, session, seen{seq: r.number("last_seq"), order: r.number("last_order")})
}

// refuseHello answers a hello that was none.
func (c *conn) refuseHello(code int, reason, word string) {
	c.hub.count.refused.Add(1)
	if code == 0 {
		_ = c.ws.Close()
		return
	}
	if code != closeGoingAway {
		_ = c.write((&message{Op: "hello_ack", OK: no(), Reason: word}).encode())
	}
	c.sayClose(code, reason)
}

// credential reads who says hello.
func (h *Hub) credential(r *request, c *conn) (auth.Credential, auth.Identity, error) {
	var cred auth.Credential
	token, f := r.text("token", maxTokenBytes)
	if f != nil {
		return cred, auth.Identity{}, errors.New(f.Message)
	}
	if cred.Token = token; token == "" { // a certificate may say who calls
		cred.TLS = c.tls
	}
	who, err := h.o.Access.Identify(cred)
	return cred, who, err
}

// maxTakeovers bounds the tries to take a session over from other connections that take it over, too.
const maxTakeovers = 5

// welcome connects the client: it takes the session over from a former connection, and is answered before all that it missed.
func (c *conn) welcome(who auth.Identity, cred auth.Credential, session string, has seen) bool {
	named := c.hub.cluster != nil && validSessionID(session) // another server may know it
	for range maxTakeovers {
		cl, known, f := c.hub.clientOf(who, cred, session)
		if f != nil {
			c.refuseHello(closeLimits, f.Message, "over_capacity")
			return false
		}
		c.client, session = cl, cl.session
		if old := cl.current(); old != nil {
			old.kick(closeProtocol, "another connection took over this session", takeoverPatience)
			<-old.gone
		}
		var opened *dispatch.Opened
		if named {
			o, err := cl.open()
			if err != nil {
				c.refuseHello(closeGoingAway, "the cluster does not answer server "+c.hub.o.Server+" now; connect to another one, or later", "")
				return false
			}
			opened = &o
			known = known || o.Known
		}
		ack := message{Op: "hello_ack", OK: yes(), SessionID: session, Resumed: known, Server: c.hub.o.Server}
		after, ok := cl.attach(c, has, opened, ack.encode())
		switch { // in any case: it holds results back
		case opened == nil:
		case ok:
			cl.resume(after, has)
		default:
			cl.release()
		}
		if ok {
			if known {
				c.hub.count.resumed.Add(1)
			}
			return true
		}
	}
	c.refuseHello(closeLimits, "other connections take over this session all the time", "over_capacity")
	return false
}

// takeoverPatience is how long a connection that is taken over may still be written to.
const takeoverPatience = 250 * time.Millisecond

// handle does what one message asks for. A code other than 0 ends the connection.
func (c *conn) handle(data []byte) (code int, reason string) {
	r := c.hub.borrowRequest()
	defer c.hub.returnRequest(r)
	if err := r.parse(data); err != nil {
		c.hub.count.malformed.Add(1)
		c.say(message{Op: "error", Error: failed(codeInvalidRequest, err.Error())})
		return closeBadJSON, err.Error()
	}
	f := c.perform(r)
	if f == nil {
		c.refused = 0
		return 0, ""
	}
	switch f.Code {
	case codeOverCapacity:
		c.hub.count.overCapacity.Add(1)
	case codeInvalidRequest, codeProtocol, codeValidation:
		c.hub.count.malformed.Add(1)
	}
	c.say(message{Op: answerOf(r.op), RequestID: r.id, Error: f})
	c.refused++
	switch {
	case r.op == "hello":
		return closeProtocol, "hello was said already"
	case c.refused >= maxRefusedInRow:
		return closeLimits, fmt.Sprintf("%d messages in a row were refused", c.refused)
	}
	return 0, ""
}

// answers are the ops that answer ops.
var answers = map[string]string{
	"hello": "hello_ack", "list_tools": "list_tools_res", "call_tool": "call_tool_res", "cancel": "cancelled", "ping": "pong",
	"health": "health_res", "rotate_token": "rotate_token_res",
}

// answerOf is the op that answers one; error for one that nobody knows.
func answerOf(op string) string {
	if a, ok := answers[op]; ok {
		return a
	}
	return "error"
}

// perform does what one message asks for, and says why it does not.
func (c *conn) perform(r *request) *failure {
	switch r.op {
	case "ping":
		c.say(message{Op: "pong", RequestID: r.id})
	case "call_tool":
		return c.callTool(r)
	case "cancel":
		id, f := r.requestID()
		if f != nil {
			return f
		}
		c.client.abandon(id, func(f *failure) {
			c.hub.note(f)
			c.say(message{Op: "cancelled", RequestID: id, Error: f})
		})
	case "list_tools":
		if f := c.pace(); f != nil {
			return f
		}
		c.say(message{Op: "list_tools_res", RequestID: r.id, Tools: &c.hub.tools})
	case "health":
		if f := c.pace(); f != nil {
			return f
		}
		c.say(message{Op: "health_res", RequestID: r.id, Health: c.hub.health()})
	case "rotate_token":
		return c.rotate(r)
	case "hello":
		return failed(codeProtocol, "hello was said already; it opens a connection, once")
	case "":
		return invalid("op", "is missing, or is not a string")
	default:
		return failed(codeProtocol, fmt.Sprintf("op %.64q: is not known", r.op))
	}
	return nil
}

// say queues a message that means something on this connection only.
func (c *conn) say(m message) {
	cl := c.client
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.conn == c {
		cl.push(frame{call: m.RequestID, data: m.encode()})
	}
}

// pace takes a token of every bucket that the caller drinks from.
func (c *conn) pace() *failure {
	_, _, owner := c.client.caller()
	if retry, ok := c.hub.buckets.take(c.ip, owner); !ok {
		return tooFast(retry)
	}
	return nil
}

func (c *conn) callTool(r *request) *failure {
	t, f := r.toolCall(&c.hub.o.Limits)
	if f != nil {
		return f
	}
	if f := c.pace(); f != nil {
		return f
	}
	// A token that was revoked since the hello gets nothing any more, kept results neither.
	who, cred, _ := c.client.caller()
	var err error
	if who.TokenID != "" {
		_, err = c.hub.o.Access.Recheck(who)
	} else {
		_, err = c.hub.o.Access.Identify(cred)
	}
	if err != nil {
		return failureOf(err)
	}
	_, f = c.client.begin(c, t)
	return f
}

// rotate gives the session to another token, so that the first one may be revoked.
func (c *conn) rotate(r *request) *failure {
	if f := c.pace(); f != nil {
		return f
	}
	was, f := r.text("old", maxTokenBytes)
	if f != nil {
		return f
	}
	token, f := r.text("new", maxTokenBytes)
	switch {
	case f != nil:
		return f
	case token == "":
		return invalid("new", "is missing; give the token to go on with")
	}
	_, cred, _ := c.client.caller()
	if subtle.ConstantTimeCompare([]byte(was), []byte(cred.Token)) != 1 {
		return failed(codeUnauthorized, "old: is not the token of this session")
	}
	cred.Token = token
	who, err := c.hub.o.Access.Identify(cred)
	if err != nil {
		return failureOf(err)
	}
	if f := c.hub.rekey(c.client, who, cred); f != nil {
		return f
	}
	c.say(message{Op: "rotate_token_res", RequestID: r.id, OK: yes()})
	return nil
}
