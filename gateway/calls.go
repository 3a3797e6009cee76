// Calls of clients, committed: what servers have to say about them, all of one request in one entry of the log.

package gateway

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
	"github.com/neolith/orchestrator/internal/pbconv"
)

// The bounds of one request.
const (
	maxCommitCommands = 1024
	maxAnswerBytes    = MaxMessageBytes * 3 / 4
	// notLeadingRetry is when to ask whoever leads by then.
	notLeadingRetry = 100 * time.Millisecond
)

// aboutCalls reports whether a server may have a command committed as what it has to say about calls, or about a turn of a
// conversation. What the leader decides by
// itself, and what people do, is not among them.
func aboutCalls(c *clusterv1.Command) bool {
	switch c.GetKind().(type) {
	case *clusterv1.Command_SubmitCall, *clusterv1.Command_BeginCall, *clusterv1.Command_DeferCall, *clusterv1.Command_EndCall,
		*clusterv1.Command_CancelCall, *clusterv1.Command_AssignCalls, *clusterv1.Command_TakeDelivery, *clusterv1.Command_OpenClient,
		*clusterv1.Command_RekeyClient, *clusterv1.Command_KeepTurn:
		return c.GetOnce() == nil
	default:
		return false
	}
}

// CommitCalls commits commands about calls, where this server leads. Each may be sent again by a server that does not know its
// outcome. A refusal of one is told in its place and does not keep the others from having their effect.
func (o *Operations) CommitCalls(ctx context.Context, commands []*clusterv1.Command) ([]state.Result, error) {
	if len(commands) > maxCommitCommands {
		return nil, fault.New(fault.Invalid, "commit calls: %d commands, more than %d", len(commands), maxCommitCommands)
	}
	for i, c := range commands {
		if !aboutCalls(c) {
			return nil, fault.New(fault.Invalid, "commit calls: command %d is none that servers may send", i)
		}
	}
	if len(commands) == 0 {
		return nil, nil
	}
	if l, _ := o.Node.Leader(); !l.Self || !l.Ready {
		return nil, fault.New(fault.Unavailable, "commit calls: this server does not lead").WithRetry(notLeadingRetry)
	}
	return o.Node.Propose(ctx, commands...)
}

// CommitCalls is for servers only: the table of methods says so.
func (s *relayService) CommitCalls(ctx context.Context, req *clusterv1.CommitCallsRequest) (*clusterv1.CommitCallsResponse, error) {
	results, err := s.ops.CommitCalls(ctx, req.GetCommands())
	if err != nil {
		return nil, err
	}
	out := &clusterv1.CommitCallsResponse{Calls: make([]*clusterv1.CommittedCall, len(results))}
	index := s.ops.State.Index()
	for i := range results {
		out.Calls[i] = committed(&results[i], index)
	}
	fitAnswer(out)
	return out, nil
}

// committed is one command's part of the answer. The state had applied the entry by the index.
func committed(r *state.Result, index uint64) *clusterv1.CommittedCall {
	c := &clusterv1.CommittedCall{Call: pbconv.CallToRow(r.Call), Known: r.Duplicate, Index: index}
	switch {
	case r.Call != nil:
		c.Index = r.Call.ModifyIndex
	case r.Conversation != nil:
		c.Index = r.Conversation.Version
	}
	if r.Err != nil {
		c.Code, c.Message = uint32(faultcode.Of(fault.KindOf(r.Err))), r.Err.Error()
		if f := fault.As(r.Err); f != nil {
			c.RetryAfterMs = f.RetryAfter.Milliseconds()
		}
	}
	return c
}

// fitAnswer leaves out bytes that the asking server's own state has, the arguments first, once the answer is too large.
func fitAnswer(a *clusterv1.CommitCallsResponse) {
	for _, of := range []func(*clusterv1.CallRow) *clusterv1.Blob{
		(*clusterv1.CallRow).GetArguments,
		func(r *clusterv1.CallRow) *clusterv1.Blob { return r.GetOutcome().GetOutputs() },
	} {
		if proto.Size(a) <= maxAnswerBytes {
			return
		}
		for _, c := range a.GetCalls() {
			if b := of(c.GetCall()); b != nil {
				b.Inline, b.Chunks = nil, nil
			}
		}
	}
}
