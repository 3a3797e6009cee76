// What moves sessions, in gRPC.

package gateway

import (
	"context"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// shown describes what an operation returned; nil when it failed.
func (s *sessionService) shown(row *session.Session, err error) (*apiv1.Session, error) {
	if err != nil {
		return nil, err
	}
	return s.ops.sessionNow(s.ops.State.View(), row), nil
}

func (s *sessionService) CheckpointSession(ctx context.Context, req *apiv1.CheckpointSessionRequest) (*apiv1.CheckpointSessionResponse, error) {
	p, err := s.shown(s.ops.Checkpoint(ctx, req))
	return &apiv1.CheckpointSessionResponse{Session: p}, err
}

func (s *sessionService) ListCheckpoints(ctx context.Context, req *apiv1.ListCheckpointsRequest) (*apiv1.ListCheckpointsResponse, error) {
	v, err := s.ops.fresh(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	row, err := s.ops.resolve(ctx, v, req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListCheckpointsResponse{}
	for _, c := range row.Checkpoints {
		out.Checkpoints = append(out.Checkpoints, pbconv.CheckpointToProto(c))
	}
	return out, nil
}

func (s *sessionService) MigrateSession(ctx context.Context, req *apiv1.MigrateSessionRequest) (*apiv1.MigrateSessionResponse, error) {
	p, err := s.shown(s.ops.Migrate(ctx, req))
	return &apiv1.MigrateSessionResponse{Session: p}, err
}

func (s *sessionService) CancelMigration(ctx context.Context, req *apiv1.CancelMigrationRequest) (*apiv1.CancelMigrationResponse, error) {
	p, err := s.shown(s.ops.CancelMigration(ctx, req))
	return &apiv1.CancelMigrationResponse{Session: p}, err
}

func (s *sessionService) PauseSession(ctx context.Context, req *apiv1.PauseSessionRequest) (*apiv1.PauseSessionResponse, error) {
	p, err := s.shown(s.ops.Pause(ctx, req))
	return &apiv1.PauseSessionResponse{Session: p}, err
}

func (s *sessionService) ResumeSession(ctx context.Context, req *apiv1.ResumeSessionRequest) (*apiv1.ResumeSessionResponse, error) {
	p, err := s.shown(s.ops.Resume(ctx, req))
	return &apiv1.ResumeSessionResponse{Session: p}, err
}

func (s *sessionService) ForkSession(ctx context.Context, req *apiv1.ForkSessionRequest) (*apiv1.ForkSessionResponse, error) {
	p, err := s.shown(s.ops.Fork(ctx, req))
	return &apiv1.ForkSessionResponse{Session: p}, err
}

func (s *sessionService) RewindSession(ctx context.Context, req *apiv1.RewindSessionRequest) (*apiv1.RewindSessionResponse, error) {
	p, err := s.shown(s.ops.Rewind(ctx, req))
	return &apiv1.RewindSessionResponse{Session: p}, err
}

func (s *sessionService) DeleteCheckpoint(ctx context.Context, req *apiv1.DeleteCheckpointRequest) (*apiv1.DeleteCheckpointResponse, error) {
	p, err := s.shown(s.ops.DeleteCheckpoint(ctx, req))
	return &apiv1.DeleteCheckpointResponse{Session: p}, err
}
