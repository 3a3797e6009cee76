// Sender: many goroutines' messages on one stream, in batches, several batches under way at once.
//
//	Send ──► queue ──► owner ──► batch ──► stream ──► server
//	  ▲                  │ ▲                            │
//	  └──── result ──────┘ └───── answers, in order ────┘
//
// One goroutine owns the stream and everything that waits. When a stream breaks, the batches that were not answered go
// out again on the next one, under the same idempotency keys and before anything newer; so do messages whose turns are awaited.

package client

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
)

// The bounds of a Sender.
const (
	SenderQueueMessages   = 1024
	SenderBatchMessages   = 256
	SenderBatchBytes      = 1 << 20
	SenderBatchesInFlight = 4
	// SenderTurns is how many messages may be awaited at a time; Ask waits beyond.
	SenderTurns = 8192
	// senderStall is how long a batch may go unanswered before the stream is given up for another server's.
	senderStall = 10 * time.Second
)

// errUnary tells a caller that the servers have no streaming form.
var errUnary = errors.New("client: send this message by itself")

// Sender sends messages at a high rate. Its methods may be used by many goroutines.
type Sender struct {
	c      *Client
	queue  chan *outgoing
	unary  atomic.Bool // the servers do not know the stream
	cancel context.CancelFunc
	ctx    context.Context // ends with Close
	wg     sync.WaitGroup
	asking chan struct{} // holds one for each message whose turn is awaited

	mu      sync.Mutex
	lastErr error // why the stream broke last; nil while it works
}

// outgoing is one message on its way.
type outgoing struct {
	ctx    context.Context
	req    *apiv1.SendMessageRequest
	result chan sendResult // of one
}

type sendResult struct {
	sequence uint64
	message  *apiv1.Message // where its turn was awaited
	err      error
}

// NewSender starts a sender; Close ends it.
func (c *Client) NewSender() *Sender {
	s := &Sender{c: c, queue: make(chan *outgoing, SenderQueueMessages), asking: make(chan struct{}, SenderTurns)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(func() { (&sendLoop{s: s}).run() })
	return s
}

// Close ends the sender. Messages that were not answered fail; whether they were taken is unknown.
func (s *Sender) Close() error {
	s.cancel()
	s.wg.Wait()
	return nil
}

// Send puts one message into its session's mailbox and returns the sequence once it is durable. It is repeated under
// the same key until ctx ends, or for the client's Timeout. req is not changed; its wait has no effect.
func (s *Sender) Send(ctx context.Context, req *apiv1.SendMessageRequest) (sequence uint64, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.c.cfg.Timeout)
		defer cancel()
	}
	r := s.exchange(ctx, req, false)
	return r.sequence, r.err
}

// Ask sends one message and returns it once its turn has ended, with its result. It is repeated under the same key until ctx ends: a turn
// may take long. A message that becomes a dead letter comes with an error of kind fault.FailedPrecondition. req is not changed.
func (s *Sender) Ask(ctx context.Context, req *apiv1.SendMessageRequest) (*apiv1.Message, error) {
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	case <-ctx.Done():
		return nil, fault.New(fault.Timeout, "%w: as many turns are awaited as may be; the message was not sent", ctx.Err())
	}
	r := s.exchange(ctx, req, true)
	return r.message, r.err
}

// exchange has a message sent, and waits for what it was sent for.
func (s *Sender) exchange(ctx context.Context, req *apiv1.SendMessageRequest, wait bool) sendResult {
	if req.GetIdempotencyKey() == "" || req.GetWait() != wait {
		req = proto.CloneOf(req)
		req.Wait = wait
		if req.IdempotencyKey == "" {
			req.IdempotencyKey = NewKey()
		}
	}
	if s.unary.Load() {
		return s.sendUnary(ctx, req)
	}
	o := &outgoing{ctx: ctx, req: req, result: make(chan sendResult, 1)}
	select {
	case s.queue <- o:
	case <-ctx.Done():
		return sendResult{err: s.expired(o, "was not sent")}
	case <-s.ctx.Done():
		return sendResult{err: fault.New(fault.Unavailable, "the sender is closed; the message was not sent")}
	}
	select {
	case r := <-o.result:
		if errors.Is(r.err, errUnary) {
			return s.sendUnary(ctx, req)
		}
		return r
	case <-ctx.Done():
		return sendResult{err: s.expired(o, "may have been taken")}
	case <-s.ctx.Done():
		return sendResult{err: fault.New(fault.Unavailable, "the sender is closed; the message may have been taken")}
	}
}

func (s *Sender) sendUnary(ctx context.Context, req *apiv1.SendMessageRequest) sendResult {
	resp, err := s.c.Sessions.SendMessage(ctx, req)
	return sendResult{sequence: resp.GetSequence(), message: resp.GetMessage(), err: err}
}

