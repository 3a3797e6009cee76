// What people see of calls and do with them: whose they see, and that a repetition has no second effect.

package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// calls is a server with calls of two namespaces, and of a caller that is bound to none.
type calls struct {
	*alone
	api apiv1.QueueServiceClient
}

func startCalls(t *testing.T) *calls {
	a := startAlone(t)
	return &calls{a, apiv1.NewQueueServiceClient(a.conn)}
}

// take takes a call, and gives it up where that is asked for.
func (c *calls) take(request, namespace string, dead bool) *queue.Call {
	c.t.Helper()
	s := submission(request, 5)
	s.Caller.Namespace = namespace
	call := c.do(submitCommand(s)).Call
	if dead {
		call = c.do(&clusterv1.Command{Kind: &clusterv1.Command_EndCall{EndCall: &clusterv1.EndCall{
			Key: s.GetKey(), ServerId: "s1", Attempt: 1, Outcome: &clusterv1.Outcome{Code: "PROVIDER_ERROR", Message: "no"}, Dead: true,
		}}}).Call
	}
	return call
}

func requests(calls []*apiv1.Call) string {
	var out []string
	for _, c := range calls {
		out = append(out, c.GetRequestId())
	}
	return strings.Join(out, " ")
}

func TestListCalls(t *testing.T) {
	c := startCalls(t)
	c.take("a", "", false)
	c.take("b", "other", false)
	c.take("c", "other", true)
	c.take("d", "default", false)
	bound := c.as(c.token(auth.Viewer, "other"))
	for name, l := range map[string]struct {
		req   *apiv1.ListCallsRequest
		bound bool
		want  string
	}{
		"all":                      {&apiv1.ListCallsRequest{}, false, "a b c d"},
		"default":                  {&apiv1.ListCallsRequest{Namespace: "default"}, false, "a d"},
		"those that one may see":   {&apiv1.ListCallsRequest{}, true, "b c"},
		"dead":                     {&apiv1.ListCallsRequest{Status: apiv1.Call_DEAD}, false, "c"},
		"of a tool":                {&apiv1.ListCallsRequest{Tool: "session_send"}, false, "a b c d"},
		"of another":               {&apiv1.ListCallsRequest{Tool: "chat"}, false, ""},
		"of a server":              {&apiv1.ListCallsRequest{Server: "s2"}, false, ""},
		"of a client":              {&apiv1.ListCallsRequest{Session: "ann", Status: apiv1.Call_RUNNING}, false, "a b d"},
		"of a client that is none": {&apiv1.ListCallsRequest{Session: "bob"}, false, ""},
	} {
		ctx := c.as(c.admin)
		if l.bound {
			ctx = bound
		}
		for _, size := range []int32{0, 1, 3} { // all at once, and page by page
			var got []*apiv1.Call
			for token := "first"; token != ""; {
				l.req.PageSize, l.req.PageToken = size, strings.TrimPrefix(token, "first")
				r, err := c.api.ListCalls(ctx, l.req)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if size > 0 && len(r.GetCalls()) > int(size) {
					t.Errorf("%s: a page of %d", name, len(r.GetCalls()))
				}
				got, token = append(got, r.GetCalls()...), r.GetNextPageToken()
			}
			if requests(got) != l.want {
				t.Errorf("%s: %q, want %q", name, requests(got), l.want)
			}
		}
	}
	for _, req := range []*apiv1.ListCallsRequest{{Namespace: "default"}, {PageToken: "x"}} {
		if _, err := c.api.ListCalls(bound, req); err == nil {
			t.Errorf("%v was answered", req)
		}
	}
	r, err := c.api.GetQueueStats(c.as(c.admin), &apiv1.GetQueueStatsRequest{})
	if err != nil || fmt.Sprint(r.GetCalls()) != "map[DEAD:1 RUNNING:3]" || fmt.Sprint(r.GetCallsByPriority()) != "map[normal:3]" || r.GetOldestCallSeconds() <= 0 {
		t.Errorf("%v, %v", r, err)
	}
	r, err = c.api.GetQueueStats(bound, &apiv1.GetQueueStatsRequest{})
	if err != nil || fmt.Sprint(r.GetCalls()) != "map[DEAD:1 RUNNING:1]" || fmt.Sprint(r.GetCallsByPriority()) != "map[normal:1]" {
		t.Errorf("%v, %v", r, err)
	}
}

