// The other services of the cluster in memory, and what tests may do to it directly.

package clienttest

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func statusCode(err error) codes.Code { return status.Code(toStatus(err)) }

// AddNode adds a healthy node.
func (c *Cluster) AddNode(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(c.nodes, &apiv1.Node{
		Id: ID("node", len(c.nodes)+1), Name: name, Address: "10.0.1.1", Status: apiv1.Node_HEALTHY, Schedulable: true, Connection: "connected",
		Version: "1.0.0", Pid: 2000, Server: "server-1", CreateTime: c.stamp(), Labels: map[string]string{"zone": "a", "arch": "amd64"},
		Capabilities: &apiv1.Capabilities{CanSpawnSessions: true, MaxConcurrentSessions: 100, SupportedSessionTypes: []string{"process"},
			CustomCapabilities: map[string]bool{"pty": true, "criu": false}, Absent: map[string]string{"criu": "criu is not in the PATH of the node-agent"},
			CpuMilli: 4000, MemoryBytes: 8 << 30},
		Health: &apiv1.NodeHealth{CpuUsage: 12.5, MemoryUsage: 40, ResponseTimeMs: 0.8, LastHeartbeat: c.stamp(), UptimeSeconds: 3600},
	})
	c.change()
}

// SetNodeStatus changes what is thought of a node.
func (c *Cluster) SetNodeStatus(name string, st apiv1.Node_Status, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.GetName() == name {
			n.Status, n.Reason = st, reason
		}
	}
	c.change()
}

// Log appends lines to a session's output.
func (c *Cluster) Log(id string, stream apiv1.LogLine_Stream, lines ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range lines {
		c.line(c.sessions[id], stream, l)
	}
	c.change()
}

// Notice puts a notice into a session's output.
func (c *Cluster) Notice(id, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.sessions[id]
	n.log = append(n.log, &apiv1.LogLine{Stream: apiv1.LogLine_NOTICE, Time: c.stamp(), Text: []byte(text)})
	c.change()
}

// End ends a session by itself.
func (c *Cluster) End(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(c.sessions[id], apiv1.Session_COMPLETED, "completed")
}

// Event records events that share one index.
func (c *Cluster) Event(types ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, typ := range types {
		c.event(typ, "", "", "", typ)
	}
	c.change()
}

// Sessions is how many sessions there are; Messages how many messages a session was sent.
func (c *Cluster) Sessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions)
}

// Messages is how many messages a session was sent.
func (c *Cluster) Messages(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions[id].messages)
}

// Restored is the snapshot that the cluster was restored from.
func (c *Cluster) Restored() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.restored
}

// SetSnapshot is what SaveSnapshot streams.
func (c *Cluster) SetSnapshot(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshot = b
}

type nodes struct {
	apiv1.UnimplementedNodeServiceServer
	c *Cluster
}

