// Forwarding: a server that does not lead passes a call on to the one that does, as it came.

package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
)

// forwardedKey marks a call that was passed on once; it is not passed on again.
const forwardedKey = "x-orchestrator-forwarded"

func isForwarded(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, forwardedKey)) > 0
}

// leaderWait is how long a call waits for a leader when there is none.
const leaderWait = 5 * time.Second

// leaderAnswerWait is how long the leader is waited for where this server can answer with what it knows itself: longer than
// an election in one network takes, and not long for somebody who looks into what is wrong.
const leaderAnswerWait = 2 * time.Second

// MaxMessageBytes bounds a gRPC message in either direction: it must hold a batch of the links' relay.
const MaxMessageBytes = nodelink.RelayMessageMaxBytes

// peerBackoff is short: after a crash the new leader is often the server that was unreachable a moment ago.
var peerBackoff = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

// Peers are connections to the other servers' gRPC APIs, made when first needed.
type Peers struct {
	tls    *tls.Config // nil for plain text
	secret string
	mu     sync.Mutex
	open   map[string]*grpc.ClientConn
}

// NewPeers makes connections with the given TLS configuration; with nil they are plain text, and the secret shows that
// this is a server of the cluster.
func NewPeers(c *tls.Config, secret string) *Peers {
	return &Peers{tls: c, secret: secret, open: map[string]*grpc.ClientConn{}}
}

// peerKey carries the secret.
const peerKey = "x-orchestrator-peer"

// asPeer marks a call of this server's own.
func (p *Peers) asPeer(ctx context.Context) context.Context {
	if p.tls != nil {
		return ctx // the certificate says it
	}
	return metadata.AppendToOutgoingContext(ctx, peerKey, p.secret)
}

// Relay opens the stream that carries a follower's links to the leader.
func (p *Peers) Relay(ctx context.Context, address string) (nodelink.RelayStream, error) {
	c, err := p.Conn(address)
	if err != nil {
		return nil, err
	}
	return clusterv1.NewRelayServiceClient(c).Link(p.asPeer(ctx))
}

// Conn returns the connection to a server.
func (p *Peers) Conn(address string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.open[address]; ok {
		return c, nil
	}
	creds := insecure.NewCredentials()
	if p.tls != nil {
		creds = credentials.NewTLS(p.tls)
	}
	c, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 2 * time.Second, Backoff: peerBackoff}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)))
	if err != nil {
		return nil, fmt.Errorf("connect to server %s: %w", address, err)
	}
	p.open[address] = c
	return c, nil
}

// Close closes all connections.
func (p *Peers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, c := range p.open {
		errs = append(errs, c.Close())
	}
	p.open = map[string]*grpc.ClientConn{}
	return errors.Join(errs...)
}

// Stats asks a server for the state of its log.
func (p *Peers) Stats(ctx context.Context, address string) (cluster.ServerStats, error) {
	if address == "" {
		return cluster.ServerStats{}, fault.New(fault.Unavailable, "the server's address is not known")
	}
	c, err := p.Conn(address)
	if err != nil {
		return cluster.ServerStats{}, err
	}
	r, err := clusterv1.NewRelayServiceClient(c).GetServerStats(p.asPeer(ctx), &clusterv1.GetServerStatsRequest{})
	if err != nil {
		return cluster.ServerStats{}, fmt.Errorf("ask server %s for its state: %w", address, err)
	}
	s := cluster.ServerStats{
		Term: r.GetTerm(), LastIndex: r.GetLastIndex(), AppliedIndex: r.GetAppliedIndex(), LastContact: -1,
		Version: r.GetVersion(), PID: int(r.GetPid()),
	}
	if r.GetLastContactMs() >= 0 {
		s.LastContact = time.Duration(r.GetLastContactMs() * float64(time.Millisecond))
	}
	return s, nil
}

// CommitCalls asks a server that leads to commit commands about calls.
func (p *Peers) CommitCalls(ctx context.Context, address string, r *clusterv1.CommitCallsRequest) (*clusterv1.CommitCallsResponse, error) {
	c, err := p.Conn(address)
	if err != nil {
		return nil, err
	}
	out, err := clusterv1.NewRelayServiceClient(c).CommitCalls(p.asPeer(ctx), r)
	if err != nil {
		return nil, fmt.Errorf("ask server %s to commit: %w", address, forwardError(err))
	}
	return out, nil
}

// forwarder passes calls on to the leader.
type forwarder struct {
	node  *cluster.Node
	peers *Peers
}

