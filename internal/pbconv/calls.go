// Calls of tools as messages of the log, of snapshots and between servers.

package pbconv

import (
	"fmt"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

// CallKeyToProto returns the key.
func CallKeyToProto(k queue.Key) *clusterv1.CallKey {
	return &clusterv1.CallKey{Owner: k.Owner, Session: k.Session, RequestId: k.RequestID}
}

// CallKeyFromProto is the inverse of CallKeyToProto.
func CallKeyFromProto(p *clusterv1.CallKey) queue.Key {
	return queue.Key{Owner: p.GetOwner(), Session: p.GetSession(), RequestID: p.GetRequestId()}
}

// CallerToProto returns the caller; the zero one gives nil.
func CallerToProto(c queue.Caller) *clusterv1.Caller {
	if c == (queue.Caller{}) {
		return nil
	}
	return &clusterv1.Caller{TokenId: c.TokenID, Name: c.Name, Role: c.Role, Namespace: c.Namespace}
}

// CallerFromProto is the inverse of CallerToProto.
func CallerFromProto(p *clusterv1.Caller) queue.Caller {
	return queue.Caller{TokenID: p.GetTokenId(), Name: p.GetName(), Role: p.GetRole(), Namespace: p.GetNamespace()}
}

// BlobToProto returns the bytes, which the message shares; none give nil.
func BlobToProto(b queue.Blob) *clusterv1.Blob {
	if b.Size == 0 && len(b.Inline) == 0 && len(b.Chunks) == 0 {
		return nil
	}
	p := &clusterv1.Blob{Inline: b.Inline, SizeBytes: b.Size}
	for i := range b.Chunks {
		p.Chunks = append(p.Chunks, b.Chunks[i][:])
	}
	return p
}

// BlobFromProto is the inverse of BlobToProto; hashes that are none are refused.
func BlobFromProto(p *clusterv1.Blob) (queue.Blob, error) {
	b := queue.Blob{Inline: p.GetInline(), Size: p.GetSizeBytes()}
	if len(b.Inline) == 0 {
		b.Inline = nil
	}
	if n := len(p.GetChunks()); n > 0 {
		b.Chunks = make([][32]byte, n)
		for i, h := range p.GetChunks() {
			if len(h) != len(b.Chunks[i]) {
				return queue.Blob{}, fmt.Errorf("chunk %d is named by %d bytes, not %d", i, len(h), len(b.Chunks[i]))
			}
			b.Chunks[i] = [32]byte(h)
		}
	}
	return b, nil
}

// OutcomeToProto returns the outcome; nil gives nil.
func OutcomeToProto(o *queue.Outcome) *clusterv1.Outcome {
	if o == nil {
		return nil
	}
	return &clusterv1.Outcome{
		Outputs: BlobToProto(o.Outputs), Cancelled: o.Cancelled, Code: o.Code, Message: o.Message,
		RetryAfterMs: o.RetryAfter.Milliseconds(), Field: o.Field, Passing: o.Passing,
	}
}

// OutcomeFromProto is the inverse of OutcomeToProto.
func OutcomeFromProto(p *clusterv1.Outcome) (*queue.Outcome, error) {
	if p == nil {
		return nil, nil
	}
	outputs, err := BlobFromProto(p.GetOutputs())
	if err != nil {
		return nil, fmt.Errorf("outputs: %w", err)
	}
	return &queue.Outcome{
		Outputs: outputs, Cancelled: p.GetCancelled(), Code: p.GetCode(), Message: p.GetMessage(),
		RetryAfter: time.Duration(p.GetRetryAfterMs()) * time.Millisecond, Field: p.GetField(), Passing: p.GetPassing(),
	}, nil
}

// CallToRow returns the call; nil gives nil.
func CallToRow(c *queue.Call) *clusterv1.CallRow {
	if c == nil {
		return nil
	}
	return &clusterv1.CallRow{
		Key: CallKeyToProto(c.Key), Caller: CallerToProto(c.Caller), Tool: c.Tool, Arguments: BlobToProto(c.Arguments), Priority: uint32(c.Priority),
		RequestHash: c.RequestHash, Deadline: c.Deadline, ServerId: c.Server, OrderKey: c.OrderKey, Repeatable: c.Repeatable,
		Status: uint32(c.Status), Attempt: c.Attempt, NotBefore: c.NotBefore, Cancelling: c.Cancelling, CreateTime: c.CreateTime,
		BeginTime: c.BeginTime, EndTime: c.EndTime, Outcome: OutcomeToProto(c.Outcome), Order: c.Order, LastError: c.LastError,
		Number: c.Number, ModifyIndex: c.ModifyIndex,
	}
}

// CallFromRow is the inverse of CallToRow; a row that is none is refused.
func CallFromRow(r *clusterv1.CallRow) (*queue.Call, error) {
	if r == nil {
		return nil, nil
	}
	arguments, err := BlobFromProto(r.GetArguments())
	if err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	outcome, err := OutcomeFromProto(r.GetOutcome())
	if err != nil {
		return nil, err
	}
	status, priority := queue.Status(min(r.GetStatus(), 255)), session.Priority(min(r.GetPriority(), 255))
	switch {
	case status < queue.Queued || status > queue.Dead || status.Over() != (outcome != nil):
		return nil, fmt.Errorf("a call of the status %d, with an outcome: %t", r.GetStatus(), outcome != nil)
	case priority < session.Critical || priority > session.Low:
		return nil, fmt.Errorf("a call of the priority %d", r.GetPriority())
	}
	return &queue.Call{
		Key: CallKeyFromProto(r.GetKey()), Caller: CallerFromProto(r.GetCaller()), Tool: r.GetTool(), Arguments: arguments, Priority: priority,
		RequestHash: r.GetRequestHash(), Deadline: r.GetDeadline(), Server: r.GetServerId(), OrderKey: r.GetOrderKey(), Repeatable: r.GetRepeatable(),
		Status: status, Attempt: r.GetAttempt(), NotBefore: r.GetNotBefore(), Cancelling: r.GetCancelling(), CreateTime: r.GetCreateTime(),
		BeginTime: r.GetBeginTime(), EndTime: r.GetEndTime(), Outcome: outcome, Order: r.GetOrder(), LastError: r.GetLastError(),
		Number: r.GetNumber(), ModifyIndex: r.GetModifyIndex(),
	}, nil
}

// CallFromSubmit returns the call that a command asks for, as it waits before its first attempt. Its times and its number are the state's.
func CallFromSubmit(p *clusterv1.SubmitCall) (*queue.Call, error) {
	arguments, err := BlobFromProto(p.GetArguments())
	if err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	return &queue.Call{
		Key: CallKeyFromProto(p.GetKey()), Caller: CallerFromProto(p.GetCaller()), Tool: p.GetTool(), Arguments: arguments,
		Priority: session.Priority(p.GetPriority()), RequestHash: p.GetRequestHash(), Deadline: p.GetDeadline(), Server: p.GetServerId(),
		OrderKey: p.GetOrderKey(), Repeatable: p.GetRepeatable(), Status: queue.Queued,
	}, nil
}

// SubmitOf returns the command that takes a call, begun at once or not.
func SubmitOf(c *queue.Call, begin bool) *clusterv1.SubmitCall {
	return &clusterv1.SubmitCall{
		Key: CallKeyToProto(c.Key), Caller: CallerToProto(c.Caller), Tool: c.Tool, Arguments: BlobToProto(c.Arguments),
		Priority: apiv1.Priority_Level(c.Priority), RequestHash: c.RequestHash, Deadline: c.Deadline, ServerId: c.Server,
		OrderKey: c.OrderKey, Repeatable: c.Repeatable, Begin: begin,
	}
}

// ClientToRow returns the client's session; nil gives nil.
func ClientToRow(c *queue.Client) *clusterv1.ClientRow {
	if c == nil {
		return nil
	}
	return &clusterv1.ClientRow{Owner: c.Owner, Session: c.Session, ServerId: c.Server, Order: c.Order, Delivered: c.Delivered, Time: c.Time}
}

// ClientFromRow is the inverse of ClientToRow.
func ClientFromRow(r *clusterv1.ClientRow) *queue.Client {
	if r == nil {
		return nil
	}
	return &queue.Client{
		ClientKey: queue.ClientKey{Owner: r.GetOwner(), Session: r.GetSession()}, Server: r.GetServerId(), Order: r.GetOrder(),
		Delivered: r.GetDelivered(), Time: r.GetTime(),
	}
}
