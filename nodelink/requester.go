// Requests and their answers over a link.

package nodelink

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// DefaultRequestTimeout bounds a request whose context has no earlier deadline.
const DefaultRequestTimeout = 30 * time.Second

// MaxPendingRequests bounds the requests of one Requester that wait for their answers.
const MaxPendingRequests = 1000

// Requester sends requests over one link and matches the answers by their request_id. Either end of a link may have one.
//
// A request that was given up never takes effect behind its caller's back: its answer, should it still come, is counted
// and dropped, and what it did on the node is subject to the next desired frame like everything else there.
type Requester struct {
	send    func(*nodev1.Frame) error
	prefix  string
	timeout time.Duration
	next    atomic.Uint64
	late    atomic.Uint64

	mu      sync.Mutex
	pending map[string]*pendingRequest
	failed  error // why no request can be made any more
}

type pendingRequest struct {
	want   string // the type of the answer
	answer chan result
}

type result struct {
	frame *nodev1.Frame
	err   error
}

// NewRequester returns a Requester that sends with send. The prefix makes its request ids differ from those of others
// whose answers may come by the same link, such as an earlier leader's; timeout 0 means DefaultRequestTimeout.
func NewRequester(prefix string, timeout time.Duration, send func(*nodev1.Frame) error) *Requester {
	if timeout <= 0 {
		timeout = DefaultRequestTimeout
	}
	return &Requester{send: send, prefix: prefix, timeout: timeout, pending: make(map[string]*pendingRequest)}
}

// Do sends a request and returns its answer. f is not changed. An error frame becomes an error of the kind that its code
// names; no answer in time is a fault.Timeout, a link that ends meanwhile a fault.Unavailable: then nobody knows whether
// the request had an effect.
func (r *Requester) Do(ctx context.Context, f *nodev1.Frame) (*nodev1.Frame, error) {
	kind := FrameType(f)
	want, ok := answers[kind]
	if !ok {
		return nil, fault.New(fault.Invalid, "nodelink: request: %q is not a request", kind)
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	id := r.prefix + strconv.FormatUint(r.next.Add(1), 10)
	p := &pendingRequest{want: want, answer: make(chan result, 1)}
	if err := r.register(id, kind, p); err != nil {
		return nil, err
	}
	defer r.forget(id)
	if err := r.send(&nodev1.Frame{RequestId: id, Epoch: f.GetEpoch(), Index: f.GetIndex(), Payload: f.GetPayload()}); err != nil {
		return nil, fault.New(sendFault(err), "nodelink: request %s: %w", kind, err)
	}
	select {
	case res := <-p.answer:
		return res.frame, res.err
	case <-ctx.Done():
		return nil, fault.New(fault.Timeout, "nodelink: request %s: no answer in time: %w", kind, ctx.Err())
	}
}

// sendFault is the kind of a failed Send.
func sendFault(err error) fault.Kind {
	switch {
	case fault.As(err) != nil:
		return fault.KindOf(err)
	case err == ErrQueueFull: //nolint:errorlint // Send returns the bare sentinel
		return fault.Exhausted
	default:
		return fault.Unavailable
	}
}

func (r *Requester) register(id, kind string, p *pendingRequest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.failed != nil:
		return fault.New(fault.Unavailable, "nodelink: request %s: %w", kind, r.failed)
	case len(r.pending) >= MaxPendingRequests:
		return fault.New(fault.Exhausted, "nodelink: request %s: %d requests wait already", kind, MaxPendingRequests)
	}
	r.pending[id] = p
	return nil
}

func (r *Requester) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pending, id)
}

// Answer takes the frame if it answers a request, anybody's, and reports whether it did. An answer that nobody waits for
// is counted and dropped.
func (r *Requester) Answer(f *nodev1.Frame) bool {
	if !isAnswer(f) {
		return false
	}
	r.mu.Lock()
	p := r.pending[f.GetRequestId()]
	delete(r.pending, f.GetRequestId())
	r.mu.Unlock()
	if p == nil {
		r.late.Add(1)
		return true
	}
	switch kind := FrameType(f); kind {
	case p.want:
		p.answer <- result{frame: f}
	case "error":
		p.answer <- result{err: FromError(f.GetError())}
	default:
		p.answer <- result{err: fault.New(fault.Internal, "nodelink: request: answered with %s instead of %s", kind, p.want)}
	}
	return true
}

// Late counts the answers that came after their request was given up.
func (r *Requester) Late() uint64 { return r.late.Load() }

// Close ends the requests that wait, and refuses further ones: the link has ended.
func (r *Requester) Close(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = err
	for id, p := range r.pending {
		p.answer <- result{err: fault.New(fault.Unavailable, "nodelink: request: the outcome is unknown: %w", err)}
		delete(r.pending, id)
	}
}
