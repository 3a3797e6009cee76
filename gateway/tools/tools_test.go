// The tools: their schemas mean the same to others, calls reach the API as they should, and what goes away is asked again.
package tools

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// fakeAPI answers calls of the API with what a test says.
type fakeAPI struct {
	mu       sync.Mutex
	requests []proto.Message
	answer   func(ctx context.Context, method string, n int) (proto.Message, error)
}

func (f *fakeAPI) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	f.mu.Lock()
	f.requests = append(f.requests, proto.Clone(args.(proto.Message)))
	n := len(f.requests)
	f.mu.Unlock()
	m, err := f.answer(ctx, method, n)
	if err == nil {
		proto.Merge(reply.(proto.Message), m)
	}
	return err
}

func (f *fakeAPI) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

// The schemas are JSON Schema as the world understands it: another validator gives the same verdict on arguments of every kind.
func TestSchemasMeanWhatTheySay(t *testing.T) {
	for _, tool := range New(&fakeAPI{}).List() {
		text, err := tool.Schema.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var s jsonschema.Schema
		if err := json.Unmarshal(text, &s); err != nil {
			t.Fatalf("%s: %v\n%s", tool.Name, err, text)
		}
		other, err := s.Resolve(nil)
		if err != nil {
			t.Fatalf("%s: %v", tool.Name, err)
		}
		names := []string{"nobody-knows-this"}
		for name, p := range tool.Schema.Properties {
			names = append(names, name)
			if p.Description == "" {
				t.Errorf("%s: %s is not described", tool.Name, name)
			}
		}
		leaf := rapid.OneOf(rapid.Just(any(nil)), rapid.Map(rapid.Bool(), wrap[bool]), rapid.Map(rapid.Int64Range(-5, 1000), wrap[int64]),
			rapid.Map(rapid.SampledFrom([]string{"", "x", "high", "live", "90s", "1h30m", "-1s", "lines", "process", "never", strings.Repeat("ü", 300)}), wrap[string]))
		value := rapid.OneOf(leaf, leaf, rapid.Map(rapid.SliceOfN(leaf, 0, 3), wrap[[]any]), rapid.Map(rapid.MapOfN(rapid.SampledFrom([]string{"A", "b"}), leaf, 0, 2), wrap[map[string]any]))
		rapid.Check(t, func(rt *rapid.T) {
			arguments := rapid.MapOfN(rapid.SampledFrom(names), value, 0, 4).Draw(rt, "arguments")
			b, err := json.Marshal(arguments)
			if err != nil {
				rt.Fatal(err)
			}
			var plain any
			if err := json.Unmarshal(b, &plain); err != nil {
				rt.Fatal(err)
			}
			ours, theirs := tool.Schema.Check(b), other.Validate(plain)
			if (ours == nil) != (theirs == nil) {
				rt.Fatalf("%s: %s\nours:   %v\ntheirs: %v", tool.Name, b, ours, theirs)
			}
			if ours != nil && (!fault.Is(ours, fault.Invalid) || fault.As(ours).Field == "") {
				rt.Fatalf("%s: %v names no field", tool.Name, ours)
			}
		})
	}
}

func wrap[T any](v T) any { return v }

