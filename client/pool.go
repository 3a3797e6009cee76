// The connections: one per address, one of them in use, the next one taken when it fails.

package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/neolith/orchestrator/internal/fault"
)

// redialAfter is how soon after a failed connection the same address is dialled again; callers that come earlier are
// given the failure that is known.
const redialAfter = 100 * time.Millisecond

// pool chooses the connection for each call. The index in use moves on only when a connection cannot be made or a
// server says UNAVAILABLE, so that a program keeps talking to one server while that is good.
type pool struct {
	endpoints []*endpoint
	current   atomic.Uint64 // counts up; modulo the number of endpoints
	wait      time.Duration // for one address while there are others
	closed    atomic.Bool
}

// endpoint is one address with its connection.
type endpoint struct {
	address string
	dial    func() (*grpc.ClientConn, error)

	mu       sync.Mutex
	conn     *grpc.ClientConn
	failedAt time.Time
	lastErr  error // why the last connection could not be made
}

func newPool(cfg *Config) (*pool, error) {
	p := &pool{wait: cfg.ConnectTimeout}
	for _, a := range cfg.Addresses {
		e := &endpoint{address: a}
		opts := dialOptions(cfg, e)
		e.dial = func() (*grpc.ClientConn, error) { return grpc.NewClient("passthrough:///"+a, opts...) }
		conn, err := e.dial()
		if err != nil {
			p.close()
			return nil, fault.New(fault.Invalid, "prepare the connection to %s: %w", a, err)
		}
		e.conn = conn
		p.endpoints = append(p.endpoints, e)
	}
	return p, nil
}

func dialOptions(cfg *Config, e *endpoint) []grpc.DialOption {
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		creds = &notingCredentials{credentials.NewTLS(cfg.TLS), e}
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := cfg.Dial(ctx, address)
			if err != nil {
				e.note(err)
			}
			return conn, err
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxAnswerBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 2, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 2 * cfg.ConnectTimeout,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // repetitions are made here, across addresses
	}
	if cfg.Token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(cfg.Token)))
	}
	if cfg.UserAgent != "" {
		opts = append(opts, grpc.WithUserAgent(cfg.UserAgent))
	}
	return opts
}

// bearer sends a token with each call. Where a token may go was decided when the configuration was checked.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

// notingCredentials remembers why a handshake failed; gRPC itself only says that there is no connection.
type notingCredentials struct {
	credentials.TransportCredentials
	e *endpoint
}

func (c *notingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		c.e.note(fmt.Errorf("TLS handshake: %w", err))
	}
	return conn, info, err
}

func (c *notingCredentials) Clone() credentials.TransportCredentials {
	return &notingCredentials{c.TransportCredentials.Clone(), c.e}
}

func (e *endpoint) note(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		err = op.Err // the address is named beside it anyway
	}
	e.mu.Lock()
	e.lastErr = err
	e.mu.Unlock()
}

// acquire returns a connection that is up, the one in use when it is good.
func (p *pool) acquire(ctx context.Context) (*endpoint, *grpc.ClientConn, error) {
	if p.closed.Load() {
		return nil, nil, fault.New(fault.FailedPrecondition, "the client is closed")
	}
	start := p.current.Load()
	n := uint64(len(p.endpoints))
	var why []string
	for i := range n {
		e := p.endpoints[(start+i)%n]
		limit := p.wait
		if n == 1 {
			limit = 2 * p.wait
		}
		conn, err := e.ready(ctx, limit)
		if err == nil {
			if i > 0 {
				p.current.CompareAndSwap(start, start+i)
			}
			return e, conn, nil
		}
		if ctx.Err() != nil && len(why) == 0 {
			return nil, nil, fault.New(fault.Unavailable, "connect to %s: %w", e.address, err)
		}
		why = append(why, fmt.Sprintf("%s: %v", e.address, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, nil, fault.New(fault.Unavailable, "%w", error(&unreachable{strings.Join(why, ", ")}))
}

// unreachable says that no address took a connection: nobody was asked.
type unreachable struct{ why string }

func (u *unreachable) Error() string { return "no server could be reached: " + u.why }

// moveOn goes to the next address, when e is still the one in use.
func (p *pool) moveOn(e *endpoint) {
	at := p.current.Load()
	n := uint64(len(p.endpoints))
	if n > 1 && p.endpoints[at%n] == e {
		p.current.CompareAndSwap(at, at+1)
	}
}

func (p *pool) close() {
	p.closed.Store(true)
	for _, e := range p.endpoints {
		e.mu.Lock()
		_ = e.conn.Close() // it only reports a second Close
		e.mu.Unlock()
	}
}

// ready waits until the connection is up, for at most limit. A connection that failed is made anew: gRPC keeps saying
// "failed" through all further attempts, and a caller wants to know about the attempt that it caused.
func (e *endpoint) ready(ctx context.Context, limit time.Duration) (*grpc.ClientConn, error) {
	conn, err := e.fresh()
	if err != nil {
		return nil, err
	}
	if conn.GetState() == connectivity.Ready {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return conn, nil
		case connectivity.Idle:
			conn.Connect()
		case connectivity.TransientFailure:
			return nil, e.failed(conn)
		case connectivity.Shutdown:
			return nil, errors.New("the connection was closed")
		}
		if !conn.WaitForStateChange(ctx, state) {
			e.mu.Lock()
			defer e.mu.Unlock()
			if e.lastErr != nil {
				return nil, e.lastErr
			}
			return nil, fmt.Errorf("no answer within %s", limit)
		}
	}
}

// fresh returns the connection, or a new one when the last one failed a while ago.
func (e *endpoint) fresh() (*grpc.ClientConn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failedAt.IsZero() {
		return e.conn, nil
	}
	if time.Since(e.failedAt) < redialAfter {
		return nil, e.lastErr
	}
	conn, err := e.dial()
	if err != nil {
		return nil, err
	}
	_ = e.conn.Close() // carries no call: it never came up again
	e.conn, e.failedAt = conn, time.Time{}
	return conn, nil
}

// failed records that this connection could not be made.
func (e *endpoint) failed(conn *grpc.ClientConn) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == conn && e.failedAt.IsZero() {
		e.failedAt = time.Now()
	}
	if e.lastErr == nil {
		e.lastErr = errors.New("it took the connection but did not answer as a server; does it want TLS?")
	}
	return e.lastErr
}
