// The client's end: one request and its attempts.

package http

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// ClientOptions are how a client speaks to a server.
type ClientOptions struct {
	// URL is the server: http or https, host and port; chunks are at Path below it.
	URL string
	// Transport sends the requests, over TLS as it is set up; nil is a transport of the client's own, which Close ends.
	Transport http.RoundTripper
	// Credentials puts into a request what the server's Authorize wants; nil puts nothing.
	Credentials func(r *http.Request) error
	// ParallelMax is how many requests are under way at a time (8). The server has a bound of its own.
	ParallelMax int
	// AttemptsMax is how often a request is tried (5), RetryMin (50 ms) and RetryMax (2 s) bound the growing time between two attempts. A
	// server that asks to come back later than RetryMax gets its way: the error is returned.
	AttemptsMax        int
	RetryMin, RetryMax time.Duration
	// TimeoutPerAttempt bounds one attempt (2 min).
	TimeoutPerAttempt time.Duration
	// BytesPerSecond bounds what this client sends and takes; 0 does not. Limiter, from NewLimiter, takes its place: a bound that
	// others share.
	BytesPerSecond int64
	Limiter        *rate.Limiter
}

// Client is the store of a server. It implements chunks.Store and chunks.Batcher.
type Client struct {
	opts    ClientOptions
	http    *http.Client
	base    string
	own     *http.Transport // nil when it was given
	slots   chan struct{}
	limiter *rate.Limiter
}