func TestCheckRefusesWhatIsNoObject(t *testing.T) {
	s := object(nil, map[string]*Schema{"a": text("", 3)})
	for _, bad := range []string{``, `{`, `[]`, `null`, `1`, `"x"`, `{} {}`, `{"a":1e999999}`} {
		if err := s.Check(json.RawMessage(bad)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Each tool makes the call that it stands for, with the call's id as the idempotency key, and shows the answer as JSON.
func TestCallsOfTheAPI(t *testing.T) {
	session := &apiv1.Session{Id: "abc", Phase: apiv1.Session_RUNNING, Node: "node-1"}
	for _, c := range []struct {
		tool, arguments, priority string
		method                    string
		want                      proto.Message
		reply                     proto.Message
		answer                    string
	}{
		{"session_spawn", `{"name":"n","command":["sh"],"env":{"A":"b"},"priority":"high","wait":true}`, "", apiv1.SessionService_SpawnSession_FullMethodName,
			&apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Name: "n", Command: []string{"sh"}, Env: map[string]string{"A": "b"}, Priority: apiv1.Priority_HIGH}, IdempotencyKey: "id", Wait: true},
			&apiv1.SpawnSessionResponse{Session: session}, `"phase":"RUNNING"`},
		{"session_get", `{"id":"abc","namespace":"blue"}`, "", apiv1.SessionService_GetSession_FullMethodName,
			&apiv1.GetSessionRequest{Id: "abc", Namespace: "blue"}, &apiv1.GetSessionResponse{Session: session}, `"id":"abc"`},
		{"session_list", `{"filter":"phase=RUNNING"}`, "", apiv1.SessionService_ListSessions_FullMethodName,
			&apiv1.ListSessionsRequest{Filter: "phase=RUNNING", PageSize: 100}, &apiv1.ListSessionsResponse{Sessions: []*apiv1.Session{session}, Total: 1}, `"total":"1"`},
		{"session_send", `{"id":"abc","message":"hi"}`, "low", apiv1.SessionService_SendMessage_FullMethodName,
			&apiv1.SendMessageRequest{SessionId: "abc", Text: []byte("hi"), Priority: apiv1.Priority_LOW, IdempotencyKey: "id", Wait: true},
			&apiv1.SendMessageResponse{Sequence: 7, SessionId: "abc", Message: &apiv1.Message{Status: apiv1.Message_ACKED, Result: []byte("ho")}}, `"result":"ho"`},
		{"session_send", `{"id":"abc","message":"hi","priority":"critical","wait":false,"idempotency_key":"own"}`, "low", apiv1.SessionService_SendMessage_FullMethodName,
			&apiv1.SendMessageRequest{SessionId: "abc", Text: []byte("hi"), Priority: apiv1.Priority_CRITICAL, IdempotencyKey: "own"},
			&apiv1.SendMessageResponse{Sequence: 7, SessionId: "abc"}, `"status":"QUEUED"`},
		{"session_send", `{"id":"abc","message":"hi"}`, "", apiv1.SessionService_SendMessage_FullMethodName,
			&apiv1.SendMessageRequest{SessionId: "abc", Text: []byte("hi"), IdempotencyKey: "id", Wait: true},
			&apiv1.SendMessageResponse{SessionId: "abc", Message: &apiv1.Message{Status: apiv1.Message_ACKED, Result: []byte{0xff}}}, `"resultBase64":"/w=="`},
		{"session_terminate", `{"id":"abc","reason":"done"}`, "", apiv1.SessionService_TerminateSession_FullMethodName,
			&apiv1.TerminateSessionRequest{Id: "abc", Reason: "done", IdempotencyKey: "id"}, &apiv1.TerminateSessionResponse{Session: session}, `"id":"abc"`},
		{"session_migrate", `{"id":"abc","target":"node-2","mode":"cold"}`, "", apiv1.SessionService_MigrateSession_FullMethodName,
			&apiv1.MigrateSessionRequest{Id: "abc", Target: "node-2", Mode: "cold", IdempotencyKey: "id", Wait: true}, &apiv1.MigrateSessionResponse{Session: session}, `"node":"node-1"`},
		{"session_checkpoint", `{"id":"abc"}`, "", apiv1.SessionService_CheckpointSession_FullMethodName,
			&apiv1.CheckpointSessionRequest{Id: "abc", IdempotencyKey: "id", Wait: true}, &apiv1.CheckpointSessionResponse{Session: session}, `"id":"abc"`},
		{"session_fork", `{"id":"abc","sequence":3,"name":"twin"}`, "", apiv1.SessionService_ForkSession_FullMethodName,
			&apiv1.ForkSessionRequest{Id: "abc", Sequence: 3, Name: "twin", IdempotencyKey: "id", Wait: true}, &apiv1.ForkSessionResponse{Session: session}, `"id":"abc"`},
		{"session_pause", `{"id":"abc","wait":false}`, "", apiv1.SessionService_PauseSession_FullMethodName,
			&apiv1.PauseSessionRequest{Id: "abc", IdempotencyKey: "id"}, &apiv1.PauseSessionResponse{Session: session}, `"id":"abc"`},
		{"session_resume", `{"id":"abc"}`, "", apiv1.SessionService_ResumeSession_FullMethodName,
			&apiv1.ResumeSessionRequest{Id: "abc", IdempotencyKey: "id", Wait: true}, &apiv1.ResumeSessionResponse{Session: session}, `"id":"abc"`},
		{"node_list", `{}`, "", apiv1.NodeService_ListNodes_FullMethodName,
			&apiv1.ListNodesRequest{}, &apiv1.ListNodesResponse{Nodes: []*apiv1.Node{{Name: "node-1"}}}, `"name":"node-1"`},
	} {
		api := &fakeAPI{answer: func(_ context.Context, method string, _ int) (proto.Message, error) {
			if method != c.method {
				t.Errorf("%s called %s", c.tool, method)
			}
			return c.reply, nil
		}}
		set := New(api)
		tool, ok := set.Find(c.tool)
		if !ok {
			t.Fatalf("there is no %s", c.tool)
		}
		if err := tool.Schema.Check(json.RawMessage(c.arguments)); err != nil {
			t.Errorf("%s: %v", c.tool, err)
		}
		out, err := set.Call(t.Context(), tool, Call{ID: "id", Arguments: json.RawMessage(c.arguments), Priority: c.priority})
		if err != nil || len(out) != 1 || out[0].Type != "text" || !strings.Contains(strings.ReplaceAll(out[0].Text, " ", ""), c.answer) {
			t.Errorf("%s: %v %v", c.tool, out, err)
		}
		if len(api.requests) != 1 || !proto.Equal(api.requests[0], c.want) {
			t.Errorf("%s asked\n%v, want\n%v", c.tool, api.requests, c.want)
		}
	}
}

func TestADeadLetterIsAnError(t *testing.T) {
	set := New(&fakeAPI{answer: func(context.Context, string, int) (proto.Message, error) {
		return &apiv1.SendMessageResponse{Message: &apiv1.Message{Sequence: 3, SessionId: "abc", Status: apiv1.Message_DEAD, Cause: "expired"}}, nil
	}})
	tool, _ := set.Find("session_send")
	if _, err := set.Call(t.Context(), tool, Call{Arguments: json.RawMessage(`{"id":"abc","message":"x"}`)}); !fault.Is(err, fault.Aborted) || !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
}

// A server or a leader that goes away under a call is asked again, with the same key; nothing else is.
func TestAskingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for code, want := range map[codes.Code]int{codes.Unavailable: 4, codes.Aborted: 4, codes.NotFound: 1, codes.ResourceExhausted: 1, codes.InvalidArgument: 1} {
			api := &fakeAPI{answer: func(_ context.Context, _ string, n int) (proto.Message, error) {
				if n < 4 {
					return nil, status.Error(code, "not now")
				}
				return &apiv1.PauseSessionResponse{Session: &apiv1.Session{Id: "abc"}}, nil
			}}
			set := New(api)
			tool, _ := set.Find("session_pause")
			_, err := set.Call(t.Context(), tool, Call{Arguments: json.RawMessage(`{"id":"abc"}`)})
			if (err == nil) != (want == 4) || len(api.requests) != want {
				t.Errorf("%s: asked %d times, %v", code, len(api.requests), err)
			}
			for _, r := range api.requests {
				if k := r.(*apiv1.PauseSessionRequest).GetIdempotencyKey(); k == "" || k != api.requests[0].(*apiv1.PauseSessionRequest).GetIdempotencyKey() {
					t.Errorf("%s: asked again with key %q", code, k)
				}
			}
		}
		// Not for ever.
		set := New(&fakeAPI{answer: func(context.Context, string, int) (proto.Message, error) {
			return nil, status.Error(codes.Unavailable, "never")
		}})
		tool, _ := set.Find("node_list")
		start := time.Now()
		if _, err := set.Call(t.Context(), tool, Call{Arguments: json.RawMessage(`{}`)}); !fault.Is(err, fault.Unavailable) || time.Since(start) > 2*againFor {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// A move that its caller cancels is cancelled, and not only no longer waited for.
func TestCancellingAMove(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	api := &fakeAPI{}
	api.answer = func(ctx context.Context, method string, _ int) (proto.Message, error) {
		if method == apiv1.SessionService_CancelMigration_FullMethodName {
			return &apiv1.CancelMigrationResponse{}, ctx.Err()
		}
		cancel(ErrCancelled)
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	set := New(api)
	tool, _ := set.Find("session_migrate")
	if _, err := set.Call(ctx, tool, Call{Arguments: json.RawMessage(`{"id":"abc"}`)}); err == nil || !errors.Is(context.Cause(ctx), ErrCancelled) {
		t.Error(err)
	}
	if len(api.requests) != 2 {
		t.Fatalf("asked %v", api.requests)
	}
	if r, ok := api.requests[1].(*apiv1.CancelMigrationRequest); !ok || r.GetId() != "abc" {
		t.Errorf("then asked %v", api.requests[1])
	}
}

// full is an observer without room: who may wait, waits until there is.
type full struct {
	room  chan struct{}
	ended int
}

func (f *full) Begin(ctx context.Context, _ *Tool, _ *Call) (context.Context, error) {
	select {
	case <-f.room:
		return ctx, nil
	default:
	}
	select {
	case <-f.room:
		return ctx, nil
	case <-ctx.Done():
		return ctx, fault.New(fault.Timeout, "there is no room")
	}
}

func (f *full) End(context.Context, *Tool, *Call, time.Time, []Output, error) { f.ended++ }

// What is to be done at once is not begun where its observer would have it wait, and nothing was done then.
func TestCallsAtOnce(t *testing.T) {
	api := &fakeAPI{answer: func(ctx context.Context, _ string, _ int) (proto.Message, error) {
		return &apiv1.ListModelsResponse{}, ctx.Err()
	}}
	f := &full{room: make(chan struct{})}
	set := New(api).Observed(f)
	tool, _ := set.Find("list_models")
	call := Call{Arguments: json.RawMessage("{}"), AtOnce: true}
	if out, err := set.Call(t.Context(), tool, call); !errors.Is(err, ErrWouldWait) || out != nil || len(api.requests) != 0 || f.ended != 0 {
		t.Fatalf("%v, %v; %d requests, %d ends", out, err, len(api.requests), f.ended)
	}
	close(f.room)
	if out, err := set.Call(t.Context(), tool, call); err != nil || len(out) != 1 || len(api.requests) != 1 || f.ended != 1 {
		t.Errorf("%v, %v; %d requests, %d ends", out, err, len(api.requests), f.ended)
	}
	for _, tool := range set.List() {
		if tool.AtOnce && (!tool.ReadOnly || tool.AsksModels || tool.OrderKey != nil) {
			t.Errorf("%s changes something, or asks models, and is made where it is read", tool.Name)
		}
	}
}
