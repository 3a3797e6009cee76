// ClusterService and RelayService in gRPC.

package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

const (
	// snapshotPieceBytes is how much of a snapshot one message carries.
	snapshotPieceBytes = 256 << 10
	// maxSnapshotBytes bounds a snapshot that a client sends.
	maxSnapshotBytes = 16 << 30
)

type clusterService struct {
	apiv1.UnimplementedClusterServiceServer
	ops *Operations
}

// memberProtos describes the servers; health is known on the leader only.
func memberProtos(node *cluster.Node) ([]*apiv1.Member, uint32, error) {
	members, err := node.Members()
	if err != nil {
		return nil, 0, err
	}
	health, tolerance := node.Health()
	out := make([]*apiv1.Member, 0, len(members))
	voters := 0
	for _, m := range members {
		p := &apiv1.Member{
			Id: m.ID, Address: m.GRPCAddress, RaftAddress: m.RaftAddress, Role: apiv1.Member_FOLLOWER,
			LastContactMs: -1, Version: m.Version, Pid: int32(m.PID), Gossip: m.Gossip, Healthy: m.Gossip == "alive",
		}
		switch {
		case m.Leader:
			p.Role = apiv1.Member_LEADER
		case !m.Voter:
			p.Role = apiv1.Member_NON_VOTER
		}
		if m.Voter {
			voters++
		}
		if h, ok := health[m.ID]; ok {
			p.Healthy, p.AppliedIndex = h.Healthy, h.Applied
			if h.LastContact >= 0 {
				p.LastContactMs = float64(h.LastContact) / float64(time.Millisecond)
			}
		}
		if m.ID == node.ID() {
			s := node.Stats()
			p.AppliedIndex = s.AppliedIndex
			if s.LastContact >= 0 {
				p.LastContactMs = float64(s.LastContact) / float64(time.Millisecond)
			}
		}
		out = append(out, p)
	}
	if len(health) == 0 {
		tolerance = (voters - 1) / 2
	}
	return out, uint32(max(0, tolerance)), nil
}

// GetStatus is answered by the leader, and by the asked server when there is none: see inOwnWords.
func (s *clusterService) GetStatus(ctx context.Context, req *apiv1.GetStatusRequest) (*apiv1.GetStatusResponse, error) {
	v, err := s.ops.fresh(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	members, tolerance, err := memberProtos(s.ops.Node)
	if err != nil {
		return nil, err
	}
	l, _ := s.ops.Node.Leader()
	out := &apiv1.GetStatusResponse{
		ClusterId: v.ClusterID(), Leader: l.ID, Term: s.ops.Node.Term(), AppliedIndex: s.ops.Node.AppliedIndex(),
		CommitIndex: s.ops.Node.CommitIndex(), Members: members, Sessions: map[string]uint64{}, Nodes: map[string]uint64{},
		Version: s.ops.Version, FailureTolerance: tolerance, Time: timestamppb.New(s.ops.Now()), Server: s.ops.Node.ID(),
	}
	counts := v.PhaseCounts()
	for p := session.Pending; p <= session.Terminated; p++ {
		if counts[p] > 0 {
			out.Sessions[p.String()] = counts[p]
		}
	}
	for n := range v.Nodes() {
		out.Nodes[n.Status.String()]++
	}
	return out, nil
}

// ListMembers is answered as GetStatus is.
func (s *clusterService) ListMembers(ctx context.Context, req *apiv1.ListMembersRequest) (*apiv1.ListMembersResponse, error) {
	if _, err := s.ops.fresh(ctx, req.GetConsistency()); err != nil {
		return nil, err
	}
	members, _, err := memberProtos(s.ops.Node)
	return &apiv1.ListMembersResponse{Members: members}, err
}

func (s *clusterService) JoinMember(_ context.Context, req *apiv1.JoinMemberRequest) (*apiv1.JoinMemberResponse, error) {
	if req.GetAddress() == "" {
		return nil, fault.New(fault.Invalid, "address: give the gossip address of a server as host:port").WithField("address")
	}
	n, err := s.ops.Node.Join(req.GetAddress())
	return &apiv1.JoinMemberResponse{Joined: uint32(n)}, err
}

// Whether a member was there when its removal was asked for, as a key remembers it.
const (
	memberThere  = "there"
	memberAbsent = "absent"
)

func (s *clusterService) isMember(id string) (string, error) {
	members, err := s.ops.Node.Members()
	if err != nil {
		return "", err
	}
	for _, m := range members {
		if m.ID == id {
			return memberThere, nil
		}
	}
	return memberAbsent, nil
}

func (s *clusterService) RemoveMember(ctx context.Context, req *apiv1.RemoveMemberRequest) (*apiv1.RemoveMemberResponse, error) {
	there, err := s.isMember(req.GetId())
	if err != nil {
		return nil, err
	}
	was, again, err := s.ops.remember(ctx, apiv1.ClusterService_RemoveMember_FullMethodName, req, there)
	if err != nil {
		return nil, err
	}
	// The first time has removed it, when it was there then.
	if err := s.ops.Node.Remove(req.GetId()); err != nil && (!again || was != memberThere || !fault.Is(err, fault.NotFound)) {
		return nil, err
	}
	return &apiv1.RemoveMemberResponse{}, nil
}

// TransferLeadership answers once another server is known to lead. A retry whose first time has made another server lead
// is answered at once.
func (s *clusterService) TransferLeadership(ctx context.Context, req *apiv1.TransferLeadershipRequest) (*apiv1.TransferLeadershipResponse, error) {
	before, _ := s.ops.Node.Leader()
	led, again, err := s.ops.remember(ctx, apiv1.ClusterService_TransferLeadership_FullMethodName, req, before.ID)
	if err != nil {
		return nil, err
	}
	if again && led != before.ID {
		return &apiv1.TransferLeadershipResponse{Leader: before.ID}, nil
	}
	if err := s.ops.Node.TransferLeadership(ctx, req.GetId()); err != nil {
		return nil, err
	}
	for {
		l, changed := s.ops.Node.Leader()
		if l.ID != "" && (l.ID != before.ID || req.GetId() == before.ID) {
			return &apiv1.TransferLeadershipResponse{Leader: l.ID}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.New(fault.Timeout, "transfer leadership: it was handed over, and nobody leads yet: %w", ctx.Err())
		}
	}
}

// SaveSnapshot streams the leader's state as a snapshot file.
func (s *clusterService) SaveSnapshot(_ *apiv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error {
	if _, err := s.ops.fresh(stream.Context(), apiv1.Consistency_LINEARIZABLE); err != nil {
		return err
	}
	w := bufio.NewWriterSize(sendWriter(func(b []byte) error {
		return stream.Send(&apiv1.SaveSnapshotResponse{Data: b})
	}), snapshotPieceBytes)
	if _, err := s.ops.Node.WriteSnapshot(w); err != nil {
		return err
	}
	return w.Flush()
}

// sendWriter makes a writer of a function that keeps no reference to what it is given.
type sendWriter func([]byte) error

func (f sendWriter) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), snapshotPieceBytes)
		if err := f(rest[:n]); err != nil {
			return len(b) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(b), nil
}

