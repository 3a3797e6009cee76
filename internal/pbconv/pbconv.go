// Package pbconv turns the nouns of sessions and calls into messages of the API and the log, and back. It is the only place that does.
package pbconv

import (
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// SpecFromProto returns the spec; nil gives an empty one. Lists of pairs come out sorted.
func SpecFromProto(p *apiv1.SessionSpec) *session.Spec {
	return &session.Spec{
		Type: p.GetType(), Name: p.GetName(), Namespace: p.GetNamespace(), Priority: session.Priority(p.GetPriority()),
		Command: p.GetCommand(), Env: PairsFromMap(p.GetEnv()), Secrets: p.GetSecrets(), Require: p.GetRequire(),
		Labels: PairsFromMap(p.GetLabels()), NodeSelector: PairsFromMap(p.GetNodeSelector()),
		CPUMilli: p.GetCpuMilli(), MemoryBytes: p.GetMemoryBytes(), MemoryProfile: p.GetMemoryProfile(),
		Protocol: p.GetProtocol(), Restart: session.RestartPolicy(p.GetRestart()), MaxRestarts: p.GetMaxRestarts(),
		TTL: p.GetTtl().AsDuration(), Grace: p.GetGrace().AsDuration(), Strategy: p.GetStrategy(), TurnIdle: p.GetTurnIdle().AsDuration(),
		CheckpointEvery: p.GetCheckpointEvery(), KeepCheckpoints: p.GetKeepCheckpoints(), KeepCheckpointsFor: p.GetKeepCheckpointsFor().AsDuration(),
		PauseAfter: p.GetPauseAfter().AsDuration(), State: p.GetState(),
	}
}

// SpecToProto is the inverse of SpecFromProto.
func SpecToProto(s *session.Spec) *apiv1.SessionSpec {
	return &apiv1.SessionSpec{
		Type: s.Type, Name: s.Name, Namespace: s.Namespace, Priority: apiv1.Priority_Level(s.Priority),
		Command: s.Command, Env: MapFromPairs(s.Env), Secrets: s.Secrets, Require: s.Require,
		Labels: MapFromPairs(s.Labels), NodeSelector: MapFromPairs(s.NodeSelector),
		CpuMilli: s.CPUMilli, MemoryBytes: s.MemoryBytes, MemoryProfile: s.MemoryProfile,
		Protocol: s.Protocol, Restart: string(s.Restart), MaxRestarts: s.MaxRestarts,
		Ttl: duration(s.TTL), Grace: duration(s.Grace), Strategy: s.Strategy, TurnIdle: duration(s.TurnIdle),
		CheckpointEvery: s.CheckpointEvery, KeepCheckpoints: s.KeepCheckpoints, KeepCheckpointsFor: duration(s.KeepCheckpointsFor),
		PauseAfter: duration(s.PauseAfter), State: s.State,
	}
}

// ExitFromProto returns the exit; nil gives nil.
func ExitFromProto(p *apiv1.Session_Exit) *session.Exit {
	if p == nil {
		return nil
	}
	return &session.Exit{Code: p.GetCode(), Signal: p.GetSignal(), Cause: p.GetCause(), Message: p.GetMessage()}
}

// ExitToProto is the inverse of ExitFromProto.
func ExitToProto(e *session.Exit) *apiv1.Session_Exit {
	if e == nil {
		return nil
	}
	return &apiv1.Session_Exit{Code: e.Code, Signal: e.Signal, Cause: e.Cause, Message: e.Message}
}

// CheckpointToProto returns the checkpoint; nil gives nil.
func CheckpointToProto(c *session.Checkpoint) *apiv1.Session_Checkpoint {
	if c == nil {
		return nil
	}
	return &apiv1.Session_Checkpoint{
		Sequence: c.Sequence, CreateTime: Time(c.CreateTime), Bytes: c.Bytes, Chunks: c.Chunks, Epoch: c.Epoch, Turn: c.Turn,
		OutputLine: c.OutputLine, Keeps: c.Keeps, Manifest: hex.EncodeToString(c.Manifest[:]), BytesSent: c.BytesSent, BytesReused: c.BytesReused,
	}
}

// MessageToProto returns the message with its status from its delivery mark.
func MessageToProto(m *session.Message) *apiv1.Message {
	st := apiv1.Message_QUEUED
	if m.Delivered {
		st = apiv1.Message_DELIVERED
	}
	return &apiv1.Message{
		SessionId: m.SessionID, Sequence: m.Sequence, Priority: apiv1.Priority_Level(m.Priority), Text: m.Text, Status: st,
		CreateTime: Time(m.CreateTime), Attempts: m.Attempts, Deadline: Time(m.Deadline),
	}
}

// Time turns Unix nanoseconds into a timestamp; 0 gives nil.
func Time(ns int64) *timestamppb.Timestamp {
	if ns == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(0, ns))
}

// Nanos is the inverse of Time.
func Nanos(t *timestamppb.Timestamp) int64 {
	if t == nil {
		return 0
	}
	return t.AsTime().UnixNano()
}

func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// PairsFromMap returns the map's pairs sorted by key; nil for an empty map.
func PairsFromMap(m map[string]string) []session.Pair {
	if len(m) == 0 {
		return nil
	}
	p := make([]session.Pair, 0, len(m))
	for k, v := range m {
		p = append(p, session.Pair{Key: k, Value: v})
	}
	return session.SortPairs(p)
}

// MapFromPairs is the inverse of PairsFromMap.
func MapFromPairs(p []session.Pair) map[string]string {
	if len(p) == 0 {
		return nil
	}
	m := make(map[string]string, len(p))
	for _, e := range p {
		m[e.Key] = e.Value
	}
	return m
}
