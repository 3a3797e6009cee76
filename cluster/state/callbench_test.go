// What calls cost: their two or three commands, and what one weighs whose result is kept.
//
//	go test -run '^$' -bench Call ./cluster/state

package state

import (
	"fmt"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// callBatches are the entries of so many calls of so many clients: taken and begun, ended, and their results given.
func callBatches(first, count, clients int, now int64) []*clusterv1.Batch {
	submit, end, give := &clusterv1.Batch{Time: now}, &clusterv1.Batch{Time: now}, &clusterv1.Batch{Time: now}
	for n := first; n < first+count; n++ {
		key := &clusterv1.CallKey{Owner: "token 4f2a9c", Session: fmt.Sprintf("client-session-%d", n%clients), RequestId: fmt.Sprintf("request-%09d", n)}
		submit.Commands = append(submit.Commands, cmd(&clusterv1.SubmitCall{
			Key: key, Caller: &clusterv1.Caller{TokenId: "4f2a9c", Name: "ci", Role: "client", Namespace: "default"}, Tool: "session_send",
			Arguments: inline(`{"id":"ledger-17","message":"add 20 to the account of the one who asked"}`), Priority: apiv1.Priority_NORMAL, RequestHash: uint64(n),
			Deadline: now + 300*second, ServerId: fmt.Sprint("server-", n%3), Repeatable: true, Begin: true,
		}))
		end.Commands = append(end.Commands, cmd(&clusterv1.EndCall{
			Key: key, ServerId: fmt.Sprint("server-", n%3), Attempt: 1, Outcome: &clusterv1.Outcome{Outputs: inline(`[{"type":"text","text":"{\"sequence\":17}"}]`)},
		}))
		if n >= first+count-clients {
			give.Commands = append(give.Commands, cmd(&clusterv1.TakeDelivery{Owner: key.GetOwner(), Session: key.GetSession(), Order: uint64(n/clients + 1)}))
		}
	}
	return []*clusterv1.Batch{submit, end, give}
}

// BenchmarkCalls64 is the whole life of 64 calls of 16 clients, while 50,000 others are kept.
func BenchmarkCalls64(b *testing.B) {
	limits := DefaultLimits()
	limits.KeptCalls, limits.CallsPerClient = 50_000, 1<<30
	s := New(limits)
	at, index := 0, uint64(0)
	round := func(count, clients int) {
		for _, batch := range callBatches(at, count, clients, 1e18+int64(index)) {
			index++
			check(b, s.Apply(index, batch))
		}
		at += count
	}
	for at < 50_000 {
		round(64, 16)
	}
	b.ReportAllocs()
	for b.Loop() {
		round(64, 16)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/call")
}

// BenchmarkKeptCalls tells what a call weighs whose result is kept.
func BenchmarkKeptCalls(b *testing.B) {
	for b.Loop() {
		before := heap()
		s := New(DefaultLimits())
		const calls = 100_000
		index := uint64(0)
		for at := 0; at < calls; at += 1000 {
			for _, batch := range callBatches(at, 1000, 200, 1e18) {
				index++
				check(b, s.Apply(index, batch))
			}
		}
		b.ReportMetric(float64(heap()-before)/calls, "bytes/call")
		if n := s.View().Stats().Calls.Total(); n != calls {
			b.Fatal(n)
		}
	}
}
