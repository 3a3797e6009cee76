// Calls of tools in memory: those that a test adds.

package clienttest

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// AddCall adds a call as it is.
func (c *Cluster) AddCall(call *apiv1.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clientCalls = append(c.clientCalls, call)
	c.change()
}

func anyCall(*apiv1.Call) bool { return true }

func isDeadCall(c *apiv1.Call) bool { return c.GetStatus() == apiv1.Call_DEAD }

// toolCalls returns copies of the calls of a namespace (empty: of all) to be kept, without their bytes; mu is held.
func (c *Cluster) toolCalls(namespace string, keep func(*apiv1.Call) bool) (out []*apiv1.Call) {
	for _, call := range c.clientCalls {
		if (namespace == "" || call.GetNamespace() == namespace) && keep(call) {
			out = append(out, withoutBytes(call))
		}
	}
	return out
}

// withoutBytes is a call as lists have it.
func withoutBytes(call *apiv1.Call) *apiv1.Call {
	short := proto.CloneOf(call)
	short.Arguments = nil
	if short.GetOutcome() != nil {
		short.Outcome.Outputs = nil
	}
	return short
}

// toolCall finds one by the beginning of its id; mu is held.
func (c *Cluster) toolCall(namespace, id string, keep func(*apiv1.Call) bool) (*apiv1.Call, error) {
	for _, call := range c.clientCalls {
		if (namespace == "" || call.GetNamespace() == namespace) && strings.HasPrefix(call.GetId(), id) && keep(call) {
			return call, nil
		}
	}
	return nil, fault.New(fault.NotFound, "call %q: there is none; see 'orchctl queue calls'", id)
}

// changeCall gives a dead call another status; mu is held.
func (c *Cluster) changeCall(namespace, id string, to apiv1.Call_Status) error {
	call, err := c.toolCall(namespace, id, isDeadCall)
	if err == nil {
		call.Status = to
		c.change()
	}
	return err
}

func (c *Cluster) countCalls(namespace string, resp *apiv1.GetQueueStatsResponse) {
	resp.Calls, resp.CallsByPriority = map[string]uint64{}, map[string]uint64{}
	for _, call := range c.toolCalls(namespace, anyCall) {
		resp.Calls[call.GetStatus().String()]++
		if call.GetStatus() <= apiv1.Call_RUNNING {
			resp.CallsByPriority[strings.ToLower(call.GetPriority().String())]++
			resp.OldestCallSeconds = max(resp.OldestCallSeconds, c.Now().Sub(call.GetCreateTime().AsTime()).Seconds())
		}
	}
}

// ListCalls has all on one page.
func (s *queues) ListCalls(_ context.Context, req *apiv1.ListCallsRequest) (*apiv1.ListCallsResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	page, next := cut(s.c.toolCalls(req.GetNamespace(), func(c *apiv1.Call) bool {
		return (req.GetStatus() == 0 || c.GetStatus() == req.GetStatus()) && (req.GetServer() == "" || c.GetServer() == req.GetServer()) &&
			(req.GetTool() == "" || c.GetTool() == req.GetTool()) && (req.GetSession() == "" || c.GetSession() == req.GetSession())
	}), req.GetPageToken(), req.GetPageSize())
	return &apiv1.ListCallsResponse{Calls: page, NextPageToken: next}, nil
}

func (s *queues) GetCall(_ context.Context, req *apiv1.GetCallRequest) (*apiv1.GetCallResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	call, err := s.c.toolCall(req.GetNamespace(), req.GetId(), anyCall)
	if err != nil {
		return nil, err
	}
	return &apiv1.GetCallResponse{Call: proto.CloneOf(call)}, nil
}

func (s *queues) CancelCall(_ context.Context, req *apiv1.CancelCallRequest) (*apiv1.CancelCallResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	call, err := s.c.toolCall(req.GetNamespace(), req.GetId(), anyCall)
	if err != nil {
		return nil, err
	}
	switch call.GetStatus() {
	case apiv1.Call_QUEUED:
		call.Status, call.Outcome = apiv1.Call_ENDED, &apiv1.Call_Outcome{Cancelled: true}
	case apiv1.Call_RUNNING:
		call.Cancelling = true
	}
	s.c.change()
	return &apiv1.CancelCallResponse{Call: withoutBytes(call)}, nil
}
