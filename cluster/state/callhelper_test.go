// Helpers of the tests of calls: commands in few words, and a generator of plausible ones.

package state

import (
	"bytes"
	"fmt"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

func callCommand(m any) *clusterv1.Command {
	switch k := m.(type) {
	case *clusterv1.SubmitCall:
		return &clusterv1.Command{Kind: &clusterv1.Command_SubmitCall{SubmitCall: k}}
	case *clusterv1.BeginCall:
		return &clusterv1.Command{Kind: &clusterv1.Command_BeginCall{BeginCall: k}}
	case *clusterv1.DeferCall:
		return &clusterv1.Command{Kind: &clusterv1.Command_DeferCall{DeferCall: k}}
	case *clusterv1.EndCall:
		return &clusterv1.Command{Kind: &clusterv1.Command_EndCall{EndCall: k}}
	case *clusterv1.CancelCall:
		return &clusterv1.Command{Kind: &clusterv1.Command_CancelCall{CancelCall: k}}
	case *clusterv1.AssignCalls:
		return &clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: k}}
	case *clusterv1.ExpireCalls:
		return &clusterv1.Command{Kind: &clusterv1.Command_ExpireCalls{ExpireCalls: k}}
	case *clusterv1.TakeDelivery:
		return &clusterv1.Command{Kind: &clusterv1.Command_TakeDelivery{TakeDelivery: k}}
	case *clusterv1.OpenClient:
		return &clusterv1.Command{Kind: &clusterv1.Command_OpenClient{OpenClient: k}}
	case *clusterv1.RekeyClient:
		return &clusterv1.Command{Kind: &clusterv1.Command_RekeyClient{RekeyClient: k}}
	case *clusterv1.RetryCall:
		return &clusterv1.Command{Kind: &clusterv1.Command_RetryCall{RetryCall: k}}
	case *clusterv1.PurgeCalls:
		return &clusterv1.Command{Kind: &clusterv1.Command_PurgeCalls{PurgeCalls: k}}
	}
	panic(fmt.Sprintf("no command %T", m))
}

var ann = queue.ClientKey{Owner: "token 1", Session: "ann"}

func annsKey(request string) queue.Key {
	return queue.Key{Owner: ann.Owner, Session: ann.Session, RequestID: request}
}

