// The Client, and the making of one call: choose a server, ask, and ask again where that is safe.

package client

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// The pauses between repetitions: 50 ms doubling to 1 s, each shortened at random by up to a half.
const (
	retryFirst = 50 * time.Millisecond
	retryMax   = time.Second
)

// Client is a connection to a cluster. Its methods and services may be used by many goroutines.
type Client struct {
	Sessions apiv1.SessionServiceClient
	Nodes    apiv1.NodeServiceClient
	Cluster  apiv1.ClusterServiceClient
	Queues   apiv1.QueueServiceClient
	Tokens   apiv1.TokenServiceClient
	Events   apiv1.EventServiceClient
	Models   apiv1.ProviderServiceClient
	Record   apiv1.RecorderServiceClient

	cfg  Config
	pool *pool
}

// New makes a client. It connects with the first call. Errors are of kind fault.Invalid.
func New(cfg Config) (*Client, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	p, err := newPool(&cfg)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, pool: p}
	ch := &channel{c}
	c.Sessions = apiv1.NewSessionServiceClient(ch)
	c.Nodes = apiv1.NewNodeServiceClient(ch)
	c.Cluster = apiv1.NewClusterServiceClient(ch)
	c.Queues = apiv1.NewQueueServiceClient(ch)
	c.Tokens = apiv1.NewTokenServiceClient(ch)
	c.Events = apiv1.NewEventServiceClient(ch)
	c.Models = apiv1.NewProviderServiceClient(ch)
	c.Record = apiv1.NewRecorderServiceClient(ch)
	return c, nil
}

// Close ends all connections; calls under way fail.
func (c *Client) Close() error {
	c.pool.close()
	return nil
}

// Address is the server that calls go to at present.
func (c *Client) Address() string {
	return c.pool.endpoints[c.pool.current.Load()%uint64(len(c.pool.endpoints))].address
}

// NewKey returns a new idempotency key.
func NewKey() string { return rand.Text() }

// channel is the connection as the generated clients see it.
type channel struct{ c *Client }

// Invoke makes a unary call.
func (ch *channel) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	c := ch.c
	args, waits := prepare(args)
	if _, ok := ctx.Deadline(); !ok && !waits {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.Timeout)
		defer cancel()
	}
	r := c.newRetrier(method)
	for {
		err := c.attempt(ctx, method, args, reply, opts)
		if err == nil {
			return nil
		}
		if err = r.pause(ctx, err); err != nil {
			return err
		}
	}
}

// attempt makes the call once.
func (c *Client) attempt(ctx context.Context, method string, args, reply any, opts []grpc.CallOption) error {
	e, conn, err := c.pool.acquire(ctx)
	if err != nil {
		return err
	}
	return c.settle(ctx, e, conn.Invoke(ctx, method, args, reply, opts...))
}

// settle turns an error into a fault and leaves the server when it is the server that cannot answer.
func (c *Client) settle(ctx context.Context, e *endpoint, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	// A connection that was replaced under a call ends it as cancelled, which nobody asked for.
	if status.Code(err) == codes.Canceled && ctx.Err() == nil && !c.pool.closed.Load() {
		err = status.Error(codes.Unavailable, "the connection was lost")
	}
	// gRPC's own words for a deadline, of this side or of the transport, are not for people.
	if m := status.Convert(err).Message(); status.Code(err) == codes.DeadlineExceeded &&
		(strings.HasPrefix(m, context.DeadlineExceeded.Error()) || strings.HasPrefix(m, "stream terminated")) {
		err = status.Error(codes.DeadlineExceeded, "no answer before the deadline")
	}
	f := Fault(err)
	if fault.Is(f, fault.Unavailable) {
		c.pool.moveOn(e)
	}
	return f
}

// NewStream opens a stream. It connects, and goes to another server when it cannot, but an open stream that breaks is
// its user's to open again.
func (ch *channel) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	e, conn, err := ch.c.pool.acquire(ctx)
	if err != nil {
		return nil, err
	}
	s, err := conn.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, ch.c.settle(ctx, e, err)
	}
	return &stream{ClientStream: s, c: ch.c, e: e}, nil
}

// stream gives faults instead of statuses.
type stream struct {
	grpc.ClientStream
	c *Client
	e *endpoint
}

func (s *stream) SendMsg(m any) error { return s.c.settle(s.Context(), s.e, s.ClientStream.SendMsg(m)) }
func (s *stream) RecvMsg(m any) error { return s.c.settle(s.Context(), s.e, s.ClientStream.RecvMsg(m)) }

