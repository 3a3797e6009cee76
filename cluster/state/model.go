// The rows that are not session nouns: nodes, tokens, events; and the counts.

package state

import (
	"fmt"
	"maps"
	"slices"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// NodeStatus is what the cluster thinks of a node. The numbers are those of the public API and of snapshots.
type NodeStatus uint8

// The statuses.
const (
	Healthy   NodeStatus = 1
	Degraded  NodeStatus = 2
	Unhealthy NodeStatus = 3
	Offline   NodeStatus = 4
)

var statusNames = [...]string{Healthy: "HEALTHY", Degraded: "DEGRADED", Unhealthy: "UNHEALTHY", Offline: "OFFLINE"}

// String returns the status as users see it.
func (s NodeStatus) String() string {
	if int(s) < len(statusNames) && statusNames[s] != "" {
		return statusNames[s]
	}
	return fmt.Sprintf("STATUS(%d)", uint8(s))
}

// Flag is a capability's name with whether the node has it.
type Flag struct {
	Key   string
	Value bool
}

// The bounds of Capabilities.Absent.
const (
	absentMax   = 16  // keys
	absentBytes = 256 // of each reason
)

// Capabilities is what a node can run. A bound of 0 was not declared and is not enforced.
type Capabilities struct {
	CanSpawnSessions      bool
	MaxConcurrentSessions uint32
	SupportedSessionTypes []string
	HasGPUAccess          bool
	HasHighMemory         bool
	Custom                []Flag // sorted by key
	// Absent says of some keys why the node does not have them; sorted by key.
	Absent      []session.Pair
	CPUMilli    int64
	MemoryBytes int64
}

// CapabilitiesFromProto returns the capabilities; nil gives none.
func CapabilitiesFromProto(p *apiv1.Capabilities) Capabilities {
	c := Capabilities{
		CanSpawnSessions: p.GetCanSpawnSessions(), MaxConcurrentSessions: p.GetMaxConcurrentSessions(),
		SupportedSessionTypes: slices.Clone(p.GetSupportedSessionTypes()), HasGPUAccess: p.GetHasGpuAccess(), HasHighMemory: p.GetHasHighMemory(),
		CPUMilli: p.GetCpuMilli(), MemoryBytes: p.GetMemoryBytes(),
	}
	custom := p.GetCustomCapabilities()
	for _, k := range slices.Sorted(maps.Keys(custom)) {
		c.Custom = append(c.Custom, Flag{Key: k, Value: custom[k]})
	}
	absent := p.GetAbsent()
	for _, k := range slices.Sorted(maps.Keys(absent))[:min(len(absent), absentMax)] {
		c.Absent = append(c.Absent, session.Pair{Key: clip(k, session.MaxNameBytes), Value: clip(absent[k], absentBytes)})
	}
	return c
}

// Proto is the inverse of CapabilitiesFromProto.
func (c Capabilities) Proto() *apiv1.Capabilities {
	p := &apiv1.Capabilities{
		CanSpawnSessions: c.CanSpawnSessions, MaxConcurrentSessions: c.MaxConcurrentSessions,
		SupportedSessionTypes: c.SupportedSessionTypes, HasGpuAccess: c.HasGPUAccess, HasHighMemory: c.HasHighMemory,
		CpuMilli: c.CPUMilli, MemoryBytes: c.MemoryBytes,
	}
	if len(c.Absent) > 0 {
		p.Absent = make(map[string]string, len(c.Absent))
		for _, e := range c.Absent {
			p.Absent[e.Key] = e.Value
		}
	}
	if len(c.Custom) > 0 {
		p.CustomCapabilities = make(map[string]bool, len(c.Custom))
		for _, f := range c.Custom {
			p.CustomCapabilities[f.Key] = f.Value
		}
	}
	return p
}

// Node is a node as the replicated state holds it. Treat it as immutable. Times are Unix nanoseconds.
type Node struct {
	ID           string
	Name         string
	Address      string
	Status       NodeStatus
	Reason       string
	Schedulable  bool
	Capabilities Capabilities
	Labels       []session.Pair // sorted by key
	Version      string
	PID          int32
	Incarnation  uint64
	FactIndex    uint64 // the last fact of this incarnation that was applied
	Lost         bool   // its lease ended; only a registration brings it back
	Drain        *Drain // under way, or the last one since the node was uncordoned; nil when there is none
	// What the sessions that hold this node reserve.
	Sessions            uint32
	ReservedCPUMilli    int64
	ReservedMemoryBytes int64
	CreateTime          int64
	ModifyIndex         uint64
}

// Token is a token as the replicated state holds it. Treat it as immutable. Times are Unix nanoseconds.
type Token struct {
	ID         string
	Name       string
	Role       string // admin | operator | client | node | viewer
	Namespace  string // empty for all
	Hash       []byte // SHA-256 of the secret
	CreateTime int64
	ExpireTime int64 // 0 for never
}

// Event is something that happened. Treat it as immutable.
type Event struct {
	Number    uint64 // counts all events of the cluster, from 1
	Index     uint64
	Time      int64  // Unix nanoseconds
	Type      string // such as session.running, node.lost, token.revoked
	Namespace string
	SessionID string
	Node      string // the node's name
	Epoch     uint32
	Message   string
}

// PhaseCounts counts sessions by phase; index it with the phase.
type PhaseCounts [16]uint64

// Total is how many sessions there are.
func (p PhaseCounts) Total() uint64 {
	var n uint64
	for _, c := range p {
		n += c
	}
	return n
}

// Live is how many sessions have not ended.
func (p PhaseCounts) Live() uint64 {
	return p.Total() - p[session.Completed] - p[session.Failed] - p[session.Terminated]
}

// Stats counts what the state holds.
type Stats struct {
	Phases             PhaseCounts
	Nodes, Tokens      uint64
	Messages           uint64 // in mailboxes, queued or delivered
	MessageBytes       uint64 // their texts
	DeadLetters        uint64
	DeadLetterBytes    uint64
	DeadLettersDropped uint64 // ever, for want of room
	IdempotencyKeys    uint64
	Events             uint64
	Calls              CallCounts
	CallBytes          uint64 // of arguments, results and messages that are in the state, without those of dead calls
	DeadCallBytes      uint64 // those of dead calls
	Clients            uint64
	DeadCallsDropped   uint64 // ever, for want of room
	Conversations      uint64
	ConversationBytes  uint64 // of their texts that are in the state, and of the names of others
}