// local are methods that any server answers by itself.
var local = map[string]bool{
	apiv1.ClusterService_JoinMember_FullMethodName:              true,
	apiv1.ClusterService_ListDaemons_FullMethodName:             true,
	apiv1.ProviderService_ListProviders_FullMethodName:          true,
	apiv1.ProviderService_ListModels_FullMethodName:             true,
	apiv1.ProviderService_Chat_FullMethodName:                   true,
	apiv1.RecorderService_ListInteractions_FullMethodName:       true,
	apiv1.RecorderService_ExportInteractions_FullMethodName:     true,
	clusterv1.RelayService_GetServerInteractions_FullMethodName: true,
	clusterv1.RelayService_GetServerProviders_FullMethodName:    true,
	clusterv1.RelayService_GetServerStats_FullMethodName:        true,
	clusterv1.RelayService_GetServerDaemons_FullMethodName:      true,
	clusterv1.RelayService_Link_FullMethodName:                  true,
	clusterv1.RelayService_CommitCalls_FullMethodName:           true, // the asking server knows who leads, and must know when it is wrong
	clusterv1.RelayService_GetReadIndex_FullMethodName:          true,
	// Their bytes come from this server as well as from another; what only the leader knows or may do, they ask it for.
	apiv1.SessionService_ExportSession_FullMethodName:   true,
	apiv1.SessionService_ImportSession_FullMethodName:   true,
	apiv1.SessionService_DiffCheckpoints_FullMethodName: true,
	apiv1.SessionService_ListFiles_FullMethodName:       true,
	apiv1.SessionService_ReadFile_FullMethodName:        true,
}

// isLocal reports whether this server may answer although it does not lead.
func isLocal(method string, req any) bool {
	if local[method] || !strings.HasPrefix(method, "/orchestrator.") {
		return true // health and reflection
	}
	c, ok := req.(interface {
		GetConsistency() apiv1.Consistency_Level
	})
	return ok && c.GetConsistency() == apiv1.Consistency_STALE
}

// leader returns a connection to the leader, nil when this server leads. It waits for one a little.
func (f *forwarder) leader(ctx context.Context) (*grpc.ClientConn, error) {
	var give context.Context // up, when there is no leader
	for {
		l, changed := f.node.Leader()
		if l.Self && l.Ready {
			return nil, nil
		}
		if !l.Self && l.Address != "" {
			if isForwarded(ctx) {
				return nil, fault.New(fault.Unavailable, "the leader has just changed; ask again").WithRetry(200 * time.Millisecond)
			}
			return f.peers.Conn(l.Address)
		}
		if give == nil {
			var cancel context.CancelFunc
			give, cancel = context.WithTimeout(ctx, leaderWait)
			defer cancel()
		}
		select {
		case <-changed:
		case <-give.Done():
			return nil, fault.New(fault.Unavailable, "the cluster has no leader now; see `orchctl cluster members`, and try again").WithRetry(time.Second)
		}
	}
}

// identityKey carries who called a server that forwards, where a certificate said it and there is no token to pass on. Only
// servers are believed.
const identityKey = "x-orchestrator-identity"

// outgoing carries the caller's own metadata along.
func outgoing(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	out := metadata.MD{}
	for _, k := range []string{"authorization"} {
		if v := md.Get(k); len(v) > 0 {
			out.Set(k, v...)
		}
	}
	if id, ok := auth.FromContext(ctx); ok && len(out.Get("authorization")) == 0 {
		out.Set(identityKey, string(id.Role), id.Name, id.Namespace)
	}
	if v, ok := ctx.Value(onBehalfKey{}).(onBehalfOf); ok && v.secret != "" {
		out.Set(peerKey, v.secret) // where there is no TLS, the leader believes who it is by this
	}
	out.Set(forwardedKey, "1")
	return metadata.NewOutgoingContext(ctx, out)
}

// onBehalf returns whom a server forwards a call for; the server itself when it calls for itself.
func onBehalf(ctx context.Context, server auth.Identity) auth.Identity {
	v := metadata.ValueFromIncomingContext(ctx, identityKey)
	if server.Role != auth.Server || len(v) != 3 || auth.Role(v[0]) == auth.Server {
		return server
	}
	return auth.Identity{Role: auth.Role(v[0]), Name: v[1], Namespace: v[2]}
}

// inOwnWords is the same request for what this server knows itself; nil where that is no answer. How the cluster does must
// be told above all when nobody leads it.
func inOwnWords(req any) any {
	switch r := req.(type) {
	case *apiv1.GetStatusRequest:
		own := proto.CloneOf(r)
		own.Consistency = apiv1.Consistency_STALE
		return own
	case *apiv1.ListMembersRequest:
		own := proto.CloneOf(r)
		own.Consistency = apiv1.Consistency_STALE
		return own
	}
	return nil
}

