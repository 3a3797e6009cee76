// Who is let in, what a defect does, and whither calls go.
package gateway

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
)

// methods are the full names of what a server offers, with whether each is a stream.
func methods() map[string]bool {
	out := map[string]bool{}
	for _, d := range []grpc.ServiceDesc{
		apiv1.SessionService_ServiceDesc, apiv1.NodeService_ServiceDesc, apiv1.ClusterService_ServiceDesc, apiv1.QueueService_ServiceDesc,
		apiv1.TokenService_ServiceDesc, apiv1.EventService_ServiceDesc, apiv1.ProviderService_ServiceDesc, apiv1.RecorderService_ServiceDesc, clusterv1.RelayService_ServiceDesc,
	} {
		for _, m := range d.Methods {
			out["/"+d.ServiceName+"/"+m.MethodName] = false
		}
		for _, m := range d.Streams {
			out["/"+d.ServiceName+"/"+m.StreamName] = true
		}
	}
	return out
}

// call calls any method with an empty message, and returns its code.
func (a *alone) call(ctx context.Context, method string, stream bool) codes.Code {
	if !stream {
		return status.Code(a.conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{}))
	}
	s, err := a.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return status.Code(err)
	}
	_ = s.CloseSend()
	return status.Code(s.RecvMsg(&emptypb.Empty{}))
}

// TestNobodyWithoutToken: every method but the probes refuses a caller without a token, or with one that is not known.
func TestNobodyWithoutToken(t *testing.T) {
	a := startAlone(t)
	all := methods()
	if len(all) < 30 {
		t.Fatalf("only %d methods", len(all))
	}
	all["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] = true
	for method, stream := range all {
		for _, token := range []string{"", "nonsense", auth.Generate().Reveal()} {
			if got := a.call(a.as(token), method, stream); got != codes.Unauthenticated {
				t.Errorf("%s with token %.10q: %s, want Unauthenticated", method, token, got)
			}
		}
		// A node's token opens the node link and no method; a peer's secret opens the relay only.
		if got := a.call(a.as(a.admin), method, stream); got == codes.Unauthenticated {
			t.Errorf("%s refuses the admin as unknown", method)
		}
	}
	node := a.token(auth.Node, "")
	for method, stream := range methods() {
		if got := a.call(a.as(node), method, stream); got != codes.PermissionDenied {
			t.Errorf("%s for a node's token: %s, want PermissionDenied", method, got)
		}
	}
	if got := a.call(a.as(""), "/grpc.health.v1.Health/Check", false); got != codes.OK {
		t.Errorf("a probe: %s", got)
	}
}

// TestDefaultDeny: a method that is not in the table is refused to everybody, the admin too.
func TestDefaultDeny(t *testing.T) {
	for method := range methods() {
		if _, ok := auth.Methods[method]; !ok {
			t.Errorf("%s is not in the table of methods", method)
		}
	}
	g := &guard{open: true, log: slog.New(slog.DiscardHandler)}
	if _, err := g.admit(t.Context(), "/orchestrator.v1.SessionService/Invented"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a method nobody wrote down: %v", err)
	}
}

// TestPanicStaysInside: a defect in one call is INTERNAL, without a stack; the log has it.
func TestPanicStaysInside(t *testing.T) {
	var logged strings.Builder
	var observed []codes.Code
	g := &guard{open: true, log: slog.New(slog.NewTextHandler(&logged, nil)), observe: func(_ string, c codes.Code, _ time.Duration) { observed = append(observed, c) }}
	method := apiv1.SessionService_GetSession_FullMethodName
	_, err := g.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { panic("a secret detail") })
	check := func(err error) {
		t.Helper()
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret detail") || strings.Contains(err.Error(), "goroutine") {
			t.Errorf("the caller is told %v", err)
		}
	}
	check(err)
	check(g.stream(nil, &fakeStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: method}, func(any, grpc.ServerStream) error { panic("a secret detail") }))
	if strings.Count(logged.String(), "guard_test.go") < 2 {
		t.Errorf("the log has no stacks: %s", logged.String())
	}
	if len(observed) != 2 || observed[0] != codes.Internal || observed[1] != codes.Internal {
		t.Errorf("observed %v", observed)
	}
}

type fakeStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *fakeStream) Context() context.Context    { return s.ctx }
func (s *fakeStream) RecvMsg(any) error           { return io.EOF }
func (s *fakeStream) SendMsg(any) error           { return nil }
func (s *fakeStream) SetTrailer(metadata.MD)      {}
func (s *fakeStream) SetHeader(metadata.MD) error { return nil }

// TestIsLocal: what a follower answers by itself.
func TestIsLocal(t *testing.T) {
	stale := &apiv1.GetSessionRequest{Consistency: apiv1.Consistency_STALE}
	for _, tc := range []struct {
		method string
		req    any
		want   bool
	}{
		{apiv1.SessionService_GetSession_FullMethodName, &apiv1.GetSessionRequest{}, false},
		{apiv1.SessionService_GetSession_FullMethodName, stale, true},
		{apiv1.SessionService_SpawnSession_FullMethodName, &apiv1.SpawnSessionRequest{}, false},
		{apiv1.SessionService_WatchSessions_FullMethodName, nil, false},
		{apiv1.ClusterService_GetStatus_FullMethodName, &apiv1.GetStatusRequest{}, false},
		{apiv1.ClusterService_GetStatus_FullMethodName, &apiv1.GetStatusRequest{Consistency: apiv1.Consistency_STALE}, true},
		{apiv1.ClusterService_ListMembers_FullMethodName, &apiv1.ListMembersRequest{}, false},
		{apiv1.ClusterService_ListMembers_FullMethodName, &apiv1.ListMembersRequest{Consistency: apiv1.Consistency_STALE}, true},
		{clusterv1.RelayService_Link_FullMethodName, nil, true},
		{"/grpc.health.v1.Health/Check", nil, true},
		{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", nil, true},
	} {
		if got := isLocal(tc.method, tc.req); got != tc.want {
			t.Errorf("%s: local %v, want %v", tc.method, got, tc.want)
		}
	}
}

// TestMessageTypes: every method can be forwarded, for its messages are known.
func TestMessageTypes(t *testing.T) {
	for method := range methods() {
		for range 2 { // looked up, then remembered
			request, reply, err := messageTypes(method)
			if err != nil {
				t.Fatalf("%s: %v", method, err)
			}
			name := method[strings.LastIndex(method, "/")+1:]
			if strings.HasPrefix(method, "/orchestrator.v1.") && (string(request.Descriptor().Name()) != name+"Request" || string(reply.Descriptor().Name()) != name+"Response") {
				t.Errorf("%s: %s and %s", method, request.Descriptor().Name(), reply.Descriptor().Name())
			}
		}
	}
	for _, method := range []string{"/orchestrator.v1.SessionService/Invented", "/nobody.Service/Get", "", "/orchestrator.v1.Session/Get"} {
		if _, _, err := messageTypes(method); status.Code(toStatus(err)) != codes.Unimplemented {
			t.Errorf("%q: %v", method, err)
		}
	}
}

// TestForwardedOnce: a call that was passed on carries the caller's token and the mark, and nothing else of his.
func TestForwardedOnce(t *testing.T) {
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer x", peerKey, "secret", "cookie", "c"))
	md, _ := metadata.FromOutgoingContext(outgoing(ctx))
	if len(md) != 2 || md.Get("authorization")[0] != "Bearer x" || md.Get(forwardedKey)[0] != "1" {
		t.Errorf("passed on with %v", md)
	}
}
