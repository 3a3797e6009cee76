// The record, read: pages that are put together of what each server has recorded, or of the one database that all write to.

package gateway

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
)

// Record is what a server recorded, and where it records.
type Record struct {
	// Recorder takes what happens in calls.
	Recorder interface {
		// Take does not keep the pointer.
		Take(i *recorder.Interaction) error
		Room(ctx context.Context) error
	}
	// Senders is told who sent a message that was accepted here; nil for nobody.
	Senders interface {
		Sent(session string, sequence uint64, who string)
	}
	// Sink is where it ends up, and Shared says that all servers have the same.
	Sink interface {
		List(ctx context.Context, q recorder.Query) (page []recorder.Interaction, next string, err error)
	}
	Shared bool
}

// recordWait is how long a server may take for a page of its record.
const recordWait = 10 * time.Second

// errNoRecord is for a server that keeps none.
var errNoRecord = fault.New(fault.FailedPrecondition, "interactions: this server keeps no record; set recorder.sink to sqlite or postgres in its configuration")

type recorderService struct {
	apiv1.UnimplementedRecorderServiceServer
	ops *Operations
}

// query reads what is asked for, in the namespace that the caller may see, with the session's id.
func (o *Operations) query(who auth.Identity, q *apiv1.InteractionQuery) (*apiv1.InteractionQuery, error) {
	out := &apiv1.InteractionQuery{}
	if q != nil {
		out = proto.CloneOf(q)
	}
	if out.Namespace == "" {
		out.Namespace = who.Namespace
	}
	if out.GetNamespace() != "" {
		if err := who.CheckNamespace(out.GetNamespace()); err != nil {
			return nil, err
		}
	}
	for _, t := range []*timestamppb.Timestamp{out.GetSince(), out.GetUntil()} {
		if t != nil && t.CheckValid() != nil {
			return nil, fault.New(fault.Invalid, "interactions: since and until are times between the years 1 and 9999").WithField("query.since")
		}
	}
	if out.GetSession() != "" {
		out.Session = cmp.Or(o.FindSession(out.GetNamespace(), out.GetSession()), out.GetSession())
	}
	return out, nil
}

// FindSession returns the id of a session that is named by its id, the beginning of it, or its name; empty when this server knows none, or several.
// An empty namespace is any for ids, and the default one for names.
func (o *Operations) FindSession(namespace, ref string) string {
	v := o.State.View()
	fits := func(ns string) bool { return namespace == "" || ns == namespace }
	if s := v.Session(ref); s != nil && fits(s.Spec.Namespace) {
		return s.ID
	}
	ns := namespaceOr(namespace, auth.Identity{})
	if s := v.SessionByName(ns, ref); s != nil {
		return s.ID
	}
	id := ""
	for _, s := range v.SessionsByPrefix(ref, maxPrefixMatches) {
		if !fits(s.Spec.Namespace) {
			continue
		}
		if id != "" {
			return ""
		}
		id = s.ID
	}
	if id != "" {
		return id
	}
	if s := v.LastSessionByName(ns, ref); s != nil {
		return s.ID
	}
	return ""
}

var (
	kindOf = map[apiv1.Interaction_Kind]recorder.Kind{
		apiv1.Interaction_TOOL_CALL: recorder.ToolCall, apiv1.Interaction_MODEL_CALL: recorder.ModelCall, apiv1.Interaction_MESSAGE: recorder.Message,
		apiv1.Interaction_ANSWER: recorder.Answer, apiv1.Interaction_SESSION_EVENT: recorder.SessionEvent,
	}
	statusOf = map[apiv1.Interaction_Status]recorder.Status{
		apiv1.Interaction_OK: recorder.OK, apiv1.Interaction_FAILED: recorder.Failed, apiv1.Interaction_CANCELLED: recorder.Cancelled, apiv1.Interaction_TIMED_OUT: recorder.TimedOut,
	}
	kindProto   = reversed(kindOf)
	statusProto = reversed(statusOf)
)

func reversed[A, B comparable](m map[A]B) map[B]A {
	out := make(map[B]A, len(m))
	for a, b := range m {
		out[b] = a
	}
	return out
}