func (s *nodes) find(ref string) (*apiv1.Node, error) {
	for _, n := range s.c.nodes {
		if n.GetName() == ref || ref != "" && strings.HasPrefix(n.GetId(), ref) {
			return n, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no node %q; 'orchctl nodes list' shows those there are", ref)
}

func (s *nodes) ListNodes(_ context.Context, req *apiv1.ListNodesRequest) (*apiv1.ListNodesResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	page, next := cut(s.c.nodes, req.GetPageToken(), req.GetPageSize())
	resp := &apiv1.ListNodesResponse{NextPageToken: next}
	for _, n := range page {
		resp.Nodes = append(resp.Nodes, proto.CloneOf(n))
	}
	return resp, nil
}

func (s *nodes) GetNode(_ context.Context, req *apiv1.GetNodeRequest) (*apiv1.GetNodeResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n, err := s.find(req.GetId())
	return &apiv1.GetNodeResponse{Node: proto.CloneOf(n)}, err
}

func (s *nodes) set(id string, schedulable bool) (*apiv1.Node, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n, err := s.find(id)
	if err != nil {
		return nil, err
	}
	n.Schedulable = schedulable
	if d := n.GetDrain(); schedulable && d.GetState() == apiv1.Drain_DRAINING {
		d.State, d.EndTime, d.Reason = apiv1.Drain_CANCELLED, s.c.stamp(), "uncordoned by admin"
	} else if schedulable {
		n.Drain = nil
	}
	s.c.change()
	return proto.CloneOf(n), nil
}

func (s *nodes) CordonNode(_ context.Context, req *apiv1.CordonNodeRequest) (*apiv1.CordonNodeResponse, error) {
	n, err := s.set(req.GetId(), false)
	return &apiv1.CordonNodeResponse{Node: n}, err
}

func (s *nodes) UncordonNode(_ context.Context, req *apiv1.UncordonNodeRequest) (*apiv1.UncordonNodeResponse, error) {
	n, err := s.set(req.GetId(), true)
	return &apiv1.UncordonNodeResponse{Node: n}, err
}

func (s *nodes) RemoveNode(_ context.Context, req *apiv1.RemoveNodeRequest) (*apiv1.RemoveNodeResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n, err := s.find(req.GetId())
	if err != nil {
		return nil, err
	}
	if n.GetStatus() != apiv1.Node_OFFLINE || n.GetSessions() > 0 {
		return nil, fault.New(fault.FailedPrecondition, "node %s is %s and holds %d sessions; stop its agent and let them end first", n.GetName(), n.GetStatus(), n.GetSessions())
	}
	s.c.nodes = slices.DeleteFunc(s.c.nodes, func(o *apiv1.Node) bool { return o == n })
	s.c.change()
	return &apiv1.RemoveNodeResponse{}, nil
}

type cluster struct {
	apiv1.UnimplementedClusterServiceServer
	c *Cluster
}

func (c *Cluster) copyMembers() (out []*apiv1.Member) {
	for _, m := range c.members {
		out = append(out, proto.CloneOf(m))
	}
	return out
}

func (s *cluster) GetStatus(context.Context, *apiv1.GetStatusRequest) (*apiv1.GetStatusResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	resp := &apiv1.GetStatusResponse{
		ClusterId: "c-1", Term: 3, AppliedIndex: 42, CommitIndex: 42, Members: s.c.copyMembers(), Sessions: map[string]uint64{}, Nodes: map[string]uint64{},
		Version: "1.0.0", FailureTolerance: 1, Time: s.c.stamp(), Server: "server-1",
	}
	for _, m := range s.c.members {
		if m.GetRole() == apiv1.Member_LEADER {
			resp.Leader = m.GetId()
		}
	}
	for _, n := range s.c.sessions {
		resp.Sessions[n.GetPhase().String()]++
	}
	for _, n := range s.c.nodes {
		resp.Nodes[n.GetStatus().String()]++
	}
	return resp, nil
}

func (s *cluster) ListMembers(context.Context, *apiv1.ListMembersRequest) (*apiv1.ListMembersResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return &apiv1.ListMembersResponse{Members: s.c.copyMembers()}, nil
}

func (s *cluster) ListDaemons(context.Context, *apiv1.ListDaemonsRequest) (*apiv1.ListDaemonsResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return &apiv1.ListDaemonsResponse{
		Daemons: []*apiv1.Daemon{
			{Server: "server-1", Name: "chunk-sweep", State: apiv1.Daemon_RUNNING, StateTime: s.c.stamp(), Goroutines: 1, ProcessMemoryBytes: 64 << 20},
			{
				Server: "server-2", Name: "chunk-repair", State: apiv1.Daemon_FAILING, StateTime: s.c.stamp(), Restarts: 6, LastError: "panic: out of bounds",
				LastErrorTime: s.c.stamp(), QueueDepth: 3, QueueLimit: 100, ProcessMemoryBytes: 96 << 20,
			},
		},
		Missing: map[string]string{"server-3": "connection refused"},
	}, nil
}

func (s *cluster) JoinMember(context.Context, *apiv1.JoinMemberRequest) (*apiv1.JoinMemberResponse, error) {
	return &apiv1.JoinMemberResponse{Joined: 1}, nil
}

func (s *cluster) RemoveMember(_ context.Context, req *apiv1.RemoveMemberRequest) (*apiv1.RemoveMemberResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	i := slices.IndexFunc(s.c.members, func(m *apiv1.Member) bool { return m.GetId() == req.GetId() })
	if i < 0 {
		return nil, fault.New(fault.NotFound, "there is no member %q; 'orchctl cluster members' shows those there are", req.GetId())
	}
	s.c.members = slices.Delete(s.c.members, i, i+1)
	return &apiv1.RemoveMemberResponse{}, nil
}

func (s *cluster) TransferLeadership(_ context.Context, req *apiv1.TransferLeadershipRequest) (*apiv1.TransferLeadershipResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	to := req.GetId()
	if to == "" {
		to = s.c.members[1].GetId()
	}
	for _, m := range s.c.members {
		m.Role = apiv1.Member_FOLLOWER
		if m.GetId() == to {
			m.Role = apiv1.Member_LEADER
		}
	}
	return &apiv1.TransferLeadershipResponse{Leader: to}, nil
}

func (s *cluster) SaveSnapshot(_ *apiv1.SaveSnapshotRequest, out apiv1.ClusterService_SaveSnapshotServer) error {
	s.c.mu.Lock()
	b := s.c.snapshot
	s.c.mu.Unlock()
	for piece := range slices.Chunk(b, 4096) {
		if err := out.Send(&apiv1.SaveSnapshotResponse{Data: piece}); err != nil {
			return err
		}
	}
	return nil
}

func (s *cluster) RestoreSnapshot(in apiv1.ClusterService_RestoreSnapshotServer) error {
	var b []byte
	for {
		m, err := in.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		b = append(b, m.GetData()...)
	}
	s.c.mu.Lock()
	s.c.restored = b
	s.c.mu.Unlock()
	return in.SendAndClose(&apiv1.RestoreSnapshotResponse{Index: 42, Sessions: 7})
}

type queues struct {
	apiv1.UnimplementedQueueServiceServer
	c *Cluster
}

// letters returns copies of the messages of a status, by session and sequence; mu is held.
func (c *Cluster) letters(namespace, id string, keep func(*apiv1.Message) bool) (out []*apiv1.Message) {
	for _, s := range c.match(namespace, "", id) {
		for _, m := range c.sessions[s.GetId()].messages {
			if keep(m) {
				out = append(out, m)
			}
		}
	}
	return out
}

func isDead(m *apiv1.Message) bool { return m.GetStatus() == apiv1.Message_DEAD }
func isOpen(m *apiv1.Message) bool { return m.GetStatus() < apiv1.Message_ACKED }

func (s *queues) GetQueueStats(_ context.Context, req *apiv1.GetQueueStatsRequest) (*apiv1.GetQueueStatsResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	resp := &apiv1.GetQueueStatsResponse{ByPriority: map[string]uint64{}}
	for _, m := range s.c.letters(req.GetNamespace(), "", isOpen) {
		resp.Queued++
		resp.ByPriority[m.GetPriority().String()]++
		resp.OldestSeconds = max(resp.OldestSeconds, s.c.Now().Sub(m.GetCreateTime().AsTime()).Seconds())
	}
	resp.Dead = uint64(len(s.c.letters(req.GetNamespace(), "", isDead)))
	s.c.countCalls(req.GetNamespace(), resp)
	return resp, nil
}

func (s *queues) ListMessages(_ context.Context, req *apiv1.ListMessagesRequest) (*apiv1.ListMessagesResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	page, next := cut(clones(s.c.letters(req.GetNamespace(), req.GetSessionId(), isOpen)), req.GetPageToken(), req.GetPageSize())
	return &apiv1.ListMessagesResponse{Messages: page, NextPageToken: next}, nil
}

func (s *queues) ListDeadLetters(_ context.Context, req *apiv1.ListDeadLettersRequest) (*apiv1.ListDeadLettersResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	page, next := cut(clones(s.c.letters(req.GetNamespace(), req.GetSessionId(), isDead)), req.GetPageToken(), req.GetPageSize())
	out := &apiv1.ListDeadLettersResponse{Messages: page, NextPageToken: next}
	if next == "" && req.GetSessionId() == "" {
		out.Calls = s.c.toolCalls(req.GetNamespace(), isDeadCall)
	}
	return out, nil
}

func clones(in []*apiv1.Message) (out []*apiv1.Message) {
	for _, m := range in {
		out = append(out, proto.CloneOf(m))
	}
	return out
}

func (s *queues) one(id string, sequence uint64) []*apiv1.Message {
	return s.c.letters("", id, func(m *apiv1.Message) bool { return isDead(m) && (sequence == 0 || m.GetSequence() == sequence) })
}

func (s *queues) GetDeadLetter(_ context.Context, req *apiv1.GetDeadLetterRequest) (*apiv1.GetDeadLetterResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if req.GetCallId() != "" {
		call, err := s.c.toolCall(req.GetNamespace(), req.GetCallId(), isDeadCall)
		return &apiv1.GetDeadLetterResponse{Call: proto.CloneOf(call)}, err
	}
	l := s.one(req.GetSessionId(), req.GetSequence())
	if len(l) == 0 || req.GetSequence() == 0 {
		return nil, fault.New(fault.NotFound, "session %s has no dead letter %d; 'orchctl dlq list' shows those there are", req.GetSessionId(), req.GetSequence())
	}
	return &apiv1.GetDeadLetterResponse{Message: proto.CloneOf(l[0])}, nil
}

func (s *queues) RetryDeadLetters(_ context.Context, req *apiv1.RetryDeadLettersRequest) (*apiv1.RetryDeadLettersResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if req.GetCallId() != "" {
		return &apiv1.RetryDeadLettersResponse{Retried: 1}, s.c.changeCall(req.GetNamespace(), req.GetCallId(), apiv1.Call_QUEUED)
	}
	l := s.one(req.GetSessionId(), req.GetSequence())
	for _, m := range l {
		m.Status, m.Cause, m.EndTime = apiv1.Message_QUEUED, "", nil
	}
	s.c.change()
	return &apiv1.RetryDeadLettersResponse{Retried: uint32(len(l))}, nil
}

func (s *queues) PurgeDeadLetters(_ context.Context, req *apiv1.PurgeDeadLettersRequest) (*apiv1.PurgeDeadLettersResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if req.GetCallId() != "" {
		return &apiv1.PurgeDeadLettersResponse{Purged: 1}, s.c.changeCall(req.GetNamespace(), req.GetCallId(), apiv1.Call_ENDED)
	}
	l := s.one(req.GetSessionId(), req.GetSequence())
	for _, m := range l {
		m.Status = apiv1.Message_ACKED
	}
	s.c.change()
	return &apiv1.PurgeDeadLettersResponse{Purged: uint32(len(l))}, nil
}

type tokens struct {
	apiv1.UnimplementedTokenServiceServer
	c *Cluster
}

func (s *tokens) CreateToken(_ context.Context, req *apiv1.CreateTokenRequest) (*apiv1.CreateTokenResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !slices.Contains([]string{"admin", "operator", "client", "node", "viewer"}, req.GetRole()) {
		return nil, fault.New(fault.Invalid, "role: %q is not a role; use admin, operator, client, node or viewer", req.GetRole()).WithField("role")
	}
	if old, ok := s.c.keys[req.GetIdempotencyKey()].(*apiv1.Token); ok {
		return &apiv1.CreateTokenResponse{Token: proto.CloneOf(old), Secret: "another-secret-" + old.GetId()}, nil
	}
	t := &apiv1.Token{Id: ID("token", len(s.c.tokens)+1), Name: req.GetName(), Role: req.GetRole(), Namespace: req.GetNamespace(), CreateTime: s.c.stamp()}
	if req.GetTtl() != nil {
		t.ExpireTime = timestamppb.New(s.c.Now().Add(req.GetTtl().AsDuration()))
	}
	s.c.tokens = append(s.c.tokens, t)
	s.c.keys[req.GetIdempotencyKey()] = t
	return &apiv1.CreateTokenResponse{Token: proto.CloneOf(t), Secret: "secret-" + t.Id}, nil
}

func (s *tokens) ListTokens(context.Context, *apiv1.ListTokensRequest) (*apiv1.ListTokensResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	resp := &apiv1.ListTokensResponse{}
	for _, t := range s.c.tokens {
		resp.Tokens = append(resp.Tokens, proto.CloneOf(t))
	}
	return resp, nil
}

func (s *tokens) RevokeToken(_ context.Context, req *apiv1.RevokeTokenRequest) (*apiv1.RevokeTokenResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	i := slices.IndexFunc(s.c.tokens, func(t *apiv1.Token) bool { return t.GetId() == req.GetId() })
	if i < 0 {
		return nil, fault.New(fault.NotFound, "there is no token %q; 'orchctl tokens list' shows those there are", req.GetId())
	}
	s.c.tokens = slices.Delete(s.c.tokens, i, i+1)
	return &apiv1.RevokeTokenResponse{}, nil
}

type events struct {
	apiv1.UnimplementedEventServiceServer
	c *Cluster
}

func (s *events) ListEvents(_ context.Context, req *apiv1.ListEventsRequest) (*apiv1.ListEventsResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	limit := int(req.GetLimit())
	if limit <= 0 {
		limit = 100
	}
	resp := &apiv1.ListEventsResponse{}
	for _, e := range s.c.events[max(len(s.c.events)-limit, 0):] {
		resp.Events = append(resp.Events, proto.CloneOf(e))
	}
	return resp, nil
}

func (s *events) WatchEvents(req *apiv1.WatchEventsRequest, out apiv1.EventService_WatchEventsServer) error {
	s.c.mu.Lock()
	next := len(s.c.events)
	if req.GetAfterIndex() > 0 {
		next = 0
		for next < len(s.c.events) && s.c.events[next].GetIndex() <= req.GetAfterIndex() {
			next++
		}
	}
	s.c.mu.Unlock()
	for {
		s.c.mu.Lock()
		fresh, changed := slices.Clone(s.c.events[next:]), s.c.changed
		s.c.mu.Unlock()
		for _, e := range fresh {
			if err := out.Send(&apiv1.WatchEventsResponse{Event: proto.CloneOf(e)}); err != nil {
				return err
			}
		}
		next += len(fresh)
		select {
		case <-changed:
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

type providers struct {
	apiv1.UnimplementedProviderServiceServer
	talks *conversations
}

func (*providers) ListProviders(context.Context, *apiv1.ListProvidersRequest) (*apiv1.ListProvidersResponse, error) {
	return &apiv1.ListProvidersResponse{Providers: []*apiv1.Provider{
		{
			Server: "server-1", Name: "moonshot", Dialect: "openai", Models: []string{"kimi"}, Healthy: true, Min: 2, Max: 10, MaxInFlight: 6, Open: 3, Idle: 2, InUse: 1, Breaker: "closed",
			Calls: 7, InputTokens: 1200, OutputTokens: 300, CostUsd: 0.0126, RequestsLeft: 59, TokensLeft: -1,
		},
		{
			Server: "server-2", Name: "zhipuai", Dialect: "openai", Models: []string{"glm", "glm-air"}, Min: 1, Max: 5, MaxInFlight: 4, Waiting: 2, Breaker: "open", Calls: 6, Failed: 6, Limited: 1,
			LastError: "no connection within 3s", RequestsLeft: -1, TokensLeft: -1,
		},
	}}, nil
}

func (*providers) ListModels(context.Context, *apiv1.ListModelsRequest) (*apiv1.ListModelsResponse, error) {
	return &apiv1.ListModelsResponse{Models: []*apiv1.Model{
		{Name: "kimi", Provider: "moonshot", Default: true, InputPrice: 0.6, OutputPrice: 2.5}, {Name: "glm", Provider: "zhipuai", Default: true},
	}}, nil
}
