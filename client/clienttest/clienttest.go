// Package clienttest is a small cluster in memory, behind the real gRPC API on loopback, for tests of clients.
//
// It behaves like a cluster as far as a client can see: names are unique, idempotency keys are kept, messages are
// numbered, logs go on where they were left. Several servers may stand before one Cluster; each can be stopped. And it
// misbehaves on request: calls that fail before or after they had their effect, streams that break in the middle.
package clienttest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
	"github.com/neolith/orchestrator/serializer/serializertest"
)

// Cluster is the state that all servers share. Its exported fields are set before the first server starts.
type Cluster struct {
	// Now is the cluster's clock.
	Now func() time.Time
	// Tokens are the secrets that are let in, with their roles; nil lets everybody in. A viewer may only look.
	Tokens map[string]string
	// StepMigrations leaves a migration copying until the test changes the session; else it is done at once.
	StepMigrations bool
	// StepDrains leaves a drain as it began until the test changes the node; else it is done at once.
	StepDrains bool
	// Chunks is the chunk store.
	Chunks serializertest.Store

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced with each change
	index    uint64
	sessions map[string]*sessionState
	keys     map[string]any // idempotency key → answer
	nodes    []*apiv1.Node
	members  []*apiv1.Member
	tokens   []*apiv1.Token
	events   []*apiv1.Event
	// clientCalls are those that a test has added.
	clientCalls []*apiv1.Call
	// recorded are those that a test has added.
	recorded []*apiv1.Interaction
	snapshot []byte
	restored []byte
	calls    map[string]int
	faults   map[string][]Fault
}

// sessionState is a session with what belongs to it.
type sessionState struct {
	*apiv1.Session
	log      []*apiv1.LogLine
	messages []*apiv1.Message // by sequence, from 1

	checkpoints []*apiv1.Session_Checkpoint // oldest first
}

// Fault is one misbehaviour of one call.
type Fault struct {
	Err error
	// After lets the call have its effect first, so that only the answer is lost.
	After bool
	// AfterMessages breaks a stream after it has sent that many messages; with After, 0 loses the first answer.
	AfterMessages int
}

// New makes a cluster of three members and no node.
func New() *Cluster {
	c := &Cluster{
		Now: time.Now, changed: make(chan struct{}), sessions: map[string]*sessionState{}, keys: map[string]any{},
		calls: map[string]int{}, faults: map[string][]Fault{}, snapshot: []byte("a snapshot"),
	}
	for i, role := range []apiv1.Member_Role{apiv1.Member_LEADER, apiv1.Member_FOLLOWER, apiv1.Member_FOLLOWER} {
		c.members = append(c.members, &apiv1.Member{
			Id: fmt.Sprintf("server-%d", i+1), Address: fmt.Sprintf("10.0.0.%d:8077", i+1), RaftAddress: fmt.Sprintf("10.0.0.%d:8076", i+1),
			Role: role, LastContactMs: float64(i) * 12.5, AppliedIndex: 42, Version: "1.0.0", Pid: int32(1000 + i), Healthy: true, Gossip: "alive",
		})
	}
	return c
}

// Server is one address of a cluster.
type Server struct {
	Address string
	grpc    *grpc.Server
}

// Serve starts a server on a loopback port and stops it with the test. cfg makes it speak TLS.
func (c *Cluster) Serve(t testing.TB, cfg *tls.Config) *Server {
	t.Helper()
	return c.ServeOn(t, "127.0.0.1:0", cfg)
}

// ServeOn is Serve on a given address.
func (c *Cluster) ServeOn(t testing.TB, address string, cfg *tls.Config) *Server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	opts := []grpc.ServerOption{
		grpc.UnaryInterceptor(c.unary), grpc.StreamInterceptor(c.stream),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
	}
	if cfg != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(cfg)))
	}
	s := &Server{Address: l.Addr().String(), grpc: grpc.NewServer(opts...)}
	apiv1.RegisterSessionServiceServer(s.grpc, &sessions{c: c})
	apiv1.RegisterNodeServiceServer(s.grpc, &nodes{c: c})
	apiv1.RegisterClusterServiceServer(s.grpc, &cluster{c: c})
	apiv1.RegisterQueueServiceServer(s.grpc, &queues{c: c})
	apiv1.RegisterTokenServiceServer(s.grpc, &tokens{c: c})
	apiv1.RegisterEventServiceServer(s.grpc, &events{c: c})
	apiv1.RegisterProviderServiceServer(s.grpc, &providers{talks: newConversations(c.Now())})
	apiv1.RegisterRecorderServiceServer(s.grpc, record{c: c})
	served := make(chan struct{})
	go func() { defer close(served); _ = s.grpc.Serve(l) }() // it ends with Stop, which is no error
	t.Cleanup(func() { s.Stop(); <-served })
	return s
}

