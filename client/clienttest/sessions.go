// The session service of the cluster in memory.

package clienttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

type sessions struct {
	apiv1.UnimplementedSessionServiceServer
	c *Cluster
}

// index is when the session changed last; 0 for none.
func (n *sessionState) index() uint64 {
	if n == nil {
		return 0
	}
	return n.GetModifyIndex()
}

func ended(p apiv1.Session_Phase) bool { return session.Phase(p).Ended() }

// find returns a session by id, unique prefix or name; mu is held.
func (c *Cluster) find(namespace, ref string) (*sessionState, error) {
	if namespace == "" {
		namespace = session.DefaultNamespace
	}
	var byPrefix []*sessionState
	var last *sessionState // that had the name
	for _, s := range c.sessions {
		switch {
		case s.GetNamespace() != namespace:
		case s.GetId() == ref, s.GetName() == ref && !ended(s.GetPhase()):
			return s, nil
		case ref != "" && s.GetName() == ref && s.GetModifyIndex() >= last.index():
			last = s
		case ref != "" && strings.HasPrefix(s.GetId(), ref):
			byPrefix = append(byPrefix, s)
		}
	}
	switch len(byPrefix) {
	case 1:
		return byPrefix[0], nil
	case 0:
		if last != nil {
			return last, nil
		}
		return nil, fault.New(fault.NotFound, "there is no session %q in namespace %s; 'orchctl sessions list' shows those there are", ref, namespace)
	default:
		return nil, fault.New(fault.Invalid, "%q is the beginning of %d session ids; give more of it", ref, len(byPrefix))
	}
}

func (s *sessions) SpawnSession(_ context.Context, req *apiv1.SpawnSessionRequest) (*apiv1.SpawnSessionResponse, error) {
	c := s.c
	spec := pbconv.SpecFromProto(req.GetSpec())
	spec.Normalize()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.GetIdempotencyKey() == "" {
		return nil, fault.New(fault.Invalid, "idempotency_key: is empty").WithField("idempotency_key")
	}
	if old, ok := c.keys[req.GetIdempotencyKey()].(string); ok {
		return &apiv1.SpawnSessionResponse{Session: proto.CloneOf(c.sessions[old].Session)}, nil
	}
	for _, other := range c.sessions {
		if spec.Name != "" && other.GetName() == spec.Name && other.GetNamespace() == spec.Namespace && !ended(other.GetPhase()) {
			return nil, fault.New(fault.AlreadyExists, "the name %q is taken by session %s; choose another, or terminate that one", spec.Name, other.GetId())
		}
	}
	n := &sessionState{Session: &apiv1.Session{
		Id: ID("session", len(c.sessions)+1), Namespace: spec.Namespace, Name: spec.Name, Type: spec.Type, Epoch: 1,
		Priority: apiv1.Priority_Level(spec.Priority), Labels: req.GetSpec().GetLabels(), CreateTime: c.stamp(),
		Spec: pbconv.SpecToProto(spec), Mailbox: &apiv1.Session_Mailbox{}, ModifyIndex: c.index + 1, Keeps: spec.Keeps(),
	}}
	c.place(n)
	c.sessions[n.Id] = n
	c.keys[req.GetIdempotencyKey()] = n.Id
	c.event("session."+strings.ToLower(n.Phase.String()), n.Namespace, n.Id, n.Node, n.Reason)
	c.change()
	return &apiv1.SpawnSessionResponse{Session: proto.CloneOf(n.Session)}, nil
}

// place starts a session on the first node that takes it; mu is held. The commands true and false end at once.
func (c *Cluster) place(n *sessionState) {
	i := slices.IndexFunc(c.nodes, func(n *apiv1.Node) bool { return n.GetSchedulable() && n.GetStatus() == apiv1.Node_HEALTHY })
	if i < 0 {
		n.Phase, n.Epoch, n.Reason = apiv1.Session_PENDING, 0, "no node fits"
		return
	}
	n.Node, n.Phase, n.Pid, n.StartTime = c.nodes[i].GetName(), apiv1.Session_RUNNING, 4711, c.stamp()
	n.Placement = fmt.Sprintf("%s: fewest sessions", n.Node)
	switch n.Spec.GetCommand()[0] {
	case "true":
		n.Phase, n.EndTime, n.Exit = apiv1.Session_COMPLETED, c.stamp(), &apiv1.Session_Exit{Cause: session.CauseCompleted}
	case "false":
		n.Phase, n.EndTime, n.Reason = apiv1.Session_FAILED, c.stamp(), "exit code 1"
		n.Exit = &apiv1.Session_Exit{Code: 1, Cause: session.CauseFailed, Message: "exit code 1"}
	default:
		c.nodes[i].Sessions++
	}
}

