// A record of a few interactions, of each kind one.

package clienttest

import (
	"context"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

type record struct {
	apiv1.UnimplementedRecorderServiceServer
	c *Cluster
}

// Record adds an interaction to those that are there from the beginning.
func (c *Cluster) Record(i *apiv1.Interaction) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recorded = append(c.recorded, i)
}

// all are all interactions, oldest first.
func (r record) all() []*apiv1.Interaction {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	all := append(interactions(), r.c.recorded...)
	slices.SortStableFunc(all, func(a, b *apiv1.Interaction) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) })
	return all
}

// interactions are oldest first.
func interactions() []*apiv1.Interaction {
	at := func(ms int) *timestamppb.Timestamp {
		return timestamppb.New(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(ms) * time.Millisecond))
	}
	const ledger = "ledgeraaaaaaaaaaaaaa"
	return []*apiv1.Interaction{
		{Id: ledger + "/e7.x", Time: at(0), Kind: apiv1.Interaction_SESSION_EVENT, Status: apiv1.Interaction_OK, Namespace: "default", SessionId: ledger, Epoch: 1,
			Tool: "session.running", Response: "runs on node-1", ResponseBytes: 14},
		{Id: "01990000-0001", Time: at(100), Kind: apiv1.Interaction_TOOL_CALL, Status: apiv1.Interaction_OK, Namespace: "default", SessionId: ledger, Caller: "client:ci",
			ClientSessionId: "web-1", RequestId: "r-1", Tool: "session_send", TookMs: 41.5, Request: `{"id":"ledger","message":"add 5, password=[REDACTED]"}`, RequestBytes: 52,
			Response: `{"sequence":"1"}`, ResponseBytes: 16, Redactions: 1},
		{Id: ledger + "/m1.x", Time: at(105), Kind: apiv1.Interaction_MESSAGE, Status: apiv1.Interaction_OK, Namespace: "default", SessionId: ledger, RequestId: "1",
			Request: "add 5, password=[REDACTED]", RequestBytes: 25, Redactions: 1},
		{Id: ledger + "/a1.x", Time: at(140), Kind: apiv1.Interaction_ANSWER, Status: apiv1.Interaction_OK, Namespace: "default", SessionId: ledger, RequestId: "1",
			Response: "the sum is 5\nand that is\nall that there is to say about it, for as long as nobody adds more", ResponseBytes: 91},
		{Id: "01990000-0002", Time: at(900), Kind: apiv1.Interaction_MODEL_CALL, Status: apiv1.Interaction_FAILED, Namespace: "team", Caller: "client:ci", ClientSessionId: "web-1",
			RequestId: "r-2", Provider: "moonshot", Model: "kimi", TookMs: 1200, InputTokens: 12, CostUsd: 0.0123, ErrorCode: "exhausted", Error: "moonshot: 429", Request: "user: hello\n", RequestBytes: 12},
	}
}

func fits(i *apiv1.Interaction, q *apiv1.InteractionQuery) bool {
	for _, f := range []struct{ want, got string }{
		{q.GetNamespace(), i.GetNamespace()}, {q.GetSession(), i.GetSessionId()}, {q.GetTool(), i.GetTool()}, {q.GetCaller(), i.GetCaller()},
		{q.GetRequestId(), i.GetRequestId()}, {q.GetClientSessionId(), i.GetClientSessionId()}, {q.GetProvider(), i.GetProvider()}, {q.GetModel(), i.GetModel()},
	} {
		if f.want != "" && f.want != f.got {
			return false
		}
	}
	at := i.GetTime().AsTime()
	return (q.GetKind() == 0 || q.GetKind() == i.GetKind()) && (q.GetStatus() == 0 || q.GetStatus() == i.GetStatus()) &&
		(q.GetSince() == nil || !at.Before(q.GetSince().AsTime())) && (q.GetUntil() == nil || at.Before(q.GetUntil().AsTime()))
}

// ListInteractions gives the latest first. A page's token says how many were before it.
func (r record) ListInteractions(_ context.Context, req *apiv1.ListInteractionsRequest) (*apiv1.ListInteractionsResponse, error) {
	var found []*apiv1.Interaction
	for _, i := range slices.Backward(r.all()) {
		if fits(i, req.GetQuery()) {
			found = append(found, i)
		}
	}
	from, _ := strconv.Atoi(req.GetPageToken()) // 0 for the first page
	to := min(from+int(req.GetPageSize()), len(found))
	out := &apiv1.ListInteractionsResponse{Interactions: found[min(from, to):to], Missing: map[string]string{"server-3": "connection refused"}}
	if to < len(found) {
		out.NextPageToken = strconv.Itoa(to)
	}
	return out, nil
}

func (r record) ExportInteractions(req *apiv1.ExportInteractionsRequest, stream grpc.ServerStreamingServer[apiv1.ExportInteractionsResponse]) error {
	for _, i := range r.all() { // one at a time
		if !fits(i, req.GetQuery()) {
			continue
		}
		if err := stream.Send(&apiv1.ExportInteractionsResponse{Interactions: []*apiv1.Interaction{i}}); err != nil {
			return err
		}
	}
	return nil
}
