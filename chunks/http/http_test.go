// The suite of all stores over a server, and what only a network has: cuts, refusals, limits, liars.

package http

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// remote is a client with the server and the directory behind it.
type remote struct {
	*Client
	server *httptest.Server
	kept   *dir.Store
}

func (r *remote) Close() error {
	err := r.Client.Close()
	r.server.Close()
	return errors.Join(err, r.kept.Close())
}

// serve serves a directory; wrap may put something before the handler.
func serve(t testing.TB, state string, maxBytes int64, ho HandlerOptions, co ClientOptions, wrap func(http.Handler) http.Handler) *remote {
	t.Helper()
	kept, err := dir.Open(state, dir.Options{MaxBytes: maxBytes})
	if err != nil {
		t.Fatal(err)
	}
	var h http.Handler = NewHandler(kept, ho)
	if wrap != nil {
		h = wrap(h)
	}
	server := httptest.NewServer(h)
	co.URL = server.URL
	if co.RetryMin == 0 {
		co.RetryMin, co.RetryMax = time.Millisecond, 200*time.Millisecond
	}
	c, err := NewClient(co)
	if err != nil {
		t.Fatal(err)
	}
	r := &remote{c, server, kept}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestConformance(t *testing.T) {
	chunkstest.Run(t, chunkstest.Harness{
		Open: func(t testing.TB, state string, maxBytes int64) chunks.Store {
			return serve(t, state, maxBytes, HandlerOptions{}, ClientOptions{}, nil)
		},
		Bounded: true,
		Damage: func(t testing.TB, state string, id chunk.ID) {
			names, _ := filepath.Glob(filepath.Join(state, "*/*", id.String()))
			if len(names) != 1 {
				t.Fatal("no file of the chunk:", names)
			}
			if err := os.Truncate(names[0], 100); err != nil {
				t.Fatal(err)
			}
		},
	})
}

func sampleFrames(n, size int) (frames []chunks.Frame, ids []chunk.ID) {
	for i := range n {
		f := chunkstest.Chunk(uint64(i), size)
		frames, ids = append(frames, f), append(ids, f.ID)
	}
	return frames, ids
}

// cutter breaks connections off after so many bytes of a body or of an answer, a number of times.
type cutter struct {
	http.Handler
	path  string
	after int64
	times atomic.Int64
	sent  atomic.Int64 // bytes of bodies that arrived on the path
	calls atomic.Int64
}

type cutBody struct {
	io.ReadCloser
	left int64
	c    *cutter
}

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		panic(http.ErrAbortHandler)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	b.c.sent.Add(int64(n))
	return n, err
}

type cutWriter struct {
	http.ResponseWriter
	left int64
}

func (w *cutWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *cutWriter) Write(p []byte) (int, error) {
	if w.left -= int64(len(p)); w.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return w.ResponseWriter.Write(p)
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, Path+c.path) {
		c.calls.Add(1)
		left := int64(1 << 60)
		if c.times.Add(-1) >= 0 {
			left = c.after
		}
		r.Body = &cutBody{r.Body, left, c}
		w = &cutWriter{w, left}
	}
	c.Handler.ServeHTTP(w, r)
}

func TestBatchResumesAfterCuts(t *testing.T) {
	const size = 10_000
	frames, ids := sampleFrames(60, size)
	c := &cutter{path: "put", after: 350_000}
	c.times.Store(2)
	s := serve(t, t.TempDir(), 0, HandlerOptions{}, ClientOptions{}, func(h http.Handler) http.Handler { c.Handler = h; return c })
	for i, err := range s.PutBatch(context.Background(), frames) {
		if err != nil {
			t.Errorf("put %d: %v", i, err)
		}
	}
	if n := c.calls.Load(); n != 3 && n != 2 { // what the first two brought may be all but a part of the second
		t.Errorf("%d requests", n)
	}
	if n := c.sent.Load(); n > 60*size*3/2 {
		t.Errorf("%d bytes were sent for %d: what had arrived was sent again", n, 60*size)
	}
	if missing, err := s.kept.Missing(context.Background(), ids); len(missing) > 0 || err != nil {
		t.Errorf("missing %d, %v", len(missing), err)
	}
	g := &cutter{path: "get", after: 150_000}
	g.times.Store(2)
	s.Close()
	s = serve(t, t.TempDir(), 0, HandlerOptions{}, ClientOptions{}, func(h http.Handler) http.Handler { g.Handler = h; return g })
	for i, f := range frames {
		if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
			t.Fatal(i, err)
		}
	}
	got, errs := s.GetBatch(context.Background(), ids)
	for i := range ids {
		if errs[i] != nil || !bytes.Equal(got[i], frames[i].Bytes) {
			t.Errorf("get %d: %d bytes, %v", i, len(got[i]), errs[i])
		}
	}
	if n := g.calls.Load(); n != 4 { // two requests, two of which broke off
		t.Errorf("%d requests", n)
	}
}

