// What a server does by itself and the leader has a part in: commits, and reads of what was acknowledged by others. For those the leader
// says how far its state is, and this server waits until its own is as far.

package gateway

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
)

// The pauses between attempts to reach the leader.
const (
	retryFirst = 50 * time.Millisecond
	retryMax   = time.Second
)

// GetReadIndex is for servers only: the table of methods says so.
func (s *relayService) GetReadIndex(ctx context.Context, _ *clusterv1.GetReadIndexRequest) (*clusterv1.GetReadIndexResponse, error) {
	if l, _ := s.ops.Node.Leader(); !l.Self || !l.Ready {
		return nil, fault.New(fault.Unavailable, "read index: this server does not lead").WithRetry(notLeadingRetry)
	}
	if err := s.ops.Node.VerifyLeader(ctx); err != nil {
		return nil, err
	}
	return &clusterv1.GetReadIndexResponse{Index: s.ops.State.Index()}, nil
}

// atLeader does something where the cluster is led: here, or by asking the server that leads. While nobody leads, or it is not known what
// the leader did, it is done again, as retrying says.
func (o *Operations) atLeader(ctx, until context.Context, here func(context.Context) error, there func(context.Context, clusterv1.RelayServiceClient) error) error {
	forward := &forwarder{node: o.Node, peers: o.Peers}
	return retrying(ctx, until, func() error {
		conn, err := forward.leader(until)
		switch {
		case err != nil:
			return err
		case conn == nil:
			return here(until)
		default:
			return fromPeer(there(o.Peers.asPeer(ownMetadata(until)), clusterv1.NewRelayServiceClient(conn)))
		}
	})
}

// retrying does something again while it is unavailable, until the second context ends, or between two attempts the first one.
func retrying(ctx, until context.Context, do func() error) error {
	for pause := retryFirst; ; pause = min(2*pause, retryMax) {
		err := do()
		if err == nil || fault.KindOf(err) != fault.Unavailable {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		case <-until.Done():
			t.Stop()
			return err
		}
	}
}

// caughtUp returns a view that holds every change acknowledged before, on any server.
func (o *Operations) caughtUp(ctx context.Context) (v *state.View, err error) {
	until, cancel := context.WithTimeout(ctx, keepWait)
	defer cancel()
	index := uint64(0)
	err = o.atLeader(ctx, until, func(ctx context.Context) error {
		if err := o.Node.VerifyLeader(ctx); err != nil {
			return err
		}
		index = o.State.Index()
		return nil
	}, func(ctx context.Context, c clusterv1.RelayServiceClient) error {
		r, err := c.GetReadIndex(ctx, &clusterv1.GetReadIndexRequest{})
		index = r.GetIndex()
		return err
	})
	if err != nil {
		return nil, err
	}
	if v = o.State.View(); v.Index() >= index {
		return v, nil
	}
	return o.applied(until, index)
}

// applied waits until this server's state holds an index.
func (o *Operations) applied(ctx context.Context, index uint64) (*state.View, error) {
	for {
		sub, v := o.State.Subscribe()
		var err error
		for v.Index() < index && err == nil {
			_, err = sub.Next(ctx)
			v = o.State.View()
		}
		sub.Close()
		switch {
		case v.Index() >= index:
			return v, nil
		case !errors.Is(err, state.ErrLagged):
			return nil, fault.New(fault.Timeout, "this server has not caught up with the leader: %w; ask another one", err)
		}
	}
}

// ownMetadata drops what a caller sent: a call to another server is this server's own.
func ownMetadata(ctx context.Context) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.MD{})
}

// fromPeer is an error that another server answered, as a fault.
func fromPeer(err error) error {
	if err == nil || fault.As(err) != nil {
		return err
	}
	return client.Fault(err)
}

// refusalOf is the error that the leader gave for one command; nil for none.
func refusalOf(c *clusterv1.CommittedCall) error {
	if c.GetCode() == 0 {
		return nil
	}
	return fault.New(faultcode.Kind(codes.Code(c.GetCode())), "%s", c.GetMessage()).WithRetry(time.Duration(c.GetRetryAfterMs()) * time.Millisecond)
}
