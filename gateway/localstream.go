// Streams from within: what a service streams to one of this server's other ways of speaking to clients.

package gateway

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// localStreamMethod is one streaming method with the service that has it.
type localStreamMethod struct {
	service any
	desc    grpc.StreamDesc
}

// NewStream implements grpc.ClientConnInterface, for methods that take one request and stream their answer. Who opens a stream
// ends its context or reads to its end; the stream's goroutine has ended when RecvMsg returns an error.
func (l *loopback) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	m, known := l.s.streams[method]
	if !known || m.desc.ClientStreams {
		return nil, status.Errorf(codes.Unimplemented, "%s: no such method streams its answer within a server", method)
	}
	ctx, cancel := context.WithCancel(ctx)
	return &localStream{s: l.s, m: m, method: method, ctx: ctx, cancel: cancel, out: make(chan proto.Message), done: make(chan struct{})}, nil
}

// localStream is both ends of a stream.
type localStream struct {
	s       *Server
	m       localStreamMethod
	method  string
	ctx     context.Context
	cancel  context.CancelFunc
	request proto.Message
	out     chan proto.Message // without a buffer: a slow reader slows its service down
	done    chan struct{}      // closed when the service has returned
	err     error              // what it returned, once done
}

// SendMsg implements grpc.ClientStream: the request.
func (l *localStream) SendMsg(m any) error {
	l.request = proto.Clone(m.(proto.Message))
	return nil
}

// CloseSend implements grpc.ClientStream: the service begins.
func (l *localStream) CloseSend() error {
	info := &grpc.StreamServerInfo{FullMethod: l.method, IsServerStream: true}
	go func() { // RecvMsg waits for it
		defer close(l.done)
		defer l.cancel()
		l.err = l.s.stream(l.m.service, &serverEnd{localStream: l, ctx: incoming(l.ctx)}, info, l.m.desc.Handler)
	}()
	return nil
}

// RecvMsg implements grpc.ClientStream.
func (l *localStream) RecvMsg(m any) error {
	select {
	case got := <-l.out:
		proto.Merge(m.(proto.Message), got)
		return nil
	case <-l.done:
		if l.err != nil {
			return l.err
		}
		return io.EOF
	}
}

// Context implements grpc.ClientStream.
func (l *localStream) Context() context.Context { return l.ctx }

// Header implements grpc.ClientStream.
func (l *localStream) Header() (metadata.MD, error) { return nil, nil }

// Trailer implements grpc.ClientStream.
func (l *localStream) Trailer() metadata.MD { return nil }

// serverEnd is the stream as the service sees it.
type serverEnd struct {
	*localStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (e *serverEnd) Context() context.Context { return e.ctx }

// RecvMsg implements grpc.ServerStream: the request, once.
func (e *serverEnd) RecvMsg(m any) error {
	if e.request == nil {
		return io.EOF
	}
	proto.Merge(m.(proto.Message), e.request)
	e.request = nil
	return nil
}

// SendMsg implements grpc.ServerStream.
func (e *serverEnd) SendMsg(m any) error {
	select {
	case e.out <- proto.Clone(m.(proto.Message)):
		return nil
	case <-e.ctx.Done():
		return status.FromContextError(e.ctx.Err()).Err()
	}
}

// SetHeader implements grpc.ServerStream.
func (e *serverEnd) SetHeader(metadata.MD) error { return nil }

// SendHeader implements grpc.ServerStream.
func (e *serverEnd) SendHeader(metadata.MD) error { return nil }

// SetTrailer implements grpc.ServerStream.
func (e *serverEnd) SetTrailer(metadata.MD) {}

// stream is what every stream goes through, in order.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.guard.stream(srv, ss, info, func(srv any, ss grpc.ServerStream) error {
		return s.forward.stream(srv, ss, info, handler)
	})
}
