// A relay stream in memory, for simulations and tests.

package nodelink

import (
	"context"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
)

// relayPipeDepth is how many messages one direction of a RelayPipe holds before Send waits, as gRPC's flow control would.
const relayPipeDepth = 16

// RelayPipe returns the follower's end of a relay stream in memory, whose other end is served by serve, usually
// Hub.ServeRelay of the leader, in a goroutine. The stream ends when ctx does or serve returns.
func RelayPipe(ctx context.Context, serve func(RelayServerStream) error) RelayStream {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &relayPipe{
		ctx: ctx, up: make(chan *clusterv1.LinkRequest, relayPipeDepth), down: make(chan *clusterv1.LinkResponse, relayPipeDepth),
	}
	go func() {
		err := serve(relayPipeServer{p})
		if err == nil {
			err = io.EOF
		}
		cancel(err)
	}()
	return relayPipeClient{p}
}

type relayPipe struct {
	ctx  context.Context
	up   chan *clusterv1.LinkRequest
	down chan *clusterv1.LinkResponse
}

func pipeSend[T proto.Message](ctx context.Context, ch chan<- T, m T) error {
	m = proto.Clone(m).(T) // the two ends share nothing
	select {
	case ch <- m:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func pipeRecv[T proto.Message](ctx context.Context, ch <-chan T) (m T, err error) {
	select {
	case m = <-ch:
		return m, nil
	case <-ctx.Done():
		if err = context.Cause(ctx); err == context.Canceled { //nolint:errorlint // set bare
			err = status.Error(codes.Canceled, "the stream was cancelled")
		}
		return m, err
	}
}

type relayPipeClient struct{ *relayPipe }

func (p relayPipeClient) Send(m *clusterv1.LinkRequest) error    { return pipeSend(p.ctx, p.up, m) }
func (p relayPipeClient) Recv() (*clusterv1.LinkResponse, error) { return pipeRecv(p.ctx, p.down) }
func (p relayPipeClient) CloseSend() error                       { return nil }

type relayPipeServer struct{ *relayPipe }

func (p relayPipeServer) Context() context.Context              { return p.ctx }
func (p relayPipeServer) Send(m *clusterv1.LinkResponse) error  { return pipeSend(p.ctx, p.down, m) }
func (p relayPipeServer) Recv() (*clusterv1.LinkRequest, error) { return pipeRecv(p.ctx, p.up) }