// sinkQuery is a request as the sink takes it.
func sinkQuery(req *apiv1.ListInteractionsRequest) (recorder.Query, error) {
	p := req.GetQuery()
	q := recorder.Query{
		Namespace: p.GetNamespace(), Session: p.GetSession(), Tool: p.GetTool(), Principal: p.GetCaller(), Client: p.GetClientSessionId(), RequestID: p.GetRequestId(),
		Provider: p.GetProvider(), Model: p.GetModel(), OldestFirst: req.GetOldestFirst(), Limit: int(req.GetPageSize()), Cursor: req.GetPageToken(),
	}
	var ok bool
	if k := p.GetKind(); k != apiv1.Interaction_KIND_UNSPECIFIED {
		if q.Kind, ok = kindOf[k]; !ok {
			return q, fault.New(fault.Invalid, "interactions: %d is not a kind", k).WithField("query.kind")
		}
	}
	if s := p.GetStatus(); s != apiv1.Interaction_STATUS_UNSPECIFIED {
		if q.Status, ok = statusOf[s]; !ok {
			return q, fault.New(fault.Invalid, "interactions: %d is not a status", s).WithField("query.status")
		}
	}
	if p.GetSince() != nil {
		q.Since = p.GetSince().AsTime()
	}
	if p.GetUntil() != nil {
		q.Until = p.GetUntil().AsTime()
	}
	return q, nil
}

func interactionProto(i *recorder.Interaction) *apiv1.Interaction {
	return &apiv1.Interaction{
		Id: i.ID, Time: timestamppb.New(i.Time), Kind: kindProto[i.Kind], Status: statusProto[i.Status], Namespace: i.Namespace, SessionId: i.Session, Epoch: i.Epoch,
		Caller: i.Principal, ClientSessionId: i.Client, RequestId: i.RequestID, Tool: i.Tool, Provider: i.Provider, Model: i.Model,
		InputTokens: i.TokensIn, OutputTokens: i.TokensOut, CostUsd: float64(i.CostMicros) / 1e6, TookMs: float64(i.Latency) / float64(time.Millisecond),
		ErrorCode: i.Code, Error: i.Error, Request: i.Request, Response: i.Response, RequestBytes: i.RequestBytes, ResponseBytes: i.ResponseBytes,
		RequestTruncated: i.RequestTruncated, ResponseTruncated: i.ResponseTruncated, Redactions: int32(i.Redactions),
	}
}