// Stop ends the server at once, as a kill would.
func (s *Server) Stop() { s.grpc.Stop() }

// Inject makes the next calls of a method, by its bare name such as "SpawnSession", misbehave, one fault a call.
func (c *Cluster) Inject(method string, faults ...Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[method] = append(c.faults[method], faults...)
}

// Calls is how often a method was called.
func (c *Cluster) Calls(method string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[method]
}

// Lost is the error of a server that went away.
func Lost() error { return status.Error(codes.Unavailable, "no leader; try again") }

// Full is the error of a bound that is reached.
func Full(retry time.Duration) error {
	return toStatus(fault.New(fault.Exhausted, "the mailbox is full").WithRetry(retry))
}

func bare(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }

func (c *Cluster) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	f, err := c.enter(ctx, bare(info.FullMethod))
	if err != nil {
		return nil, err
	}
	if f.Err != nil && !f.After {
		return nil, f.Err
	}
	resp, err := handler(ctx, req)
	if f.Err != nil {
		return nil, f.Err
	}
	return resp, toStatus(err)
}

func (c *Cluster) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	f, err := c.enter(ss.Context(), bare(info.FullMethod))
	if err != nil {
		return err
	}
	switch {
	case f.Err == nil:
		return toStatus(handler(srv, ss))
	case f.AfterMessages == 0 && !f.After:
		return f.Err
	}
	err = handler(srv, &breaking{ss, f.AfterMessages, f.Err})
	if err == nil {
		err = f.Err
	}
	return toStatus(err)
}

// breaking is a stream that fails after a number of messages.
type breaking struct {
	grpc.ServerStream
	left int
	err  error
}

func (b *breaking) SendMsg(m any) error {
	if b.left == 0 {
		return b.err
	}
	b.left--
	return b.ServerStream.SendMsg(m)
}

// enter counts the call, checks its token and takes the fault that is meant for it.
func (c *Cluster) enter(ctx context.Context, method string) (f Fault, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[method]++
	if c.Tokens != nil {
		md, _ := metadata.FromIncomingContext(ctx)
		got := strings.TrimPrefix(strings.Join(md.Get("authorization"), ""), "Bearer ")
		role, ok := c.Tokens[got]
		if !ok {
			return f, status.Error(codes.Unauthenticated, "the token is not known")
		}
		looks := strings.HasPrefix(method, "Get") || strings.HasPrefix(method, "List") || strings.HasPrefix(method, "Watch") || strings.HasPrefix(method, "Read") || strings.HasPrefix(method, "Diff")
		if role == "viewer" && !looks {
			return f, status.Errorf(codes.PermissionDenied, "role viewer may not call %s; use a token of role client or above", method)
		}
	}
	if l := c.faults[method]; len(l) > 0 {
		f, c.faults[method] = l[0], l[1:]
	}
	return f, nil
}

// toStatus turns a fault into a status with its details.
func toStatus(err error) error {
	f := fault.As(err)
	if f == nil {
		return err
	}
	code := faultcode.Of(f.Kind)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: strings.ToUpper(strings.ReplaceAll(f.Kind.String(), " ", "_")), Domain: "orchestrator"}}
	if f.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	if f.Field != "" {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: f.Field, Description: f.Message}}})
	}
	st, err := status.New(code, f.Message).WithDetails(details...)
	if err != nil {
		return status.Error(code, f.Message)
	}
	return st.Err()
}

// change wakes all who wait, after a change; mu is held.
func (c *Cluster) change() {
	c.index++
	close(c.changed)
	c.changed = make(chan struct{})
}

// await waits until ready, called with mu held, says true.
func (c *Cluster) await(ctx context.Context, ready func() bool) error {
	for {
		c.mu.Lock()
		ok, changed := ready(), c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (c *Cluster) stamp() *timestamppb.Timestamp { return timestamppb.New(c.Now()) }

// ID is the id of the n-th thing of a kind; it looks like a real one and is the same in every run.
func ID(kind string, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", kind, n))
	return hex.EncodeToString(sum[:8])
}

// event records what happened; mu is held.
func (c *Cluster) event(typ, namespace, id, node, message string) {
	c.events = append(c.events, &apiv1.Event{
		Index: c.index + 1, Time: c.stamp(), Type: typ, Namespace: namespace, SessionId: id, Node: node, Epoch: 1, Message: message,
	})
}
