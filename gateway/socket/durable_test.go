// Calls that the cluster keeps: two servers of one cluster, and clients that go from one to the other.
package socket

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

// member is a server of a cluster, with a gateway.
type member struct {
	*world
	calls  *dispatch.Dispatcher
	server *dispatchtest.Server
	crash  func() // as with SIGKILL, as far as others can tell: it commits nothing any more, and its connections break
}

// join starts a server that keeps calls in a cluster.
func join(t testing.TB, c *dispatchtest.Cluster, id string, change func(*Options)) *member {
	t.Helper()
	m := &member{server: c.Add(id)}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	log := m.server.Log(quiet)
	var stop func()
	m.world = start(t, func(o *Options) {
		o.Server, o.Durable = id, true
		if change != nil {
			change(o)
		}
		m.calls = dispatch.New(dispatch.Options{
			Server: id, State: dispatch.StoreState{Store: m.server.Store}, Log: log, Runner: NewRunner(o.Tools, o.Access, o.Limits.ResultBytes, quiet),
			MaxInFlight: o.Limits.InFlight, MaxWaiting: 1000, Patience: 2 * time.Second, Cancelled: tools.ErrCancelled,
			Retry: dispatch.Retry{Max: 3, First: 10 * time.Millisecond, Factor: 2}, Logger: quiet,
		})
		o.Calls = m.calls
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan struct{})
		go func() { defer close(ran); _ = m.calls.Run(ctx) }()
		stop = sync.OnceFunc(func() { cancel(); <-ran; log.Close() })
		t.Cleanup(func() { stop(); m.calls.Close(ended()) }) // after the hub
	})
	m.crash = func() {
		m.server.Kill()
		stop()
		m.http.CloseClientConnections()
		m.hub.mu.Lock()
		defer m.hub.mu.Unlock()
		for c := range m.hub.conns {
			_ = c.ws.NetConn().Close()
		}
	}
	return m
}

func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// back says hello with what the client has, and returns the answer.
func (w *world) back(token, session string, more map[string]any) (*peer, map[string]any) {
	w.t.Helper()
	p := w.dial(nil)
	hello := map[string]any{"op": "hello", "token": token, "session_id": session}
	for k, v := range more {
		hello[k] = v
	}
	p.send(hello)
	return p, p.next()
}

// quiet fails when anything but a pong comes.
func (p *peer) quiet(what string) {
	p.t.Helper()
	p.send(map[string]any{"op": "ping"})
	if m := p.next(); m["op"] != "pong" {
		p.t.Errorf("%s: there came %v", what, m)
	}
}

// lost has the cluster notice that a server is gone.
func lost(c *dispatchtest.Cluster, from, to string) {
	c.Do(&clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: &clusterv1.AssignCalls{FromServerId: from, ToServerIds: []string{to}, Reason: "server " + from + " was lost", Limit: 1000}}})
}