func (s *sessions) GetSession(_ context.Context, req *apiv1.GetSessionRequest) (*apiv1.GetSessionResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n, err := s.c.find(req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetSessionResponse{Session: proto.CloneOf(n.Session)}, nil
}

// match returns copies of the sessions that match, ordered by id; mu is held. Of the filter's terms it knows phase and checkpoint=failing.
func (c *Cluster) match(namespace, filter, id string) (out []*apiv1.Session) {
	for _, s := range c.sessions {
		phase, filtered := strings.CutPrefix(filter, "phase=")
		if namespace != "" && s.GetNamespace() != namespace || filtered && s.GetPhase().String() != phase || id != "" && s.GetId() != id {
			continue
		}
		if filter == "checkpoint=failing" && s.GetCheckpointError() == "" {
			continue
		}
		out = append(out, proto.CloneOf(s.Session))
	}
	slices.SortFunc(out, func(a, b *apiv1.Session) int { return strings.Compare(a.GetId(), b.GetId()) })
	return out
}

func (s *sessions) ListSessions(_ context.Context, req *apiv1.ListSessionsRequest) (*apiv1.ListSessionsResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	all := s.c.match(req.GetNamespace(), req.GetFilter(), "")
	page, next := cut(all, req.GetPageToken(), req.GetPageSize())
	return &apiv1.ListSessionsResponse{Sessions: page, NextPageToken: next, Total: int64(len(all))}, nil
}

// cut takes a page out of a list; the token is where the next one begins.
func cut[T any](all []T, token string, size int32) (page []T, next string) {
	from, _ := strconv.Atoi(token) // an empty token is the beginning
	if size <= 0 {
		size = 100
	}
	to := min(from+int(size), len(all))
	if to < len(all) {
		next = strconv.Itoa(to)
	}
	return all[min(from, to):to], next
}

func (s *sessions) WatchSessions(req *apiv1.WatchSessionsRequest, out apiv1.SessionService_WatchSessionsServer) error {
	sent := map[string]uint64{}
	id := req.GetId()
	for opened := false; ; opened = true {
		s.c.mu.Lock()
		if id != "" && !opened {
			n, err := s.c.find(req.GetNamespace(), id)
			if err != nil {
				s.c.mu.Unlock()
				return err
			}
			id = n.GetId()
		}
		now, changed := s.c.match(req.GetNamespace(), req.GetFilter(), id), s.c.changed
		s.c.mu.Unlock()
		present := map[string]bool{}
		for _, n := range now {
			present[n.GetId()] = true
			if at, ok := sent[n.GetId()]; ok && at == n.GetModifyIndex() {
				continue
			}
			sent[n.GetId()] = n.GetModifyIndex()
			if err := out.Send(&apiv1.WatchSessionsResponse{Session: n}); err != nil {
				return err
			}
		}
		for gone := range sent {
			if !present[gone] {
				delete(sent, gone)
				if err := out.Send(&apiv1.WatchSessionsResponse{Session: &apiv1.Session{Id: gone}, Removed: true}); err != nil {
					return err
				}
			}
		}
		if !opened {
			if err := out.Send(&apiv1.WatchSessionsResponse{Synced: true}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

func (s *sessions) TerminateSession(_ context.Context, req *apiv1.TerminateSessionRequest) (*apiv1.TerminateSessionResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n, err := s.c.find(req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	if n.GetId() != req.GetId() {
		return nil, fault.New(fault.Invalid, "%q is not a whole id; a repetition could hit another session", req.GetId())
	}
	s.c.end(n, apiv1.Session_TERMINATED, session.CauseTerminated)
	return &apiv1.TerminateSessionResponse{Session: proto.CloneOf(n.Session)}, nil
}

// end ends a session, once; mu is held.
func (c *Cluster) end(n *sessionState, phase apiv1.Session_Phase, cause string) {
	if ended(n.GetPhase()) {
		return
	}
	for _, node := range c.nodes {
		if node.GetName() == n.GetNode() {
			node.Sessions--
		}
	}
	n.Phase, n.EndTime, n.ModifyIndex, n.Exit = phase, c.stamp(), c.index+1, &apiv1.Session_Exit{Cause: cause}
	c.event("session."+cause, n.Namespace, n.Id, n.Node, "")
	c.change()
}

// accept puts a message into a mailbox; mu is held. A running session answers at once, with "echo: " and the text; the
// text "poison" becomes a dead letter.
func (c *Cluster) accept(req *apiv1.SendMessageRequest) (*apiv1.Message, error) {
	n, err := c.find(req.GetNamespace(), req.GetSessionId())
	if err != nil {
		return nil, err
	}
	if old, ok := c.keys[req.GetIdempotencyKey()].(*apiv1.Message); ok {
		return old, nil
	}
	if ended(n.GetPhase()) {
		return nil, fault.New(fault.FailedPrecondition, "session %s has ended (%s); spawn it again", n.GetId(), n.GetPhase())
	}
	if err := pbconv.SpecFromProto(n.GetSpec()).ValidateMessage(req.GetText()); err != nil {
		return nil, err
	}
	m := &apiv1.Message{
		SessionId: n.GetId(), Namespace: n.GetNamespace(), Sequence: uint64(len(n.messages)) + 1, Priority: max(req.GetPriority(), 0),
		Text: req.GetText(), Status: apiv1.Message_QUEUED, CreateTime: c.stamp(), Deadline: req.GetDeadline(),
	}
	if m.Priority == 0 {
		m.Priority = apiv1.Priority_NORMAL
	}
	n.messages = append(n.messages, m)
	c.keys[req.GetIdempotencyKey()] = m
	c.deliver(n, m)
	c.change()
	return m, nil
}

// deliver gives a message to the session, if it runs; mu is held.
func (c *Cluster) deliver(n *sessionState, m *apiv1.Message) {
	n.ModifyIndex = c.index + 1
	switch {
	case string(m.GetText()) == "poison":
		m.Status, m.Attempts, m.Cause, m.EndTime = apiv1.Message_DEAD, 3, "its turn failed 3 times", c.stamp()
		n.Mailbox.Dead++
	case n.GetPhase() != apiv1.Session_RUNNING:
		n.Mailbox.Queued++
	default:
		m.Status, m.Attempts, m.EndTime = apiv1.Message_ACKED, 1, c.stamp()
		m.Result = append([]byte("echo: "), m.GetText()...)
		n.Mailbox.Acked++
		c.line(n, apiv1.LogLine_STDOUT, string(m.GetResult()))
	}
}

func (s *sessions) SendMessage(ctx context.Context, req *apiv1.SendMessageRequest) (*apiv1.SendMessageResponse, error) {
	s.c.mu.Lock()
	m, err := s.c.accept(req)
	s.c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	resp := &apiv1.SendMessageResponse{Sequence: m.GetSequence(), SessionId: m.GetSessionId()}
	if req.GetWait() {
		resp.Message, err = s.c.turn(ctx, m)
	}
	return resp, err
}

// turn waits for the end of a message's turn.
func (c *Cluster) turn(ctx context.Context, m *apiv1.Message) (out *apiv1.Message, err error) {
	err = c.await(ctx, func() bool {
		out = proto.CloneOf(m)
		return m.GetStatus() == apiv1.Message_ACKED || m.GetStatus() == apiv1.Message_DEAD
	})
	return out, err
}

func (s *sessions) SendMessages(stream apiv1.SessionService_SendMessagesServer) error {
	var sending sync.Mutex
	var turns sync.WaitGroup
	ctx, cancel := context.WithCancel(stream.Context())
	defer turns.Wait()
	defer cancel()
	count := uint64(0)
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp := &apiv1.SendMessagesResponse{}
		awaited := map[uint64]*apiv1.Message{}
		s.c.mu.Lock()
		for _, r := range req.GetMessages() {
			m, err := s.c.accept(r)
			out := &apiv1.SendMessagesResponse_Result{Sequence: m.GetSequence()}
			switch {
			case err != nil:
				out.Code, out.Error = int32(statusCode(err)), err.Error()
			case r.GetWait():
				out.Awaited = true
				awaited[count] = m
			}
			count++
			resp.Results = append(resp.Results, out)
		}
		s.c.mu.Unlock()
		sending.Lock()
		err = stream.Send(resp)
		sending.Unlock()
		if err != nil {
			return err
		}
		for number, m := range awaited {
			turns.Go(func() {
				t := &apiv1.SendMessagesResponse_Turn{Number: number}
				var err error
				if t.Message, err = s.c.turn(ctx, m); err != nil {
					return // the stream has ended
				}
				if t.Message.GetStatus() == apiv1.Message_DEAD {
					t.Code, t.Error = int32(codes.FailedPrecondition), "it became a dead letter: "+t.Message.GetCause()
				}
				sending.Lock()
				defer sending.Unlock()
				_ = stream.Send(&apiv1.SendMessagesResponse{Turns: []*apiv1.SendMessagesResponse_Turn{t}}) // it has ended, or the next is told so
			})
		}
	}
}

func (s *sessions) GetMessage(ctx context.Context, req *apiv1.GetMessageRequest) (*apiv1.GetMessageResponse, error) {
	s.c.mu.Lock()
	n, err := s.c.find(req.GetNamespace(), req.GetSessionId())
	if err == nil && (req.GetSequence() == 0 || req.GetSequence() > uint64(len(n.messages))) {
		err = fault.New(fault.NotFound, "session %s has no message %d", n.GetId(), req.GetSequence())
	}
	if err != nil {
		s.c.mu.Unlock()
		return nil, err
	}
	m := n.messages[req.GetSequence()-1]
	out := proto.CloneOf(m)
	s.c.mu.Unlock()
	if req.GetWait() {
		out, err = s.c.turn(ctx, m)
	}
	return &apiv1.GetMessageResponse{Message: out}, err
}

// line appends to a session's log; mu is held.
func (c *Cluster) line(n *sessionState, stream apiv1.LogLine_Stream, text string) {
	n.OutputLine++
	n.log = append(n.log, &apiv1.LogLine{Number: n.OutputLine, Stream: stream, Time: c.stamp(), Epoch: max(n.Epoch, 1), Text: []byte(text)})
}

func (s *sessions) ReadLogs(req *apiv1.ReadLogsRequest, out apiv1.SessionService_ReadLogsServer) error {
	next := max(req.GetFromLine(), 1)
	for {
		s.c.mu.Lock()
		n, err := s.c.find(req.GetNamespace(), req.GetSessionId())
		if err != nil {
			s.c.mu.Unlock()
			return err
		}
		var batch []*apiv1.LogLine
		for _, l := range n.log {
			old := req.GetSince() != nil && l.GetTime().AsTime().Before(s.c.Now().Add(-req.GetSince().AsDuration()))
			if l.GetNumber() >= next && !old && len(batch) < 3 {
				batch = append(batch, proto.CloneOf(l))
			}
		}
		over, changed := ended(n.GetPhase()) || !req.GetFollow(), s.c.changed
		s.c.mu.Unlock()
		if len(batch) > 0 {
			next = batch[len(batch)-1].GetNumber() + 1
			if err := out.Send(&apiv1.ReadLogsResponse{Lines: batch}); err != nil {
				return err
			}
			continue
		}
		if over {
			return nil
		}
		select {
		case <-changed:
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

// AttachSession is a terminal that shows what is typed, and window sizes; a line "exit" ends the session.
func (s *sessions) AttachSession(stream apiv1.SessionService_AttachSessionServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.c.mu.Lock()
	n, err := s.c.find(first.GetOpen().GetNamespace(), first.GetOpen().GetSessionId())
	if err == nil && ended(n.GetPhase()) {
		err = fault.New(fault.FailedPrecondition, "attach: session %s is %s", n.GetId(), n.GetPhase())
	}
	s.c.mu.Unlock()
	if err != nil {
		return err
	}
	show := func(text string) error {
		return stream.Send(&apiv1.AttachSessionResponse{Output: []byte(text)})
	}
	if err := show(fmt.Sprintf("size %dx%d\r\n", first.GetOpen().GetColumns(), first.GetOpen().GetRows())); err != nil {
		return err
	}
	var typed []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if m.GetColumns() > 0 {
			if err := show(fmt.Sprintf("size %dx%d\r\n", m.GetColumns(), m.GetRows())); err != nil {
				return err
			}
		}
		if len(m.GetInput()) == 0 {
			continue
		}
		if err := show(string(m.GetInput())); err != nil {
			return err
		}
		if typed = append(typed, m.GetInput()...); bytes.Contains(typed, []byte("exit\r")) {
			s.c.mu.Lock()
			s.c.end(n, apiv1.Session_COMPLETED, session.CauseCompleted)
			s.c.mu.Unlock()
			return stream.Send(&apiv1.AttachSessionResponse{Exit: &apiv1.Session_Exit{Cause: session.CauseCompleted}})
		}
	}
}

// ExecSession knows the commands echo WORDS, err WORDS (to stderr), cat, exit CODE, kill SIGNAL and size.
func (s *sessions) ExecSession(stream apiv1.SessionService_ExecSessionServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	s.c.mu.Lock()
	_, err = s.c.find(open.GetNamespace(), open.GetSessionId())
	s.c.mu.Unlock()
	if err != nil {
		return err
	}
	words := append(open.GetCommand(), "")
	exit := &apiv1.Session_Exit{Cause: session.CauseCompleted}
	out := &apiv1.ExecSessionResponse{}
	args := strings.TrimSpace(strings.Join(words[1:], " "))
	switch words[0] {
	case "echo":
		out.Stdout = []byte(args + "\n")
	case "err":
		out.Stderr = []byte(args + "\n")
	case "size":
		out.Stdout = fmt.Appendf(nil, "%dx%d tty=%v\n", open.GetColumns(), open.GetRows(), open.GetTty())
	case "exit":
		code, err := strconv.Atoi(args)
		if err != nil {
			return fault.New(fault.Invalid, "exit %q: not a number", args)
		}
		exit.Code, exit.Cause = int32(code), session.CauseFailed
	case "kill":
		exit.Code, exit.Signal, exit.Cause = -1, args, session.CauseFailed
	case "cat":
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) || m.GetEndOfInput() {
				break
			}
			if err != nil {
				return err
			}
			if err := stream.Send(&apiv1.ExecSessionResponse{Stdout: m.GetInput()}); err != nil {
				return err
			}
		}
	default:
		return fault.New(fault.FailedPrecondition, "the command %q was not found in the session's workspace or path", words[0])
	}
	if err := stream.Send(out); err != nil {
		return err
	}
	return stream.Send(&apiv1.ExecSessionResponse{Exit: exit})
}

func (s *sessions) GetSessionHistory(_ context.Context, req *apiv1.GetSessionHistoryRequest) (*apiv1.GetSessionHistoryResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n, err := s.c.find(req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	resp := &apiv1.GetSessionHistoryResponse{Entries: []*apiv1.GetSessionHistoryResponse_Entry{
		{Time: n.GetCreateTime(), Index: 1, Phase: apiv1.Session_PENDING, Reason: "spawned by admin"},
	}}
	if n.GetStartTime() != nil {
		resp.Entries = append(resp.Entries, &apiv1.GetSessionHistoryResponse_Entry{
			Time: n.GetStartTime(), Index: 2, Phase: apiv1.Session_RUNNING, Epoch: 1, Node: n.GetNode(), Reason: "started",
		})
	}
	if n.GetEndTime() != nil {
		resp.Entries = append(resp.Entries, &apiv1.GetSessionHistoryResponse_Entry{
			Time: n.GetEndTime(), Index: 3, Phase: n.GetPhase(), Epoch: 1, Node: n.GetNode(), Reason: n.GetExit().GetCause(),
		})
	}
	return resp, nil
}