func TestRetries(t *testing.T) {
	var refusals atomic.Int64
	var calls atomic.Int64
	var answer atomic.Pointer[error]
	s := serve(t, t.TempDir(), 0, HandlerOptions{}, ClientOptions{AttemptsMax: 3}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			if refusals.Add(-1) >= 0 {
				writeError(w, *answer.Load())
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	f := chunkstest.Chunk(1, 1000)
	for _, c := range []struct {
		err      error
		refusals int64
		calls    int64
		want     fault.Kind
		good     bool
	}{
		{fault.New(fault.Unavailable, "restarting"), 2, 3, 0, true},
		{fault.New(fault.Exhausted, "busy").WithRetry(5 * time.Millisecond), 1, 2, 0, true},
		{fault.New(fault.Unavailable, "down"), 3, 3, fault.Unavailable, false},
		{fault.New(fault.Exhausted, "full").WithRetry(30 * time.Second), 1, 1, fault.Exhausted, false},
		{fault.New(fault.PermissionDenied, "no"), 1, 1, fault.PermissionDenied, false},
		{errors.New("a defect"), 1, 1, fault.Internal, false},
		{context.DeadlineExceeded, 1, 2, 0, true},
	} {
		for name, call := range map[string]func() error{
			"put":       func() error { return s.Put(context.Background(), f.ID, f.Bytes) },
			"get":       func() error { _, err := s.Get(context.Background(), f.ID); return err },
			"missing":   func() error { _, err := s.Missing(context.Background(), []chunk.ID{f.ID}); return err },
			"get batch": func() error { _, errs := s.GetBatch(context.Background(), []chunk.ID{f.ID}); return errs[0] },
		} {
			refusals.Store(0)
			if err := s.Put(context.Background(), f.ID, f.Bytes); err != nil {
				t.Fatal(err)
			}
			calls.Store(0)
			answer.Store(&c.err)
			refusals.Store(c.refusals)
			err := call()
			if (err == nil) != c.good || !c.good && fault.KindOf(err) != c.want || calls.Load() != c.calls {
				t.Errorf("%s, %d times %q: got %v after %d requests, want %d", name, c.refusals, c.err, err, calls.Load(), c.calls)
			}
			if e := fault.As(err); e != nil && c.want == fault.Exhausted && e.RetryAfter != 30*time.Second {
				t.Errorf("%s: to come back after %s", name, e.RetryAfter)
			}
		}
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c, err := NewClient(ClientOptions{URL: "http://" + l.Addr().String(), RetryMin: time.Millisecond, RetryMax: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := chunkstest.Chunk(1, 100)
	if err := c.Put(context.Background(), f.ID, f.Bytes); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	for _, bad := range []string{"", "server:8078", "ftp://x", "http://"} {
		if _, err := NewClient(ClientOptions{URL: bad}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAuthorize(t *testing.T) {
	s := serve(t, t.TempDir(), 0, HandlerOptions{Authorize: func(r *http.Request) (string, error) {
		switch r.Header.Get("Authorization") {
		case "Bearer good":
			return "node-1", nil
		case "Bearer other":
			return "", fault.New(fault.PermissionDenied, "not yours")
		}
		return "", errors.New("who are you")
	}}, ClientOptions{}, nil)
	f := chunkstest.Chunk(1, 100)
	for token, want := range map[string]fault.Kind{"": fault.Unauthenticated, "other": fault.PermissionDenied, "good": 0} {
		s.Client.opts.Credentials = func(r *http.Request) error { r.Header.Set("Authorization", "Bearer "+token); return nil }
		err := s.Put(context.Background(), f.ID, f.Bytes)
		if want == 0 && err != nil || want != 0 && !fault.Is(err, want) {
			t.Errorf("token %q: %v", token, err)
		}
	}
}

// request sends a request as it stands, and returns the status and the error that was answered.
func request(t *testing.T, s *remote, method, path string, body io.Reader, header ...string) (int, failure) {
	t.Helper()
	r, err := http.NewRequest(method, s.server.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Client.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var f failure
	if resp.StatusCode >= 300 {
		if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
			t.Errorf("%s %s: %s is not answered in JSON: %v", method, path, resp.Status, err)
		}
	}
	return resp.StatusCode, f
}

func TestRefusedRequests(t *testing.T) {
	s := serve(t, t.TempDir(), 0, HandlerOptions{}, ClientOptions{}, nil)
	f := chunkstest.Chunk(1, 100)
	record := func(n int) io.Reader {
		return bytes.NewReader(append(putRecord(f.ID, n), f.Bytes...))
	}
	long := func(n int64) io.Reader { return io.LimitReader(zeros{}, n) } // sent in pieces, without a length
	for _, c := range []struct {
		method, path string
		body         io.Reader
		status       int
		code         string
	}{
		{"PUT", "/v1/chunks/" + f.ID.String(), strings.NewReader("not a frame"), 400, "INVALID_ARGUMENT"},
		{"PUT", "/v1/chunks/" + f.ID.String(), long(chunk.MaxFrameBytes + 1), 400, "INVALID_ARGUMENT"},
		{"PUT", "/v1/chunks/" + f.ID.String(), bytes.NewReader(make([]byte, chunk.MaxFrameBytes+1)), 400, "INVALID_ARGUMENT"},
		{"PUT", "/v1/chunks/abc", nil, 400, "INVALID_ARGUMENT"},
		{"GET", "/v1/chunks/" + strings.Repeat("z", 64), nil, 400, "INVALID_ARGUMENT"},
		{"GET", "/v1/chunks/" + f.ID.String(), nil, 404, "NOT_FOUND"},
		{"GET", "/v1/chunks/", nil, 404, "NOT_FOUND"},
		{"DELETE", "/v1/chunks/" + f.ID.String(), nil, 404, "NOT_FOUND"},
		{"POST", "/v1/chunks/missing", strings.NewReader("33 bytes are no list of some ids."), 400, "INVALID_ARGUMENT"},
		{"POST", "/v1/chunks/missing", long(MissingMax*32 + 32), 400, "INVALID_ARGUMENT"},
		{"POST", "/v1/chunks/get", bytes.NewReader(make([]byte, BatchMax*32+32)), 400, "INVALID_ARGUMENT"},
		{"POST", "/v1/chunks/put", record(len(f.Bytes) + 1), 400, "INVALID_ARGUMENT"},
		{"POST", "/v1/chunks/put", record(chunk.MaxFrameBytes + 1), 400, "INVALID_ARGUMENT"},
		{"POST", "/v1/chunks/put", bytes.NewReader(make([]byte, (BatchMax+1)*putRecordBytes)), 400, "INVALID_ARGUMENT"},
		{"POST", "/v1/chunks/put", strings.NewReader("short"), 400, "INVALID_ARGUMENT"},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			if status, got := request(t, s, c.method, c.path, c.body); status != c.status || got.Code != c.code || got.Error == "" {
				t.Errorf("got %d %+v, want %d %s", status, got, c.status, c.code)
			}
		})
	}
	if status, _ := request(t, s, "GET", "/v1/chunks/"+f.ID.String(), nil, "Origin", "https://example.org"); status != 403 {
		t.Errorf("a browser was answered %d", status)
	}
	if n := s.kept.Counters().Puts.Load(); n != 0 {
		t.Errorf("%d chunks were stored", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// gate is a store whose gets wait.
type gate struct {
	chunks.Store
	entered chan struct{}
	open    chan struct{}
}

func (g *gate) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	g.entered <- struct{}{}
	<-g.open
	return g.Store.Get(ctx, id)
}

func TestBoundsOfConcurrency(t *testing.T) {
	kept, err := dir.Open(t.TempDir(), dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	g := &gate{kept, make(chan struct{}, 10), make(chan struct{})}
	server := httptest.NewServer(NewHandler(g, HandlerOptions{RequestsMax: 3, RequestsPerClientMax: 2, Authorize: func(r *http.Request) (string, error) {
		return r.Header.Get("Name"), nil
	}}))
	defer server.Close()
	client := func(name string, attempts int) *Client {
		c, err := NewClient(ClientOptions{URL: server.URL, AttemptsMax: attempts, RetryMin: 10 * time.Millisecond, Credentials: func(r *http.Request) error {
			r.Header.Set("Name", name)
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	id := chunkstest.Chunk(1, 1).ID
	var all sync.WaitGroup
	ask := func(c *Client) {
		all.Go(func() {
			if _, err := c.Get(context.Background(), id); !fault.Is(err, fault.NotFound) {
				t.Error(err)
			}
		})
		<-g.entered
	}
	a, b := client("a", 1), client("b", 1)
	ask(a)
	ask(a)
	if _, err := a.Get(context.Background(), id); !fault.Is(err, fault.Exhausted) || fault.As(err).RetryAfter <= 0 {
		t.Error("a third request of one client:", err)
	}
	ask(b)
	if _, err := b.Get(context.Background(), id); !fault.Is(err, fault.Exhausted) {
		t.Error("a fourth request:", err)
	}
	patient := client("c", 100)
	all.Go(func() {
		if _, err := patient.Get(context.Background(), id); !fault.Is(err, fault.NotFound) {
			t.Error("one who came back:", err)
		}
	})
	close(g.open)
	all.Wait()
}

// Both ends hold to their bandwidth: time cannot be less than the bytes ask for.
func TestBandwidth(t *testing.T) {
	const rate = 2 << 20
	frames, ids := sampleFrames(10, 150_000)
	for name, o := range map[string]struct {
		h HandlerOptions
		c ClientOptions
	}{"server": {h: HandlerOptions{BytesPerSecondPerClient: rate}}, "client": {c: ClientOptions{BytesPerSecond: rate}}} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, t.TempDir(), 0, o.h, o.c, nil)
			begin := time.Now()
			for _, err := range s.PutBatch(context.Background(), frames) {
				if err != nil {
					t.Fatal(err)
				}
			}
			for _, id := range ids[:3] {
				if _, err := s.Get(context.Background(), id); err != nil {
					t.Fatal(err)
				}
			}
			least := time.Second * (13*150_000 - rate/4 - sliceBytes) / rate
			if took := time.Since(begin); took < least {
				t.Errorf("%s for what needs %s", took, least)
			}
		})
	}
}

// A server that lies or is broken gets no chunk past the client.
func TestClientVerifies(t *testing.T) {
	f, other := chunkstest.Chunk(1, 1000), chunkstest.Chunk(2, 1000)
	for name, serve := range map[string]http.HandlerFunc{
		"another chunk": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(other.Bytes) },
		"another record": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(append(gotRecord(other.ID, 0, len(other.Bytes)), other.Bytes...))
		},
		"a wrong record": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(append(gotRecord(f.ID, 0, len(other.Bytes)), other.Bytes...))
		},
		"a long record":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(gotRecord(f.ID, 0, 1<<30)) },
		"a strange one":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(gotRecord(f.ID, 7, 0)) },
		"nothing":        func(http.ResponseWriter, *http.Request) {},
		"a page":         func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"without an end": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, zeros{}) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		},
		"a proxy's error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) },
		"other missing":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(other.ID[:]) },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(serve)
			defer server.Close()
			c, err := NewClient(ClientOptions{URL: server.URL, AttemptsMax: 2, RetryMin: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := c.Get(context.Background(), f.ID); err == nil {
				t.Errorf("get gave %d bytes", len(got))
			}
			if got, errs := c.GetBatch(context.Background(), []chunk.ID{f.ID, other.ID}); errs[0] == nil || errs[1] == nil || got[0] != nil {
				t.Errorf("get batch: %v", errs)
			}
			if name == "nothing" {
				return // it misses nothing, and stores all
			}
			if got, err := c.Missing(context.Background(), []chunk.ID{f.ID}); err == nil {
				t.Errorf("missing gave %v", got)
			}
			if errs := c.PutBatch(context.Background(), []chunks.Frame{f}); errs[0] == nil {
				t.Error("put batch was content")
			}
		})
	}
}

func TestClientsAreForgotten(t *testing.T) {
	c := &clients{requestsMax: 10, perClientMax: 1, known: make(map[string]*client)}
	now := time.Now()
	busy, err := c.enter("busy", now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range clientsMax - 1 {
		one, err := c.enter(fmt.Sprint(i), now)
		if err != nil {
			t.Fatal(err)
		}
		c.leave(one, now)
	}
	if _, err := c.enter("new", now.Add(time.Second)); !fault.Is(err, fault.Exhausted) {
		t.Error("one more than are known at a time:", err)
	}
	if _, err := c.enter("new", now.Add(time.Minute)); err != nil {
		t.Error("when the others rest:", err)
	}
	if c.known["busy"] != busy || len(c.known) != 2 {
		t.Errorf("%d clients are known", len(c.known))
	}
}

func BenchmarkLoopback(b *testing.B) {
	for _, kib := range []int{64, 128, 512} {
		state := b.TempDir()
		frames, ids := sampleFrames(64<<10/kib/2, kib<<10) // 32 MiB
		b.Run(fmt.Sprintf("put/%dKiB", kib), func(b *testing.B) {
			s := serve(b, state, 0, HandlerOptions{}, ClientOptions{}, nil)
			b.SetBytes(32 << 20)
			for b.Loop() {
				b.StopTimer()
				for _, id := range ids {
					if err := s.kept.Evict(context.Background(), id); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				for _, err := range s.PutBatch(context.Background(), frames) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
		b.Run(fmt.Sprintf("get/%dKiB", kib), func(b *testing.B) {
			s := serve(b, state, 0, HandlerOptions{}, ClientOptions{}, nil)
			for _, err := range chunks.PutBatch(context.Background(), s.kept, frames, 16) {
				if err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(32 << 20)
			for b.Loop() {
				_, errs := s.GetBatch(context.Background(), ids)
				for _, err := range errs {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
