// The record as it is read: put together of what the servers have, for who may read it, in their own namespace.

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/sqlite"
)

// ledger is a record whose interactions are there at once.
type ledger struct {
	*sqlite.Sink
	full bool
}

func (k *ledger) Take(i *recorder.Interaction) error {
	i.ID, i.Time = fmt.Sprintf("id-%d", time.Now().UnixNano()), time.Now()
	_, err := k.Write(context.Background(), []recorder.Interaction{*i})
	return err
}

func (k *ledger) Room(context.Context) error {
	if k.full {
		return fault.New(fault.Timeout, "the record is full")
	}
	return nil
}

// records gives a server a record with some interactions in it.
func (a *alone) records(some ...recorder.Interaction) *ledger {
	a.t.Helper()
	s, err := sqlite.Open(a.t.Context(), filepath.Join(a.t.TempDir(), "x.db"))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = s.Close() })
	if _, err := s.Write(a.t.Context(), some); err != nil {
		a.t.Fatal(err)
	}
	k := &ledger{Sink: s}
	a.ops.Record = &Record{Recorder: k, Sink: s}
	return k
}

var recordBegin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// happened is an interaction of a namespace, so many seconds after recordBegin.
func happened(n int, namespace string) recorder.Interaction {
	return recorder.Interaction{ID: fmt.Sprintf("i-%04d", n), Time: recordBegin.Add(time.Duration(n) * time.Second), Kind: recorder.ToolCall, Status: recorder.OK,
		Namespace: namespace, Tool: "t", Principal: "client:ci", Request: "ask", Response: "answer", Latency: time.Millisecond}
}

func idsOf(all []*apiv1.Interaction) (ids []string) {
	for _, i := range all {
		ids = append(ids, i.GetId())
	}
	return ids
}

