// What clients are promised: calls beside one another, cancelling, asking again, coming back, and the end of a server.
package socket

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/gateway/tools"
)

func TestTheSpine(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	p.send(map[string]any{"op": "list_tools", "request_id": "l"})
	m := p.next()
	list, _ := m["tools"].([]any)
	if m["op"] != "list_tools_res" || m["request_id"] != "l" || len(list) != len(w.bench.List()) {
		t.Fatalf("list_tools: %v", m)
	}
	for _, x := range list {
		x := x.(map[string]any)
		if s, _ := x["inputSchema"].(map[string]any); x["name"] == "" || x["description"] == "" || s["type"] != "object" {
			t.Errorf("a tool is shown as %v", x)
		}
	}
	p.call("1", "echo", map[string]string{"key": "hi"})
	if m := p.next(); m["op"] != "call_tool_ack" || m["request_id"] != "1" || m["accepted"] != true || m["timeout"] != 300.0 {
		t.Errorf("ack: %v", m)
	}
	if m := p.next(); m["op"] != "call_tool_res" || m["request_id"] != "1" || text(m) != "hi" || m["error"] != nil || m["from_cache"] != nil {
		t.Errorf("result: %v", m)
	}
	p.send(map[string]any{"op": "ping"})
	if m := p.next(); m["op"] != "pong" {
		t.Errorf("pong: %v", m)
	}
	p.send(map[string]any{"op": "health"})
	if m := p.next(); m["op"] != "health_res" || m["health"].(map[string]any)["status"] != "ok" {
		t.Errorf("health: %v", m)
	}
}

func TestCallsRunBesideOneAnother(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	for i := range 20 {
		p.call(fmt.Sprint("held-", i), "hold", map[string]string{"key": "all"})
	}
	p.call("quick", "echo", map[string]string{"key": "q"})
	if m := p.until("call_tool_res"); m["request_id"] != "quick" {
		t.Fatalf("%v came before the quick one", m)
	}
	close(w.bench.gate("all"))
	seen := map[any]bool{}
	for range 20 {
		m := p.until("call_tool_res")
		if seen[m["request_id"]] || text(m) != "all" {
			t.Fatalf("again or wrong: %v", m)
		}
		seen[m["request_id"]] = true
	}
}

func TestCancelReallyCancels(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	p.call("1", "hold", map[string]string{"key": "k"})
	p.until("progress")
	p.send(map[string]any{"op": "cancel", "request_id": "1"})
	if m := p.until("cancelled"); m["request_id"] != "1" || m["error"] != nil {
		t.Fatalf("cancelled: %v", m)
	}
	if why := <-w.bench.ended; !errors.Is(why, tools.ErrCancelled) {
		t.Errorf("the call ended with %v", why)
	}
	p.send(map[string]any{"op": "cancel", "request_id": "1"})
	if m := p.next(); m["op"] != "cancelled" || code(m) != codeNotFound {
		t.Errorf("cancelled again: %v", m)
	}
	// A cancelled call is not kept: it may be made anew.
	close(w.bench.gate("k"))
	p.call("1", "hold", map[string]string{"key": "k"})
	if m := p.until("call_tool_res"); text(m) != "k" || m["from_cache"] != nil {
		t.Errorf("made anew: %v", m)
	}
}

