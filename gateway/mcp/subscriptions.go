// Subscriptions: who wants to hear that a log has grown.
//
// The SDK keeps for each URI which sessions want to hear of it, and tells all of them. Here the same URI may mean different sessions to
// different callers, and a slow client must not be waited for by others. So each subscription has a number, and it is a URI made of that
// which the SDK knows; on the way out it becomes again the one that the client gave. The numbers are used again, as the SDK never
// forgets a URI.

package mcp

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
)

// The bounds of subscriptions.
const (
	maxSubscriptions       = 256 // of this server
	maxSessionSubscription = 16  // of one MCP session
	notifyEvery            = time.Second
	followFirst            = 500 * time.Millisecond // before a stream that broke is opened again
	followMax              = 30 * time.Second
	updatedMethod          = "notifications/resources/updated"
	slotPrefix             = "subscription:"
)

// subscription is one client's wish to hear of one log.
type subscription struct {
	number  int
	session *sdk.ServerSession
	uri     string // as the client gave it
	cancel  context.CancelFunc
	ended   chan struct{} // closed when nobody follows the log any more
}

// subscriptions are those of one server.
type subscriptions struct {
	mu      sync.Mutex
	slots   []*subscription // by number; nil where free
	after   int             // the number that was given last: one that has just become free is not given again at once, as the SDK may not have let go of it
	of      map[*sdk.ServerSession]map[string]*subscription
	watched map[*sdk.ServerSession]bool // whose end is waited for
}

func (s *subscriptions) init() {
	s.slots = make([]*subscription, maxSubscriptions)
	s.of, s.watched = map[*sdk.ServerSession]map[string]*subscription{}, map[*sdk.ServerSession]bool{}
}

func (s *subscriptions) count() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, mine := range s.of {
		n += len(mine)
	}
	return n
}

// add takes a number for a subscription, which cancel ends; when the session has the same already, it is that, and isNew is false.
func (s *subscriptions) add(session *sdk.ServerSession, uri string, cancel context.CancelFunc) (one *subscription, isNew, firstOfSession bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := s.of[session]
	if one = mine[uri]; one != nil {
		return one, false, false, nil
	}
	if len(mine) >= maxSessionSubscription {
		return nil, false, false, fault.New(fault.Exhausted, "%d subscriptions of this MCP session are as many as may be; unsubscribe from one", len(mine))
	}
	for range s.slots {
		s.after = (s.after + 1) % len(s.slots)
		i := s.after
		if s.slots[i] != nil {
			continue
		}
		one = &subscription{number: i, session: session, uri: uri, cancel: cancel, ended: make(chan struct{})}
		s.slots[i] = one
		if mine == nil {
			mine = map[string]*subscription{}
			s.of[session] = mine
		}
		mine[uri] = one
		firstOfSession = !s.watched[session]
		s.watched[session] = true
		return one, true, firstOfSession, nil
	}
	return nil, false, false, fault.New(fault.Exhausted, "this server has as many subscriptions as it may; read the log again from time to time").WithRetry(time.Minute)
}

// remove gives the number of a subscription back; nil when there is none.
func (s *subscriptions) remove(session *sdk.ServerSession, uri string) *subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := s.of[session]
	one := mine[uri]
	if one == nil {
		return nil
	}
	s.slots[one.number] = nil
	if delete(mine, uri); len(mine) == 0 {
		delete(s.of, session)
	}
	return one
}

// drop ends what a session that has ended still had.
func (s *subscriptions) drop(session *sdk.ServerSession) {
	s.mu.Lock()
	var all []*subscription
	for _, one := range s.of[session] {
		s.slots[one.number] = nil
		all = append(all, one)
	}
	delete(s.of, session)
	delete(s.watched, session)
	s.mu.Unlock()
	for _, one := range all {
		one.cancel()
		<-one.ended
	}
}

