// Calls that the cluster keeps, over HTTP: made and fetched at one server and at another, and what of that counts as given.
package socket

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

func TestDurableCallsOverHTTP(t *testing.T) {
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	body := func(id, name, key string) map[string]any {
		return map[string]any{"session_id": "web", "request_id": id, "name": name, "arguments": map[string]string{"key": key}}
	}
	if status, m := a.post("/v1/call_tool", "alice", "", body("1", "echo", "hi")); status != http.StatusOK || text(m) != "hi" || m["order"] != 1.0 {
		t.Errorf("%d %v", status, m)
	}
	// Its end may be known there already, or come while it is asked for.
	if status, m := b.post("/v1/call_tool", "alice", "", body("1", "echo", "hi")); status != http.StatusOK || text(m) != "hi" || m["from_cache"] != true {
		t.Errorf("at another server: %d %v", status, m)
	}
	get := func(m *member, id string) (int, map[string]any) {
		return m.ask(http.MethodGet, "/v1/results/"+id, "alice", nil, SessionHeader, "web")
	}
	if status, m := get(b, "1"); status != http.StatusOK || text(m) != "hi" {
		t.Errorf("its result: %d %v", status, m)
	}
	if status, m := a.post("/v1/call_tool", "alice", "?wait_ms=0", body("2", "hold", "k")); status != http.StatusAccepted || m["op"] != "call_tool_ack" {
		t.Errorf("%d %v", status, m)
	}
	done := make(chan map[string]any)
	go func() { _, m := get(b, "2"); done <- m }()
	eventually(t, "it is waited for", func() bool { return b.hub.Stats().Durable == 1 })
	close(a.bench.gate("k"))
	if m := <-done; text(m) != "k" {
		t.Errorf("waited for elsewhere: %v", m)
	}
	if status, m := get(b, "none"); status != http.StatusNotFound || code(m) != codeNotFound {
		t.Errorf("unknown: %d %v", status, m)
	}
	if status, m := b.post("/v1/hello", "alice", "", map[string]any{"session_id": "web"}); status != http.StatusOK || m["resumed"] != true || m["server"] != "b" {
		t.Errorf("hello: %d %v", status, m)
	}
	// What was fetched counts as given.
	p, _ := b.back("alice", "web", map[string]any{"last_order": 2})
	p.quiet("nothing was missed")
}

// A call that has ended is asked for again at a server that has not heard of it: it is answered once, and that is the kept result.
func TestAskedAgainWhereItsEndIsNotKnown(t *testing.T) {
	for _, over := range []bool{true, false} { // before it is asked for again, and while it is
		c := dispatchtest.New()
		a, b := join(t, c, "a", nil), join(t, c, "b", nil)
		p := a.hello("alice", "story")
		q, _ := b.back("alice", "other", nil) // b is there, and alice's session is not
		p.call("1", "hold", map[string]string{"key": "k"})
		p.until("progress")
		key := queue.Key{Owner: "token a1", Session: "story", RequestID: "1"}
		ends := func() {
			close(a.bench.gate("k"))
			eventually(t, "it has ended", func() bool { return a.calls.Find(key).Status == queue.Ended })
		}
		if over {
			b.server.Hold(true)
			ends()
		} else {
			c.SetLatency(200 * time.Millisecond)
		}
		said := make(chan map[string]any, 1)
		go func() {
			_, m := b.post("/v1/call_tool", "alice", "", map[string]any{
				"session_id": "story", "request_id": "1", "name": "hold", "arguments": map[string]string{"key": "k"},
			})
			said <- m
		}()
		if !over {
			eventually(t, "it is on its way", func() bool { return b.hub.Stats().Durable == 1 })
			c.Do(&clusterv1.Command{Kind: &clusterv1.Command_EndCall{EndCall: &clusterv1.EndCall{
				Key: &clusterv1.CallKey{Owner: key.Owner, Session: key.Session, RequestId: key.RequestID}, ServerId: "a", Attempt: 1,
				Outcome: &clusterv1.Outcome{Outputs: &clusterv1.Blob{Inline: []byte(`[{"type":"text","text":"k"}]`), SizeBytes: 28}},
			}}})
		}
		if m := <-said; text(m) != "k" || m["from_cache"] != true || m["order"] != 1.0 {
			t.Errorf("over %v: %v", over, m)
		}
		b.server.Hold(false)
		c.SetLatency(0)
		eventually(t, "it counts as given", func() bool { return a.calls.Client(key.Client()).Delivered == 1 })
		_ = q.ws.Close()
		q, _ = b.back("alice", "story", nil)
		q.quiet("it has the result")
	}
}