func TestRepeatedRequests(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	p.call("1", "hold", map[string]string{"key": "k"})
	p.until("progress")
	p.call("1", "hold", map[string]string{"key": "k"})
	p.until("call_tool_ack")
	p.call("1", "hold", map[string]string{"key": "other"})
	if m := p.next(); code(m) != codeDuplicate || m["request_id"] != "1" {
		t.Errorf("another call of the same id: %v", m)
	}
	close(w.bench.gate("k"))
	if m := p.until("call_tool_res"); m["from_inflight"] != nil || text(m) != "k" {
		t.Errorf("the first answer: %v", m)
	}
	if m := p.until("call_tool_res"); m["from_inflight"] != true || text(m) != "k" {
		t.Errorf("the one that joined: %v", m)
	}
	p.call("1", "hold", map[string]string{"key": "k"})
	if m := p.until("call_tool_res"); m["from_cache"] != true || text(m) != "k" {
		t.Errorf("the kept one: %v", m)
	}
	if n := w.bench.ran("k"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	// Another caller's request of the same id and session is another one.
	q := w.hello("bob", "")
	q.call("1", "hold", map[string]string{"key": "k"})
	if m := q.until("call_tool_res"); m["from_cache"] != nil {
		t.Errorf("bob got alice's: %v", m)
	}
}

func TestErrorsAreNotKeptWhereAskingAgainHelps(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	for range 2 {
		p.call("full", "fail", map[string]string{"key": "f", "kind": "exhausted"})
		m := p.until("call_tool_res")
		d, _ := m["error"].(map[string]any)["details"].(map[string]any)
		if code(m) != codeOverCapacity || d["retry_after_ms"] != 1500.0 {
			t.Errorf("full: %v", m)
		}
	}
	if n := w.bench.ran("f"); n != 2 {
		t.Errorf("it ran %d times", n)
	}
	for range 2 {
		p.call("none", "fail", map[string]string{"key": "n"})
		if m := p.until("call_tool_res"); code(m) != codeNotFound {
			t.Errorf("none: %v", m)
		}
	}
	if n := w.bench.ran("n"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	p.call("p", "panic", nil)
	if m := p.until("call_tool_res"); code(m) != codeInternal {
		t.Errorf("panic: %v", m)
	}
	p.send(map[string]any{"op": "call_tool", "request_id": "late", "name": "hold", "deadline_ms": 20})
	if m := p.until("call_tool_res"); code(m) != codeTimeout {
		t.Errorf("late: %v", m)
	}
}

func TestComingBack(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "session-of-alice")
	for i := range 5 {
		p.call(fmt.Sprint(i), "hold", map[string]string{"key": fmt.Sprint(i)})
		p.until("progress")
	}
	_ = p.ws.Close()
	eventually(t, "the connection is gone", func() bool { return w.hub.Stats().Connections == 0 })
	for i := range 5 { // they end in this order
		close(w.bench.gate(fmt.Sprint(i)))
		eventually(t, "the call has ended", func() bool { return w.hub.Stats().InFlight == 4-i })
	}
	p = w.hello("alice", "session-of-alice")
	for i := range 5 {
		if m := p.next(); m["op"] != "call_tool_res" || m["request_id"] != fmt.Sprint(i) || text(m) != fmt.Sprint(i) {
			t.Fatalf("missed answer %d is %v", i, m)
		}
	}
	p.send(map[string]any{"op": "ping"})
	if m := p.next(); m["op"] != "pong" {
		t.Errorf("an answer came twice: %v", m)
	}
	_ = p.ws.Close()
	eventually(t, "the connection is gone", func() bool { return w.hub.Stats().Connections == 0 })
	p = w.hello("alice", "session-of-alice") // nothing was missed
	p.send(map[string]any{"op": "ping"})
	if m := p.next(); m["op"] != "pong" {
		t.Errorf("an answer came twice: %v", m)
	}
	// The session belongs to alice, whoever knows its name.
	q := w.dial(nil)
	q.send(map[string]any{"op": "hello", "token": "bob", "session_id": "session-of-alice"})
	if m := q.next(); m["resumed"] != nil {
		t.Errorf("bob resumed it: %v", m)
	}
	q.call("0", "echo", map[string]string{"key": "bob's"})
	if m := q.until("call_tool_res"); text(m) != "bob's" {
		t.Errorf("bob got %v", m)
	}
}

func TestComingBackWithTheLastThatWasSeen(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "seen")
	var seqs []float64
	for i := range 3 {
		p.call(fmt.Sprint(i), "echo", map[string]string{"key": fmt.Sprint(i)})
		seqs = append(seqs, p.until("call_tool_ack")["seq"].(float64), p.until("call_tool_res")["seq"].(float64))
	}
	_ = p.ws.Close()
	p = w.dial(nil)
	p.send(map[string]any{"op": "hello", "token": "alice", "session_id": "seen", "last_seq": seqs[2]})
	if m := p.next(); m["resumed"] != true {
		t.Fatalf("hello: %v", m)
	}
	for _, want := range seqs[3:] {
		if m := p.next(); m["seq"] != want {
			t.Errorf("got %v, want the one of seq %v", m, want)
		}
	}
	p.send(map[string]any{"op": "ping"})
	if m := p.next(); m["op"] != "pong" {
		t.Errorf("more came: %v", m)
	}
}

func TestASessionHasOneConnection(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "mine")
	p.call("1", "hold", map[string]string{"key": "k"})
	p.until("progress")
	q := w.hello("alice", "mine")
	for {
		m, code := p.read()
		if m != nil {
			continue
		}
		if code != closeProtocol {
			t.Errorf("the former connection was closed with %d", code)
		}
		break
	}
	q.call("1", "hold", map[string]string{"key": "k"})
	q.until("call_tool_ack")
	close(w.bench.gate("k"))
	if m := q.until("call_tool_res"); text(m) != "k" || m["from_inflight"] != true {
		t.Errorf("the answer: %v", m)
	}
	q.send(map[string]any{"op": "ping"})
	if m := q.next(); m["op"] != "pong" {
		t.Errorf("the answer came twice: %v", m)
	}
}

