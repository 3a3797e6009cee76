// Calls from within: other ways of speaking to clients make the calls of the gRPC API without a socket in between, as whoever
// called them, through the same interceptors.

package gateway

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
)

// Identify says who shows a credential. Errors are of kind fault.Unauthenticated.
func (s *Server) Identify(c auth.Credential) (auth.Identity, error) {
	if c.Token != "" { // as it came: a header would be trimmed
		return s.guard.auth.Authenticate(c.Token)
	}
	return s.guard.identify(incoming(s.As(context.Background(), c)))
}

// Recheck says who somebody is now that showed a token before. Errors are of kind fault.Unauthenticated: the token is gone.
func (s *Server) Recheck(who auth.Identity) (auth.Identity, error) { return s.guard.recheck(who) }

// headersKey is what As says in the place of a caller's metadata. It is never changed.
type headersKey struct{}

// As returns a context whose calls over Local are made with a credential.
func (s *Server) As(ctx context.Context, c auth.Credential) context.Context {
	if c.Token != "" {
		ctx = context.WithValue(ctx, headersKey{}, metadata.Pairs("authorization", "Bearer "+c.Token))
	}
	if c.TLS != nil {
		ctx = peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: *c.TLS}})
	}
	return ctx
}

// Caller says who makes the calls of a context that As or AsCaller returned.
func (s *Server) Caller(ctx context.Context) (auth.Identity, error) {
	return s.guard.identify(incoming(ctx))
}

// onBehalfOf is as whom a call from within is made, where there is nobody who shows a credential. It travels in a context of this process
// only: nothing that comes from outside becomes one.
type onBehalfOf struct {
	who    auth.Identity
	secret string // by which the leader believes it of this server where there is no TLS
}

type onBehalfKey struct{}

// AsCaller returns a context whose calls over Local are made as somebody who was authenticated before, at this server or another one. Each call is
// refused once the caller's token is gone.
func (s *Server) AsCaller(ctx context.Context, who auth.Identity) context.Context {
	v := onBehalfOf{who: who}
	if s.guard.plain {
		v.secret = s.guard.peerSecret
	}
	return context.WithValue(context.WithValue(ctx, headersKey{}, metadata.MD(nil)), onBehalfKey{}, v)
}

// recheck says who such a caller is now.
func (g *guard) recheck(who auth.Identity) (auth.Identity, error) {
	if who.TokenID == "" && g.open {
		return auth.Identity{Name: "anybody", Role: auth.Admin}, nil
	}
	if who.Role == auth.Server || who.TokenID == "" && g.plain {
		return auth.Identity{}, fault.New(fault.Unauthenticated, "%s: has shown no credential that this cluster takes now; call with a token", who)
	}
	return g.auth.Recheck(who)
}

// incoming makes of what a caller sends what a server receives: who calls, and nothing else. What servers tell each other in
// metadata cannot come this way.
func incoming(ctx context.Context) context.Context {
	if headers, ok := ctx.Value(headersKey{}).(metadata.MD); ok {
		return metadata.NewIncomingContext(ctx, headers)
	}
	sent, _ := metadata.FromOutgoingContext(ctx)
	got := metadata.MD{}
	if v := sent.Get("authorization"); len(v) > 0 {
		got.Set("authorization", v...)
	}
	return metadata.NewIncomingContext(ctx, got)
}

// Local is the API as a connection that needs no socket: a call runs in its caller's goroutine, is authenticated, authorized,
// counted and forwarded to the leader like any other, and ends with its context. Of streams it carries those of answers.
func (s *Server) Local() grpc.ClientConnInterface { return &loopback{s} }

type loopback struct{ s *Server }

// localMethod is one method with the service that has it.
type localMethod struct {
	service any
	desc    grpc.MethodDesc
}

// registrar registers services for both: the sockets, and calls from within.
type registrar struct {
	grpc.ServiceRegistrar
	methods map[string]localMethod
	streams map[string]localStreamMethod
}

// RegisterService implements grpc.ServiceRegistrar.
func (r *registrar) RegisterService(d *grpc.ServiceDesc, service any) {
	r.ServiceRegistrar.RegisterService(d, service)
	for _, m := range d.Methods {
		r.methods["/"+d.ServiceName+"/"+m.MethodName] = localMethod{service, m}
	}
	for _, m := range d.Streams {
		r.streams["/"+d.ServiceName+"/"+m.StreamName] = localStreamMethod{service, m}
	}
}

// Invoke implements grpc.ClientConnInterface.
func (l *loopback) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	m, known := l.s.methods[method]
	if !known {
		return status.Errorf(codes.Unimplemented, "%s: there is no such method", method)
	}
	// The service gets a message of its own: neither side sees what the other does with its copy.
	decode := func(into any) error {
		proto.Merge(into.(proto.Message), args.(proto.Message))
		return nil
	}
	answer, err := m.desc.Handler(m.service, incoming(ctx), decode, l.s.unary)
	if err != nil {
		return err
	}
	proto.Merge(reply.(proto.Message), answer.(proto.Message))
	return nil
}

// unary is what every call goes through, in order.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	return s.guard.unary(ctx, req, info, func(ctx context.Context, req any) (any, error) {
		return s.forward.unary(ctx, req, info, handler)
	})
}