// ownPage is a page of what this server itself has.
func (o *Operations) ownPage(ctx context.Context, req *apiv1.ListInteractionsRequest) (*apiv1.ListInteractionsResponse, error) {
	if o.Record == nil {
		return nil, errNoRecord
	}
	q, err := sinkQuery(req)
	if err != nil {
		return nil, err
	}
	page, next, err := o.Record.Sink.List(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListInteractionsResponse{NextPageToken: next}
	for i := range page {
		out.Interactions = append(out.Interactions, interactionProto(&page[i]))
	}
	return out, nil
}

func (s *relayService) GetServerInteractions(ctx context.Context, req *clusterv1.GetServerInteractionsRequest) (*clusterv1.GetServerInteractionsResponse, error) {
	page, err := s.ops.ownPage(ctx, req.GetList())
	return &clusterv1.GetServerInteractionsResponse{Page: page}, err
}

// page asks whoever has a part of the record for a page of it, and makes one of them.
func (o *Operations) page(ctx context.Context, req *apiv1.ListInteractionsRequest) (*apiv1.ListInteractionsResponse, error) {
	if o.Record == nil {
		return nil, errNoRecord
	}
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	if o.Record.Shared {
		return o.ownPage(ctx, req)
	}
	members, _, err := memberProtos(o.Node)
	if err != nil {
		return nil, err
	}
	parts, errs := make([]*apiv1.ListInteractionsResponse, len(members)), make([]error, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		wait.Go(func() {
			if m.GetId() == o.Node.ID() {
				parts[i], errs[i] = o.ownPage(ctx, req)
				return
			}
			parts[i], errs[i] = askOne(ctx, o.Peers, m.GetAddress(), req)
		})
	}
	wait.Wait()
	missing := map[string]string{}
	for i, err := range errs {
		switch {
		case err == nil:
		case fault.Is(err, fault.Invalid), members[i].GetId() == o.Node.ID():
			return nil, err
		default:
			missing[members[i].GetId()] = err.Error()
		}
	}
	out := merge(parts, &recorder.Query{Limit: int(req.GetPageSize()), OldestFirst: req.GetOldestFirst()})
	out.Missing = missing
	return out, nil
}

func askOne(ctx context.Context, p *Peers, address string, req *apiv1.ListInteractionsRequest) (*apiv1.ListInteractionsResponse, error) {
	pages, err := askServer(ctx, p, address, func(ctx context.Context, c clusterv1.RelayServiceClient) ([]*apiv1.ListInteractionsResponse, error) {
		r, err := c.GetServerInteractions(ctx, &clusterv1.GetServerInteractionsRequest{List: req})
		return []*apiv1.ListInteractionsResponse{r.GetPage()}, err
	})
	if err != nil {
		return nil, err
	}
	return pages[0], nil
}

// merge makes one page of the servers'. What several have is there once. A server whose page ended early may have something between its last
// one and the next: nothing behind that is taken.
func merge(parts []*apiv1.ListInteractionsResponse, q *recorder.Query) *apiv1.ListInteractionsResponse {
	before := func(a, b *apiv1.Interaction) int {
		c := cmp.Or(a.GetTime().AsTime().Compare(b.GetTime().AsTime()), strings.Compare(a.GetId(), b.GetId()))
		if q.OldestFirst {
			return c
		}
		return -c
	}
	var all []*apiv1.Interaction
	var until *apiv1.Interaction // the earliest end of a page behind which there is more
	for _, p := range parts {
		page := p.GetInteractions()
		all = append(all, page...)
		if p.GetNextPageToken() == "" || len(page) == 0 {
			continue
		}
		if last := page[len(page)-1]; until == nil || before(last, until) < 0 {
			until = last
		}
	}
	slices.SortFunc(all, func(a, b *apiv1.Interaction) int { // of the same one, who knows the caller comes first
		return cmp.Or(before(a, b), strings.Compare(b.GetCaller(), a.GetCaller()))
	})
	all = slices.CompactFunc(all, func(a, b *apiv1.Interaction) bool { return before(a, b) == 0 })
	more := until != nil
	if more {
		end := slices.IndexFunc(all, func(i *apiv1.Interaction) bool { return before(i, until) > 0 })
		if end >= 0 {
			all = all[:end]
		}
	}
	if n := q.Page(); len(all) > n {
		all, more = all[:n], true
	}
	out := &apiv1.ListInteractionsResponse{Interactions: all}
	if more {
		last := all[len(all)-1]
		out.NextPageToken = recorder.Cursor(last.GetTime().AsTime(), last.GetId())
	}
	return out
}

// ListInteractions asks all servers that have a record of their own.
func (s *recorderService) ListInteractions(ctx context.Context, req *apiv1.ListInteractionsRequest) (*apiv1.ListInteractionsResponse, error) {
	q, err := s.ops.query(caller(ctx), req.GetQuery())
	if err != nil {
		return nil, err
	}
	own := proto.CloneOf(req)
	own.Query = q
	return s.ops.page(ctx, own)
}

// ExportInteractions sends page after page.
func (s *recorderService) ExportInteractions(req *apiv1.ExportInteractionsRequest, stream grpc.ServerStreamingServer[apiv1.ExportInteractionsResponse]) error {
	q, err := s.ops.query(caller(stream.Context()), req.GetQuery())
	if err != nil {
		return err
	}
	if q.GetUntil() == nil { // else it would never end where more is recorded than it sends
		q.Until = timestamppb.New(s.ops.Now())
	}
	list := &apiv1.ListInteractionsRequest{Query: q, OldestFirst: true}
	for sent := int64(0); ; {
		list.PageSize = recorder.PageMax
		if left := req.GetLimit() - sent; req.GetLimit() > 0 {
			list.PageSize = int32(min(left, recorder.PageMax))
		}
		page, err := s.ops.page(stream.Context(), list)
		if err != nil {
			return err
		}
		if len(page.GetMissing()) > 0 && !req.GetAllowMissing() {
			return missingError(page.GetMissing())
		}
		if err := stream.Send(&apiv1.ExportInteractionsResponse{Interactions: page.GetInteractions(), Missing: page.GetMissing()}); err != nil {
			return err
		}
		sent += int64(len(page.GetInteractions()))
		if page.GetNextPageToken() == "" || req.GetLimit() > 0 && sent >= req.GetLimit() {
			return nil
		}
		list.PageToken = page.GetNextPageToken()
	}
}

func missingError(missing map[string]string) error {
	var names []string
	for id, why := range missing {
		names = append(names, id+" ("+why+")")
	}
	slices.Sort(names)
	return fault.New(fault.Unavailable, "export interactions: part of the record is on servers that do not answer: %s; export again when they do, or with --allow-missing", strings.Join(names, ", "))
}