// Results that are fetched over HTTP count as given: in whatever order, after they were forgotten here, and by a server that starts anew.
func TestFetchedResultsCountAsGiven(t *testing.T) {
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	key := queue.ClientKey{Owner: "token a1", Session: "web"}
	get := func(m *member, id string) {
		t.Helper()
		if status, r := m.ask(http.MethodGet, "/v1/results/"+id, "alice", nil, SessionHeader, "web"); status != http.StatusOK {
			t.Errorf("result %s: %d %v", id, status, r)
		}
	}
	delivered := func(n uint64) {
		t.Helper()
		eventually(t, fmt.Sprint(n, " are noted"), func() bool { row := b.calls.Client(key); return row != nil && row.Delivered == n })
	}
	for n := range 5 {
		id := fmt.Sprint(n + 1)
		if status, r := a.post("/v1/call_tool", "alice", "?wait_ms=0", map[string]any{
			"session_id": "web", "request_id": id, "name": "hold", "arguments": map[string]string{"key": id},
		}); status != http.StatusAccepted {
			t.Fatalf("%d %v", status, r)
		}
		close(a.bench.gate(id))
		eventually(t, id+" is over", func() bool { row := b.calls.Client(key); return row != nil && row.Order == uint64(n+1) })
	}
	get(a, "2")
	get(a, "1")
	delivered(2)
	get(b, "4") // which does not know the client yet
	get(b, "3")
	delivered(4)
	get(b, "5")
	delivered(5)
}

// What is fetched at another server than that of the session's connection counts, too, and is not given again on coming back.
func TestFetchedElsewhereCountsAsGiven(t *testing.T) {
	t.Parallel()
	c := dispatchtest.New()
	a, b := join(t, c, "a", nil), join(t, c, "b", nil)
	key := queue.ClientKey{Owner: "token a1", Session: "web"}
	delivered := func(n uint64) {
		t.Helper()
		eventually(t, fmt.Sprint(n, " are noted"), func() bool { row := b.calls.Client(key); return row != nil && row.Delivered == n })
	}
	get := func(m *member, id string) {
		t.Helper()
		if status, r := m.ask(http.MethodGet, "/v1/results/"+id, "alice", nil, SessionHeader, "web"); status != http.StatusOK {
			t.Errorf("result %s: %d %v", id, status, r)
		}
	}
	p := a.hello("alice", "web")
	for i := range 5 {
		id := fmt.Sprint(i + 1)
		p.call(id, "hold", map[string]string{"key": id})
		p.until("progress")
	}
	close(a.bench.gate("1"))
	p.until("call_tool_res")
	delivered(1)
	_ = p.ws.Close()
	eventually(t, "it has gone", func() bool { return a.hub.Stats().Connections == 0 })
	for i := range 4 {
		close(a.bench.gate(fmt.Sprint(i + 2)))
		eventually(t, "it is over", func() bool { return b.calls.Client(key).Order == uint64(i+2) })
	}
	get(b, "2")
	delivered(2)
	get(b, "4") // before the one before it, which is fetched where b does not see it
	get(a, "3")
	delivered(4)
	p, _ = a.back("alice", "web", nil)
	if r := p.next(); r["request_id"] != "5" {
		t.Errorf("missed: %v", r)
	}
	p.quiet("it has all")
}