func TestGetAndCancelCalls(t *testing.T) {
	c := startCalls(t)
	call := c.take("a", "other", false)
	admin, bound := c.as(c.admin), c.as(c.token(auth.Client, "default"))
	viewer, operator := c.as(c.token(auth.Viewer, "other")), c.as(c.token(auth.Operator, "other"))
	if seen, err := c.api.GetCall(viewer, &apiv1.GetCallRequest{Id: call.ID()}); err != nil || seen.GetCall().GetArgumentsBytes() != 5 || len(seen.GetCall().GetArguments()) != 0 {
		t.Errorf("what was asked is for who asked, and operators: %v, %v", seen, err)
	}
	unbound := c.take("unbound", "", false)
	if _, err := c.api.GetCall(bound, &apiv1.GetCallRequest{Id: unbound.ID()}); status.Code(err) != codes.NotFound {
		t.Errorf("of a caller that is bound to no namespace: %v", err)
	}
	got, err := c.api.GetCall(operator, &apiv1.GetCallRequest{Id: call.ID()[:5]})
	if err != nil || got.GetCall().GetId() != call.ID() || string(got.GetCall().GetArguments()) != "xxxxx" || got.GetCall().GetStatus() != apiv1.Call_RUNNING || got.GetCall().GetOwner() != "token 1" {
		t.Errorf("%v, %v", got, err)
	}
	for _, e := range []struct {
		id   string
		want codes.Code
	}{{"", codes.InvalidArgument}, {call.ID()[:2], codes.InvalidArgument}, {"none-such", codes.NotFound}} {
		if _, err := c.api.GetCall(admin, &apiv1.GetCallRequest{Id: e.id}); status.Code(err) != e.want {
			t.Errorf("%q: %v", e.id, err)
		}
	}
	if _, err := c.api.GetCall(bound, &apiv1.GetCallRequest{Id: call.ID()}); status.Code(err) != codes.NotFound {
		t.Errorf("of another namespace: %v", err)
	}
	cancel := &apiv1.CancelCallRequest{Id: call.ID(), IdempotencyKey: "k"}
	if _, err := c.api.CancelCall(bound, cancel); status.Code(err) != codes.NotFound {
		t.Errorf("of another namespace: %v", err)
	}
	if _, err := c.api.CancelCall(viewer, cancel); status.Code(err) != codes.PermissionDenied {
		t.Errorf("by a viewer: %v", err)
	}
	for range 2 {
		r, err := c.api.CancelCall(admin, cancel)
		if err != nil || !r.GetCall().GetCancelling() {
			t.Errorf("%v, %v", r, err)
		}
	}
	c.do(endCommand("a"))
	if r, err := c.api.CancelCall(admin, &apiv1.CancelCallRequest{Id: call.ID()}); err != nil || r.GetCall().GetStatus() != apiv1.Call_ENDED {
		t.Errorf("one that has ended: %v, %v", r, err)
	}
	got, err = c.api.GetCall(admin, &apiv1.GetCallRequest{Id: call.ID()})
	if err != nil || string(got.GetCall().GetOutcome().GetOutputs()) != "done" || got.GetCall().GetDelivered() {
		t.Errorf("%v, %v", got, err)
	}
	c.do(&clusterv1.Command{Kind: &clusterv1.Command_TakeDelivery{TakeDelivery: &clusterv1.TakeDelivery{Owner: "token 1", Session: "ann", Order: 1}}})
	list, err := c.api.ListCalls(admin, &apiv1.ListCallsRequest{})
	if one := list.GetCalls()[0]; err != nil || !one.GetDelivered() || one.GetOutcome().GetOutputs() != nil || one.GetOutcome().GetOutputsBytes() != 4 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestAnIDOfSeveralCalls(t *testing.T) {
	c := startCalls(t)
	seen := map[string]string{}
	for i := 0; ; i++ { // until two ids begin alike
		request := fmt.Sprint(i)
		id := c.take(request, "default", false).ID()
		if other, ok := seen[id[:3]]; ok {
			_, err := c.api.GetCall(c.as(c.admin), &apiv1.GetCallRequest{Id: id[:3]})
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), id) {
				t.Errorf("%v, want %s and %s", err, other, id)
			}
			return
		}
		seen[id[:3]] = id
	}
}

