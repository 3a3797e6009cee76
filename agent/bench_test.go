// What the agent itself costs: from an order on the link to the fact about it, without a process.

package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/neolith/orchestrator/agent/driver"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

// benchNode runs an agent on real time and hands each frame it sends to got.
func benchNode(b *testing.B, got func(*nodev1.Frame)) (send func(*nodev1.Frame)) {
	b.Helper()
	node, server := nodelink.Pipe()
	a, err := New(Options{DataDir: b.TempDir(), Name: "bench", Servers: []string{"s:1"}, Lease: &memLease{},
		Dial:    func(context.Context, string) (nodelink.Conn, error) { return node, nil },
		Drivers: map[string]driver.Driver{session.TypeProcess: newWorld(b)}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- a.Run(ctx) }()
	go func() {
		for beats := 0; ; {
			f, err := server.Recv(context.Background())
			if err != nil {
				return
			}
			switch p := f.GetPayload().(type) {
			case *nodev1.Frame_Hello:
				_ = server.Send(&nodev1.Frame{Payload: &nodev1.Frame_HelloAck{HelloAck: &nodev1.HelloAck{Protocol: 1, ClusterId: "c",
					Lease: durationpb.New(time.Minute), RenewInterval: durationpb.New(100 * time.Millisecond)}}})
			case *nodev1.Frame_Heartbeat:
				_ = server.Send(&nodev1.Frame{Payload: &nodev1.Frame_HeartbeatAck{HeartbeatAck: &nodev1.HeartbeatAck{
					SentAt: p.Heartbeat.GetSentAt(), Lease: durationpb.New(time.Minute)}}})
				if beats++; beats == 2 {
					close(ready) // the lease of the first one holds
				}
			case *nodev1.Frame_Facts:
				last := p.Facts.GetFacts()[len(p.Facts.GetFacts())-1]
				_ = server.Send(&nodev1.Frame{Payload: &nodev1.Frame_FactsAck{FactsAck: &nodev1.FactsAck{Incarnation: 1, Index: last.GetIndex()}}})
				got(f)
			}
		}
	}()
	<-ready
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return func(f *nodev1.Frame) { _ = server.Send(f) }
}

// BenchmarkSpawn: one order at a time.
func BenchmarkSpawn(b *testing.B) {
	started := make(chan struct{}, 1)
	send := benchNode(b, func(*nodev1.Frame) { started <- struct{}{} })
	b.ResetTimer()
	for i := range b.N {
		send(&nodev1.Frame{Index: uint64(i + 1), Payload: &nodev1.Frame_Desired{Desired: &nodev1.Desired{Sessions: []*nodev1.DesiredSession{toRun(fmt.Sprint("s", i), 1)}}}})
		<-started
	}
}

// BenchmarkTurns: messages through one session, 64 under way.
func BenchmarkTurns(b *testing.B) {
	ended := make(chan int, 1024)
	send := benchNode(b, func(f *nodev1.Frame) {
		n := 0
		for _, fact := range f.GetFacts().GetFacts() {
			if fact.GetTurnEnded() != nil {
				n++
			}
		}
		ended <- n
	})
	send(&nodev1.Frame{Index: 1, Payload: &nodev1.Frame_Desired{Desired: &nodev1.Desired{Sessions: []*nodev1.DesiredSession{toRun("s", 1)}}}})
	<-ended
	b.ResetTimer()
	for sent, done := 0, 0; done < b.N; {
		for ; sent < b.N && sent < done+64; sent++ {
			send(&nodev1.Frame{Payload: &nodev1.Frame_Deliver{Deliver: &nodev1.Deliver{Sessions: []*nodev1.SessionMessages{
				{SessionId: "s", Epoch: 1, Messages: []*apiv1.Message{msg(uint64(sent+1), normal)}}}}}})
		}
		done += <-ended
	}
}
