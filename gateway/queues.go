// QueueService in gRPC.

package gateway

import (
	"context"
	"strconv"
	"strings"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

type queueService struct {
	apiv1.UnimplementedQueueServiceServer
	ops *Operations
}

// scope returns the namespace that a caller asks about, empty for all that it may see.
func scope(ctx context.Context, namespace string) (string, error) {
	who := caller(ctx)
	if namespace == "" {
		return who.Namespace, nil
	}
	return namespace, who.CheckNamespace(namespace)
}

// GetQueueStats walks the mailboxes; it is for people and dashboards, not for hot paths.
func (s *queueService) GetQueueStats(ctx context.Context, req *apiv1.GetQueueStatsRequest) (*apiv1.GetQueueStatsResponse, error) {
	ns, err := scope(ctx, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	out := &apiv1.GetQueueStatsResponse{ByPriority: map[string]uint64{}}
	oldest := int64(0)
	for row := range v.Sessions("") {
		if ns != "" && row.Spec.Namespace != ns {
			continue
		}
		box := v.Mailbox(row.ID)
		if box == nil {
			continue
		}
		out.Queued += uint64(box.Queued)
		out.Delivered += uint64(box.Delivered)
		out.Dead += uint64(box.Dead)
		if box.Queued+box.Delivered == 0 {
			continue
		}
		for m := range v.Messages(row.ID) {
			if !m.Delivered {
				out.ByPriority[m.Priority.String()]++
			}
			if oldest == 0 || m.CreateTime < oldest {
				oldest = m.CreateTime
			}
		}
	}
	if oldest != 0 {
		out.OldestSeconds = time.Duration(s.ops.Now().UnixNano() - oldest).Seconds()
	}
	s.countCalls(v, ns, out)
	return out, nil
}

func (s *queueService) ListMessages(ctx context.Context, req *apiv1.ListMessagesRequest) (*apiv1.ListMessagesResponse, error) {
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	row, err := s.ops.resolve(ctx, v, req.GetNamespace(), req.GetSessionId())
	if err != nil {
		return nil, err
	}
	skip := 0
	if req.GetPageToken() != "" {
		if skip, err = strconv.Atoi(req.GetPageToken()); err != nil || skip < 0 {
			return nil, fault.New(fault.Invalid, "page_token: is not one that a page gave").WithField("page_token")
		}
	}
	out := &apiv1.ListMessagesResponse{}
	size, i := pageSize(req.GetPageSize()), 0
	for m := range v.Messages(row.ID) {
		if i++; i <= skip {
			continue
		}
		if len(out.Messages) == size {
			out.NextPageToken = strconv.Itoa(skip + size)
			break
		}
		p := pbconv.MessageToProto(m)
		p.Namespace = row.Spec.Namespace
		out.Messages = append(out.Messages, p)
	}
	return out, nil
}

// deadSession finds the session of dead letters; they outlive it, so an id that is not found is taken as it is.
func (s *queueService) deadSession(ctx context.Context, v *state.View, namespace, id string) (string, error) {
	row, err := s.ops.resolve(ctx, v, namespace, id)
	switch {
	case err == nil:
		return row.ID, nil
	case fault.Is(err, fault.NotFound):
		return id, nil
	default:
		return "", err
	}
}

func (s *queueService) ListDeadLetters(ctx context.Context, req *apiv1.ListDeadLettersRequest) (*apiv1.ListDeadLettersResponse, error) {
	ns, err := scope(ctx, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	id := ""
	if req.GetSessionId() != "" {
		if id, err = s.deadSession(ctx, v, req.GetNamespace(), req.GetSessionId()); err != nil {
			return nil, err
		}
	}
	out := &apiv1.ListDeadLettersResponse{}
	size := pageSize(req.GetPageSize())
	if token, calls := strings.CutPrefix(req.GetPageToken(), deadCallsToken); calls && id == "" {
		return out, s.deadCalls(ctx, v, ns, token, size, out)
	}
	after, err := parseLetter(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	for d := range v.DeadLetters(ns, id, after) {
		if len(out.Messages) == size {
			last := out.Messages[size-1]
			out.NextPageToken = last.GetSessionId() + "/" + strconv.FormatUint(last.GetSequence(), 10)
			return out, nil
		}
		out.Messages = append(out.Messages, deadProto(d))
	}
	if id != "" {
		return out, nil
	}
	return out, s.deadCalls(ctx, v, ns, "", size-len(out.Messages), out)
}

func parseLetter(token string) (state.LetterKey, error) {
	if token == "" {
		return state.LetterKey{}, nil
	}
	for i := len(token) - 1; i >= 0; i-- {
		if token[i] != '/' {
			continue
		}
		if n, err := strconv.ParseUint(token[i+1:], 10, 64); err == nil {
			return state.LetterKey{SessionID: token[:i], Sequence: n}, nil
		}
	}
	return state.LetterKey{}, fault.New(fault.Invalid, "page_token: is not one that a page gave").WithField("page_token")
}

// letter finds one dead letter that the caller may see.
func (s *queueService) letter(ctx context.Context, v *state.View, namespace, id string, sequence uint64) (*session.DeadLetter, error) {
	full, err := s.deadSession(ctx, v, namespace, id)
	if err != nil {
		return nil, err
	}
	d := v.DeadLetter(state.LetterKey{SessionID: full, Sequence: sequence})
	if d == nil || !caller(ctx).MayUse(d.Namespace) {
		return nil, fault.New(fault.NotFound, "dead letter %d of session %q: there is none; see `orchctl dlq list`", sequence, clip(id))
	}
	return d, nil
}

func (s *queueService) GetDeadLetter(ctx context.Context, req *apiv1.GetDeadLetterRequest) (*apiv1.GetDeadLetterResponse, error) {
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	if req.GetCallId() != "" {
		c, err := s.deadCall(ctx, v, req.GetNamespace(), req.GetCallId())
		if err != nil {
			return nil, err
		}
		return &apiv1.GetDeadLetterResponse{Call: callProto(v, c, reads(caller(ctx), c))}, nil
	}
	d, err := s.letter(ctx, v, req.GetNamespace(), req.GetSessionId(), req.GetSequence())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetDeadLetterResponse{Message: deadProto(d)}, nil
}

func (s *queueService) RetryDeadLetters(ctx context.Context, req *apiv1.RetryDeadLettersRequest) (*apiv1.RetryDeadLettersResponse, error) {
	if req.GetCallId() != "" {
		return s.retryCall(ctx, req)
	}
	row, err := s.ops.resolve(ctx, s.ops.State.View(), req.GetNamespace(), req.GetSessionId())
	if err != nil {
		return nil, err
	}
	res, err := s.ops.oneOnce(ctx, apiv1.QueueService_RetryDeadLetters_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_RetryDeadLetters{RetryDeadLetters: &clusterv1.RetryDeadLetters{
		SessionId: row.ID, Sequence: req.GetSequence(),
	}}})
	return &apiv1.RetryDeadLettersResponse{Retried: res.Count}, err
}

func (s *queueService) PurgeDeadLetters(ctx context.Context, req *apiv1.PurgeDeadLettersRequest) (*apiv1.PurgeDeadLettersResponse, error) {
	ns, err := scope(ctx, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	cmd := &clusterv1.PurgeDeadLetters{Namespace: ns, Sequence: req.GetSequence()}
	switch {
	case req.GetCallId() != "":
		return s.purgeCall(ctx, req)
	case req.GetSessionId() != "":
		if cmd.SessionId, err = s.deadSession(ctx, s.ops.State.View(), req.GetNamespace(), req.GetSessionId()); err != nil {
			return nil, err
		}
	case req.GetSequence() != 0:
		return nil, fault.New(fault.Invalid, "session_id: is missing; a sequence alone names no dead letter").WithField("session_id")
	default:
		return s.purgeAll(ctx, req, namespaceOr(ns, caller(ctx)))
	}
	res, err := s.ops.oneOnce(ctx, apiv1.QueueService_PurgeDeadLetters_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_PurgeDeadLetters{PurgeDeadLetters: cmd}})
	return &apiv1.PurgeDeadLettersResponse{Purged: res.Count}, err
}
