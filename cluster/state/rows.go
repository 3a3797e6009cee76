// Rows on disk: the tables' rows as messages of a snapshot, and back. Sessions, which are many, are in wire.go.

package state

import (
	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

func mailboxToRow(m *mailboxRow) *clusterv1.MailboxRow {
	return &clusterv1.MailboxRow{
		SessionId: m.SessionID, NextSequence: m.NextSequence, Queued: m.Queued, Delivered: m.Delivered, Acked: m.Acked,
		Dead: m.Dead, Bytes: m.Bytes, LastAckTime: m.LastAckTime, Kept: m.Kept,
	}
}

func mailboxFromRow(r *clusterv1.MailboxRow) *mailboxRow {
	return &mailboxRow{Mailbox: session.Mailbox{
		SessionID: r.GetSessionId(), NextSequence: r.GetNextSequence(), Queued: r.GetQueued(), Delivered: r.GetDelivered(),
		Acked: r.GetAcked(), Dead: r.GetDead(), Bytes: r.GetBytes(), LastAckTime: r.GetLastAckTime(), Kept: r.GetKept(),
	}}
}

func messageToRow(m *session.Message) *clusterv1.MessageRow {
	return &clusterv1.MessageRow{
		SessionId: m.SessionID, Sequence: m.Sequence, Priority: apiv1.Priority_Level(m.Priority), Text: m.Text, CreateTime: m.CreateTime,
		Deadline: m.Deadline, Attempts: m.Attempts, Delivered: m.Delivered, DeliveredEpoch: m.DeliveredEpoch, Turn: m.Turn,
	}
}

func messageFromRow(r *clusterv1.MessageRow) *session.Message {
	return &session.Message{
		SessionID: r.GetSessionId(), Sequence: r.GetSequence(), Priority: session.Priority(r.GetPriority()), Text: r.GetText(),
		CreateTime: r.GetCreateTime(), Deadline: r.GetDeadline(), Attempts: r.GetAttempts(), Delivered: r.GetDelivered(), DeliveredEpoch: r.GetDeliveredEpoch(), Turn: r.GetTurn(),
	}
}

func resultToRow(r *session.Result) *clusterv1.ResultRow {
	return &clusterv1.ResultRow{
		SessionId: r.SessionID, Sequence: r.Sequence, Result: r.Text, Truncated: r.Truncated, EndTime: r.EndTime, Attempts: r.Attempts,
	}
}

func resultFromRow(r *clusterv1.ResultRow) *session.Result {
	return &session.Result{
		SessionID: r.GetSessionId(), Sequence: r.GetSequence(), Text: r.GetResult(), Truncated: r.GetTruncated(),
		EndTime: r.GetEndTime(), Attempts: r.GetAttempts(),
	}
}

func deadToRow(d *session.DeadLetter) *clusterv1.DeadLetterRow {
	return &clusterv1.DeadLetterRow{Message: messageToRow(&d.Message), Cause: d.Cause, Time: d.Time, Namespace: d.Namespace}
}

func deadFromRow(r *clusterv1.DeadLetterRow, in *interner) *session.DeadLetter {
	return &session.DeadLetter{
		Message: *messageFromRow(r.GetMessage()), Cause: in.str(r.GetCause()), Time: r.GetTime(), Namespace: in.str(r.GetNamespace()),
	}
}

func nodeToRow(n *Node) *clusterv1.NodeRow {
	return &clusterv1.NodeRow{
		Id: n.ID, Name: n.Name, Address: n.Address, Status: apiv1.Node_Status(n.Status), Reason: n.Reason, Schedulable: n.Schedulable,
		Capabilities: n.Capabilities.Proto(), Labels: pbconv.MapFromPairs(n.Labels), Version: n.Version, Pid: n.PID,
		Incarnation: n.Incarnation, FactIndex: n.FactIndex, Lost: n.Lost, Sessions: n.Sessions,
		ReservedCpuMilli: n.ReservedCPUMilli, ReservedMemoryBytes: n.ReservedMemoryBytes, CreateTime: n.CreateTime, ModifyIndex: n.ModifyIndex,
		Drain: drainToRow(n.Drain),
	}
}

func nodeFromRow(r *clusterv1.NodeRow, in *interner) *Node {
	return &Node{
		ID: in.str(r.GetId()), Name: r.GetName(), Address: r.GetAddress(), Status: NodeStatus(r.GetStatus()), Reason: in.str(r.GetReason()),
		Schedulable: r.GetSchedulable(), Capabilities: CapabilitiesFromProto(r.GetCapabilities()), Labels: in.pairs(pbconv.PairsFromMap(r.GetLabels())),
		Version: in.str(r.GetVersion()), PID: r.GetPid(), Incarnation: r.GetIncarnation(), FactIndex: r.GetFactIndex(), Lost: r.GetLost(),
		Sessions: r.GetSessions(), ReservedCPUMilli: r.GetReservedCpuMilli(), ReservedMemoryBytes: r.GetReservedMemoryBytes(),
		CreateTime: r.GetCreateTime(), ModifyIndex: r.GetModifyIndex(), Drain: drainFromRow(r.GetDrain(), in),
	}
}

func drainToRow(d *Drain) *clusterv1.DrainRow {
	if d == nil {
		return nil
	}
	return &clusterv1.DrainRow{
		Number: d.Number, State: uint32(d.State), StartTime: d.StartTime, Deadline: d.Deadline, EndTime: d.EndTime, Force: d.Force,
		Total: d.Total, Moved: d.Moved, Paused: d.Paused, Reason: d.Reason, LongestBlackout: d.LongestBlackout,
		Agent: d.Agent, Cordoned: d.Cordoned,
	}
}

func drainFromRow(r *clusterv1.DrainRow, in *interner) *Drain {
	if r == nil {
		return nil
	}
	return &Drain{
		Number: r.GetNumber(), State: DrainState(min(r.GetState(), 255)), StartTime: r.GetStartTime(), Deadline: r.GetDeadline(),
		EndTime: r.GetEndTime(), Force: r.GetForce(), Total: r.GetTotal(), Moved: r.GetMoved(), Paused: r.GetPaused(),
		Reason: in.str(r.GetReason()), LongestBlackout: r.GetLongestBlackout(),
		Agent: r.GetAgent(), Cordoned: r.GetCordoned(),
	}
}

func tokenToRow(t *Token) *clusterv1.TokenRow {
	return &clusterv1.TokenRow{
		Id: t.ID, Name: t.Name, Role: t.Role, Namespace: t.Namespace, Hash: t.Hash, CreateTime: t.CreateTime, ExpireTime: t.ExpireTime,
	}
}

func tokenFromRow(r *clusterv1.TokenRow, in *interner) *Token {
	return &Token{
		ID: r.GetId(), Name: r.GetName(), Role: in.str(r.GetRole()), Namespace: in.str(r.GetNamespace()), Hash: r.GetHash(),
		CreateTime: r.GetCreateTime(), ExpireTime: r.GetExpireTime(),
	}
}

func idempotencyToRow(r *idempotencyRow) *clusterv1.IdempotencyRow {
	return &clusterv1.IdempotencyRow{
		Scope: r.scope(), Key: r.key, RequestHash: r.hash, SessionId: r.sessionID, Sequence: r.sequence, Time: r.time, Index: r.index,
	}
}

func idempotencyFromRow(r *clusterv1.IdempotencyRow, in *interner) (idempotencyRow, error) {
	kind, owner, err := parseScope(r.GetScope())
	k := idempotencyRow{
		idempotencyKey: idempotencyKey{kind, in.str(owner), r.GetKey()}, hash: r.GetRequestHash(), sessionID: r.GetSessionId(),
		sequence: r.GetSequence(), time: r.GetTime(), index: r.GetIndex(),
	}
	if kind == keySend {
		k.sessionID = k.owner // one string for both
	}
	return k, err
}

func eventToRow(e *Event) *clusterv1.EventRow {
	return &clusterv1.EventRow{
		Number: e.Number, Index: e.Index, Time: e.Time, Type: e.Type, Namespace: e.Namespace, SessionId: e.SessionID,
		Node: e.Node, Epoch: e.Epoch, Message: e.Message,
	}
}

func eventFromRow(r *clusterv1.EventRow, in *interner) *Event {
	return &Event{
		Number: r.GetNumber(), Index: r.GetIndex(), Time: r.GetTime(), Type: in.str(r.GetType()), Namespace: in.str(r.GetNamespace()),
		SessionID: r.GetSessionId(), Node: in.str(r.GetNode()), Epoch: r.GetEpoch(), Message: in.str(r.GetMessage()),
	}
}