func TestDurableCalls(t *testing.T) {
	t.Parallel()
	m := join(t, dispatchtest.New(), "server-1", nil)
	p := m.hello("alice", "")
	p.call("1", "echo", map[string]string{"key": "hi"})
	if a := p.next(); a["op"] != "call_tool_ack" || a["request_id"] != "1" || a["accepted"] != true || a["timeout"].(float64) < 299 {
		t.Errorf("ack: %v", a)
	}
	if r := p.next(); r["op"] != "call_tool_res" || text(r) != "hi" || r["order"] != 1.0 || r["from_cache"] != nil {
		t.Errorf("result: %v", r)
	}
	p.call("1", "echo", map[string]string{"key": "hi"})
	if r := p.until("call_tool_res"); r["from_cache"] != true || text(r) != "hi" {
		t.Errorf("asked again: %v", r)
	}
	p.call("1", "echo", map[string]string{"key": "other"})
	if r := p.next(); code(r) != codeDuplicate {
		t.Errorf("another call of the same id: %v", r)
	}
	// One in flight is joined.
	p.call("2", "hold", map[string]string{"key": "k"})
	p.until("progress")
	p.call("2", "hold", map[string]string{"key": "k"})
	p.until("call_tool_ack")
	close(m.bench.gate("k"))
	if r := p.next(); r["from_inflight"] != nil || text(r) != "k" {
		t.Errorf("the first answer: %v", r)
	}
	if r := p.next(); r["from_inflight"] != true || text(r) != "k" {
		t.Errorf("the one that joined: %v", r)
	}
	p.call("3", "fail", map[string]string{"key": "none"})
	if r := p.until("call_tool_res"); code(r) != codeNotFound {
		t.Errorf("a failure: %v", r)
	}
	p.call("4", "fail", map[string]string{"key": "full", "kind": "exhausted"})
	if r := p.until("call_tool_res"); code(r) != codeOverCapacity || m.bench.ran("full") < 2 {
		t.Errorf("a failure that may pass: %v, tried %d times", r, m.bench.ran("full"))
	}
	p.call("5", "panic", nil)
	if r := p.until("call_tool_res"); code(r) != codeInternal {
		t.Errorf("panic: %v", r)
	}
	p.send(map[string]any{"op": "call_tool", "request_id": "6", "name": "hold", "arguments": map[string]string{"key": "late"}, "deadline_ms": 20})
	if r := p.until("call_tool_res"); code(r) != codeTimeout {
		t.Errorf("late: %v", r)
	}
	// In memory, where it is asked for; but what the cluster has is not made again.
	p.send(map[string]any{"op": "call_tool", "request_id": "7", "name": "echo", "arguments": map[string]string{"key": "m"}, "durable": false})
	if r := p.until("call_tool_res"); text(r) != "m" || r["order"] != nil {
		t.Errorf("in memory: %v", r)
	}
	p.send(map[string]any{"op": "call_tool", "request_id": "1", "name": "echo", "arguments": map[string]string{"key": "hi"}, "durable": false})
	if r := p.until("call_tool_res"); r["from_cache"] != true {
		t.Errorf("the cluster has it: %v", r)
	}
	if n := m.bench.ran("hi"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	p.call("8", "hold", map[string]string{"key": "cancelled"})
	p.until("progress")
	p.send(map[string]any{"op": "cancel", "request_id": "8"})
	if r := p.until("cancelled"); r["request_id"] != "8" || r["error"] != nil {
		t.Errorf("cancelled: %v", r)
	}
	p.send(map[string]any{"op": "cancel", "request_id": "8"})
	if r := p.next(); r["op"] != "cancelled" || code(r) != codeNotFound {
		t.Errorf("cancelled again: %v", r)
	}
	close(m.bench.gate("cancelled"))
	p.call("8", "hold", map[string]string{"key": "cancelled"})
	if r := p.until("call_tool_res"); text(r) != "cancelled" || r["from_cache"] != nil {
		t.Errorf("made anew: %v", r)
	}
	p.call("9", "stream", nil)
	chunks := 0
	for r := p.next(); r["op"] != "call_tool_res"; r = p.next() {
		if r["op"] == "stream_chunk" {
			chunks++
		}
	}
	if chunks != 40 {
		t.Errorf("%d chunks", chunks)
	}
}

// The server that took the calls is killed. The client is given, elsewhere, what it missed, in order and once; what ran goes on there.
func TestAServerIsKilled(t *testing.T) {
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	c.Lead("b")
	p := a.hello("alice", "story")
	for i := range 4 {
		p.call(fmt.Sprint(i), "hold", map[string]string{"key": fmt.Sprint(i)})
		p.until("progress")
	}
	close(a.bench.gate("0"))
	if r := p.until("call_tool_res"); r["order"] != 1.0 {
		t.Fatalf("%v", r)
	}
	eventually(t, "it is noted that it was given", func() bool {
		row := b.calls.Client(queue.ClientKey{Owner: "token a1", Session: "story"})
		return row != nil && row.Delivered == 1
	})
	_ = p.ws.Close()
	eventually(t, "it has gone", func() bool { return a.hub.Stats().Connections == 0 })
	for _, id := range []string{"2", "1"} { // they end in this order, while nobody is there
		close(a.bench.gate(id))
		eventually(t, "it has ended", func() bool {
			row := b.calls.Find(queue.Key{Owner: "token a1", Session: "story", RequestID: id})
			return row.Status == queue.Ended
		})
	}
	a.crash()
	p, ack := b.back("alice", "story", nil)
	if ack["resumed"] != true || ack["server"] != "b" {
		t.Errorf("hello: %v", ack)
	}
	for i, id := range []string{"2", "1"} {
		if r := p.next(); r["op"] != "call_tool_res" || r["request_id"] != id || text(r) != id || r["order"] != float64(i+2) {
			t.Errorf("missed: %v", r)
		}
	}
	p.quiet("what was missed came")
	lost(c, "a", "b")
	p.call("3", "hold", map[string]string{"key": "3"}) // it goes on here, and is joined
	p.until("call_tool_ack")
	close(b.bench.gate("3"))
	if r := p.until("call_tool_res"); text(r) != "3" || r["from_inflight"] != true || r["order"] != 4.0 {
		t.Errorf("what ran: %v", r)
	}
	p.call("1", "hold", map[string]string{"key": "1"})
	if r := p.until("call_tool_res"); r["from_cache"] != true || text(r) != "1" {
		t.Errorf("asked again: %v", r)
	}
	p.quiet("all came")
	if got := b.bench.effects; len(got) != 1 {
		t.Errorf("b had effects %v", got)
	}
	_ = p.ws.Close()
	eventually(t, "it has gone", func() bool { return b.hub.Stats().Connections == 0 })
	// With what it says that it has, it is given precisely the rest.
	p, _ = b.back("alice", "story", map[string]any{"last_order": 2})
	for _, order := range []float64{3, 4} {
		if r := p.next(); r["order"] != order {
			t.Errorf("want %v: %v", order, r)
		}
	}
	p.quiet("it has all")
}

func TestCallsThatRunElsewhere(t *testing.T) {
	c := dispatchtest.New()
	a := join(t, c, "a", nil)
	b := join(t, c, "b", func(o *Options) { o.Limits.ProgressEvery = 10 * time.Millisecond })
	p := a.hello("alice", "story")
	for i := range 3 {
		p.call(fmt.Sprint(i), "hold", map[string]string{"key": fmt.Sprint(i)})
		p.until("progress")
	}
	q, ack := b.back("alice", "story", nil)
	if ack["resumed"] != true {
		t.Errorf("hello: %v", ack)
	}
	for { // where they are is told
		if m := q.until("progress"); m["message"] == "hold has been at it for 0s, on server a" {
			break
		}
	}
	q.send(map[string]any{"op": "cancel", "request_id": "0"})
	if m := q.until("cancelled"); m["request_id"] != "0" || m["error"] != nil || m["order"] != 1.0 {
		t.Errorf("cancelled from elsewhere: %v", m)
	}
	<-a.bench.ended
	close(a.bench.gate("1"))
	if m := q.until("call_tool_res"); m["request_id"] != "1" || text(m) != "1" {
		t.Errorf("the end of a call elsewhere: %v", m)
	}
	q.call("2", "hold", map[string]string{"key": "2"})
	q.until("call_tool_ack")
	close(a.bench.gate("2"))
	if m := q.until("call_tool_res"); m["request_id"] != "2" || m["from_inflight"] != true {
		t.Errorf("a joined call elsewhere: %v", m)
	}
	if n := b.bench.ran("2"); n != 0 {
		t.Errorf("it ran here, too, %d times", n)
	}
	// What it was given there it is not given again when it goes back.
	_ = q.ws.Close()
	eventually(t, "it has gone", func() bool { return b.hub.Stats().Connections == 0 })
	p, _ = a.back("alice", "story", nil)
	p.quiet("it has all")
}

// The state is set back to a snapshot: a client hears of its lost calls also where they ran at another server.
func TestCallsThatRanElsewhereAreLost(t *testing.T) {
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	p := a.hello("alice", "story")
	p.call("before", "hold", map[string]string{"key": "before"})
	p.until("progress")
	snapshot, err := a.server.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	p.call("since", "hold", map[string]string{"key": "since"})
	p.until("progress")
	q, _ := b.back("alice", "story", nil)
	if err := c.Restore(snapshot); err != nil {
		t.Fatal(err)
	}
	if m := q.until("call_tool_res"); m["request_id"] != "since" || code(m) != codeUnavailable {
		t.Errorf("%v", m)
	}
	q.call("since", "echo", map[string]string{"key": "again"})
	if m := q.until("call_tool_res"); m["request_id"] != "since" || text(m) != "again" {
		t.Errorf("made anew: %v", m)
	}
	close(a.bench.gate("before"))
	if m := q.until("call_tool_res"); m["request_id"] != "before" || text(m) != "before" {
		t.Errorf("what the snapshot knows: %v", m)
	}
}

// A former connection at another server is closed once it is known that the client has gone.
func TestOneConnectionInTheCluster(t *testing.T) {
	t.Parallel()
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	p := a.hello("alice", "story")
	b.hello("alice", "story")
	for {
		if m, code := p.read(); m == nil {
			if code != closeProtocol {
				t.Errorf("closed with %d", code)
			}
			return
		}
	}
}

// A client that comes back for more than it takes is given as much as there is room for, and the rest as it reads: in order, and once.
func TestWhatWasMissedComesAsItIsTaken(t *testing.T) {
	const results, bytes, frames = 400, 60 << 10, 8
	c := dispatchtest.New()
	m := join(t, c, "a", func(o *Options) {
		o.Limits.QueueFrames, o.Limits.WriteTimeout = frames, time.Minute
	})
	outputs, err := json.Marshal([]map[string]string{{"type": "text", "text": strings.Repeat("x", bytes)}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range results {
		key := &clusterv1.CallKey{Owner: "token a1", Session: "story", RequestId: fmt.Sprint(i)}
		for _, r := range c.Do(
			&clusterv1.Command{Kind: &clusterv1.Command_SubmitCall{SubmitCall: &clusterv1.SubmitCall{
				Key: key, Tool: "echo", Priority: 3, ServerId: "gone", Deadline: time.Now().Add(time.Hour).UnixNano(), Begin: true,
			}}},
			&clusterv1.Command{Kind: &clusterv1.Command_EndCall{EndCall: &clusterv1.EndCall{
				Key: key, ServerId: "gone", Attempt: 1, Outcome: &clusterv1.Outcome{Outputs: &clusterv1.Blob{Inline: outputs, SizeBytes: uint64(len(outputs))}},
			}}},
		) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
	}
	p, _ := m.back("alice", "story", map[string]any{"last_order": 0})
	key := queue.Key{Owner: "token a1", Session: "story", RequestID: "0"}
	eventually(t, "all are on their way", func() bool { return m.calls.Stats().Resumed == results })
	for range 20 { // results move on until nothing more is taken
		if _, err := m.calls.Lookup(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if kept := m.hub.Stats().KeptBytes; kept > (frames+1)*(bytes+1024)+maxHistoryBytes {
			t.Fatalf("%d bytes wait for a client that does not read", kept)
		}
	}
	for i := range results {
		if r := p.next(); r["request_id"] != fmt.Sprint(i) || r["order"] != float64(i+1) || len(text(r)) != bytes {
			t.Fatalf("result %d: %v of order %v", i, r["request_id"], r["order"])
		}
	}
	p.quiet("it has all")
}

func TestRotatingTokensInTheCluster(t *testing.T) {
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	p := a.hello("alice", "mine")
	p.call("1", "echo", map[string]string{"key": "k"})
	p.until("call_tool_res")
	p.call("2", "hold", map[string]string{"key": "held"})
	p.until("progress")
	p.send(map[string]any{"op": "rotate_token", "old": "alice", "new": "alice-2"})
	if m := p.until("rotate_token_res"); m["ok"] != true {
		t.Fatalf("rotate: %v", m)
	}
	a.door.revoke("alice")
	b.door.revoke("alice")
	close(a.bench.gate("held"))
	if m := p.until("call_tool_res"); m["request_id"] != "2" || m["order"] != 2.0 {
		t.Errorf("what was in flight: %v", m)
	}
	p.call("1", "echo", map[string]string{"key": "k"})
	if m := p.until("call_tool_res"); m["from_cache"] != true {
		t.Errorf("after rotating: %v", m)
	}
	_ = p.ws.Close()
	eventually(t, "it has gone", func() bool { return a.hub.Stats().Connections == 0 })
	q, ack := b.back("alice-2", "mine", map[string]any{"last_order": 1})
	if m := q.next(); ack["resumed"] != true || m["request_id"] != "2" {
		t.Errorf("elsewhere, as the new owner: %v %v", ack, m)
	}
}

// The bound of one client refuses; that of the server has calls wait.
func TestDurableCallsWaitForTheirTurn(t *testing.T) {
	m := join(t, dispatchtest.New(), "a", func(o *Options) { o.Limits.InFlight, o.Limits.InFlightClient = 1, 3 })
	p, q := m.hello("alice", ""), m.hello("bob", "")
	p.call("1", "hold", map[string]string{"key": "1"})
	p.until("progress")
	q.call("waits", "echo", map[string]string{"key": "waits"})
	q.until("call_tool_ack")
	p.send(map[string]any{"op": "call_tool", "request_id": "2", "name": "echo", "arguments": map[string]string{"key": "2"}, "priority": "high"})
	p.until("call_tool_ack")
	p.call("3", "echo", map[string]string{"key": "3"})
	p.until("call_tool_ack")
	p.call("4", "echo", map[string]string{"key": "4"})
	if r := p.next(); code(r) != codeOverCapacity {
		t.Errorf("the fourth of a client: %v", r)
	}
	p.send(map[string]any{"op": "cancel", "request_id": "3"})
	if r := p.next(); r["op"] != "cancelled" || r["request_id"] != "3" {
		t.Errorf("cancelled while it waited: %v", r)
	}
	close(m.bench.gate("1"))
	for _, id := range []string{"1", "2"} {
		if r := p.until("call_tool_res"); r["request_id"] != id {
			t.Errorf("want %s: %v", id, r)
		}
	}
	q.until("call_tool_res")
	// Calls of one key run one after the other.
	for i := range 3 {
		q.send(map[string]any{"op": "call_tool", "request_id": fmt.Sprint("k", i), "name": "echo", "arguments": map[string]string{"key": fmt.Sprint(i)}, "key": "talk"})
	}
	for i := range 3 {
		if r := q.until("call_tool_res"); r["request_id"] != fmt.Sprint("k", i) {
			t.Errorf("want %d: %v", i, r)
		}
	}
}

// Nobody leads: calls are refused in time with what to do, and a client that comes with a session is sent elsewhere.
func TestNobodyLeads(t *testing.T) {
	t.Parallel()
	c := dispatchtest.New()
	m := join(t, c, "a", nil)
	p := m.hello("alice", "")
	c.Lead("")
	p.send(map[string]any{"op": "call_tool", "request_id": "m", "name": "echo", "arguments": map[string]string{"key": "m"}, "durable": false})
	if r := p.until("call_tool_res"); text(r) != "m" {
		t.Errorf("in memory: %v", r)
	}
	p.call("1", "echo", map[string]string{"key": "k"})
	if r := p.next(); r["op"] != "call_tool_res" || code(r) != codeUnavailable {
		t.Errorf("a call: %v", r)
	}
	q := m.dial(nil)
	q.send(map[string]any{"op": "hello", "token": "alice", "session_id": "story"})
	if r, code := q.read(); code != websocket.CloseGoingAway {
		t.Errorf("%v, closed with %d", r, code)
	}
}

// A server that is told to stop lets calls end, leaves the rest to others, and sends its clients away.
func TestAServerLeavesCallsToOthers(t *testing.T) {
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	p := a.hello("alice", "story")
	p.call("1", "hold", map[string]string{"key": "1"})
	p.until("progress")
	p.call("2", "hold", map[string]string{"key": "2"})
	p.until("progress")
	ctx, cancel := context.WithCancel(context.Background())
	closed := make(chan struct{})
	go func() { defer close(closed); a.hub.Close(ctx) }()
	eventually(t, "it stops", a.hub.stopping.Load)
	close(a.bench.gate("1"))
	if r := p.until("call_tool_res"); r["request_id"] != "1" || text(r) != "1" {
		t.Errorf("what could end: %v", r)
	}
	cancel()
	if r, code := p.read(); r != nil || code != websocket.CloseGoingAway {
		t.Errorf("%v, closed with %d", r, code)
	}
	<-closed
	lost(c, "a", "b")
	p, _ = b.back("alice", "story", map[string]any{"last_order": 1})
	close(b.bench.gate("2"))
	if r := p.until("call_tool_res"); r["request_id"] != "2" || text(r) != "2" {
		t.Errorf("what could not: %v", r)
	}
}
