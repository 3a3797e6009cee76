// Sessions through the API: how one is found, and streams of messages.
package gateway

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// spawn makes a session with an id of the test's choice; no node is there, so it waits.
func (a *alone) spawn(id, namespace, name string) {
	a.t.Helper()
	spec := &session.Spec{Namespace: namespace, Name: name, Command: []string{"cat"}}
	spec.Normalize()
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{SessionId: id, Spec: pbconv.SpecToProto(spec)}}})
}

func TestResolve(t *testing.T) {
	a := startAlone(t)
	a.spawn("aaaa1", "", "ledger")
	a.spawn("aaab2", "", "aaaa")
	a.spawn("bbbb3", "films", "ledger")
	a.spawn("cccc4", "", "was")
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_TerminateSession{TerminateSession: &clusterv1.TerminateSession{SessionId: "cccc4", Grace: -1}}})
	films := a.token(auth.Client, "films")
	c := apiv1.NewSessionServiceClient(a.conn)
	for _, tc := range []struct {
		token, namespace, ref, want string
		code                        codes.Code
	}{
		{a.admin, "", "aaaa1", "aaaa1", codes.OK},
		{a.admin, "", "ledger", "aaaa1", codes.OK},
		{a.admin, "films", "ledger", "bbbb3", codes.OK},
		{a.admin, "", "aaab", "aaab2", codes.OK},
		{a.admin, "", "aaaa", "aaab2", codes.OK}, // a name goes before the beginning of an id
		{a.admin, "", "aaa", "", codes.InvalidArgument},
		{a.admin, "", "bbb", "bbbb3", codes.OK}, // an id is one in all namespaces
		{a.admin, "default", "bbb", "", codes.NotFound},
		{a.admin, "default", "bbbb3", "", codes.NotFound},
		{a.admin, "", "was", "cccc4", codes.OK}, // it has ended
		{a.admin, "films", "was", "", codes.NotFound},
		{a.admin, "", "nobody", "", codes.NotFound},
		{a.admin, "", "", "", codes.InvalidArgument},
		{films, "", "ledger", "bbbb3", codes.OK},
		{films, "", "bbbb3", "bbbb3", codes.OK},
		{films, "", "aaaa1", "", codes.NotFound},
		{films, "", "aaa", "", codes.NotFound},
		{films, "", "was", "", codes.NotFound},
		{films, "default", "ledger", "", codes.PermissionDenied},
	} {
		r, err := c.GetSession(a.as(tc.token), &apiv1.GetSessionRequest{Namespace: tc.namespace, Id: tc.ref})
		if status.Code(err) != tc.code || r.GetSession().GetId() != tc.want {
			t.Errorf("%q in %q: %q %v, want %q %s", tc.ref, tc.namespace, r.GetSession().GetId(), err, tc.want, tc.code)
		}
	}
	a.spawn("dddd5", "", "was") // who has the name now goes before who had it
	if r, err := c.GetSession(a.as(a.admin), &apiv1.GetSessionRequest{Id: "was"}); err != nil || r.GetSession().GetId() != "dddd5" {
		t.Errorf("a name taken again: %v %v", r.GetSession().GetId(), err)
	}
}

// TestSendMessagesKeepsOrder: answers come in the order of the batches, each message has its own, and what was refused
// took no sequence.
func TestSendMessagesKeepsOrder(t *testing.T) {
	a := startAlone(t)
	a.spawn("aaaa1", "", "one")
	s, err := apiv1.NewSessionServiceClient(a.conn).SendMessages(a.as(a.admin))
	if err != nil {
		t.Fatal(err)
	}
	const batches = 3 * pipelinedBatches
	bad := []*apiv1.SendMessageRequest{
		{SessionId: "nobody", Text: []byte("x")},
		{SessionId: "one", Text: []byte("two\nlines")},
		{SessionId: "one", Text: []byte("x"), IdempotencyKey: strings.Repeat("k", session.MaxKeyBytes+1)},
		{SessionId: "one", Text: []byte("x"), Namespace: "elsewhere"},
	}
	refused := []codes.Code{codes.NotFound, codes.InvalidArgument, codes.InvalidArgument, codes.NotFound}
	isBad := func(b, i int) bool { return i == b%4 || b%5 == 4 } // of every fifth batch nothing is accepted
	sent := make(chan error, 1)
	go func() {
		for b := range batches {
			req := &apiv1.SendMessagesRequest{}
			for i := range bad {
				m := &apiv1.SendMessageRequest{SessionId: "one", Text: fmt.Appendf(nil, "%d-%d", b, i)}
				if isBad(b, i) {
					m = bad[i]
				}
				req.Messages = append(req.Messages, m)
			}
			if err := s.Send(req); err != nil {
				sent <- err
				return
			}
		}
		sent <- s.CloseSend()
	}()
	var want, texts []string
	for b := range batches {
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for i, got := range r.GetResults() {
			if isBad(b, i) {
				if codes.Code(got.GetCode()) != refused[i] || got.GetSequence() != 0 || got.GetError() == "" {
					t.Errorf("batch %d message %d: %v, want a refusal %s", b, i, got, refused[i])
				}
				continue
			}
			want = append(want, fmt.Sprintf("%d-%d", b, i))
			if got.GetCode() != 0 || got.GetSequence() != uint64(len(want)) {
				t.Fatalf("batch %d message %d: %v, want sequence %d", b, i, got, len(want))
			}
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	for m := range a.ops.State.View().Messages("aaaa1") {
		texts = append(texts, string(m.Text))
	}
	if accepted := (batches - batches/5) * 3; !slices.Equal(texts, want) || len(want) != accepted {
		t.Errorf("the mailbox holds %d messages, want these %d, of which there should be %d: %q", len(texts), len(want), accepted, texts)
	}
}

func TestAnEmptyBatchIsRefused(t *testing.T) {
	a := startAlone(t)
	s, err := apiv1.NewSessionServiceClient(a.conn).SendMessages(a.as(a.admin))
	if err == nil {
		_ = s.Send(&apiv1.SendMessagesRequest{}) // Recv tells
		_, err = s.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}
