// How much one client may have at a time, and how fast.

package http

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	// clientsMax is how many clients are known at a time; one that rests for clientIdle is forgotten.
	clientsMax = 16 << 10
	clientIdle = 10 * time.Second
	// retryBusy is when somebody may come back who was refused because too much is under way.
	retryBusy = 100 * time.Millisecond
	// sliceBytes is how much passes the limiter at a time.
	sliceBytes = 64 << 10
)

// NewLimiter returns a limiter of bytes to share, nil for no limit. A quarter of a second's worth may come at once.
func NewLimiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(max(bytesPerSecond/4, sliceBytes)))
}

// pass waits until n bytes may pass.
func pass(ctx context.Context, l *rate.Limiter, n int) error {
	for l != nil && n > 0 {
		part := min(n, sliceBytes)
		if err := l.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// slowReader reads at most as fast as its limiter lets it.
type slowReader struct {
	io.Reader
	ctx     context.Context //nolint:containedctx // a reader lives as long as its request
	limiter *rate.Limiter
}

func (r *slowReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p[:min(len(p), sliceBytes)])
	if n > 0 {
		if slow := pass(r.ctx, r.limiter, n); slow != nil {
			return n, slow
		}
	}
	return n, err
}

// clients are those who send requests.
type clients struct {
	requestsMax, perClientMax int
	bytesPerSecond            int64

	mu       sync.Mutex
	requests int
	known    map[string]*client
}

type client struct {
	requests int
	limiter  *rate.Limiter
	left     time.Time // when its last request ended
}

// enter admits a request of a client, or says that too much is under way.
func (c *clients) enter(name string, now time.Time) (*client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests >= c.requestsMax {
		return nil, fault.New(fault.Exhausted, "chunks: %d requests are under way, the most there may be", c.requests).WithRetry(retryBusy)
	}
	one := c.known[name]
	if one == nil {
		if len(c.known) >= clientsMax {
			c.forget(now)
		}
		if len(c.known) >= clientsMax {
			return nil, fault.New(fault.Exhausted, "chunks: %d clients are known, the most there may be", len(c.known)).WithRetry(clientIdle)
		}
		one = &client{limiter: NewLimiter(c.bytesPerSecond)}
		c.known[name] = one
	}
	if one.requests >= c.perClientMax {
		return nil, fault.New(fault.Exhausted, "chunks: %d requests of %s are under way, the most that one client may have", one.requests, name).WithRetry(retryBusy)
	}
	one.requests++
	c.requests++
	return one, nil
}

// forget drops clients that rest: their limiters have filled up again.
func (c *clients) forget(now time.Time) {
	for name, one := range c.known {
		if one.requests == 0 && now.Sub(one.left) > clientIdle {
			delete(c.known, name)
		}
	}
}

func (c *clients) leave(one *client, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	one.requests--
	one.left = now
	c.requests--
}

// stallMax is how long a client may neither send nor take a byte, requestMax how long a request may take in all.
const (
	stallMax   = 30 * time.Second
	requestMax = 10 * time.Minute
)

// conversation is one request: its body and its answer at the client's pace, ended when the client stalls.
type conversation struct {
	http.ResponseWriter
	ctx      context.Context //nolint:containedctx // it lives as long as its request
	body     io.Reader
	control  *http.ResponseController
	limiters [2]*rate.Limiter // each may be nil
}

// pass waits until n bytes may pass.
func (c *conversation) pass(n int) error {
	for _, l := range c.limiters {
		if err := pass(c.ctx, l, n); err != nil {
			return err
		}
	}
	return nil
}

// Read reads the body.
func (c *conversation) Read(p []byte) (int, error) {
	_ = c.control.SetReadDeadline(time.Now().Add(stallMax)) // a server that cannot has its own
	n, err := c.body.Read(p[:min(len(p), sliceBytes)])
	if n > 0 {
		if slow := c.pass(n); slow != nil {
			return n, slow
		}
	}
	if err != nil {
		// The server listens for the client's going away from now on, and a deadline would look like that.
		_ = c.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// Write writes the answer.
func (c *conversation) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), sliceBytes)]
		if err := c.pass(len(part)); err != nil {
			return written, err
		}
		_ = c.control.SetWriteDeadline(time.Now().Add(stallMax)) // as above
		n, err := c.ResponseWriter.Write(part)
		written += n
		if err != nil {
			return written, err
		}
		p = p[len(part):]
	}
	return written, nil
}

// end sends what is still buffered and takes the deadlines from the connection.
func (c *conversation) end() {
	_ = c.control.SetWriteDeadline(time.Now().Add(stallMax))
	_ = c.control.Flush()
	_ = c.control.SetReadDeadline(time.Time{})
	_ = c.control.SetWriteDeadline(time.Time{})
}
