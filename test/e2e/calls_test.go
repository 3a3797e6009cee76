// Calls that clients were promised an answer to, at a cluster whose servers are killed, left and asked all over.

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fakeprovider"
)

// slow is a session that answers a message once a file is there, and notes each that it has taken.
type slow struct{ dir string }

func newSlow(t *testing.T) slow { return slow{t.TempDir()} }

func (s slow) command() []any {
	script := `n=0; while read -r l; do while [ ! -e "$0/go" ]; do sleep 0.02; done; n=$((n+1)); echo "$l" >> "$0/taken"; echo "$n $l"; done`
	return []any{"/bin/sh", "-c", script, s.dir}
}

// open lets it answer, and hold has it wait.
func (s slow) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s slow) hold(t *testing.T) {
	t.Helper()
	if err := os.Remove(filepath.Join(s.dir, "go")); err != nil {
		t.Fatal(err)
	}
}

// taken are the messages that it has taken, in order.
func (s slow) taken() []string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "taken"))
	return strings.Fields(string(b))
}

// answer is what session_send answered.
func answer(t *testing.T, r reply) string {
	t.Helper()
	var out struct{ Result string }
	if r.Error != nil || len(r.Outputs) != 1 || json.Unmarshal([]byte(r.Outputs[0].Text), &out) != nil {
		t.Fatalf("the answer is %+v %s", r, r.Error)
	}
	return out.Result
}

// The server that a client is connected to is killed while calls run. Elsewhere, the client is given what it missed, in order and once; what ran is answered there,
// and had its effect once; what may not be repeated is given up and told so.
func TestCallsOutliveTheirServer(t *testing.T) {
	for _, which := range []string{"leader", "follower"} {
		t.Run(which, func(t *testing.T) { killTheServerOfAClient(t, which == "leader") })
	}
}

func killTheServerOfAClient(t *testing.T, leader bool) {
	fake := fakeprovider.New()
	fake.Usually(fakeprovider.Step{Hang: true})
	c := startTrioWith(t, 1, map[string]any{"providers": map[string]any{"pools": []any{map[string]any{
		"name": "fake", "dialect": "openai", "url": fake.Start(t) + "/v1", "models": []any{map[string]any{"name": "m"}},
	}}}})
	victim := c.leads()
	if !leader {
		victim = (victim + 1) % 3
	}
	other := (victim + 1) % 3
	s := newSlow(t)
	s.open(t)
	p := connect(t, c.at(victim, 4), nil, "", "story")
	id := p.call("session_spawn", map[string]any{"name": "slow", "command": s.command(), "wait": true})["id"]
	if got := p.ask("m0", "session_send", map[string]any{"id": id, "message": "m0"}); got["result"] != "1 m0" {
		t.Fatalf("m0: %v", got)
	}
	s.hold(t)
	for i := 1; i <= 3; i++ {
		p.send(fmt.Sprint("m", i), "session_send", map[string]any{"id": id, "message": fmt.Sprint("m", i)})
		p.until("call_tool_ack")
	}
	p.send("paid", "chat", map[string]any{"prompt": "hello", "provider": "fake"})
	p.until("call_tool_ack")
	c.until("the model is asked", func(context.Context) bool { return fake.Count() == 1 })
	c.untilDelivered("story", "m0")
	c.servers[victim].kill()
	s.open(t)
	q, hello := greet(t, c.at(other, 4), nil, "", "story")
	if !hello.Resumed || hello.Server != fmt.Sprintf("server-%d", other+1) {
		t.Errorf("hello elsewhere: %+v", hello)
	}
	want := map[string]string{"m1": "2 m1", "m2": "3 m2", "m3": "4 m3"}
	last := uint64(0)
	for range 4 {
		r := q.until("call_tool_res")
		switch {
		case r.Order <= last:
			t.Errorf("order %d came after %d", r.Order, last)
		case r.RequestID == "paid":
			if !strings.Contains(string(r.Error), "SERVICE_UNAVAILABLE") || !strings.Contains(string(r.Error), "may not be repeated") {
				t.Errorf("chat: %s", r.Error)
			}
		default:
			if got := answer(t, r); got != want[r.RequestID] {
				t.Errorf("%s was answered with %q", r.RequestID, got)
			}
			delete(want, r.RequestID)
		}
		last = r.Order
	}
	if got := fmt.Sprint(s.taken()); got != "[m0 m1 m2 m3]" {
		t.Errorf("the session took %s", got)
	}
	if n := fake.Count(); n != 1 {
		t.Errorf("the model was asked %d times", n)
	}
	// Asked again, each is the same call, and nothing else comes.
	if got := q.ask("m2", "session_send", map[string]any{"id": id, "message": "m2"}); got["result"] != "3 m2" {
		t.Errorf("m2 again: %v", got)
	}
	q.quiet()
	deadCall(t, c, fake, q)
	c.untilDelivered("story", "paid")
	_ = q.ws.Close()
	third, hello := greet(t, c.at(3-victim-other, 4), nil, "", "story")
	if !hello.Resumed {
		t.Errorf("hello at the third: %+v", hello)
	}
	third.quiet()
}

