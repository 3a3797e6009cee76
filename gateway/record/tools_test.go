// What of a call is recorded: who, what, about which session, and how it ended.

package record

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
)

// api answers as a test wants.
type api struct {
	grpc.ClientConnInterface
	answer func(ctx context.Context, reply any) error
}

func (a *api) Invoke(ctx context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	return a.answer(ctx, reply)
}

func TestCalls(t *testing.T) {
	bound := auth.Identity{Name: "ci", Role: auth.Client, Namespace: "films"}
	free := auth.Identity{Name: "root", Role: auth.Admin}
	fine := func(_ context.Context, reply any) error {
		if r, ok := reply.(*apiv1.GetSessionResponse); ok {
			r.Session = &apiv1.Session{Id: "ledger-id", Name: "ledger"}
		}
		return nil
	}
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(tools.ErrCancelled)
	late, stop := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer stop()
	for name, c := range map[string]struct {
		who       auth.Identity
		unknown   error
		ctx       context.Context
		tool      string
		arguments string
		answer    func(ctx context.Context, reply any) error
		want      recorder.Interaction
	}{
		"a session by its name": {who: bound, tool: "session_get", arguments: `{"id":"ledger"}`, answer: fine,
			want: recorder.Interaction{Namespace: "films", Session: "ledger-id", Principal: "client:ci", Status: recorder.OK, Response: `"id":"ledger-id"`}},
		"one that nobody knows": {who: free, tool: "session_get", arguments: `{"id":"x","namespace":"films"}`,
			answer: func(context.Context, any) error { return status.Error(codes.NotFound, "there is none") },
			want:   recorder.Interaction{Namespace: "films", Session: "x", Principal: "admin:root", Status: recorder.Failed, Code: "not found", Error: "there is none"}},
		"the namespace is the caller's, whatever the arguments say": {who: bound, tool: "session_get", arguments: `{"id":"ledger","namespace":"default"}`,
			answer: func(context.Context, any) error { return status.Error(codes.PermissionDenied, "no") },
			want:   recorder.Interaction{Namespace: "films", Session: "ledger-id", Principal: "client:ci", Status: recorder.Failed, Code: "permission denied", Error: "no"}},
		"nothing is said of a namespace": {who: free, tool: "node_list", arguments: `{}`, answer: fine,
			want: recorder.Interaction{Namespace: "default", Principal: "admin:root", Status: recorder.OK, Response: "{"}},
		"cancelled": {who: bound, ctx: ended, tool: "node_list", arguments: `{}`, answer: func(ctx context.Context, _ any) error { return ctx.Err() },
			want: recorder.Interaction{Namespace: "films", Principal: "client:ci", Status: recorder.Cancelled, Error: "canceled"}},
		"too late": {who: bound, ctx: late, tool: "node_list", arguments: `{}`, answer: func(ctx context.Context, _ any) error { return ctx.Err() },
			want: recorder.Interaction{Namespace: "films", Principal: "client:ci", Status: recorder.TimedOut, Error: "deadline"}},
		"a token that was revoked meanwhile": {unknown: fault.New(fault.Unauthenticated, "who"), tool: "node_list", arguments: `{}`,
			answer: func(context.Context, any) error { return status.Error(codes.Unauthenticated, "who") },
			want:   recorder.Interaction{Namespace: "default", Status: recorder.Failed, Code: "unauthenticated", Error: "who"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{}
			set := tools.New(&api{answer: c.answer}).Observed(NewTools(m, func(context.Context) (auth.Identity, error) { return c.who, c.unknown },
				func(namespace, session string) string {
					if namespace == "films" && session == "ledger" {
						return "ledger-id"
					}
					return ""
				}))
			tool, _ := set.Find(c.tool)
			ctx := c.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			_, _ = set.Call(ctx, tool, tools.Call{Arguments: json.RawMessage(c.arguments), Origin: recorder.Origin{Client: "web-1", RequestID: "r-1"}}) // the record says how it ended
			all := m.taken()
			if len(all) != 1 {
				t.Fatalf("%d are recorded", len(all))
			}
			i, w := all[0], c.want
			if i.Kind != recorder.ToolCall || i.Tool != c.tool || i.Request != c.arguments || i.Client != "web-1" || i.RequestID != "r-1" || i.Time.IsZero() || i.Latency <= 0 {
				t.Errorf("%+v", i)
			}
			if i.Namespace != w.Namespace || i.Session != w.Session || i.Principal != w.Principal || i.Status != w.Status || w.Code != "" && i.Code != w.Code ||
				!strings.Contains(i.Response, w.Response) || !strings.Contains(i.Error, w.Error) || (i.Error == "") != (w.Error == "") {
				t.Errorf("%+v\nwant %+v", i, w)
			}
		})
	}
}

// TestACallThatPanicsIsRecorded, and its panic goes on to whoever contains it.
func TestACallThatPanicsIsRecorded(t *testing.T) {
	m := &memory{}
	set := tools.New(&api{answer: func(context.Context, any) error { panic("a defect") }}).
		Observed(NewTools(m, func(context.Context) (auth.Identity, error) { return auth.Identity{Name: "x", Role: auth.Client}, nil }, nil))
	tool, _ := set.Find("node_list")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_, _ = set.Call(t.Context(), tool, tools.Call{Arguments: json.RawMessage(`{}`)})
	}()
	if all := m.taken(); len(all) != 1 || all[0].Status != recorder.Failed || all[0].Code != "internal" {
		t.Errorf("%+v", all)
	}
}

// TestNothingIsDoneThatCannotBeRecorded: a call waits for room, and is refused without having been made.
func TestNothingIsDoneThatCannotBeRecorded(t *testing.T) {
	m := &memory{err: fault.New(fault.Timeout, "the record is full")}
	set := tools.New(&api{answer: func(context.Context, any) error { t.Error("it was made"); return nil }}).
		Observed(NewTools(m, func(context.Context) (auth.Identity, error) { return auth.Identity{}, nil }, nil))
	tool, _ := set.Find("node_list")
	if _, err := set.Call(t.Context(), tool, tools.Call{Arguments: json.RawMessage(`{}`)}); !fault.Is(err, fault.Timeout) || len(m.taken()) != 0 {
		t.Errorf("%v, %v", err, m.taken())
	}
}

// TestWhatAModelIsAskedForKnowsItsCall: the context of chat carries the client's call.
func TestWhatAModelIsAskedForKnowsItsCall(t *testing.T) {
	tool, _ := tools.New(nil).Find("chat")
	ctx, err := NewTools(&memory{}, nil, nil).Begin(t.Context(), tool, &tools.Call{Origin: recorder.Origin{Client: "web-1", RequestID: "r-1"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := recorder.OriginOf(ctx); got != (recorder.Origin{Client: "web-1", RequestID: "r-1"}) {
		t.Errorf("%+v", got)
	}
	if o := recorder.OriginOf(t.Context()); o != (recorder.Origin{}) {
		t.Errorf("out of nowhere: %+v", o)
	}
}
