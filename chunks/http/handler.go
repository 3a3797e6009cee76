// The server's end.

package http

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// What one request has in hand at a time.
const (
	batchHeldMaxBytes = 4 << 20 // frames of a batch that are being put
	batchPutsMax      = 64      // puts of a batch at a time
	batchGetsMax      = 8       // gets of a batch ahead of what is being sent
)

// HandlerOptions are how chunks are served.
type HandlerOptions struct {
	// Authorize says who sends a request; the name counts for the limits, and "" is the address. An error is answered by its kind, any of
	// no kind with 401. nil lets in everybody.
	Authorize func(r *http.Request) (identity string, err error)
	// RequestsMax is how many requests are served at a time (32; each holds at most 8 MiB), RequestsPerClientMax how many of one client (16).
	RequestsMax, RequestsPerClientMax int
	// BytesPerSecondPerClient bounds what one client sends and takes; 0 does not.
	BytesPerSecondPerClient int64
	// Limiter, from NewLimiter, bounds what all clients send and take together, with whatever else it is given to; nil does not.
	Limiter *rate.Limiter
	// Logger hears of errors that are the server's; nil is silence.
	Logger *slog.Logger
}

// Handler serves a store under Path.
type Handler struct {
	store   chunks.Store
	opts    HandlerOptions
	log     *slog.Logger
	mux     *http.ServeMux
	clients clients
}

// NewHandler returns the handler of Path for a store.
func NewHandler(store chunks.Store, o HandlerOptions) *Handler {
	if o.RequestsMax <= 0 {
		o.RequestsMax = 32
	}
	if o.RequestsPerClientMax <= 0 {
		o.RequestsPerClientMax = 16
	}
	h := &Handler{store: store, opts: o, log: o.Logger, mux: http.NewServeMux(), clients: clients{
		requestsMax: o.RequestsMax, perClientMax: o.RequestsPerClientMax, bytesPerSecond: o.BytesPerSecondPerClient, known: make(map[string]*client),
	}}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	for pattern, serve := range map[string]func(*conversation, *http.Request) error{
		"POST " + Path + "missing": h.missing,
		"POST " + Path + "put":     h.putBatch,
		"POST " + Path + "get":     h.getBatch,
		"PUT " + Path + "{id}":     h.put,
		"GET " + Path + "{id}":     h.get,
		Path: func(_ *conversation, r *http.Request) error {
			return fault.New(fault.NotFound, "chunks: there is no %s %.200q; see docs/protocol/chunks.md", r.Method, r.URL.Path)
		},
	} {
		h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, serve) })
	}
	return h
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// serve admits a request, and answers it with the error that serve returns before anything was written.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, serve func(*conversation, *http.Request) error) {
	name, err := h.authorize(r)
	if err != nil {
		writeError(w, err)
		return
	}
	client, err := h.clients.enter(name, time.Now())
	if err != nil {
		writeError(w, err)
		return
	}
	defer func() { h.clients.leave(client, time.Now()) }()
	ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), clientKey{}, name), requestMax)
	defer cancel()
	c := &conversation{ResponseWriter: w, ctx: ctx, body: r.Body, control: http.NewResponseController(w), limiters: [2]*rate.Limiter{client.limiter, h.opts.Limiter}}
	defer c.end()
	if err := serve(c, r.WithContext(ctx)); err != nil {
		if k := fault.KindOf(err); k == fault.Internal || k == fault.Unavailable {
			h.log.Warn("chunks: a request failed", "method", r.Method, "path", r.URL.Path, "client", name, "error", err)
		}
		writeError(w, err)
	}
}

// clientKey is under which a request's context has the name that Authorize gave.
type clientKey struct{}

// ClientName returns, in a call that a Handler makes to its store, who sent the request, as Authorize named it.
func ClientName(ctx context.Context) string {
	name, _ := ctx.Value(clientKey{}).(string)
	return name
}

func (h *Handler) authorize(r *http.Request) (name string, err error) {
	if r.Header.Get("Origin") != "" {
		return "", fault.New(fault.PermissionDenied, "chunks: not for browsers; leave out the Origin header")
	}
	if h.opts.Authorize != nil {
		if name, err = h.opts.Authorize(r); err != nil {
			if fault.As(err) == nil {
				err = fault.New(fault.Unauthenticated, "%w", err)
			}
			return "", err
		}
	}
	if name == "" {
		if name, _, err = net.SplitHostPort(r.RemoteAddr); err != nil {
			name = r.RemoteAddr
		}
	}
	return name, nil
}

// readAll reads a body of at most most bytes.
func readAll(c *conversation, r *http.Request, most int64) ([]byte, error) {
	if r.ContentLength > most {
		return nil, fault.New(fault.Invalid, "chunks: a body of %d bytes, at most %d", r.ContentLength, most)
	}
	body := make([]byte, 0, max(r.ContentLength, 0)+1) // one more, to see the end without growing
	for {
		n, err := c.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > most:
			return nil, fault.New(fault.Invalid, "chunks: a body of more than %d bytes", most)
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return nil, fault.New(fault.Unavailable, "chunks: read the body: %w", err)
		case len(body) == cap(body):
			body = slices.Grow(body, 4<<10)
		}
	}
}

