// SessionService in gRPC.

package gateway

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
)

type sessionService struct {
	apiv1.UnimplementedSessionServiceServer
	ops *Operations
}

// Pages of lists.
const (
	defaultPage = 100
	maxPage     = 1000
	// maxBatchMessages bounds one batch of SendMessages, and pipelinedBatches how many of a stream are on their way.
	maxBatchMessages = 1024
	pipelinedBatches = 16
)

func pageSize(n int32) int {
	switch {
	case n <= 0:
		return defaultPage
	case n > maxPage:
		return maxPage
	default:
		return int(n)
	}
}

func (s *sessionService) SpawnSession(ctx context.Context, req *apiv1.SpawnSessionRequest) (*apiv1.SpawnSessionResponse, error) {
	row, err := s.ops.Spawn(ctx, req)
	if err != nil {
		return nil, err
	}
	return &apiv1.SpawnSessionResponse{Session: s.ops.sessionNow(s.ops.State.View(), row)}, nil
}

func (s *sessionService) GetSession(ctx context.Context, req *apiv1.GetSessionRequest) (*apiv1.GetSessionResponse, error) {
	v, err := s.ops.fresh(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	row, err := s.ops.resolve(ctx, v, req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetSessionResponse{Session: s.ops.sessionNow(v, row)}, nil
}

func (s *sessionService) ListSessions(ctx context.Context, req *apiv1.ListSessionsRequest) (*apiv1.ListSessionsResponse, error) {
	match, err := newSessionFilter(caller(ctx), req.GetNamespace(), req.GetFilter())
	if err != nil {
		return nil, err
	}
	v, err := s.ops.fresh(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListSessionsResponse{Total: -1}
	size := pageSize(req.GetPageSize())
	for row := range v.Sessions(req.GetPageToken()) {
		if !match.session(v, row) {
			continue
		}
		if len(out.Sessions) == size {
			out.NextPageToken = out.Sessions[size-1].GetId()
			break
		}
		out.Sessions = append(out.Sessions, s.ops.sessionNow(v, row))
	}
	switch {
	case req.GetPageToken() == "" && out.NextPageToken == "":
		out.Total = int64(len(out.Sessions))
	case match.everything():
		out.Total = int64(v.PhaseCounts().Total())
	}
	return out, nil
}

// WatchSessions sends what matches, then what changes.
func (s *sessionService) WatchSessions(req *apiv1.WatchSessionsRequest, stream grpc.ServerStreamingServer[apiv1.WatchSessionsResponse]) error {
	ctx := stream.Context()
	match, err := newSessionFilter(caller(ctx), req.GetNamespace(), req.GetFilter())
	if err != nil {
		return err
	}
	if _, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE); err != nil {
		return err
	}
	if req.GetId() != "" {
		row, err := s.ops.resolve(ctx, s.ops.State.View(), req.GetNamespace(), req.GetId())
		if err != nil {
			return err
		}
		match.only = row.ID
	}
	sub, v := s.ops.State.Subscribe()
	defer sub.Close()
	for row := range v.Sessions("") {
		if match.session(v, row) {
			if err := stream.Send(&apiv1.WatchSessionsResponse{Session: s.ops.sessionNow(v, row)}); err != nil {
				return err
			}
		}
	}
	if err := stream.Send(&apiv1.WatchSessionsResponse{Synced: true}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	changes, ended := make(chan change), make(chan struct{})
	go func() { defer close(ended); follow(ctx, sub, changes) }()
	defer func() { cancel(); <-ended }()
	far := s.ops.followProgress()
	defer far.end()
	for {
		select {
		case c := <-changes:
			if errors.Is(c.err, state.ErrLagged) {
				return fault.New(fault.Aborted, "watch sessions: the client reads more slowly than sessions change; watch again")
			}
			if c.err != nil {
				return c.err
			}
			if err := s.sendChange(stream, match, c.Change); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-far.told:
			far.pause()
		case <-far.rest.C:
			v := s.ops.State.View()
			for _, id := range far.next() {
				row := v.Session(id)
				if row == nil || !row.Migration.Under() || !match.session(v, row) {
					continue
				}
				if err := stream.Send(&apiv1.WatchSessionsResponse{Session: s.ops.sessionNow(v, row)}); err != nil {
					return err
				}
			}
		}
	}
}

func (s *sessionService) sendChange(stream grpc.ServerStreamingServer[apiv1.WatchSessionsResponse], match *sessionFilter, c *state.Change) error {
	if c.Restored {
		return fault.New(fault.Aborted, "watch sessions: the cluster's state was restored from a snapshot; watch again")
	}
	v := s.ops.State.View()
	changed := map[string]bool{}
	for _, row := range c.Sessions {
		changed[row.ID] = true
	}
	for _, r := range c.Results {
		changed[r.SessionID] = true
	}
	for id := range changed {
		row := v.Session(id)
		if row == nil || !match.session(v, row) {
			continue
		}
		if err := stream.Send(&apiv1.WatchSessionsResponse{Session: s.ops.sessionNow(v, row)}); err != nil {
			return err
		}
	}
	for _, row := range c.RemovedSessions {
		if !match.session(v, row) {
			continue
		}
		if err := stream.Send(&apiv1.WatchSessionsResponse{Session: &apiv1.Session{Id: row.ID}, Removed: true}); err != nil {
			return err
		}
	}
	return nil
}

func (s *sessionService) TerminateSession(ctx context.Context, req *apiv1.TerminateSessionRequest) (*apiv1.TerminateSessionResponse, error) {
	row, err := s.ops.Terminate(ctx, req)
	if err != nil {
		return nil, err
	}
	return &apiv1.TerminateSessionResponse{Session: s.ops.sessionNow(s.ops.State.View(), row)}, nil
}

func (s *sessionService) SendMessage(ctx context.Context, req *apiv1.SendMessageRequest) (*apiv1.SendMessageResponse, error) {
	return s.ops.Send(ctx, req)
}

// SendMessages accepts batches, each as one entry of the log, several of them on their way at once. Of messages that ask for it, the end
// of the turn is told when it comes.
func (s *sessionService) SendMessages(stream grpc.BidiStreamingServer[apiv1.SendMessagesRequest, apiv1.SendMessagesResponse]) error {
	ctx := stream.Context()
	b := &batches{s: s, turns: s.ops.newTurns(ctx), answers: make(chan batchAnswer, pipelinedBatches)}
	defer b.turns.end()
	received := make(chan error, 1)
	go func() { received <- b.receive(ctx, stream) }() // ends with the stream: Recv fails when the handler returns
	for {
		select {
		case answer, more := <-b.answers:
			if !more {
				return <-received
			}
			resp, err := answer()
			if err != nil {
				return err
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
		case <-b.turns.ready:
			ended := b.turns.take()
			if len(ended) == 0 {
				continue // those that it was for were taken with others
			}
			if err := stream.Send(&apiv1.SendMessagesResponse{Turns: ended}); err != nil {
				return err
			}
		}
	}
}

// batches are those of one stream.
type batches struct {
	s       *sessionService
	turns   *turns
	answers chan batchAnswer
	count   uint64 // of messages so far
}

// batchAnswer waits for the answer to one batch.
type batchAnswer func() (*apiv1.SendMessagesResponse, error)

// receive takes batches until the client has no more; it closes answers behind the last.
func (b *batches) receive(ctx context.Context, stream grpc.BidiStreamingServer[apiv1.SendMessagesRequest, apiv1.SendMessagesResponse]) error {
	defer close(b.answers)
	for {
		req, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		answer, err := b.accept(ctx, req)
		if err != nil {
			return err
		}
		select {
		case b.answers <- answer:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// accept proposes a batch and returns how to wait for its answer.
func (b *batches) accept(ctx context.Context, req *apiv1.SendMessagesRequest) (batchAnswer, error) {
	n := len(req.GetMessages())
	if n == 0 || n > maxBatchMessages {
		return nil, fault.New(fault.Invalid, "messages: a batch has 1 to %d, and this one %d", maxBatchMessages, n).WithField("messages")
	}
	if err := b.s.ops.room(ctx); err != nil {
		return nil, err
	}
	first := b.count
	b.count += uint64(n)
	resp := &apiv1.SendMessagesResponse{Results: make([]*apiv1.SendMessagesResponse_Result, n)}
	v := b.s.ops.State.View()
	var commands []*clusterv1.Command
	var positions []int
	var sessions []string
	for i, m := range req.GetMessages() {
		cmd, row, err := b.s.ops.sendCommand(ctx, v, m)
		if err != nil {
			resp.Results[i] = refused(err)
			continue
		}
		commands, positions, sessions = append(commands, cmd), append(positions, i), append(sessions, row.ID)
	}
	if len(commands) == 0 {
		return func() (*apiv1.SendMessagesResponse, error) { return resp, nil }, nil
	}
	type answer struct {
		results []state.Result
		err     error
	}
	done := make(chan answer, 1)
	if err := b.s.ops.Node.ProposeAsync(func(r []state.Result, err error) { done <- answer{r, err} }, commands...); err != nil {
		return nil, err
	}
	return func() (*apiv1.SendMessagesResponse, error) {
		var a answer
		select {
		case a = <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if a.err != nil {
			return nil, a.err
		}
		for i, r := range a.results {
			at := positions[i]
			if r.Err != nil {
				resp.Results[at] = refused(r.Err)
				continue
			}
			b.s.ops.sent(ctx, sessions[i], &r)
			awaited := req.GetMessages()[at].GetWait()
			resp.Results[at] = &apiv1.SendMessagesResponse_Result{Sequence: r.Sequence, Awaited: awaited}
			if awaited {
				b.turns.await(state.LetterKey{SessionID: sessions[i], Sequence: r.Sequence}, first+uint64(at))
			}
		}
		return resp, nil
	}, nil
}

func refused(err error) *apiv1.SendMessagesResponse_Result {
	return &apiv1.SendMessagesResponse_Result{Code: int32(faultcode.Of(fault.KindOf(err))), Error: err.Error()}
}

func (s *sessionService) GetMessage(ctx context.Context, req *apiv1.GetMessageRequest) (*apiv1.GetMessageResponse, error) {
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	row, err := s.ops.resolve(ctx, v, req.GetNamespace(), req.GetSessionId())
	if err != nil {
		return nil, err
	}
	if req.GetWait() {
		m, err := s.ops.waitMessage(ctx, row.ID, req.GetSequence())
		if err != nil {
			return nil, err
		}
		return &apiv1.GetMessageResponse{Message: m}, nil
	}
	m, ok := s.ops.message(v, row.ID, req.GetSequence())
	if !ok {
		return nil, fault.New(fault.NotFound, "message %d of session %s: is not there, or its result is no longer kept", req.GetSequence(), row.ID)
	}
	return &apiv1.GetMessageResponse{Message: m}, nil
}

func (s *sessionService) GetSessionHistory(ctx context.Context, req *apiv1.GetSessionHistoryRequest) (*apiv1.GetSessionHistoryResponse, error) {
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	row, err := s.ops.resolve(ctx, v, req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetSessionHistoryResponse{Entries: historyProto(v, row)}, nil
}