// unary is an interceptor that passes calls on when this server cannot answer them.
func (f *forwarder) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	own := inOwnWords(req)
	if own == nil || isForwarded(ctx) { // who passed it on has words of its own
		return f.pass(ctx, req, info, handler)
	}
	leaders, cancel := context.WithTimeout(ctx, leaderAnswerWait)
	defer cancel()
	resp, err := f.pass(leaders, req, info, handler)
	switch status.Code(toStatus(err)) {
	case codes.Unavailable, codes.DeadlineExceeded:
		if ctx.Err() == nil {
			return handler(ctx, own)
		}
	}
	return resp, err
}

// pass has the leader answer.
func (f *forwarder) pass(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if isLocal(info.FullMethod, req) {
		return handler(ctx, req)
	}
	conn, err := f.leader(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	if conn == nil {
		return handler(ctx, req)
	}
	_, reply, err := messageTypes(info.FullMethod)
	if err != nil {
		return nil, toStatus(err)
	}
	out := reply.New().Interface()
	if err := conn.Invoke(outgoing(ctx), info.FullMethod, req, out); err != nil {
		return nil, forwardError(err)
	}
	return out, nil
}

// forwardError makes a leader that went away in mid-call a reason to ask again.
func forwardError(err error) error {
	if s, ok := status.FromError(err); ok && s.Code() == codes.Unavailable && len(s.Details()) == 0 {
		return toStatus(fault.New(fault.Unavailable, "the leader could not be reached: %s; ask again, with the same idempotency key", s.Message()).WithRetry(200 * time.Millisecond))
	}
	return err
}

// stream is an interceptor that passes streams on.
func (f *forwarder) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if isLocal(info.FullMethod, nil) {
		return handler(srv, ss)
	}
	conn, err := f.leader(ss.Context())
	if err != nil {
		return toStatus(err)
	}
	if conn == nil {
		return handler(srv, ss)
	}
	request, reply, err := messageTypes(info.FullMethod)
	if err != nil {
		return toStatus(err)
	}
	ctx, cancel := context.WithCancel(outgoing(ss.Context()))
	defer cancel()
	desc := &grpc.StreamDesc{ClientStreams: info.IsClientStream, ServerStreams: info.IsServerStream}
	up, err := conn.NewStream(ctx, desc, info.FullMethod)
	if err != nil {
		return forwardError(err)
	}
	// The goroutine ends with ss: the transport ends ss.RecvMsg when the handler, this function, returns.
	go pump(request, ss.RecvMsg, up.SendMsg, func(err error) {
		if err == nil || errors.Is(err, io.EOF) {
			_ = up.CloseSend()
		} else {
			cancel()
		}
	})
	var down error
	pump(reply, up.RecvMsg, ss.SendMsg, func(err error) { down = err })
	if errors.Is(down, io.EOF) {
		return nil
	}
	return forwardError(down)
}

// pump copies messages until one side fails or ends.
func pump(t protoreflect.MessageType, recv, send func(any) error, done func(error)) {
	for {
		m := t.New().Interface()
		if err := recv(m); err != nil {
			done(err)
			return
		}
		if err := send(m); err != nil {
			done(err)
			return
		}
	}
}

var methodCache sync.Map // full method → [2]protoreflect.MessageType

// messageTypes returns the request's and the answer's types of a method.
func messageTypes(method string) (request, reply protoreflect.MessageType, err error) {
	if v, ok := methodCache.Load(method); ok {
		t := v.([2]protoreflect.MessageType)
		return t[0], t[1], nil
	}
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, nil, fault.New(fault.Unimplemented, "%s: no such service", method)
	}
	sd, ok := d.(protoreflect.ServiceDescriptor)
	if !ok || sd.Methods().ByName(protoreflect.Name(name)) == nil {
		return nil, nil, fault.New(fault.Unimplemented, "%s: no such method", method)
	}
	md := sd.Methods().ByName(protoreflect.Name(name))
	var types [2]protoreflect.MessageType
	for i, n := range []protoreflect.FullName{md.Input().FullName(), md.Output().FullName()} {
		if types[i], err = protoregistry.GlobalTypes.FindMessageByName(n); err != nil {
			return nil, nil, fmt.Errorf("find the type of %s: %w", n, err)
		}
	}
	methodCache.Store(method, types)
	return types[0], types[1], nil
}
