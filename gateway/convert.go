// From rows of the state to messages of the API.

package gateway

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/leader"
	"github.com/neolith/orchestrator/session"
)

// sessionProto describes a session as clients see it.
func sessionProto(v *state.View, s *session.Session) *apiv1.Session {
	spec := s.Spec
	out := &apiv1.Session{
		Id: s.ID, Namespace: spec.Namespace, Name: spec.Name, Type: spec.Type,
		Phase: apiv1.Session_Phase(s.Phase), Reason: s.Reason, Epoch: s.Epoch, Priority: apiv1.Priority_Level(spec.Priority),
		Labels: pbconv.MapFromPairs(spec.Labels), CreateTime: pbconv.Time(s.CreateTime), StartTime: pbconv.Time(s.StartTime),
		EndTime: pbconv.Time(s.EndTime), Restarts: s.Restarts, Exit: pbconv.ExitToProto(s.Exit), Spec: pbconv.SpecToProto(spec),
		Placement: s.Placement, ModifyIndex: s.ModifyIndex, Pid: s.PID, OutputLine: s.OutputLine, CheckpointError: s.CheckpointError,
		Node: nodeName(v, s.NodeID), Mailbox: &apiv1.Session_Mailbox{}, Checkpoint: pbconv.CheckpointToProto(s.Head()),
		Migration: migrationProto(v, s.Migration), Keeps: spec.Keeps(),
	}
	box := v.Mailbox(s.ID)
	if box != nil {
		out.Mailbox = &apiv1.Session_Mailbox{Queued: box.Queued, Delivered: box.Delivered, Acked: box.Acked, Dead: box.Dead}
	}
	out.Lag = lagProto(v, s, box)
	return out
}

// lagProto is what a loss of the session's node would cost now: the turns whose effects its last checkpoint does not hold, the
// messages that the next epoch would be given, and how long the oldest such turn has been ended; of a session that has ended, what a
// restore would cost. The messages are those
// that wait, those that are with the process, and those of ended turns that are kept to be delivered again; where nothing is kept,
// for no checkpoint is made, the turns are lost.
func lagProto(v *state.View, s *session.Session, box *session.Mailbox) *apiv1.Session_Lag {
	out := &apiv1.Session_Lag{Turns: uint32(min(s.LagTurns(), math.MaxUint32))}
	if box != nil {
		out.Messages = box.Queued + box.Delivered + box.Kept
	}
	if s.UnsavedSince != 0 {
		now := max(v.Time(), time.Now().UnixNano()) // a lag grows while nothing happens, and the state's clock stands still then
		if s.Phase.Ended() {
			now = s.EndTime
		}
		out.Seconds = span(s.UnsavedSince, now).Seconds()
	}
	return out
}

// migrationProto describes a move; nil gives nil. Its spans grow until it has ended.
func migrationProto(v *state.View, m *session.Migration) *apiv1.Session_Migration {
	if m == nil {
		return nil
	}
	out := &apiv1.Session_Migration{
		Source: nodeName(v, m.Source), Target: nodeName(v, m.Target), Mode: modeLive, Rounds: m.Rounds, BytesSent: m.BytesSent, BytesReused: m.BytesReused,
		Epoch: m.Epoch, State: apiv1.Session_Migration_State(m.State), Error: m.Error, StartTime: pbconv.Time(m.StartTime),
	}
	if m.Cold {
		out.Mode = modeCold
	}
	end := until(v, m.EndTime, !m.Under())
	out.TotalMs = milliseconds(span(m.StartTime, end))
	if m.HeldTime != 0 {
		out.BlackoutMs = milliseconds(span(m.HeldTime, end))
	}
	return out
}

// until is when a span ends: at the end of what it is of, or, so far, now. The state's clock stands still while nothing happens.
func until(v *state.View, end int64, ended bool) int64 {
	if ended && end != 0 {
		return end
	}
	return v.Time()
}

func span(from, to int64) time.Duration { return max(time.Duration(to-from), 0) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// nodeName is the name of a node; its id when the state has forgotten it.
func nodeName(v *state.View, id string) string {
	if id == "" {
		return ""
	}
	if n := v.Node(id); n != nil {
		return n.Name
	}
	return id
}

// nodeProto describes a node as clients see it.
func nodeProto(n *state.Node, live leader.Live) *apiv1.Node {
	out := &apiv1.Node{
		Id: n.ID, Name: n.Name, Address: n.Address, Status: apiv1.Node_Status(n.Status), Reason: n.Reason,
		Schedulable: n.Schedulable, Capabilities: n.Capabilities.Proto(), Labels: pbconv.MapFromPairs(n.Labels),
		Sessions: n.Sessions, Version: n.Version, Pid: n.PID, Server: live.Server,
		ReservedCpuMilli: n.ReservedCPUMilli, ReservedMemoryBytes: n.ReservedMemoryBytes, CreateTime: pbconv.Time(n.CreateTime),
		Connection: connection(n, live), Drain: drainProto(n),
		Health: &apiv1.NodeHealth{
			CpuUsage: live.CPUUsage, MemoryUsage: live.MemoryUsage, ActiveSessions: live.Active,
			ResponseTimeMs: live.ResponseMS, UptimeSeconds: live.UptimeSeconds,
		},
	}
	if !live.LastHeartbeat.IsZero() {
		out.Health.LastHeartbeat = timestamppb.New(live.LastHeartbeat)
	}
	return out
}

// connection is the state of a node's link in the words of the node link protocol.
func connection(n *state.Node, live leader.Live) string {
	switch {
	case live.Linked:
		return "connected"
	case n.Status == state.Offline:
		return "failed"
	case n.Lost:
		return "disconnected"
	default:
		return "reconnecting"
	}
}

func deadProto(d *session.DeadLetter) *apiv1.Message {
	m := pbconv.MessageToProto(&d.Message)
	m.Status, m.Cause, m.Namespace, m.EndTime = apiv1.Message_DEAD, d.Cause, d.Namespace, pbconv.Time(d.Time)
	return m
}

func resultProto(r *session.Result) *apiv1.Message {
	return &apiv1.Message{
		SessionId: r.SessionID, Sequence: r.Sequence, Status: apiv1.Message_ACKED, Result: r.Text,
		EndTime: pbconv.Time(r.EndTime), Attempts: r.Attempts,
	}
}

func eventProto(e *state.Event) *apiv1.Event {
	return &apiv1.Event{
		Index: e.Index, Time: pbconv.Time(e.Time), Type: e.Type, Namespace: e.Namespace, SessionId: e.SessionID,
		Node: e.Node, Epoch: e.Epoch, Message: e.Message,
	}
}

func tokenProto(t *state.Token) *apiv1.Token {
	return &apiv1.Token{
		Id: t.ID, Name: t.Name, Role: t.Role, Namespace: t.Namespace,
		CreateTime: pbconv.Time(t.CreateTime), ExpireTime: pbconv.Time(t.ExpireTime),
	}
}

func historyProto(v *state.View, s *session.Session) []*apiv1.GetSessionHistoryResponse_Entry {
	out := make([]*apiv1.GetSessionHistoryResponse_Entry, len(s.History))
	for i, h := range s.History {
		out[i] = &apiv1.GetSessionHistoryResponse_Entry{
			Time: pbconv.Time(h.Time), Index: h.Index, Phase: apiv1.Session_Phase(h.Phase), Epoch: h.Epoch,
			Node: nodeName(v, h.Node), Reason: h.Reason,
		}
	}
	return out
}