func TestRotatingTokens(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "mine")
	for _, c := range []struct{ old, new, want string }{{"bob", "alice-2", codeUnauthorized}, {"alice", "nobody", codeUnauthorized}, {"alice", "", codeInvalidRequest}} {
		p.send(map[string]any{"op": "rotate_token", "request_id": "r", "old": c.old, "new": c.new})
		if m := p.next(); m["op"] != "rotate_token_res" || code(m) != c.want || m["request_id"] != "r" {
			t.Errorf("%+v: %v", c, m)
		}
	}
	p.call("1", "echo", map[string]string{"key": "k"})
	p.until("call_tool_res")
	p.send(map[string]any{"op": "rotate_token", "old": "alice", "new": "alice-2"})
	if m := p.next(); m["ok"] != true {
		t.Fatalf("rotate: %v", m)
	}
	w.door.revoke("alice")
	p.call("1", "echo", map[string]string{"key": "k"})
	if m := p.until("call_tool_res"); m["from_cache"] != true {
		t.Errorf("after rotating: %v", m)
	}
	w.door.revoke("alice-2")
	p.call("1", "echo", map[string]string{"key": "k"})
	if m := p.until("call_tool_res"); code(m) != codeUnauthorized {
		t.Errorf("after revoking: %v", m)
	}
}

func TestProgressKeepsComing(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.ProgressEvery = 10 * time.Millisecond })
	p := w.hello("alice", "")
	p.call("1", "hold", map[string]string{"key": "k"})
	for range 5 {
		if m := p.until("progress"); m["request_id"] != "1" || m["message"] == "" {
			t.Errorf("progress: %v", m)
		}
	}
	close(w.bench.gate("k"))
	p.until("call_tool_res")
	p.send(map[string]any{"op": "ping"})
	if m := p.next(); m["op"] != "pong" {
		t.Errorf("progress after the end: %v", m)
	}
}

// chunks reads a stream to its end.
func (p *peer) chunks() (n int, end map[string]any) {
	p.t.Helper()
	for {
		switch m := p.next(); m["op"] {
		case "stream_chunk":
			if got, _ := m["chunk"].(string); m["request_id"] != "1" || !strings.HasPrefix(got, fmt.Sprintf("%d:", n)) {
				p.t.Fatalf("chunk %d is %v", n, m)
			}
			n++
		case "stream_complete":
			return n, m
		}
	}
}

func TestStreams(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.QueueFrames = 10 })
	p := w.hello("alice", "")
	p.call("1", "stream", nil)
	if n, end := p.chunks(); n != 40 || end["truncated"] != nil {
		t.Errorf("%d chunks, %v", n, end)
	}
	if m := p.next(); m["op"] != "call_tool_res" || m["error"] != nil {
		t.Errorf("then %v", m)
	}
	// A client that goes away in the middle gets what fits, without holes, and is told that there was more.
	p = w.hello("alice", "away")
	p.call("1", "stream", map[string]string{"key": "k"})
	seen := 0
	for seen < 20 {
		if m := p.until("stream_chunk"); !strings.HasPrefix(m["chunk"].(string), fmt.Sprintf("%d:", seen)) {
			t.Fatalf("chunk %d is %v", seen, m)
		}
		seen++
	}
	_ = p.ws.Close()
	eventually(t, "it is away", func() bool { return w.hub.Stats().Connections == 1 })
	close(w.bench.gate("k"))
	eventually(t, "the call has ended", func() bool { return w.hub.Stats().InFlight == 0 })
	p = w.hello("alice", "away")
	for {
		m := p.next()
		if m["op"] == "stream_complete" {
			if seen < 28 || seen >= 40 || m["truncated"] != true {
				t.Errorf("%d chunks, %v", seen, m)
			}
			break
		}
		if !strings.HasPrefix(m["chunk"].(string), fmt.Sprintf("%d:", seen)) {
			t.Fatalf("chunk %d is %v", seen, m)
		}
		seen++
	}
	if m := p.next(); m["op"] != "call_tool_res" || m["error"] != nil {
		t.Errorf("then %v", m)
	}
}

func TestTheEndOfAServer(t *testing.T) {
	w := start(t, nil)
	p, idle := w.hello("alice", ""), w.hello("bob", "")
	p.call("1", "hold", map[string]string{"key": "k"})
	p.until("progress")
	p.call("2", "hold", map[string]string{"key": "never"})
	p.until("progress")
	ctx, cancel := context.WithCancel(context.Background())
	closed := make(chan struct{})
	go func() { defer close(closed); w.hub.Close(ctx) }()
	eventually(t, "it stops", w.hub.stopping.Load)
	p.call("3", "echo", nil)
	if m := p.until("call_tool_res"); code(m) != codeUnavailable || m["request_id"] != "3" {
		t.Errorf("a new call: %v", m)
	}
	close(w.bench.gate("k"))
	if m := p.until("call_tool_res"); m["request_id"] != "1" || text(m) != "k" {
		t.Errorf("what could end: %v", m)
	}
	cancel() // the patience is over
	if m := p.until("call_tool_res"); m["request_id"] != "2" || code(m) != codeUnavailable {
		t.Errorf("what could not: %v", m)
	}
	for _, x := range []*peer{p, idle} {
		if m, code := x.read(); code != websocket.CloseGoingAway {
			t.Errorf("%v, closed with %d", m, code)
		}
	}
	<-closed
	if _, resp, err := w.tryDial(nil); err == nil || resp == nil || resp.StatusCode != 503 {
		t.Errorf("afterwards: %v %v", resp, err)
	}
}