// prepare gives a mutation without an idempotency key one, on a copy: the caller may send its message again and mean
// another one. It also reports whether the request asks to wait for something, which may take any time.
func prepare(args any) (_ any, waits bool) {
	m, ok := args.(proto.Message)
	if !ok {
		return args, false
	}
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	if f := fields.ByName("wait"); f != nil && f.Kind() == protoreflect.BoolKind {
		waits = r.Get(f).Bool()
	}
	if f := fields.ByName("idempotency_key"); f != nil && r.Get(f).String() == "" {
		m = proto.Clone(m)
		m.ProtoReflect().Set(f, protoreflect.ValueOfString(NewKey()))
	}
	return m, waits
}

// retrier paces the repetitions of one call or stream.
type retrier struct {
	c       *Client
	method  string
	attempt int
	streak  time.Time // when the present row of failures began
	last    time.Time // when the last pause ended
	before  error     // what the last repeated attempt failed with
}

func (c *Client) newRetrier(method string) *retrier {
	return &retrier{c: c, method: method, last: time.Now()}
}

// progress ends a row of failures: something was received.
func (r *retrier) progress() { r.attempt, r.streak = 0, time.Time{} }

// pause waits before the next attempt. It returns the error to give up with when there is to be none.
func (r *retrier) pause(ctx context.Context, err error) error {
	wait, giveUp := r.next(ctx, err)
	if giveUp != nil {
		return giveUp
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		r.last = time.Now()
		return nil
	case <-ctx.Done():
		return r.giveUp(ctx, err)
	}
}

// next returns how long to wait before the next attempt, or the error to give up with when there is to be none.
func (r *retrier) next(ctx context.Context, err error) (time.Duration, error) {
	now := time.Now()
	if now.Sub(r.last) > r.c.cfg.Timeout/2 {
		r.progress() // the attempt lived long: this is another trouble than the one before
	}
	if r.streak.IsZero() {
		r.streak = now
	}
	r.attempt++
	wait, ok := r.wait(err)
	if !ok {
		if r.before != nil && fault.Is(err, fault.Timeout) {
			return 0, fault.New(fault.Timeout, "%w (the attempt before: %v)", err, r.before)
		}
		return 0, err
	}
	if ctx.Err() != nil {
		if r.before != nil {
			err = r.before // the last attempt was cut off; the one before says more
		}
		return 0, r.giveUp(ctx, err)
	}
	r.before = err
	var nobody *unreachable
	if reach := r.c.cfg.ReachTimeout; reach > 0 && errors.As(err, &nobody) && now.Add(wait).Sub(r.streak) > reach {
		return 0, r.giveUp(ctx, err)
	}
	if _, bounded := ctx.Deadline(); !bounded && now.Add(wait).Sub(r.streak) > r.c.cfg.Timeout {
		return 0, r.giveUp(ctx, err)
	}
	if d, bounded := ctx.Deadline(); bounded && now.Add(wait).After(d) {
		return 0, r.giveUp(ctx, err)
	}
	if r.c.cfg.OnRetry != nil {
		r.c.cfg.OnRetry(Retry{Method: r.method, Attempt: r.attempt, Err: err, Wait: wait})
	}
	return wait, nil
}

// wait is the pause that an error asks for; false when the call must not be repeated.
func (r *retrier) wait(err error) (time.Duration, bool) {
	f := fault.As(err)
	switch {
	case repeatable(err):
	case f != nil && f.Kind == fault.Exhausted && f.RetryAfter > 0 && r.c.cfg.RetryExhausted:
		// Come back at the time that was named or up to a fifth later, so that not all come at once.
		return f.RetryAfter + mathrand.N(f.RetryAfter/5+1), true
	default:
		return 0, false
	}
	d := min(retryFirst<<min(r.attempt-1, 10), retryMax)
	return max(d-mathrand.N(d/2+1), f.RetryAfter), true
}

// giveUp is the last error with what was tried.
func (r *retrier) giveUp(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fault.New(fault.Aborted, "%w (last answer: %v)", ctx.Err(), err)
	}
	if r.attempt <= 1 {
		return err
	}
	f := fault.New(fault.KindOf(err), "%w (gave up after %d attempts in %s)", err, r.attempt, time.Since(r.streak).Round(time.Millisecond))
	if orig := fault.As(err); orig != nil {
		f.RetryAfter, f.Field = orig.RetryAfter, orig.Field
	}
	return f
}