// deadCall finds the call that was given up among the dead letters, and has it tried again: its client is given the answer.
func deadCall(t *testing.T, c *trio, fake *fakeprovider.Server, q *clientOf) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dead, err := c.c.Queues.ListDeadLetters(ctx, &apiv1.ListDeadLettersRequest{})
	if err != nil || len(dead.GetCalls()) != 1 || dead.GetCalls()[0].GetRequestId() != "paid" || dead.GetCalls()[0].GetTool() != "chat" {
		t.Fatalf("dead letters: %v %v", dead, err)
	}
	fake.Usually(fakeprovider.Step{Text: "here I am"})
	if _, err := c.c.Queues.RetryDeadLetters(ctx, &apiv1.RetryDeadLettersRequest{CallId: dead.GetCalls()[0].GetId(), IdempotencyKey: "again"}); err != nil {
		t.Fatal(err)
	}
	if r := q.until("call_tool_res"); r.RequestID != "paid" || r.Error != nil || !strings.Contains(r.Outputs[0].Text, "here I am") {
		t.Errorf("the dead call, tried again: %+v %s", r, r.Error)
	}
}

// untilDelivered waits until the cluster has noted that a client was given the answer to a call, and with it all answers before.
func (c *trio) untilDelivered(session, requestID string) {
	c.t.Helper()
	c.until(requestID+" is delivered", func(ctx context.Context) bool {
		r, err := c.c.Queues.ListCalls(ctx, &apiv1.ListCallsRequest{Session: session})
		return err == nil && slices.ContainsFunc(r.GetCalls(), func(k *apiv1.Call) bool { return k.GetRequestId() == requestID && k.GetDelivered() })
	})
}

// quiet fails when anything but progress comes before a pong.
func (c *clientOf) quiet() {
	c.t.Helper()
	if err := c.ws.WriteJSON(map[string]any{"op": "ping"}); err != nil {
		c.t.Fatal(err)
	}
	for r := c.read(); r.Op != "pong"; r = c.read() {
		if r.Op != "progress" {
			c.t.Errorf("there came %+v", r)
		}
	}
}

func TestCallsAtAllServers(t *testing.T) {
	c := startTrio(t, 2)
	s := newSlow(t)
	p := connect(t, c.at(0, 4), nil, "", "story")
	spawned := p.call("session_spawn", map[string]any{"name": "slow", "command": s.command(), "wait": true})
	id := spawned["id"]
	// A client goes from server to server, and cancels there what it began here.
	p.send("cancelled", "session_send", map[string]any{"id": id, "message": "x"})
	p.until("call_tool_ack")
	q := connect(t, c.at(1, 4), nil, "", "story")
	if err := q.ws.WriteJSON(map[string]any{"op": "cancel", "request_id": "cancelled"}); err != nil {
		t.Fatal(err)
	}
	if r := q.until("cancelled"); r.RequestID != "cancelled" || r.Error != nil {
		t.Errorf("cancelled from another server: %+v %s", r, r.Error)
	}
	// The former connection is closed once its server knows.
	_ = p.ws.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		if _, _, err := p.ws.ReadMessage(); err != nil {
			if !websocket.IsCloseError(err, 4001) {
				t.Errorf("the former connection ended with %v", err)
			}
			break
		}
	}
	s.open(t)
	// A call to a session that moves is parked, and answered.
	quick := q.ask("spawn-moves", "session_spawn", map[string]any{"name": "moves", "command": newObserver(t).keeping(), "wait": true})
	q.send("move", "session_migrate", map[string]any{"id": quick["id"]})
	q.until("call_tool_ack")
	for i := range 3 {
		q.send(fmt.Sprint("parked-", i), "session_send", map[string]any{"id": quick["id"], "message": "x"})
	}
	for answered := 0; answered < 4; answered++ {
		if r := q.until("call_tool_res"); r.Error != nil {
			t.Errorf("%s: %s", r.RequestID, r.Error)
		}
	}
	row := c.session(quick["id"].(string))
	if row.GetEpoch() != 2 || row.GetPhase() != apiv1.Session_RUNNING {
		t.Errorf("it is %s in epoch %d", row.GetPhase(), row.GetEpoch())
	}
	// A large answer goes by way of the chunk store, to another server, too: 60,000 characters that take seven bytes each in JSON.
	large := q.ask("spawn-large", "session_spawn", map[string]any{"name": "large", "command": []string{"/bin/sh", "-c", `while read -r l; do head -c 60000 /dev/zero | tr '\0' '\001'; echo; done`}, "wait": true})
	q.send("large", "session_send", map[string]any{"id": large["id"], "message": "x"})
	if r := q.until("call_tool_res"); len(answer(t, r)) != 60_000 {
		t.Errorf("%d bytes", len(answer(t, r)))
	}
	w := connect(t, c.at(2, 4), nil, "", "story")
	if got := w.ask("large", "session_send", map[string]any{"id": large["id"], "message": "x"}); len(got["result"].(string)) != 60_000 {
		t.Errorf("elsewhere %d bytes", len(got["result"].(string)))
	}
}
