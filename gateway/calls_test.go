// What servers say about calls is committed in one entry, by the leader, for servers alone.

package gateway

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// submission is a call of a client's.
func submission(request string, arguments int) *clusterv1.SubmitCall {
	return &clusterv1.SubmitCall{
		Key: &clusterv1.CallKey{Owner: "token 1", Session: "ann", RequestId: request}, Caller: &clusterv1.Caller{TokenId: "1", Role: "client", Namespace: "default"},
		Tool: "session_send", Arguments: pbconv.BlobToProto(queue.Blob{Inline: bytes.Repeat([]byte{'x'}, arguments), Size: uint64(arguments)}),
		Priority: apiv1.Priority_NORMAL, RequestHash: 7, Deadline: time.Now().Add(time.Hour).UnixNano(), ServerId: "s1", Repeatable: true, Begin: true,
	}
}

func submitCommand(c *clusterv1.SubmitCall) *clusterv1.Command {
	return &clusterv1.Command{Kind: &clusterv1.Command_SubmitCall{SubmitCall: c}}
}

func endCommand(request string) *clusterv1.Command {
	return &clusterv1.Command{Kind: &clusterv1.Command_EndCall{EndCall: &clusterv1.EndCall{
		Key: &clusterv1.CallKey{Owner: "token 1", Session: "ann", RequestId: request}, ServerId: "s1", Attempt: 1,
		Outcome: &clusterv1.Outcome{Outputs: &clusterv1.Blob{Inline: []byte("done"), SizeBytes: 4}},
	}}}
}