// submit is a call of ann's on server s1 that may be repeated.
func (m *machine) submit(request string, change ...func(*clusterv1.SubmitCall)) *clusterv1.SubmitCall {
	c := &clusterv1.SubmitCall{
		Key: pbconv.CallKeyToProto(annsKey(request)), Caller: &clusterv1.Caller{TokenId: "1", Name: "ann", Role: "client", Namespace: "default"},
		Tool: "session_send", Arguments: inline(`{"id":"s"}`), Priority: apiv1.Priority_NORMAL, RequestHash: 7, Deadline: m.now + 60*second,
		ServerId: "s1", Repeatable: true,
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func begun(c *clusterv1.SubmitCall) { c.Begin = true }

func once(c *clusterv1.SubmitCall) { c.Repeatable = false }

func ordered(key string) func(*clusterv1.SubmitCall) {
	return func(c *clusterv1.SubmitCall) { c.OrderKey = key }
}

func on(server string) func(*clusterv1.SubmitCall) {
	return func(c *clusterv1.SubmitCall) { c.ServerId = server }
}

func inline(text string) *clusterv1.Blob {
	return &clusterv1.Blob{Inline: []byte(text), SizeBytes: uint64(len(text))}
}

func beginCall(c *queue.Call) *clusterv1.BeginCall {
	return &clusterv1.BeginCall{Key: pbconv.CallKeyToProto(c.Key), ServerId: c.Server, Attempt: c.Attempt}
}

func endCall(c *queue.Call, outputs string) *clusterv1.EndCall {
	return &clusterv1.EndCall{Key: pbconv.CallKeyToProto(c.Key), ServerId: c.Server, Attempt: c.Attempt, Outcome: &clusterv1.Outcome{Outputs: inline(outputs)}}
}

func giveUp(c *queue.Call, code string) *clusterv1.EndCall {
	return &clusterv1.EndCall{Key: pbconv.CallKeyToProto(c.Key), ServerId: c.Server, Attempt: c.Attempt, Outcome: &clusterv1.Outcome{Code: code, Message: "it failed"}, Dead: true}
}

func deferCall(c *queue.Call, until int64) *clusterv1.DeferCall {
	return &clusterv1.DeferCall{Key: pbconv.CallKeyToProto(c.Key), ServerId: c.Server, Attempt: c.Attempt, NotBefore: until, Code: "PROVIDER_ERROR", Message: "busy"}
}

func take(k queue.ClientKey, order uint64) *clusterv1.TakeDelivery {
	return &clusterv1.TakeDelivery{Owner: k.Owner, Session: k.Session, Order: order}
}

// run submits a call that begins, and ends it.
func (m *machine) run(request string, change ...func(*clusterv1.SubmitCall)) *queue.Call {
	m.t.Helper()
	return m.ok(endCall(m.ok(m.submit(request, append(change, begun)...)).Call, "done")).Call
}

// call makes one command about calls.
func (h *history) call(v *View) any {
	var some *queue.Call
	for c := range v.Calls(uint64(h.rng.Int64N(int64(v.meta.call) + 1))) {
		some = c
		break
	}
	n := h.rng.IntN(100)
	if n < 35 || some == nil {
		return h.submit()
	}
	attempt := some.Attempt - uint32(h.rng.IntN(12)/11)
	server := some.Server
	if h.rng.IntN(15) == 0 {
		server = h.server()
	}
	key := pbconv.CallKeyToProto(some.Key)
	switch {
	case n < 50:
		return &clusterv1.BeginCall{Key: key, ServerId: server, Attempt: attempt}
	case n < 54:
		return &clusterv1.DeferCall{Key: key, ServerId: server, Attempt: attempt, NotBefore: h.now + second, Code: "PROVIDER_ERROR", Message: "busy"}
	case n < 76:
		o := &clusterv1.Outcome{Outputs: inline(string(bytes.Repeat([]byte{'o'}, h.rng.IntN(80))))}
		dead := h.rng.IntN(3) == 0
		if dead || h.rng.IntN(4) == 0 {
			o = &clusterv1.Outcome{Code: "PROVIDER_ERROR", Message: "no", RetryAfterMs: 5, Field: "model", Passing: !dead && h.rng.IntN(3) > 0}
		}
		return &clusterv1.EndCall{Key: key, ServerId: server, Attempt: attempt, Outcome: o, Dead: dead}
	case n < 80:
		return &clusterv1.CancelCall{Key: key}
	case n < 90:
		return take(some.Client(), some.Order+uint64(h.rng.IntN(3)))
	default:
		return h.rareCall(v, some)
	}
}

func (h *history) server() string { return fmt.Sprint("s", 1+h.rng.IntN(3)) }

func (h *history) owner() string { return fmt.Sprint("token ", h.rng.IntN(3)) }

func (h *history) submit() any {
	// Few requests of few clients, so that keys come again.
	c := &clusterv1.SubmitCall{
		Key:       &clusterv1.CallKey{Owner: h.owner(), Session: fmt.Sprint("session-", h.rng.IntN(5)), RequestId: fmt.Sprint("r", h.rng.IntN(16))},
		Caller:    &clusterv1.Caller{TokenId: "1", Role: "client", Namespace: pick(h, []string{"", "default", "other"})},
		Tool:      pick(h, []string{"chat", "session_send"}),
		Arguments: inline(string(bytes.Repeat([]byte{'a'}, h.rng.IntN(60)))), Priority: apiv1.Priority_Level(1 + h.rng.IntN(4)),
		RequestHash: uint64(h.rng.IntN(20) / 19), Deadline: h.now + h.rng.Int64N(40*second) - second, ServerId: h.server(),
		OrderKey: pick(h, []string{"", "", "a", "b", "c"}), Repeatable: h.rng.IntN(3) > 0, Begin: h.rng.IntN(2) == 0,
	}
	switch h.rng.IntN(30) {
	case 0:
		c.Arguments = &clusterv1.Blob{Chunks: [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}, SizeBytes: 100_000}
	case 1:
		c.Arguments = &clusterv1.Blob{Chunks: [][]byte{{1}}}
	case 2:
		c.Tool = ""
	}
	return c
}

func (h *history) rareCall(v *View, some *queue.Call) any {
	switch h.rng.IntN(12) {
	case 0:
		return &clusterv1.AssignCalls{FromServerId: some.Server, ToServerIds: []string{h.server(), h.server()}, Limit: uint32(h.rng.IntN(10))}
	case 1:
		return &clusterv1.ExpireCalls{Before: h.now - h.rng.Int64N(10*second), Limit: uint32(h.rng.IntN(10))}
	case 2:
		return &clusterv1.OpenClient{Owner: some.Owner, Session: some.Session, ServerId: h.server()}
	case 3:
		return &clusterv1.RekeyClient{Owner: some.Owner, Session: some.Session, NewOwner: h.owner(), Caller: &clusterv1.Caller{TokenId: "2", Role: "client", Namespace: "default"}}
	case 4, 5:
		for c := range v.DeadCalls("", "") {
			some = c
			break
		}
		return &clusterv1.RetryCall{Key: pbconv.CallKeyToProto(some.Key), ServerId: h.server(), Deadline: h.now + 20*second}
	case 6:
		return &clusterv1.PurgeCalls{Namespace: pick(h, []string{"other", "default"})}
	default:
		return &clusterv1.CollectGarbage{Before: h.now - 60*second}
	}
}
