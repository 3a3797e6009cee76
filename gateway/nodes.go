// NodeService in gRPC.

package gateway

import (
	"context"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
)

type nodeService struct {
	apiv1.UnimplementedNodeServiceServer
	ops *Operations
}

func (s *nodeService) proto(n *state.Node) *apiv1.Node {
	live, _ := s.ops.Leader.Live(n.ID)
	p := nodeProto(n, live)
	if n.Drain.Under() {
		p.Drain.Reason = s.ops.Leader.DrainReason(n.ID)
	}
	return p
}

// minNodePrefix is how much of an id names a node. Ids begin with node-, as names often do: with less, a mistyped node-9
// would be some other node.
const minNodePrefix = len("node-") + 4

// resolveNode finds a node by id, unique prefix of it, or name.
func resolveNode(v *state.View, id string) (*state.Node, error) {
	if n := v.Node(id); n != nil {
		return n, nil
	}
	if n := v.NodeByName(id); n != nil {
		return n, nil
	}
	var found []*state.Node
	if len(id) >= minNodePrefix {
		found = v.NodesByPrefix(id, maxPrefixMatches)
	}
	switch len(found) {
	case 0:
		return nil, fault.New(fault.NotFound, "node %q: there is none; see `orchctl nodes list`", clip(id))
	case 1:
		return found[0], nil
	default:
		return nil, fault.New(fault.Invalid, "node %q: is the beginning of several ids, %s and %s among them; give more of it", clip(id), found[0].ID, found[1].ID).WithField("id")
	}
}

func (s *nodeService) ListNodes(ctx context.Context, req *apiv1.ListNodesRequest) (*apiv1.ListNodesResponse, error) {
	match, err := newNodeFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	v, err := s.ops.fresh(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListNodesResponse{}
	size := pageSize(req.GetPageSize())
	for n := range v.NodesByName(req.GetPageToken()) {
		if !match.node(n) {
			continue
		}
		if len(out.Nodes) == size {
			out.NextPageToken = out.Nodes[size-1].GetName()
			break
		}
		out.Nodes = append(out.Nodes, s.proto(n))
	}
	return out, nil
}

func (s *nodeService) GetNode(ctx context.Context, req *apiv1.GetNodeRequest) (*apiv1.GetNodeResponse, error) {
	v, err := s.ops.fresh(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	n, err := resolveNode(v, req.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetNodeResponse{Node: s.proto(n)}, nil
}

func (s *nodeService) setSchedulable(ctx context.Context, method string, req interface {
	keyed
	GetId() string
}, schedulable bool,
) (*apiv1.Node, error) {
	n, err := resolveNode(s.ops.State.View(), req.GetId())
	if err != nil {
		return nil, err
	}
	res, err := s.ops.oneOnce(ctx, method, req, &clusterv1.Command{Kind: &clusterv1.Command_SetNodeSchedulable{SetNodeSchedulable: &clusterv1.SetNodeSchedulable{
		NodeId: n.ID, Schedulable: schedulable, Actor: caller(ctx).String(),
	}}})
	if err != nil {
		return nil, err
	}
	return s.proto(res.Node), nil
}

func (s *nodeService) CordonNode(ctx context.Context, req *apiv1.CordonNodeRequest) (*apiv1.CordonNodeResponse, error) {
	n, err := s.setSchedulable(ctx, apiv1.NodeService_CordonNode_FullMethodName, req, false)
	return &apiv1.CordonNodeResponse{Node: n}, err
}

func (s *nodeService) UncordonNode(ctx context.Context, req *apiv1.UncordonNodeRequest) (*apiv1.UncordonNodeResponse, error) {
	n, err := s.setSchedulable(ctx, apiv1.NodeService_UncordonNode_FullMethodName, req, true)
	return &apiv1.UncordonNodeResponse{Node: n}, err
}

func (s *nodeService) RemoveNode(ctx context.Context, req *apiv1.RemoveNodeRequest) (*apiv1.RemoveNodeResponse, error) {
	id := req.GetId()
	switch n, err := resolveNode(s.ops.State.View(), id); {
	case err == nil:
		id = n.ID
	case req.GetIdempotencyKey() == "" || !fault.Is(err, fault.NotFound):
		return nil, err
	}
	// With a key the state decides: the first time may have removed the node.
	_, err := s.ops.oneOnce(ctx, apiv1.NodeService_RemoveNode_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_RemoveNode{RemoveNode: &clusterv1.RemoveNode{NodeId: id}}})
	if err != nil {
		return nil, err
	}
	return &apiv1.RemoveNodeResponse{}, nil
}