// find returns the subscription that a session has under a URI that was made for the SDK.
func (s *subscriptions) find(session sdk.Session, made string) *subscription {
	text, ok := strings.CutPrefix(made, slotPrefix)
	n, err := strconv.Atoi(text)
	if !ok || err != nil || n < 0 || n >= maxSubscriptions {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.slots[n]; one != nil && sdk.Session(one.session) == session {
		return one
	}
	return nil
}

// made is the URI that the SDK knows the subscription by.
func (one *subscription) made() string { return slotPrefix + strconv.Itoa(one.number) }

// subscribe begins to follow a log for a client.
func (h *Handler) subscribe(ctx context.Context, req *sdk.SubscribeRequest) error {
	r, err := parseURI(req.Params.URI)
	if err != nil {
		return rpcError(err, nil)
	}
	if !r.log {
		return rpcError(fault.New(fault.Invalid, "uri: only logs tell of changes; a workspace changes with each checkpoint").WithField("uri"), nil)
	}
	c, _ := ctx.Value(callerKey{}).(caller)
	asking, end, err := h.asCaller(ctx)
	if err != nil {
		return rpcError(err, nil)
	}
	defer end()
	s, err := h.sessions.GetSession(asking, &apiv1.GetSessionRequest{Namespace: r.namespace, Id: r.id})
	if err != nil {
		return rpcError(client.Fault(err), map[string]any{"uri": req.Params.URI})
	}
	if !h.enter() {
		return rpcError(h.stopping(), nil)
	}
	defer h.work.Done() // goroutines that are started here are counted in before
	following, cancel := context.WithCancel(h.life)
	one, isNew, first, err := h.watched.add(req.Session, req.Params.URI, cancel)
	if err != nil || !isNew {
		cancel()
	}
	switch {
	case err != nil:
		return rpcError(err, nil)
	case isNew:
		f := &follower{h: h, of: one, caller: c, id: s.GetSession().GetId(), next: s.GetSession().GetOutputLine() + 1, grown: make(chan struct{}, 1)}
		h.work.Go(func() {
			defer close(one.ended)
			defer cancel()
			f.run(following)
		})
	}
	if first {
		h.work.Go(func() {
			_ = req.Session.Wait()
			h.watched.drop(req.Session)
		})
	}
	req.Params.URI = one.made()
	return nil
}

// unsubscribe ends that. Nobody hears of a log any more when it returns.
func (h *Handler) unsubscribe(_ context.Context, req *sdk.UnsubscribeRequest) error {
	if one := h.watched.remove(req.Session, req.Params.URI); one != nil {
		one.cancel()
		<-one.ended
		req.Params.URI = one.made()
	}
	return nil
}

// send is what every message to a client goes through: it is told of its resources by the URIs that it gave.
func (h *Handler) send(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
		if method == updatedMethod {
			p, ok := req.GetParams().(*sdk.ResourceUpdatedNotificationParams)
			if !ok {
				return nil, fault.New(fault.Internal, "an update of a resource without one")
			}
			one := h.watched.find(req.GetSession(), p.URI)
			if one == nil {
				return nil, nil //nolint:nilnil // of a notification there is no result; its subscription has just ended
			}
			p.URI = one.uri
		}
		return next(ctx, method, req)
	}
}

// follower follows one log for one subscription.
type follower struct {
	h      *Handler
	of     *subscription
	caller caller
	id     string
	next   uint64        // the first line that was not seen
	grown  chan struct{} // holds one when there are lines that the client was not told of
}

// run ends with ctx, when the session has ended for good, or when the caller may not read its log any more.
func (f *follower) run(ctx context.Context) {
	var reading sync.WaitGroup
	done := make(chan struct{})
	defer reading.Wait()
	reading.Go(func() { defer close(done); f.read(ctx) })
	for {
		select {
		case <-f.grown:
			f.tell(ctx)
		case <-done:
			select {
			case <-f.grown:
				f.tell(ctx)
			default:
			}
			return
		}
		rest := time.NewTimer(notifyEvery)
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
		}
	}
}

// tell tells the client.
func (f *follower) tell(ctx context.Context) {
	if ctx.Err() == nil {
		_ = f.h.server.ResourceUpdated(ctx, &sdk.ResourceUpdatedNotificationParams{URI: f.of.made()}) // it tells its own log
	}
}

// read reads until the log ends; a stream that breaks, as when its session moves, is opened again where it broke.
func (f *follower) read(ctx context.Context) {
	for pause := followFirst; ctx.Err() == nil; pause = min(2*pause, followMax) {
		before := f.next
		err := f.stream(ctx)
		switch fault.KindOf(err) {
		case fault.Unauthenticated, fault.PermissionDenied, fault.NotFound:
			return
		}
		if err == nil {
			return // the session has ended
		}
		if f.next > before {
			pause = followFirst
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

func (f *follower) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines, err := f.h.sessions.ReadLogs(f.h.o.Access.As(ctx, f.caller.cred), &apiv1.ReadLogsRequest{SessionId: f.id, FromLine: f.next, Follow: true})
	for err == nil {
		var part *apiv1.ReadLogsResponse
		if part, err = lines.Recv(); err != nil {
			break
		}
		for _, l := range part.GetLines() {
			f.next = max(f.next, l.GetNumber()+1)
		}
		select {
		case f.grown <- struct{}{}:
		default:
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return client.Fault(err)
}
