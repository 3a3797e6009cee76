// The gRPC server: who is asked what, in which order.

package gateway

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/nodelink"
)

// The bounds of the gRPC server.
const (
	maxConcurrentStreams = 4096 // on one connection
	maxHeaderBytes       = 16 << 10
	minPingInterval      = 5 * time.Second
	maxConnectionAge     = 2 * time.Hour
	connectionAgeGrace   = 10 * time.Minute
	// callWorkers serve calls one after the other on stacks that have grown already; what comes beyond them gets a
	// goroutine of its own. Most calls wait for a commit, so there are many.
	callWorkers = 128
)

// Server is the gRPC API of one server.
type Server struct {
	*grpc.Server
	Health  *health.Server
	guard   *guard
	forward *forwarder
	// By full name, for calls from within.
	methods map[string]localMethod
	streams map[string]localStreamMethod
}

// ServerOptions say how the gRPC API is served.
type ServerOptions struct {
	Hub *nodelink.Hub
	// TLS is nil for plain text, which serves a machine's own loopback.
	TLS *tls.Config
	// PeerSecret makes servers known to each other where there is no TLS.
	PeerSecret string
	// Open lets everybody in as an admin.
	Open bool
	// Observe is told of each call that has ended.
	Observe func(method string, code codes.Code, d time.Duration)
}

// NewServer makes the gRPC API.
func NewServer(ops *Operations, so ServerOptions) *Server {
	g := &guard{stopping: newStopping(ops.Node.ID()), auth: ops.Auth, log: ops.Logger, observe: so.Observe, plain: so.TLS == nil, open: so.Open, peerSecret: so.PeerSecret}
	f := &forwarder{node: ops.Node, peers: ops.Peers}
	s := &Server{Health: health.NewServer(), guard: g, forward: f, methods: map[string]localMethod{}, streams: map[string]localStreamMethod{}}
	opts := []grpc.ServerOption{
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.MaxConcurrentStreams(maxConcurrentStreams), grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.NumStreamWorkers(callWorkers),
		grpc.MaxRecvMsgSize(MaxMessageBytes), grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: connectionAgeGrace, Time: 30 * time.Second, Timeout: 10 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPingInterval, PermitWithoutStream: true}),
	}
	if so.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(so.TLS)))
	}
	s.Server = grpc.NewServer(opts...)
	r := &registrar{s.Server, s.methods, s.streams}
	apiv1.RegisterSessionServiceServer(r, &sessionService{ops: ops})
	apiv1.RegisterNodeServiceServer(r, &nodeService{ops: ops})
	apiv1.RegisterClusterServiceServer(r, &clusterService{ops: ops})
	apiv1.RegisterQueueServiceServer(r, &queueService{ops: ops})
	apiv1.RegisterProviderServiceServer(r, &providerService{ops: ops})
	apiv1.RegisterRecorderServiceServer(r, &recorderService{ops: ops})
	apiv1.RegisterTokenServiceServer(r, &tokenService{ops: ops})
	apiv1.RegisterEventServiceServer(r, &eventService{ops: ops})
	clusterv1.RegisterRelayServiceServer(s, &relayService{ops: ops, hub: so.Hub})
	healthv1.RegisterHealthServer(s, s.Health)
	reflection.Register(s)
	return s
}

// guard lets nobody in who may not, and lets no panic out.
type guard struct {
	*stopping
	auth    *auth.Authenticator
	log     *slog.Logger
	observe func(method string, code codes.Code, d time.Duration)
	// plain: without TLS servers know each other by a secret; open: nobody needs a token.
	plain, open bool
	peerSecret  string
}

// admit finds out who calls and whether they may.
func (g *guard) admit(ctx context.Context, method string) (context.Context, error) {
	if auth.IsPublic(method) {
		return ctx, nil
	}
	id, err := g.identify(ctx)
	if err != nil {
		return ctx, toStatus(err)
	}
	if err := id.Authorize(method); err != nil {
		return ctx, toStatus(err)
	}
	return auth.NewContext(ctx, id), nil
}

// identify takes a server's certificate, or a token; from within also somebody who was authenticated before.
func (g *guard) identify(ctx context.Context) (auth.Identity, error) {
	if v, ok := ctx.Value(onBehalfKey{}).(onBehalfOf); ok {
		return g.recheck(v.who)
	}
	header := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(header) == 0 {
		if secret := metadata.ValueFromIncomingContext(ctx, peerKey); g.plain && len(secret) == 1 && subtle.ConstantTimeCompare([]byte(secret[0]), []byte(g.peerSecret)) == 1 {
			return onBehalf(ctx, auth.Identity{Name: "peer", Role: auth.Server}), nil
		}
		if g.open {
			return auth.Identity{Name: "anybody", Role: auth.Admin}, nil
		}
		if p, ok := peer.FromContext(ctx); ok {
			if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
				if id, ok := auth.PeerIdentity(&info.State); ok {
					return onBehalf(ctx, id), nil
				}
			}
		}
		return g.auth.Authenticate("")
	}
	text, err := auth.Bearer(header[0])
	if err != nil {
		return auth.Identity{}, err
	}
	return g.auth.Authenticate(text)
}

func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = g.panicked(info.FullMethod, p)
		}
		err = toStatus(err)
		g.observe(info.FullMethod, status.Code(err), time.Since(start))
	}()
	if ctx, err = g.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	if !waiting(req) {
		return handler(ctx, req)
	}
	err = g.within(g.waits, ctx, func(ctx context.Context) (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	return resp, err
}

func (g *guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = g.panicked(info.FullMethod, p)
		}
		err = toStatus(err)
		g.observe(info.FullMethod, status.Code(err), time.Since(start))
	}()
	ctx, err := g.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return g.within(g.streams, ctx, func(ctx context.Context) error { return handler(srv, &identified{ss, ctx}) })
}

// panicked keeps a defect in one call from ending the server: the stack goes to the log, never to the client.
func (g *guard) panicked(method string, p any) error {
	g.log.Error("a call panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "%s: the server ran into a defect; its log says where", method)
}

// identified is a stream whose context knows the caller.
type identified struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the context that knows the caller.
func (s *identified) Context() context.Context { return s.ctx }
