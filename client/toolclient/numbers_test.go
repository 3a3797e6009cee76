// The numbers by which client and server know what was missed, against a server that a test speaks for.
package toolclient

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/internal/fault"
)

// said is anything that a client said.
type said map[string]any

// spoken is a server whose words are the test's.
type spoken struct {
	t     *testing.T
	hello chan said
	heard chan said
	say   chan string // a message; empty to close
}

// speak puts one on the network.
func (n *network) speak(name string) *spoken {
	s := &spoken{n.t, make(chan said), make(chan said, 100), make(chan string)}
	n.serve(&host{}, name, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		var m said
		if ws.ReadJSON(&m) != nil {
			return
		}
		s.hello <- m
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				var m said
				if ws.ReadJSON(&m) != nil {
					return
				}
				s.heard <- m
			}
		}()
		for {
			select {
			case text := <-s.say:
				if text == "" {
					_ = ws.Close()
					<-done
					return
				}
				if err := ws.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
					s.t.Error(err)
				}
			case <-done:
				return
			}
		}
	}))
	return s
}

// hears waits for a message.
func (s *spoken) hears(op, id string) said {
	s.t.Helper()
	m := <-s.heard
	if m["op"] != op || id != "" && m["request_id"] != id {
		s.t.Fatalf("it heard %v, not %s %s", m, op, id)
	}
	return m
}

func (s *spoken) says(format string, a ...any) { s.say <- fmt.Sprintf(format, a...) }

// Whether the server has taken the new token is not known: it is used from then on, for it is good in both cases.
func TestARotationWhoseAnswerIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.speak("a")
		defer n.stopAll()
		c := n.client(nil, "a")
		defer c.Close()
		if m := <-a.hello; m["token"] != goodToken {
			t.Fatalf("hello: %v", m)
		}
		a.says(`{"op":"hello_ack","ok":true}`)
		ended := make(chan error)
		go func() { ended <- c.RotateToken(t.Context(), otherToken) }()
		if m := a.hears("rotate_token", ""); m["old"] != goodToken || m["new"] != otherToken {
			t.Errorf("it said %v", m)
		}
		a.says("")
		if err := <-ended; !fault.Is(err, fault.Unavailable) {
			t.Errorf("the rotation ended with %v", err)
		}
		if m := <-a.hello; m["token"] != otherToken {
			t.Errorf("the next hello: %v", m)
		}
		// A list that was asked for before the connection broke is asked for again.
		a.says(`{"op":"hello_ack","ok":true}`)
		go func() {
			list, err := c.ListTools(t.Context())
			if err == nil && (len(list) != 1 || list[0].Name != "x") {
				err = fmt.Errorf("it has %v", list)
			}
			ended <- err
		}()
		a.hears("list_tools", "")
		a.says("")
		<-a.hello
		a.says(`{"op":"hello_ack","ok":true}`)
		m := a.hears("list_tools", "")
		a.says(`{"op":"list_tools_res","request_id":%q,"tools":[{"name":"x"}]}`, m["request_id"])
		if err := <-ended; err != nil {
			t.Errorf("the tools: %v", err)
		}
	})
}

func TestNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a, b := n.speak("a"), n.speak("b")
		defer n.stopAll()
		c := n.client(func(c *Config) { c.Rand, c.SessionID = func() float64 { return 0 }, "mine" }, "a", "b")
		defer c.Close()
		greets := func(s *spoken, seq, order any) {
			t.Helper()
			if m := <-s.hello; m["session_id"] != "mine" || m["token"] != goodToken || m["last_seq"] != seq || m["last_order"] != order {
				t.Fatalf("hello: %v", m)
			}
		}
		start := func(id string, o ...Option) *Pending {
			t.Helper()
			k, err := c.Start(t.Context(), "x", nil, append(o, WithRequestID(id))...)
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		ends := func(k *Pending, text string) {
			t.Helper()
			if r, err := k.Wait(t.Context()); err != nil || r.Text() != text {
				t.Fatalf("%s: %+v %v", k.RequestID(), r, err)
			}
		}
		greets(a, nil, nil)
		a.says(`{"op":"hello_ack","ok":true,"session_id":"mine","server":"server-a","unknown":{"field":1}}`)
		until(t, c, Connected)
		one, two, three := start("1"), start("2", WithoutDurability(), WithPriority(Low), WithKey("one by one")), start("3")
		if m := a.hears("call_tool", "1"); m["durable"] != nil || m["deadline_ms"] != 300_000.0 || m["arguments"] == nil || m["priority"] != nil {
			t.Errorf("call 1: %v", m)
		}
		if m := a.hears("call_tool", "2"); m["durable"] != false || m["priority"] != "low" || m["key"] != "one by one" {
			t.Errorf("call 2: %v", m)
		}
		a.hears("call_tool", "3")
		a.says(`{"op":"call_tool_ack","request_id":"1","seq":1,"accepted":true,"timeout":300}`)
		a.says(`{"op":"call_tool_res","request_id":"1","seq":2,"order":41,"outputs":[{"type":"text","text":"one"}]}`)
		ends(one, "one")
		// A number is missing: the calls in flight are asked for again, behind all that is on its way.
		a.says(`{"op":"call_tool_ack","request_id":"2","seq":4,"accepted":true}`)
		ping := a.hears("ping", "")
		a.says(`{"op":"call_tool_res","request_id":"3","seq":5,"order":42,"outputs":[{"type":"text","text":"three"}]}`)
		ends(three, "three")
		answer, err := json.Marshal(said{"op": "pong", "request_id": ping["request_id"]})
		if err != nil {
			t.Fatal(err)
		}
		a.says("%s", answer)
		a.hears("call_tool", "2")
		if s := c.Stats(); s.Gaps != 1 || s.Repeated != 1 {
			t.Errorf("%+v", s)
		}
		// At another server, last_seq means nothing; last_order does. It knows the session, and sends what was missed by itself.
		a.says("")
		greets(b, nil, 42.0)
		b.says(`{"op":"hello_ack","ok":true,"session_id":"mine","server":"server-b","resumed":true}`)
		b.says(`{"op":"call_tool_res","request_id":"2","seq":7,"order":43,"outputs":[{"type":"text","text":"two"}]}`)
		ends(two, "two")
		ping = b.hears("ping", "")
		b.says(`{"op":"pong","request_id":%q}`, ping["request_id"])
		// What comes twice is dropped.
		b.says(`{"op":"call_tool_res","request_id":"2","seq":8,"order":43,"outputs":[{"type":"text","text":"again"}]}`)
		// Back at the first one, whose numbers are not those that were seen last.
		b.says("")
		greets(a, nil, 43.0)
		a.says(`{"op":"hello_ack","ok":true,"session_id":"mine","server":"server-a","resumed":true}`)
		a.hears("ping", "")
		a.says(`{"op":"call_tool_ack","request_id":"old","seq":9}`)
		a.says("")
		greets(b, nil, 43.0) // the next address; this server was not the last one
		b.says(`{"op":"hello_ack","ok":false,"error":"over_capacity"}`)
		b.says("")
		greets(a, 9.0, 43.0)
		a.says(`{"op":"hello_ack","ok":true,"session_id":"mine","server":"server-a","resumed":true}`)
		until(t, c, Connected)
		if s := c.Stats(); s.Gaps != 1 || s.Duplicates != 1 || s.Connections != 4 {
			t.Errorf("%+v", s)
		}
	})
}
