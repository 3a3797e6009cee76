// QueueService in gRPC, as far as it is about calls: what people see of them, and do with them.

package gateway

import (
	"context"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

const (
	// deadCallsToken begins the page tokens of dead letters that are calls; session ids have no colon.
	deadCallsToken = "calls:"
	// minRetryTime is what a call that is retried has at least until its deadline; it has as long as the first time otherwise.
	minRetryTime = time.Minute
	// retryServerSilence is when another server than the one that had the call is to retry it.
	retryServerSilence = 3 * time.Second
	// minCallID is how much of an id names a call.
	minCallID = 3
)

// sees reports whether a call is among what somebody asks about: that of a namespace, empty for all. Who is bound to a namespace sees the calls of
// those who are bound to it, too; what others call for may be about any namespace.
func sees(who auth.Identity, ns string, c *queue.Call) bool {
	if who.Namespace != "" {
		return c.Caller.Namespace == who.Namespace
	}
	return ns == "" || c.Namespace() == ns
}

// reads reports whether somebody may read what was asked and answered: who called, and operators, who read the record, too.
func reads(who auth.Identity, c *queue.Call) bool {
	return who.Owner() == c.Owner || who.Role.Has(auth.Operate)
}

// callProto is a call as people see it; with its bytes where it is shown alone, to somebody who reads them.
func callProto(v *state.View, c *queue.Call, whole bool) *apiv1.Call {
	p := &apiv1.Call{
		Id: c.ID(), Owner: c.Owner, Session: c.Session, RequestId: c.RequestID, Namespace: c.Namespace(), Caller: c.Caller.Name, Tool: c.Tool,
		Priority: apiv1.Priority_Level(c.Priority), Status: apiv1.Call_Status(c.Status), Server: c.Server, Attempts: c.Attempt, OrderKey: c.OrderKey,
		Repeatable: c.Repeatable, Cancelling: c.Cancelling, CreateTime: pbconv.Time(c.CreateTime), BeginTime: pbconv.Time(c.BeginTime),
		EndTime: pbconv.Time(c.EndTime), Deadline: pbconv.Time(c.Deadline), NotBefore: pbconv.Time(c.NotBefore), LastError: c.LastError,
		ArgumentsBytes: c.Arguments.Size,
	}
	if whole {
		p.Arguments = c.Arguments.Inline
	}
	if o := c.Outcome; o != nil {
		p.Outcome = &apiv1.Call_Outcome{OutputsBytes: o.Outputs.Size, Cancelled: o.Cancelled, Code: o.Code, Message: o.Message, Field: o.Field}
		if o.RetryAfter > 0 {
			p.Outcome.RetryAfter = durationpb.New(o.RetryAfter)
		}
		if whole {
			p.Outcome.Outputs = o.Outputs.Inline
		}
		if cl := v.Client(c.Client()); cl != nil {
			p.Delivered = c.Order <= cl.Delivered
		}
	}
	return p
}

// countCalls adds calls to what is counted; ns is empty for all.
func (s *queueService) countCalls(v *state.View, ns string, out *apiv1.GetQueueStatsResponse) {
	out.Calls, out.CallsByPriority = map[string]uint64{}, map[string]uint64{}
	oldest := int64(0)
	live := func(c *queue.Call) {
		out.CallsByPriority[c.Priority.String()]++
		if oldest == 0 || c.CreateTime < oldest {
			oldest = c.CreateTime
		}
	}
	if ns == "" {
		counts := v.Stats().Calls
		for status := queue.Queued; status <= queue.Dead; status++ {
			if n := counts.Of(status); n > 0 {
				out.Calls[status.String()] = n
			}
		}
		for c := range v.CallsDue() {
			live(c)
		}
	} else {
		for c := range v.Calls(0) {
			if c.Namespace() != ns {
				continue
			}
			out.Calls[c.Status.String()]++
			if !c.Status.Over() {
				live(c)
			}
		}
	}
	if oldest != 0 {
		out.OldestCallSeconds = time.Duration(s.ops.Now().UnixNano() - oldest).Seconds()
	}
}

// ListCalls walks the calls that are kept, page by page.
func (s *queueService) ListCalls(ctx context.Context, req *apiv1.ListCallsRequest) (*apiv1.ListCallsResponse, error) {
	ns, err := scope(ctx, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	var after uint64
	if req.GetPageToken() != "" {
		if after, err = strconv.ParseUint(req.GetPageToken(), 10, 64); err != nil {
			return nil, fault.New(fault.Invalid, "page_token: is not one that a page gave").WithField("page_token")
		}
	}
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	out, size, last := &apiv1.ListCallsResponse{}, pageSize(req.GetPageSize()), uint64(0)
	for c := range v.Calls(after) {
		switch {
		case !sees(caller(ctx), ns, c), req.GetStatus() != 0 && apiv1.Call_Status(c.Status) != req.GetStatus(),
			req.GetServer() != "" && c.Server != req.GetServer(), req.GetTool() != "" && c.Tool != req.GetTool(),
			req.GetSession() != "" && c.Session != req.GetSession():
			continue
		}
		if len(out.Calls) == size {
			out.NextPageToken = strconv.FormatUint(last, 10)
			break
		}
		out.Calls, last = append(out.Calls, callProto(v, c, false)), c.Number
	}
	return out, nil
}

// call finds a call that the caller may see by the beginning of its id. It looks at every call: it is for people.
func (s *queueService) call(ctx context.Context, v *state.View, namespace, id string) (*queue.Call, error) {
	ns, err := scope(ctx, namespace)
	if err != nil {
		return nil, err
	}
	if len(id) < minCallID {
		return nil, fault.New(fault.Invalid, "call: give its id, or at least %d characters of it; `orchctl queue calls` shows them", minCallID).WithField("id")
	}
	var found *queue.Call
	for c := range v.Calls(0) {
		if !sees(caller(ctx), ns, c) || !strings.HasPrefix(c.ID(), id) {
			continue
		}
		if found != nil {
			return nil, fault.New(fault.Invalid, "call %q: several ids begin so, such as %s and %s; give more of it", clip(id), found.ID(), c.ID()).WithField("id")
		}
		found = c
	}
	if found == nil {
		return nil, fault.New(fault.NotFound, "call %q: there is none; results are kept for 10 minutes; see `orchctl queue calls`", clip(id))
	}
	return found, nil
}

// GetCall shows one call with its bytes.
func (s *queueService) GetCall(ctx context.Context, req *apiv1.GetCallRequest) (*apiv1.GetCallResponse, error) {
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	c, err := s.call(ctx, v, req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetCallResponse{Call: callProto(v, c, reads(caller(ctx), c))}, nil
}

// CancelCall answers with the call as it is then: one that runs ends when its server has noticed.
func (s *queueService) CancelCall(ctx context.Context, req *apiv1.CancelCallRequest) (*apiv1.CancelCallResponse, error) {
	c, err := s.call(ctx, s.ops.State.View(), req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	if _, err := s.ops.oneOnce(ctx, apiv1.QueueService_CancelCall_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_CancelCall{CancelCall: &clusterv1.CancelCall{
		Key: pbconv.CallKeyToProto(c.Key),
	}}}); err != nil {
		return nil, err
	}
	v := s.ops.State.View()
	if now := v.Call(c.Key); now != nil {
		c = now
	}
	return &apiv1.CancelCallResponse{Call: callProto(v, c, false)}, nil
}

// deadCalls adds a page of dead calls to an answer.
func (s *queueService) deadCalls(ctx context.Context, v *state.View, ns, token string, size int, out *apiv1.ListDeadLettersResponse) error {
	after, err := state.ParseDeadToken(token)
	if err != nil {
		return err
	}
	for c := range v.DeadCalls(ns, after) {
		if len(out.Calls) == size {
			out.NextPageToken = deadCallsToken + after.String()
			break
		}
		if sees(caller(ctx), ns, c) {
			out.Calls = append(out.Calls, callProto(v, c, false))
		}
		after = state.DeadTokenOf(c)
	}
	return nil
}

// deadCall is call for one that is dead.
func (s *queueService) deadCall(ctx context.Context, v *state.View, namespace, id string) (*queue.Call, error) {
	c, err := s.call(ctx, v, namespace, id)
	if err != nil {
		return nil, err
	}
	if c.Status != queue.Dead {
		return nil, fault.New(fault.FailedPrecondition, "call %s: is %s, and no dead letter", c.ID(), c.Status)
	}
	return c, nil
}

// retryCall has a dead call wait again, with as much time as it had.
func (s *queueService) retryCall(ctx context.Context, req *apiv1.RetryDeadLettersRequest) (*apiv1.RetryDeadLettersResponse, error) {
	c, err := s.call(ctx, s.ops.State.View(), req.GetNamespace(), req.GetCallId())
	if err != nil {
		return nil, err
	}
	deadline := s.ops.Now().Add(max(time.Duration(c.Deadline-c.CreateTime), minRetryTime))
	_, err = s.ops.oneOnce(ctx, apiv1.QueueService_RetryDeadLetters_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_RetryCall{RetryCall: &clusterv1.RetryCall{
		Key: pbconv.CallKeyToProto(c.Key), ServerId: s.retryServer(c.Server), Deadline: deadline.UnixNano(),
	}}})
	if err != nil {
		return nil, err
	}
	return &apiv1.RetryDeadLettersResponse{Retried: 1}, nil
}

// retryServer is the server that had a call, if it is there, else this one.
func (s *queueService) retryServer(had string) string {
	now := s.ops.Now()
	for _, p := range s.ops.Node.Presences() {
		if p.ID == had && !p.Left && now.Sub(p.Heard) < retryServerSilence {
			return had
		}
	}
	return s.ops.Node.ID()
}

// purgeCall forgets one dead call.
func (s *queueService) purgeCall(ctx context.Context, req *apiv1.PurgeDeadLettersRequest) (*apiv1.PurgeDeadLettersResponse, error) {
	method := apiv1.QueueService_PurgeDeadLetters_FullMethodName
	c, err := s.call(ctx, s.ops.State.View(), req.GetNamespace(), req.GetCallId())
	if fault.Is(err, fault.NotFound) && req.GetIdempotencyKey() != "" {
		// The first time may have purged it; then the key is known, and its repetition is answered by it.
		return s.purgedBefore(ctx, req, err)
	}
	if err != nil {
		return nil, err
	}
	res, err := s.ops.oneOnce(ctx, method, req, &clusterv1.Command{Kind: &clusterv1.Command_PurgeCalls{PurgeCalls: &clusterv1.PurgeCalls{Key: pbconv.CallKeyToProto(c.Key)}}})
	return &apiv1.PurgeDeadLettersResponse{Purged: res.Count}, err
}

// purgedBefore answers a purge of what is not there: as the first time, when there was one.
func (s *queueService) purgedBefore(ctx context.Context, req *apiv1.PurgeDeadLettersRequest, gone error) (*apiv1.PurgeDeadLettersResponse, error) {
	res, err := s.ops.oneOnce(ctx, apiv1.QueueService_PurgeDeadLetters_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_PurgeCalls{PurgeCalls: &clusterv1.PurgeCalls{Key: &clusterv1.CallKey{}}}})
	if fault.Is(err, fault.NotFound) {
		return nil, gone
	}
	return &apiv1.PurgeDeadLettersResponse{Purged: res.Count}, err
}

// purgeAll forgets the dead messages and the dead calls of a namespace, in one entry of the log.
func (s *queueService) purgeAll(ctx context.Context, req *apiv1.PurgeDeadLettersRequest, ns string) (*apiv1.PurgeDeadLettersResponse, error) {
	key, err := once(ctx, apiv1.QueueService_PurgeDeadLetters_FullMethodName, req)
	if err != nil {
		return nil, err
	}
	messages := &clusterv1.Command{Once: key, Kind: &clusterv1.Command_PurgeDeadLetters{PurgeDeadLetters: &clusterv1.PurgeDeadLetters{Namespace: ns}}}
	calls := &clusterv1.Command{Kind: &clusterv1.Command_PurgeCalls{PurgeCalls: &clusterv1.PurgeCalls{Namespace: ns}}}
	if key != nil {
		calls.Once = &clusterv1.Once{Scope: key.GetScope() + " calls", Key: key.GetKey(), RequestHash: key.GetRequestHash()}
	}
	results, err := s.ops.Node.Propose(ctx, messages, calls)
	out := &apiv1.PurgeDeadLettersResponse{}
	for i := range results {
		if err == nil {
			err = results[i].Err
		}
		out.Purged += results[i].Count
	}
	return out, err
}