// expired is the error of a message whose time ran out.
func (s *Sender) expired(o *outgoing, what string) error {
	s.mu.Lock()
	last := s.lastErr
	s.mu.Unlock()
	kind := fault.Timeout
	if errors.Is(o.ctx.Err(), context.Canceled) {
		kind = fault.Aborted
	}
	if last != nil {
		return fault.New(kind, "%w: the message %s (idempotency key %s); the stream failed: %v", o.ctx.Err(), what, o.req.GetIdempotencyKey(), last)
	}
	return fault.New(kind, "%w: the message %s (idempotency key %s)", o.ctx.Err(), what, o.req.GetIdempotencyKey())
}

func (s *Sender) setLastErr(err error) {
	s.mu.Lock()
	s.lastErr = err
	s.mu.Unlock()
}

// sendLoop is the state of the owning goroutine.
type sendLoop struct {
	s        *Sender
	stream   *sendStream          // nil while there is none
	inFlight []batch              // sent and not answered, oldest first
	pending  []*outgoing          // to be sent, oldest first
	sent     uint64               // messages on this stream
	awaited  map[uint64]*outgoing // accepted ones whose turns have not ended, by their places on this stream
	failures int                  // in a row
	notUntil time.Time            // no new stream before
}

type batch struct {
	items []*outgoing
	first uint64 // the place of its first message on the stream
	sent  time.Time
}

type (
	sendStream = exchange[apiv1.SendMessagesRequest, apiv1.SendMessagesResponse]
	answer     = exchangeAnswer[apiv1.SendMessagesResponse]
)

func (l *sendLoop) run() {
	defer l.closeStream()
	tick := time.NewTimer(time.Hour)
	defer tick.Stop()
	for {
		l.send()
		tick.Reset(l.nextTick())
		var queue chan *outgoing
		if len(l.pending) < SenderBatchMessages {
			queue = l.s.queue
		}
		var answers chan answer
		if l.stream != nil {
			answers = l.stream.answers
		}
		select {
		case o := <-queue:
			l.pending = gather(append(l.pending, o), l.s.queue, SenderBatchMessages)
		case a := <-answers:
			l.answered(a)
		case <-tick.C:
			l.checkStall()
		case <-l.s.ctx.Done():
			return
		}
	}
}

// nextTick is how long there is nothing to do by time alone.
func (l *sendLoop) nextTick() time.Duration {
	next := time.Hour
	if len(l.inFlight) > 0 {
		next = max(time.Until(l.inFlight[0].sent.Add(senderStall)), 0)
	}
	if len(l.pending) > 0 && len(l.inFlight) < SenderBatchesInFlight {
		next = min(next, max(time.Until(l.notUntil), time.Millisecond))
	}
	return next
}

// send sends as many batches as may be under way.
func (l *sendLoop) send() {
	if l.s.unary.Load() { // a caller queued its message just before the stream turned out to be unknown
		l.fail(errUnary)
		return
	}
	for len(l.pending) > 0 && len(l.inFlight) < SenderBatchesInFlight && !time.Now().Before(l.notUntil) {
		b, rest := l.cut()
		if len(b.items) == 0 {
			l.pending = rest
			continue
		}
		if l.stream == nil {
			if err := l.open(); err != nil {
				l.broken(err)
				return
			}
		}
		l.pending = rest
		b.first = l.sent
		l.sent += uint64(len(b.items))
		l.inFlight = append(l.inFlight, b)
		req := &apiv1.SendMessagesRequest{Messages: make([]*apiv1.SendMessageRequest, len(b.items))}
		for i, o := range b.items {
			req.Messages[i] = o.req
		}
		// An error here comes again, with its reason, from the receiver.
		if err := l.stream.Send(req); err != nil {
			return
		}
	}
}

// cut takes the next batch off the pending messages, without those whose callers have left.
func (l *sendLoop) cut() (b batch, rest []*outgoing) {
	bytes := 0
	b.sent = time.Now()
	for i, o := range l.pending {
		if o.ctx.Err() != nil {
			continue
		}
		n := len(o.req.GetText())
		if len(b.items) > 0 && (len(b.items) == SenderBatchMessages || bytes+n > SenderBatchBytes) {
			return b, l.pending[i:]
		}
		b.items, bytes = append(b.items, o), bytes+n
	}
	return b, nil
}

// open opens a stream.
func (l *sendLoop) open() (err error) {
	l.sent, l.awaited = 0, map[uint64]*outgoing{}
	l.stream, err = openExchange(l.s.ctx, l.s.c.Sessions.SendMessages, SenderBatchesInFlight)
	return err
}