// Whatever the servers have, and however long their pages are: all of it comes once, in order, page after page.
func TestPagesOfManyServers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers := make([][]*apiv1.Interaction, rapid.IntRange(1, 4).Draw(t, "servers"))
		var want []string
		for n := range rapid.IntRange(0, 40).Draw(t, "interactions") {
			i := interactionProto(&recorder.Interaction{ID: fmt.Sprintf("i-%04d", n), Time: recordBegin.Add(time.Duration(n/3) * time.Second), Kind: recorder.Answer})
			want = append(want, i.GetId())
			first := rapid.IntRange(0, len(servers)-1).Draw(t, "on")
			for s := range servers { // some are on several
				if s == first || rapid.IntRange(0, 3).Draw(t, "also") == 0 {
					servers[s] = append(servers[s], i)
				}
			}
		}
		oldest := rapid.Bool().Draw(t, "oldest first")
		if !oldest {
			slices.Reverse(want)
			for _, s := range servers {
				slices.Reverse(s)
			}
		}
		limit := rapid.IntRange(1, 10).Draw(t, "limit")
		var got []string
		token := ""
		for range len(want) + 2 {
			parts := make([]*apiv1.ListInteractionsResponse, len(servers))
			for n, all := range servers {
				parts[n] = pageOf(all, token, oldest, rapid.IntRange(1, limit).Draw(t, "bytes")) // a page may end before the limit
			}
			page := merge(parts, &recorder.Query{Limit: limit, OldestFirst: oldest})
			if len(page.GetInteractions()) > limit {
				t.Fatalf("%d on a page of %d", len(page.GetInteractions()), limit)
			}
			got = append(got, idsOf(page.GetInteractions())...)
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// pageOf is what a server answers, as the sinks do.
func pageOf(all []*apiv1.Interaction, token string, oldest bool, limit int) *apiv1.ListInteractionsResponse {
	out := &apiv1.ListInteractionsResponse{}
	for n, i := range all {
		if token != "" {
			at, id := i.GetTime().AsTime(), i.GetId()
			ends, is := recorder.Cursor(at, id), token
			if ends == is || !after(at, id, token, oldest) {
				continue
			}
		}
		if len(out.GetInteractions()) == limit {
			last := out.GetInteractions()[limit-1]
			out.NextPageToken = recorder.Cursor(last.GetTime().AsTime(), last.GetId())
			return out
		}
		out.Interactions = append(out.Interactions, all[n])
	}
	return out
}

// after reports whether an interaction comes behind a page's end.
func after(at time.Time, id, token string, oldest bool) bool {
	for n := range 60 { // the ends that the test makes
		end, endID := recordBegin.Add(time.Duration(n/3)*time.Second), fmt.Sprintf("i-%04d", n)
		if recorder.Cursor(end, endID) != token {
			continue
		}
		c := at.Compare(end)
		if c == 0 {
			c = strings.Compare(id, endID)
		}
		return oldest == (c > 0) && c != 0
	}
	return false
}

// TestListInteractions: who may read which, by what, page by page.
func TestListInteractions(t *testing.T) {
	a := startAlone(t)
	var all []recorder.Interaction
	for n := range 10 {
		all = append(all, happened(n, []string{"default", "films"}[n%2]))
	}
	all[3].Session, all[5].Status, all[5].Code, all[5].Error = "s-3", recorder.Failed, "invalid", "no"
	a.records(all...)
	c := apiv1.NewRecorderServiceClient(a.conn)
	films, operator := a.token(auth.Operator, "films"), a.token(auth.Operator, "")
	for name, x := range map[string]struct {
		token string
		query *apiv1.InteractionQuery
		want  string
		code  codes.Code
	}{
		"all":                 {operator, nil, "9 8 7 6 5 4 3 2 1 0", 0},
		"one namespace":       {operator, &apiv1.InteractionQuery{Namespace: "films"}, "9 7 5 3 1", 0},
		"the own":             {films, nil, "9 7 5 3 1", 0},
		"the own, by name":    {films, &apiv1.InteractionQuery{Namespace: "films"}, "9 7 5 3 1", 0},
		"another's":           {films, &apiv1.InteractionQuery{Namespace: "default"}, "", codes.PermissionDenied},
		"a session":           {films, &apiv1.InteractionQuery{Session: "s-3"}, "3", 0},
		"a status":            {films, &apiv1.InteractionQuery{Status: apiv1.Interaction_FAILED}, "5", 0},
		"a kind":              {films, &apiv1.InteractionQuery{Kind: apiv1.Interaction_MODEL_CALL}, "", 0},
		"no kind":             {films, &apiv1.InteractionQuery{Kind: 99}, "", codes.InvalidArgument},
		"since":               {films, &apiv1.InteractionQuery{Since: timestamppb.New(recordBegin.Add(4 * time.Second))}, "9 7 5", 0},
		"until":               {films, &apiv1.InteractionQuery{Until: timestamppb.New(recordBegin.Add(4 * time.Second))}, "3 1", 0},
		"a time that is none": {films, &apiv1.InteractionQuery{Until: &timestamppb.Timestamp{Seconds: 1 << 60}}, "", codes.InvalidArgument},
		"a caller":            {films, &apiv1.InteractionQuery{Caller: "client:nobody"}, "", 0},
		"a client":            {a.token(auth.Client, "films"), nil, "", codes.PermissionDenied},
		"a viewer":            {a.token(auth.Viewer, ""), nil, "", codes.PermissionDenied},
		"nobody":              {"", nil, "", codes.Unauthenticated},
	} {
		var got []string
		var err error
		for token, pages := "", 0; pages == 0 || token != ""; pages++ {
			var r *apiv1.ListInteractionsResponse
			if r, err = c.ListInteractions(a.as(x.token), &apiv1.ListInteractionsRequest{Query: x.query, PageSize: 2, PageToken: token}); err != nil {
				break
			}
			for _, id := range idsOf(r.GetInteractions()) {
				got = append(got, strings.TrimLeft(strings.TrimPrefix(id, "i-000"), ""))
			}
			token = r.GetNextPageToken()
		}
		if status.Code(err) != x.code || strings.Join(got, " ") != x.want {
			t.Errorf("%s: %v, %v, want %q", name, got, err, x.want)
		}
	}
	if _, err := c.ListInteractions(a.as(operator), &apiv1.ListInteractionsRequest{PageToken: "nonsense"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token that is none: %v", err)
	}
}

// TestExportInteractions: all of it, oldest first, to its end; and the servers that are missing.
func TestExportInteractions(t *testing.T) {
	servers := startServers(t, 3)
	a := servers[0]
	var all []recorder.Interaction
	for n := range 2500 { // some pages
		all = append(all, happened(n, "default"))
	}
	a.records(all...)
	operator := a.token(auth.Operator, "default")
	export := func(req *apiv1.ExportInteractionsRequest) (ids []string, missing int, err error) {
		st, err := apiv1.NewRecorderServiceClient(a.conn).ExportInteractions(a.as(operator), req)
		for err == nil {
			var r *apiv1.ExportInteractionsResponse
			if r, err = st.Recv(); err == nil {
				ids, missing = append(ids, idsOf(r.GetInteractions())...), len(r.GetMissing())
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return ids, missing, err
	}
	// The servers of this test do not know each other's addresses.
	if _, _, err := export(&apiv1.ExportInteractionsRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "--allow-missing") {
		t.Errorf("without two servers: %v", err)
	}
	ids, missing, err := export(&apiv1.ExportInteractionsRequest{AllowMissing: true})
	if err != nil || missing != 2 || len(ids) != len(all) || !slices.IsSorted(ids) {
		t.Errorf("%d, %d missing, %v", len(ids), missing, err)
	}
	ids, _, err = export(&apiv1.ExportInteractionsRequest{AllowMissing: true, Limit: 1234, Query: &apiv1.InteractionQuery{Since: timestamppb.New(recordBegin.Add(10 * time.Second))}})
	if err != nil || len(ids) != 1234 || ids[0] != "i-0010" {
		t.Errorf("%d, %v", len(ids), err)
	}
	a.ops.Record.Shared = true // then there is nobody else to ask
	if ids, missing, err := export(&apiv1.ExportInteractionsRequest{}); err != nil || missing != 0 || len(ids) != len(all) {
		t.Errorf("%d, %d missing, %v", len(ids), missing, err)
	}
	a.ops.Record = nil
	if _, _, err := export(&apiv1.ExportInteractionsRequest{}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "recorder.sink") {
		t.Errorf("without a record: %v", err)
	}
}

// TestServersAskEachOther: what one has is for servers only.
func TestServersAskEachOther(t *testing.T) {
	a := startAlone(t)
	a.records(happened(1, "default"))
	c := clusterv1.NewRelayServiceClient(a.conn)
	if _, err := c.GetServerInteractions(a.as(a.admin), &clusterv1.GetServerInteractionsRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an admin: %v", err)
	}
	peer := metadata.AppendToOutgoingContext(t.Context(), peerKey, "secret")
	r, err := c.GetServerInteractions(peer, &clusterv1.GetServerInteractionsRequest{List: &apiv1.ListInteractionsRequest{Query: &apiv1.InteractionQuery{Namespace: "default"}}})
	if err != nil || len(r.GetPage().GetInteractions()) != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

// TestModelCallsAreRecorded: with what they were asked and cost, and how they failed; and none is made that could not be recorded.
func TestModelCallsAreRecorded(t *testing.T) {
	a := startAlone(t)
	fake := a.asksModels()
	k := a.records()
	films := a.as(a.token(auth.Client, "films"))
	if _, _, err := a.chats(films, &apiv1.ChatRequest{Messages: says("hello there")}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.chats(films, &apiv1.ChatRequest{Model: "slow", Messages: says("x")}); err == nil {
		t.Fatal("there is no such model")
	}
	all, _, err := k.List(t.Context(), recorder.Query{OldestFirst: true})
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	if i := all[0]; i.Kind != recorder.ModelCall || i.Namespace != "films" || i.Principal != "client:client" || i.Provider != "local" || i.Model != "fast" || i.Request != "user: hello there\n" ||
		i.Response != "echo: hello there" || i.TokensIn == 0 || i.TokensOut == 0 || i.CostMicros == 0 || i.Latency == 0 || i.Status != recorder.OK {
		t.Errorf("%+v", i)
	}
	if i := all[1]; i.Status != recorder.Failed || i.Code != "not found" || i.Model != "slow" || !strings.Contains(i.Error, "slow") {
		t.Errorf("%+v", i)
	}
	k.full = true
	if _, _, err := a.chats(films, &apiv1.ChatRequest{Messages: says("x")}); status.Code(err) != codes.DeadlineExceeded || fake.Count() != 1 {
		t.Errorf("while the record is full: %v, %d calls", err, fake.Count())
	}
	if _, err := apiv1.NewSessionServiceClient(a.conn).SendMessage(films, &apiv1.SendMessageRequest{SessionId: "x", Text: []byte("x")}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a message while the record is full: %v", err)
	}
}
