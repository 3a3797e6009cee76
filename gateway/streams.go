// Logs, terminals and commands: bytes between a client and a session on its node.

package gateway

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

// ReadLogs streams a session's output. A client that follows stays through restarts: the lines of the next epoch come
// from wherever it runs.
func (s *sessionService) ReadLogs(req *apiv1.ReadLogsRequest, stream grpc.ServerStreamingServer[apiv1.ReadLogsResponse]) error {
	ctx := stream.Context()
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return err
	}
	row, err := s.ops.resolve(ctx, v, req.GetNamespace(), req.GetSessionId())
	if err != nil {
		return err
	}
	next := max(req.GetFromLine(), 1)
	var since *timestamppb.Timestamp
	if req.GetSince() != nil {
		since = timestamppb.New(s.ops.Now().Add(-req.GetSince().AsDuration()))
	}
	for {
		changed := s.ops.waiters.changed(row.ID)
		row = s.ops.State.View().Session(row.ID)
		if row == nil {
			return fault.New(fault.NotFound, "read logs: the session is no longer kept")
		}
		if row.Epoch > 0 && row.NodeID != "" {
			if next, err = s.copyLogs(ctx, row, next, since, req.GetFollow(), stream); err != nil {
				return err
			}
		}
		if !req.GetFollow() {
			return nil
		}
		now := s.ops.State.View().Session(row.ID)
		if now != nil && now.Epoch == row.Epoch && now.Phase.Ended() {
			return nil
		}
		if now != nil && now.Epoch != row.Epoch {
			continue
		}
		// The stream ended, or the node has not got the session yet or no more; the state does not say yet what becomes of it.
		if err := s.ops.await(ctx, changed); err != nil {
			return err
		}
	}
}

// copyLogs copies the lines that a session's node has, from a number on, and returns the number after the last. To who follows a session that
// is on its way there is no error in that its node does not run it, not yet or no more.
func (s *sessionService) copyLogs(ctx context.Context, row *session.Session, next uint64, since *timestamppb.Timestamp, follow bool,
	out grpc.ServerStreamingServer[apiv1.ReadLogsResponse],
) (uint64, error) {
	st, err := s.ops.Leader.OpenStream(ctx, row.NodeID, &nodev1.StreamOpen{SessionId: row.ID, Kind: &nodev1.StreamOpen_ReadLogs{
		ReadLogs: &nodev1.ReadLogs{FromLine: next, Follow: follow, Since: since},
	}})
	if err != nil {
		return next, err
	}
	defer st.Close(nil, nil)
	for {
		d, err := st.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return next, nil
		}
		if follow && !row.Phase.Ended() && notHere(err) {
			return next, nil
		}
		if err != nil {
			return next, streamError("read logs", err)
		}
		for _, l := range d.GetLines() {
			if l.GetNumber() >= next {
				next = l.GetNumber() + 1
			}
		}
		if err := out.Send(&apiv1.ReadLogsResponse{Lines: d.GetLines()}); err != nil {
			return next, err
		}
	}
}

// notHere reports whether a node said that it does not run the session, or does not run it yet; rather than that the link to it broke.
func notHere(err error) bool {
	return fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unavailable) && !errors.Is(err, nodelink.ErrClosed)
}

// streamError tells a client whose stream broke with the link that it may ask again.
func streamError(what string, err error) error {
	if errors.Is(err, nodelink.ErrClosed) {
		return fault.New(fault.Unavailable, "%s: the link to the node was lost; ask again: %w", what, err).WithRetry(time.Second)
	}
	return fault.New(fault.KindOf(err), "%s: %w", what, err)
}

// running finds a session that runs.
func (s *sessionService) running(ctx context.Context, what, namespace, id string) (*session.Session, error) {
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	row, err := s.ops.resolve(ctx, v, namespace, id)
	if err != nil {
		return nil, err
	}
	if row.Phase != session.Running && row.Phase != session.Terminating {
		return nil, fault.New(fault.FailedPrecondition, "%s: session %s is %s: %s", what, row.ID, row.Phase, row.Reason)
	}
	return row, nil
}

// AttachSession joins a terminal to a running session.
func (s *sessionService) AttachSession(stream grpc.BidiStreamingServer[apiv1.AttachSessionRequest, apiv1.AttachSessionResponse]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	o := first.GetOpen()
	row, err := s.running(ctx, "attach", o.GetNamespace(), o.GetSessionId())
	if err != nil {
		return err
	}
	st, err := s.ops.Leader.OpenStream(ctx, row.NodeID, &nodev1.StreamOpen{SessionId: row.ID, Kind: &nodev1.StreamOpen_Attach{
		Attach: &nodev1.Attach{Columns: o.GetColumns(), Rows: o.GetRows()},
	}})
	if err != nil {
		return err
	}
	defer st.Close(nil, nil)
	go func() { // ends with the stream
		for {
			req, err := stream.Recv()
			if err != nil {
				_ = st.Send(ctx, &nodev1.StreamData{EndOfInput: true})
				return
			}
			if err := st.Send(ctx, &nodev1.StreamData{Stdin: req.GetInput(), Columns: req.GetColumns(), Rows: req.GetRows()}); err != nil {
				return
			}
		}
	}()
	for {
		d, err := st.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return stream.Send(&apiv1.AttachSessionResponse{Exit: st.Exit()})
		}
		if err != nil {
			return streamError("attach", err)
		}
		if out := append(d.GetStdout(), d.GetStderr()...); len(out) > 0 {
			if err := stream.Send(&apiv1.AttachSessionResponse{Output: out}); err != nil {
				return err
			}
		}
	}
}

// ExecSession runs a command beside a running session.
func (s *sessionService) ExecSession(stream grpc.BidiStreamingServer[apiv1.ExecSessionRequest, apiv1.ExecSessionResponse]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	o := first.GetOpen()
	if len(o.GetCommand()) == 0 {
		return fault.New(fault.Invalid, "exec: the command is empty; give it after --").WithField("command")
	}
	row, err := s.running(ctx, "exec", o.GetNamespace(), o.GetSessionId())
	if err != nil {
		return err
	}
	st, err := s.ops.Leader.OpenStream(ctx, row.NodeID, &nodev1.StreamOpen{SessionId: row.ID, Kind: &nodev1.StreamOpen_Exec{
		Exec: &nodev1.Exec{Command: o.GetCommand(), Tty: o.GetTty(), Columns: o.GetColumns(), Rows: o.GetRows()},
	}})
	if err != nil {
		return err
	}
	defer st.Close(nil, nil)
	go func() { // ends with the stream
		for {
			req, err := stream.Recv()
			if err != nil {
				_ = st.Send(ctx, &nodev1.StreamData{EndOfInput: true})
				return
			}
			if err := st.Send(ctx, &nodev1.StreamData{
				Stdin: req.GetInput(), EndOfInput: req.GetEndOfInput(), Columns: req.GetColumns(), Rows: req.GetRows(),
			}); err != nil {
				return
			}
		}
	}()
	for {
		d, err := st.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return stream.Send(&apiv1.ExecSessionResponse{Exit: st.Exit()})
		}
		if err != nil {
			return streamError("exec", err)
		}
		if err := stream.Send(&apiv1.ExecSessionResponse{Stdout: d.GetStdout(), Stderr: d.GetStderr()}); err != nil {
			return err
		}
	}
}