func (l *sendLoop) closeStream() {
	l.stream.close()
	l.stream = nil
}

// answered settles the oldest batch.
func (l *sendLoop) answered(a answer) {
	if a.err != nil {
		l.broken(a.err)
		return
	}
	l.ended(a.resp.GetTurns())
	if len(a.resp.GetResults()) == 0 && len(a.resp.GetTurns()) > 0 {
		return
	}
	if len(l.inFlight) == 0 || len(a.resp.GetResults()) != len(l.inFlight[0].items) {
		l.broken(fault.New(fault.Unavailable, "the server's answer does not fit the batch"))
		return
	}
	b := l.inFlight[0]
	l.inFlight = l.inFlight[1:]
	var again []*outgoing
	var last error
	for i, r := range a.resp.GetResults() {
		o := b.items[i]
		switch {
		case r.GetCode() != int32(codes.OK):
		case r.GetAwaited():
			l.await(b.first+uint64(i), o)
			continue
		case o.req.GetWait(): // a server that does not tell turns has taken it; asked again by itself, it is the same message
			o.result <- sendResult{err: errUnary}
			continue
		default:
			o.result <- sendResult{sequence: r.GetSequence()}
			continue
		}
		err := fault.New(faultcode.Kind(codes.Code(r.GetCode())), "%s", r.GetError())
		if repeatable(err) {
			again, last = append(again, o), err
			continue
		}
		o.result <- sendResult{err: err}
	}
	if last != nil {
		l.pending = append(again, l.pending...)
		l.delay(last)
		return
	}
	l.failures = 0
	l.s.setLastErr(nil)
}

// await keeps a message until its turn has ended. Those whose callers have left are let go when they are many.
func (l *sendLoop) await(place uint64, o *outgoing) {
	if len(l.awaited) >= SenderTurns {
		maps.DeleteFunc(l.awaited, func(_ uint64, o *outgoing) bool { return o.ctx.Err() != nil })
	}
	l.awaited[place] = o
}

// ended settles messages whose turns have ended.
func (l *sendLoop) ended(turns []*apiv1.SendMessagesResponse_Turn) {
	for _, t := range turns {
		o := l.awaited[t.GetNumber()]
		if o == nil {
			continue
		}
		delete(l.awaited, t.GetNumber())
		r := sendResult{sequence: t.GetMessage().GetSequence(), message: t.GetMessage()}
		if t.GetCode() != int32(codes.OK) {
			r.err = fault.New(faultcode.Kind(codes.Code(t.GetCode())), "%s", t.GetError())
		}
		o.result <- r
	}
}

// broken ends the stream. What was not answered is sent again, or fails with the stream when repeating cannot help.
func (l *sendLoop) broken(err error) {
	l.closeStream()
	var items []*outgoing
	for _, place := range slices.Sorted(maps.Keys(l.awaited)) {
		items = append(items, l.awaited[place])
	}
	l.awaited = nil
	for _, b := range l.inFlight {
		items = append(items, b.items...)
	}
	l.inFlight, l.pending = nil, append(items, l.pending...)
	switch {
	case fault.Is(err, fault.Unimplemented):
		l.s.unary.Store(true)
		l.fail(errUnary)
	case fault.As(err) != nil && !repeatable(err):
		l.fail(err)
	default: // also an end of the stream that the server gave no reason for
		l.delay(err)
	}
}

// fail gives up all that waits.
func (l *sendLoop) fail(err error) {
	for _, o := range l.pending {
		o.result <- sendResult{err: err}
	}
	l.pending = nil
}

// delay puts off the next sending, longer with each failure in a row.
func (l *sendLoop) delay(err error) {
	l.s.setLastErr(err)
	l.failures++
	r := retrier{c: l.s.c, attempt: l.failures}
	wait, ok := r.wait(err)
	if !ok {
		wait = retryMax
	}
	l.notUntil = time.Now().Add(wait)
	if f := l.s.c.cfg.OnRetry; f != nil {
		f(Retry{Method: apiv1.SessionService_SendMessages_FullMethodName, Attempt: l.failures, Err: err, Wait: wait})
	}
}

// checkStall gives up a stream whose oldest batch has waited too long.
func (l *sendLoop) checkStall() {
	if len(l.inFlight) == 0 || time.Since(l.inFlight[0].sent) < senderStall {
		return
	}
	if st, ok := l.stream.BidiStreamingClient.(*grpc.GenericClientStream[apiv1.SendMessagesRequest, apiv1.SendMessagesResponse]); ok {
		if s, ok := st.ClientStream.(*stream); ok {
			l.s.c.pool.moveOn(s.e)
		}
	}
	l.broken(fault.New(fault.Unavailable, "no answer for %s", senderStall))
}