func TestServersCommitCalls(t *testing.T) {
	a := startAlone(t)
	relay := clusterv1.NewRelayServiceClient(a.conn)
	peer := metadata.AppendToOutgoingContext(a.as(""), peerKey, "secret")
	before := a.ops.Node.AppliedIndex()
	request := &clusterv1.CommitCallsRequest{Commands: []*clusterv1.Command{
		submitCommand(submission("a", 2)), endCommand("a"), endCommand("none"), submitCommand(submission("b", 2)),
		{Kind: &clusterv1.Command_TakeDelivery{TakeDelivery: &clusterv1.TakeDelivery{Owner: "token 1", Session: "ann", Order: 1}}},
	}}
	for _, again := range []bool{false, true} {
		r, err := relay.CommitCalls(peer, request)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range r.GetCalls() {
			got = append(got, fmt.Sprint(queue.Status(c.GetCall().GetStatus()), c.GetKnown(), codes.Code(c.GetCode())))
			if c.GetIndex() <= before || c.GetIndex() > a.ops.Node.AppliedIndex() {
				t.Errorf("index %d, behind %d", c.GetIndex(), before)
			}
		}
		want := []string{"RUNNING false OK", "ENDED false OK", "STATUS(0) false NotFound", "RUNNING false OK", "STATUS(0) false OK"}
		if again {
			want = []string{"ENDED true OK", "ENDED true OK", "STATUS(0) false NotFound", "RUNNING true OK", "STATUS(0) true OK"}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	// A batch is one entry: the first's two changes of one call came at one index.
	v := a.ops.State.View()
	one, two := v.Call(queue.Key{Owner: "token 1", Session: "ann", RequestID: "a"}), v.Call(queue.Key{Owner: "token 1", Session: "ann", RequestID: "b"})
	if one.ModifyIndex != two.ModifyIndex || v.Client(one.Client()).Delivered != 1 {
		t.Errorf("the commands came in several entries: %d and %d", one.ModifyIndex, two.ModifyIndex)
	}
}

func TestOnlyServersCommitCallsAndNothingElse(t *testing.T) {
	a := startAlone(t)
	relay := clusterv1.NewRelayServiceClient(a.conn)
	request := &clusterv1.CommitCallsRequest{Commands: []*clusterv1.Command{submitCommand(submission("a", 2))}}
	for _, role := range []auth.Role{auth.Admin, auth.Operator, auth.Client, auth.Node} {
		if _, err := relay.CommitCalls(a.as(a.token(role, "")), request); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", role, err)
		}
	}
	peer := metadata.AppendToOutgoingContext(a.as(""), peerKey, "secret")
	index := a.ops.State.Index()
	for name, c := range map[string]*clusterv1.Command{
		"a token":      {Kind: &clusterv1.Command_CreateToken{CreateToken: &clusterv1.CreateToken{Id: "t"}}},
		"a session":    {Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{SessionId: "s"}}},
		"a retry":      {Kind: &clusterv1.Command_RetryCall{RetryCall: &clusterv1.RetryCall{}}},
		"a deletion":   {Kind: &clusterv1.Command_DropConversation{DropConversation: &clusterv1.DropConversation{}}},
		"a purge":      {Kind: &clusterv1.Command_PurgeCalls{PurgeCalls: &clusterv1.PurgeCalls{}}},
		"expiry":       {Kind: &clusterv1.Command_ExpireCalls{ExpireCalls: &clusterv1.ExpireCalls{}}},
		"nothing":      {},
		"one with key": {Kind: submitCommand(submission("a", 2)).Kind, Once: &clusterv1.Once{Scope: "s", Key: "k"}},
	} {
		r := &clusterv1.CommitCallsRequest{Commands: []*clusterv1.Command{submitCommand(submission("b", 2)), c}}
		if _, err := relay.CommitCalls(peer, r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	many := &clusterv1.CommitCallsRequest{Commands: make([]*clusterv1.Command, maxCommitCommands+1)}
	for i := range many.Commands {
		many.Commands[i] = endCommand("a")
	}
	if _, err := relay.CommitCalls(peer, many); status.Code(err) != codes.InvalidArgument {
		t.Errorf("too many: %v", err)
	}
	if a.ops.State.Index() != index {
		t.Error("what was refused was committed")
	}
}

func TestOnlyTheLeaderCommitsCalls(t *testing.T) {
	servers := startServers(t, 3)
	for i, a := range servers {
		peer := metadata.AppendToOutgoingContext(a.as(""), peerKey, "secret")
		_, err := clusterv1.NewRelayServiceClient(a.conn).CommitCalls(peer, &clusterv1.CommitCallsRequest{Commands: []*clusterv1.Command{submitCommand(submission("a", 2))}})
		if want := i == 0; (err == nil) != want || !want && status.Code(err) != codes.Unavailable {
			t.Errorf("server %d: %v", i, err)
		}
	}
}

// TestAnAnswerFits: many calls with large arguments begin at once; whatever is left out is told by its size.
func TestAnAnswerFits(t *testing.T) {
	a := startAlone(t)
	relay := clusterv1.NewRelayServiceClient(a.conn)
	peer := metadata.AppendToOutgoingContext(a.as(""), peerKey, "secret")
	begin := &clusterv1.CommitCallsRequest{}
	const calls = 2 * MaxMessageBytes / queue.InlineBytes
	for i := range calls {
		c := submission(fmt.Sprint(i), queue.InlineBytes)
		c.Begin = false
		a.do(submitCommand(c))
		begin.Commands = append(begin.Commands, &clusterv1.Command{Kind: &clusterv1.Command_BeginCall{BeginCall: &clusterv1.BeginCall{Key: c.GetKey(), ServerId: "s1"}}})
	}
	r, err := relay.CommitCalls(peer, begin)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetCalls()) != calls || proto.Size(r) > maxAnswerBytes {
		t.Errorf("%d calls in %d bytes", len(r.GetCalls()), proto.Size(r))
	}
	for _, c := range r.GetCalls() {
		if row := c.GetCall(); row.GetAttempt() != 1 || row.GetArguments().GetSizeBytes() != queue.InlineBytes {
			t.Fatalf("%v", row)
		}
	}
	begin.Commands = begin.Commands[:3]
	if r, err = relay.CommitCalls(peer, begin); err != nil || len(r.GetCalls()[0].GetCall().GetArguments().GetInline()) != queue.InlineBytes {
		t.Errorf("a small answer lacks arguments, or %v", err)
	}
}