func readIDs(c *conversation, r *http.Request, most int) ([]chunk.ID, error) {
	body, err := readAll(c, r, int64(most*idBytes))
	if err != nil {
		return nil, err
	}
	return unpackIDs(body)
}

// answer sends an answer whose length is known.
func answer(c *conversation, contentType string, body []byte) {
	c.Header().Set("Content-Type", contentType)
	c.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = c.Write(body) // the caller has gone, and sees it
}

func (h *Handler) missing(c *conversation, r *http.Request) error {
	ids, err := readIDs(c, r, MissingMax)
	if err != nil {
		return err
	}
	if ids, err = h.store.Missing(r.Context(), ids); err != nil {
		return err
	}
	answer(c, typeBinary, packIDs(ids))
	return nil
}

func (h *Handler) put(c *conversation, r *http.Request) error {
	id, err := chunk.Parse(r.PathValue("id"))
	if err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	frame, err := readAll(c, r, chunk.MaxFrameBytes)
	if err != nil {
		return err
	}
	if err := h.store.Put(r.Context(), id, frame); err != nil {
		return err
	}
	c.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Handler) get(c *conversation, r *http.Request) error {
	id, err := chunk.Parse(r.PathValue("id"))
	if err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	frame, err := h.store.Get(r.Context(), id)
	if err != nil {
		return err
	}
	answer(c, typeBinary, frame)
	return nil
}

// putBatch stores each frame while the next are read, and says which failed.
func (h *Handler) putBatch(c *conversation, r *http.Request) error {
	if r.ContentLength > PutBatchMaxBytes {
		return fault.New(fault.Invalid, "chunks: a batch of %d bytes, at most %d", r.ContentLength, PutBatchMaxBytes)
	}
	body := &io.LimitedReader{R: c, N: PutBatchMaxBytes + 1}
	var (
		mu     sync.Mutex
		result putResult
		group  errgroup.Group
		held   = semaphore.NewWeighted(batchHeldMaxBytes)
	)
	group.SetLimit(batchPutsMax)
	wait := sync.OnceFunc(func() { _ = group.Wait() }) // each error stands in the result
	// What arrived whole is stored although the client has gone: it will ask what is missing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), requestMax)
	defer func() { wait(); cancel() }()
	n := 0
	err := func() error {
		for ; ; n++ {
			id, frame, err := readPutRecord(body)
			switch {
			case errors.Is(err, io.EOF) && body.N > 0:
				return nil
			case err != nil && fault.As(err) != nil:
				return err
			case err != nil && body.N == 0:
				return fault.New(fault.Invalid, "chunks: a batch of more than %d bytes", PutBatchMaxBytes)
			case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
				return fault.New(fault.Invalid, "chunks: the batch ends within a record: %w", err)
			case err != nil:
				return fault.New(fault.Unavailable, "chunks: read the batch: %w", err)
			case n == BatchMax:
				return fault.New(fault.Invalid, "chunks: a batch of more than %d chunks", BatchMax)
			}
			if err := held.Acquire(r.Context(), int64(len(frame))); err != nil {
				return err
			}
			index := n
			group.Go(func() error {
				defer held.Release(int64(len(frame)))
				err := h.store.Put(ctx, id, frame)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					result.Stored++
					return nil
				}
				f, _ := failureOf(err)
				f.Index = &index
				result.Failed = append(result.Failed, f)
				return nil
			})
		}
	}()
	wait()
	if err != nil {
		return err
	}
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	answer(c, typeJSON, text)
	return nil
}

// getBatch sends each chunk, or its error, while the next are read.
func (h *Handler) getBatch(c *conversation, r *http.Request) error {
	ids, err := readIDs(c, r, BatchMax)
	if err != nil {
		return err
	}
	type got struct {
		frame []byte
		err   error
	}
	ctx, cancel := context.WithCancel(r.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	ahead := make([]chan got, len(ids))
	start := func(i int) {
		if i >= len(ids) {
			return
		}
		ahead[i] = make(chan got, 1)
		all.Go(func() {
			frame, err := h.store.Get(ctx, ids[i])
			ahead[i] <- got{frame, err}
		})
	}
	for i := range batchGetsMax {
		start(i)
	}
	c.Header().Set("Content-Type", typeBinary)
	for i, id := range ids {
		one := <-ahead[i]
		ahead[i] = nil
		start(i + batchGetsMax)
		what, body := byte(gotFrame), one.frame
		if one.err != nil {
			f, _ := failureOf(one.err)
			if body, err = json.Marshal(f); err != nil {
				body = []byte(`{"code":"INTERNAL"}`)
			}
			what = gotError
		}
		// A caller who has gone needs no more, and one who is there counts the records.
		if _, err := c.Write(gotRecord(id, what, len(body))); err != nil {
			return nil //nolint:nilerr // as above
		}
		if _, err := c.Write(body); err != nil {
			return nil //nolint:nilerr // as above
		}
	}
	return nil
}