// NewClient returns the client of a server. It connects when it is used.
func NewClient(o ClientOptions) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.New(fault.Invalid, "chunks: the server's address %.200q: want http://HOST:PORT or https://HOST:PORT", o.URL)
	}
	setDefault(&o.ParallelMax, 8)
	setDefault(&o.AttemptsMax, 5)
	setDefault(&o.RetryMin, 50*time.Millisecond)
	setDefault(&o.RetryMax, 2*time.Second)
	setDefault(&o.TimeoutPerAttempt, 2*time.Minute)
	c := &Client{opts: o, base: strings.TrimSuffix(o.URL, "/") + Path, slots: make(chan struct{}, o.ParallelMax), limiter: o.Limiter}
	if c.limiter == nil {
		c.limiter = NewLimiter(o.BytesPerSecond)
	}
	if o.Transport == nil {
		c.own = http.DefaultTransport.(*http.Transport).Clone()
		c.own.Proxy = nil // servers and nodes are neighbours
		c.own.DisableCompression = true
		c.own.MaxIdleConnsPerHost = o.ParallelMax
		c.own.WriteBufferSize, c.own.ReadBufferSize = sliceBytes, sliceBytes
		o.Transport = c.own
	}
	c.http = &http.Client{Transport: o.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

func setDefault[T int | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// Close ends the connections that rest.
func (c *Client) Close() error {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
	return nil
}

// Missing implements chunks.Store.
func (c *Client) Missing(ctx context.Context, ids []chunk.ID) (missing []chunk.ID, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for len(ids) > 0 {
		some := ids[:min(len(ids), MissingMax)]
		ids = ids[len(some):]
		err := c.retry(ctx, func(ctx context.Context) error {
			lacks, err := c.missing(ctx, some)
			if err == nil {
				missing = append(missing, lacks...)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// missing asks once.
func (c *Client) missing(ctx context.Context, ids []chunk.ID) (lacks []chunk.ID, err error) {
	err = c.send(ctx, http.MethodPost, "missing", body{packIDs(ids)}, func(r io.Reader, _ int64) error {
		b, err := io.ReadAll(io.LimitReader(r, int64(len(ids)*idBytes+1)))
		if err != nil {
			return err
		}
		lacks, err = unpackIDs(b)
		return err
	})
	// What it lacks must be of what was asked, in that order: all that follows relies on it.
	rest := ids
	for _, id := range lacks {
		for len(rest) > 0 && rest[0] != id {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return nil, fault.New(fault.Internal, "%s misses chunks that it was not asked for", c.opts.URL)
		}
		rest = rest[1:]
	}
	return lacks, err
}

// Put implements chunks.Store.
func (c *Client) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(frame) > chunk.MaxFrameBytes {
		return chunks.VerifyPut(id, frame)
	}
	return c.retry(ctx, func(ctx context.Context) error {
		return c.send(ctx, http.MethodPut, id.String(), body{frame}, nil)
	})
}

// Get implements chunks.Store.
func (c *Client) Get(ctx context.Context, id chunk.ID) (frame []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = c.retry(ctx, func(ctx context.Context) error {
		return c.send(ctx, http.MethodGet, id.String(), nil, func(r io.Reader, length int64) (err error) {
			if length < 0 || length > chunk.MaxFrameBytes {
				return fault.New(fault.Internal, "%s answered with a frame of %d bytes", c.opts.URL, length)
			}
			frame = make([]byte, length)
			if _, err := io.ReadFull(r, frame); err != nil {
				return noEOF(err)
			}
			return c.verify(id, frame)
		})
	})
	if err != nil {
		return nil, err
	}
	return frame, nil
}

func (c *Client) verify(id chunk.ID, frame []byte) error {
	if err := chunks.Verify(id, frame); err != nil {
		return fault.New(fault.Internal, "%s sent something else: %w", c.opts.URL, err)
	}
	return nil
}

// body is what a request carries, in pieces; the same can be sent again.
type body [][]byte

func (b body) bytes() (n int64) {
	for _, p := range b {
		n += int64(len(p))
	}
	return n
}

func (b body) reader() io.Reader {
	if len(b) == 1 {
		return bytes.NewReader(b[0])
	}
	all := make([]io.Reader, len(b))
	for i, p := range b {
		all[i] = bytes.NewReader(p)
	}
	return io.MultiReader(all...)
}

// expectBytes is how long a body is at least for the server to be asked before it is sent.
const expectBytes = 4 << 20

// send is one attempt: it sends a request, and hands the body of a good answer to read.
func (c *Client) send(ctx context.Context, method, path string, b body, read func(r io.Reader, length int64) error) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.TimeoutPerAttempt)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return fault.New(fault.Invalid, "chunks: %w", err)
	}
	if len(b) > 0 {
		r.ContentLength = b.bytes()
		r.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(&slowReader{Reader: b.reader(), ctx: ctx, limiter: c.limiter}), nil
		}
		r.Body, _ = r.GetBody() // it gives no error
		r.Header.Set("Content-Type", typeBinary)
		if r.ContentLength == 0 {
			r.Body = http.NoBody
		}
		if r.ContentLength >= expectBytes {
			r.Header.Set("Expect", "100-continue")
		}
	}
	if c.opts.Credentials != nil {
		if err := c.opts.Credentials(r); err != nil {
			return fmt.Errorf("chunks: credentials for %s: %w", c.opts.URL, err)
		}
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return c.broke(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return c.refused(resp)
	}
	if read == nil {
		return nil
	}
	err = read(&slowReader{Reader: resp.Body, ctx: ctx, limiter: c.limiter}, resp.ContentLength)
	if err != nil && fault.As(err) == nil {
		return c.broke(ctx, err)
	}
	return err
}

// broke is the error of an attempt that did not get through.
func (c *Client) broke(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return err
	}
	// The attempt's own deadline is not the caller's; retry tells them apart.
	return fault.New(fault.Unavailable, "chunks: ask %s: %w", c.opts.URL, err)
}

// refused reads the error that a server answered.
func (c *Client) refused(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, errorMaxBytes)) // what came of it
	var f failure
	if err := json.Unmarshal(text, &f); err != nil || f.Code == "" {
		kind := fault.Internal
		for k, said := range kinds {
			if said.status == resp.StatusCode && k != fault.AlreadyExists && k != fault.Aborted {
				kind = k
			}
		}
		if resp.StatusCode == http.StatusBadGateway {
			kind = fault.Unavailable
		}
		return fault.New(kind, "%s answered %s: %.200q", c.opts.URL, resp.Status, text)
	}
	return f.err(c.opts.URL)
}

// retry makes attempts until one succeeds, fails for good, or the bound is reached.
func (c *Client) retry(ctx context.Context, attempt func(ctx context.Context) error) error {
	wait := c.opts.RetryMin
	for n := 1; ; n++ {
		err := attempt(ctx)
		switch k := fault.KindOf(err); {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w (%w)", ctx.Err(), err)
		case k != fault.Unavailable && k != fault.Exhausted && k != fault.Timeout, n >= c.opts.AttemptsMax:
			return err
		}
		pause := wait/2 + rand.N(wait)
		if e := fault.As(err); e.RetryAfter > c.opts.RetryMax {
			return err
		} else if e.RetryAfter > pause {
			pause = e.RetryAfter + rand.N(wait)
		}
		wait = min(2*wait, c.opts.RetryMax)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (%w)", ctx.Err(), err)
		}
	}
}