// RestoreSnapshot receives a snapshot file whole and checks it before anything changes.
func (s *clusterService) RestoreSnapshot(stream grpc.ClientStreamingServer[apiv1.RestoreSnapshotRequest, apiv1.RestoreSnapshotResponse]) error {
	f, err := os.CreateTemp("", "orchestrator-restore-*")
	if err != nil {
		return fault.New(fault.Internal, "restore snapshot: %w", err)
	}
	defer f.Close()
	_ = os.Remove(f.Name()) // it lives as long as it is open
	var size int64
	var named *apiv1.RestoreSnapshotRequest // the first message, without its bytes
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if named == nil {
			named = &apiv1.RestoreSnapshotRequest{IdempotencyKey: req.GetIdempotencyKey()}
			if err := checkKey(named.GetIdempotencyKey()); err != nil {
				return err
			}
			if s.restored(stream.Context(), named) {
				return stream.SendAndClose(s.restoredState())
			}
		}
		if size += int64(len(req.GetData())); size > maxSnapshotBytes {
			return fault.New(fault.Exhausted, "restore snapshot: the file is larger than %d bytes", int64(maxSnapshotBytes))
		}
		if _, err := f.Write(req.GetData()); err != nil {
			return fault.New(fault.Internal, "restore snapshot: %w", err)
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fault.New(fault.Internal, "restore snapshot: %w", err)
	}
	summary, err := state.InspectSnapshot(bufio.NewReader(f))
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fault.New(fault.Internal, "restore snapshot: %w", err)
	}
	if err := s.ops.Node.RestoreSnapshot(summary, f); err != nil {
		return err
	}
	// Only now: the keys that were kept before went with the state that was replaced.
	if _, _, err := s.ops.remember(stream.Context(), apiv1.ClusterService_RestoreSnapshot_FullMethodName, named, ""); err != nil {
		return fault.New(fault.KindOf(err), "the snapshot was restored, but its idempotency key was not kept: %w", err)
	}
	return stream.SendAndClose(s.restoredState())
}

// restored reports whether a restore with the same key has succeeded.
func (s *clusterService) restored(ctx context.Context, req *apiv1.RestoreSnapshotRequest) bool {
	if req.GetIdempotencyKey() == "" {
		return false
	}
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	return err == nil && v.Remembers(onceScope(ctx, apiv1.ClusterService_RestoreSnapshot_FullMethodName), req.GetIdempotencyKey())
}

func (s *clusterService) restoredState() *apiv1.RestoreSnapshotResponse {
	v := s.ops.State.View()
	return &apiv1.RestoreSnapshotResponse{Index: v.Index(), Sessions: v.PhaseCounts().Total()}
}

type relayService struct {
	clusterv1.UnimplementedRelayServiceServer
	ops *Operations
	hub *nodelink.Hub
}

func (s *relayService) GetServerStats(context.Context, *clusterv1.GetServerStatsRequest) (*clusterv1.GetServerStatsResponse, error) {
	st := s.ops.Node.Stats()
	out := &clusterv1.GetServerStatsResponse{
		Id: s.ops.Node.ID(), Term: st.Term, LastIndex: st.LastIndex, AppliedIndex: st.AppliedIndex, LastContactMs: -1,
		Version: s.ops.Version, Pid: int32(s.ops.PID),
	}
	if st.LastContact >= 0 {
		out.LastContactMs = float64(st.LastContact) / float64(time.Millisecond)
	}
	return out, nil
}

// Link serves a follower's links on the leader.
func (s *relayService) Link(stream grpc.BidiStreamingServer[clusterv1.LinkRequest, clusterv1.LinkResponse]) error {
	return s.hub.ServeRelay(stream)
}
