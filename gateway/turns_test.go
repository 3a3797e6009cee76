// The ends of turns, told on the stream on which their messages were sent.

package gateway

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// ended has a session's node end turns.
func (a *alone) ended(id string, sequences ...uint64) {
	a.t.Helper()
	var facts []*nodev1.Fact
	for _, seq := range sequences {
		facts = append(facts, &nodev1.Fact{SessionId: id, Epoch: 1, Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{
			Sequence: seq, Result: fmt.Appendf(nil, "result %d", seq),
		}}})
	}
	a.facts("node-1", facts...)
}

func TestTurnsAreToldOnTheirStream(t *testing.T) {
	a := startAlone(t)
	a.addNode("node-1")
	a.run("one", "node-1")
	stream, err := apiv1.NewSessionServiceClient(a.conn).SendMessages(a.as(a.admin))
	if err != nil {
		t.Fatal(err)
	}
	send := func(n int, wait func(int) bool, key string) (results []*apiv1.SendMessagesResponse_Result) {
		t.Helper()
		req := &apiv1.SendMessagesRequest{}
		for i := range n {
			req.Messages = append(req.Messages, &apiv1.SendMessageRequest{SessionId: "one", Text: []byte("x"), Wait: wait(i), IdempotencyKey: key})
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil || len(r.GetTurns()) != 0 || len(r.GetResults()) != n {
			t.Fatalf("the batch was answered with %v, %v", r, err)
		}
		return r.GetResults()
	}
	turns := func(n int) map[uint64]*apiv1.SendMessagesResponse_Turn {
		t.Helper()
		out := map[uint64]*apiv1.SendMessagesResponse_Turn{}
		for len(out) < n {
			r, err := stream.Recv()
			if err != nil || len(r.GetResults()) != 0 {
				t.Fatalf("turns: %v, %v", r, err)
			}
			for _, turn := range r.GetTurns() {
				if out[turn.GetNumber()] != nil {
					t.Errorf("turn %d was told twice", turn.GetNumber())
				}
				out[turn.GetNumber()] = turn
			}
		}
		return out
	}
	all := func(int) bool { return true }
	// Of four, the second and the fourth are awaited: by their places on the stream, not by their numbers in the mailbox.
	for i, r := range send(4, func(i int) bool { return i%2 == 1 }, "") {
		if r.GetAwaited() != (i%2 == 1) || r.GetSequence() != uint64(i+1) {
			t.Errorf("message %d: %v", i, r)
		}
	}
	send(1, all, "again") // place 4, sequence 5
	a.ended("one", 1, 2, 3, 4)
	for place, turn := range turns(2) {
		if m := turn.GetMessage(); turn.GetCode() != 0 || m.GetSequence() != place+1 || place%2 != 1 || string(m.GetResult()) != fmt.Sprintf("result %d", place+1) {
			t.Errorf("turn %d: %v", place, turn)
		}
	}
	// The same message once more, while it is awaited; then once it has ended, which no change tells any more.
	if r := send(1, all, "again"); r[0].GetSequence() != 5 { // place 5
		t.Errorf("sent again: %v", r)
	}
	a.ended("one", 5)
	if got := turns(2); got[4].GetMessage().GetSequence() != 5 || got[5].GetMessage().GetSequence() != 5 {
		t.Errorf("a message that was sent twice: %v", got)
	}
	send(1, all, "again") // place 6
	if got := turns(1); string(got[6].GetMessage().GetResult()) != "result 5" {
		t.Errorf("a message that had ended: %v", got)
	}
	// A dead letter is told with its cause.
	send(1, all, "") // place 7, sequence 6
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_BuryMessages{BuryMessages: &clusterv1.BuryMessages{SessionId: "one", Sequences: []uint64{6}, Cause: "was too late"}}})
	if got := turns(1)[7]; codes.Code(got.GetCode()) != codes.FailedPrecondition || got.GetMessage().GetStatus() != apiv1.Message_DEAD || got.GetMessage().GetCause() != "was too late" {
		t.Errorf("a dead letter: %v", got)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}