// startDeadCalls is with four dead calls, the first two and the last of them in the default namespace, and one that lives.
func startDeadCalls(t *testing.T) (c *calls, dead []*queue.Call, live *queue.Call) {
	c = startCalls(t)
	for i, ns := range []string{"default", "", "other", "default"} {
		dead = append(dead, c.take(fmt.Sprint("r", i), ns, true))
	}
	return c, dead, c.take("live", "default", false)
}

func TestDeadCallsAreDeadLetters(t *testing.T) {
	c, dead, live := startDeadCalls(t)
	admin := c.as(c.admin)
	list := func(size int32) (found []*apiv1.Call) {
		t.Helper()
		for token := "first"; token != ""; {
			r, err := c.api.ListDeadLetters(admin, &apiv1.ListDeadLettersRequest{Namespace: "default", PageSize: size, PageToken: strings.TrimPrefix(token, "first")})
			if err != nil {
				t.Fatal(err)
			}
			found, token = append(found, r.GetCalls()...), r.GetNextPageToken()
		}
		return found
	}
	for _, size := range []int32{0, 1, 2} {
		if got := requests(list(size)); got != "r0 r1 r3" {
			t.Errorf("%q", got)
		}
	}
	if _, err := c.api.ListDeadLetters(admin, &apiv1.ListDeadLettersRequest{PageToken: "calls:zz"}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if r, err := c.api.GetDeadLetter(admin, &apiv1.GetDeadLetterRequest{CallId: dead[0].ID()}); err != nil || string(r.GetCall().GetArguments()) != "xxxxx" || r.GetCall().GetOutcome().GetCode() != "PROVIDER_ERROR" {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := c.api.GetDeadLetter(admin, &apiv1.GetDeadLetterRequest{CallId: live.ID()}); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
}

// TestADeadCallGetsAnotherChance, once, at a server that is there.
func TestADeadCallGetsAnotherChance(t *testing.T) {
	c, dead, live := startDeadCalls(t)
	admin := c.as(c.admin)
	retry := &apiv1.RetryDeadLettersRequest{CallId: dead[0].ID(), IdempotencyKey: "again"}
	for range 2 {
		if r, err := c.api.RetryDeadLetters(admin, retry); err != nil || r.GetRetried() != 1 {
			t.Errorf("%v, %v", r, err)
		}
	}
	now := c.ops.State.View().Call(dead[0].Key)
	if now.Status != queue.Queued || now.Attempt != 2 || now.Server != c.ops.Node.ID() || time.Until(time.Unix(0, now.Deadline)) < 50*time.Minute {
		t.Errorf("%+v", now)
	}
	if _, err := c.api.RetryDeadLetters(admin, &apiv1.RetryDeadLettersRequest{CallId: live.ID()}); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
	if _, err := c.api.RetryDeadLetters(c.as(c.token(auth.Client, "")), retry); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	if _, err := c.api.RetryDeadLetters(admin, &apiv1.RetryDeadLettersRequest{CallId: dead[2].ID()}); err != nil {
		t.Error(err)
	}
	if pbconv.CallToRow(c.ops.State.View().Call(dead[2].Key)).GetServerId() == "s1" {
		t.Error("it waits for a server that there is none of")
	}
}

// TestDeadCallsArePurged: one, then all of the namespace.
func TestDeadCallsArePurged(t *testing.T) {
	c, dead, live := startDeadCalls(t)
	admin := c.as(c.admin)
	purge := &apiv1.PurgeDeadLettersRequest{CallId: dead[1].ID(), IdempotencyKey: "purge"}
	for range 2 {
		if r, err := c.api.PurgeDeadLetters(admin, purge); err != nil || r.GetPurged() != 1 {
			t.Errorf("%v, %v", r, err)
		}
	}
	if _, err := c.api.PurgeDeadLetters(admin, &apiv1.PurgeDeadLettersRequest{CallId: dead[1].ID(), IdempotencyKey: "another"}); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	if _, err := c.api.PurgeDeadLetters(admin, &apiv1.PurgeDeadLettersRequest{CallId: live.ID()}); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	all := &apiv1.PurgeDeadLettersRequest{IdempotencyKey: "all"}
	for range 2 {
		if r, err := c.api.PurgeDeadLetters(admin, all); err != nil || r.GetPurged() != 2 {
			t.Errorf("%v, %v", r, err)
		}
	}
	if st := c.ops.State.View().Stats().Calls; st.Of(queue.Dead) != 1 || c.ops.State.View().Call(dead[2].Key) == nil {
		t.Errorf("%+v", st)
	}
}
