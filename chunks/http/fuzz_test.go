// Fuzzers of what comes from the network.

package http

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// memory is a store in memory.
type memory struct {
	mu   sync.Mutex
	kept map[chunk.ID][]byte
}

func (m *memory) Missing(_ context.Context, ids []chunk.ID) (missing []chunk.ID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if _, ok := m.kept[id]; !ok {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

func (m *memory) Put(_ context.Context, id chunk.ID, frame []byte) error {
	if err := chunks.VerifyPut(id, frame); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[id] = frame
	return nil
}

func (m *memory) Get(_ context.Context, id chunk.ID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f, ok := m.kept[id]; ok {
		return f, nil
	}
	return nil, chunks.NotFound(id, "memory")
}

// Whatever a client sends: every request is answered, an error in JSON, and nothing is stored but chunks.
func FuzzRequests(f *testing.F) {
	one := chunkstest.Chunk(1, 50)
	record := append(putRecord(one.ID, len(one.Bytes)), one.Bytes...)
	f.Add("POST", "put", record)
	f.Add("POST", "put", append(bytes.Clone(record), record[:40]...))
	f.Add("POST", "get", append(one.ID[:], one.ID[:]...))
	f.Add("POST", "missing", one.ID[:])
	f.Add("PUT", one.ID.String(), one.Bytes)
	f.Add("GET", one.ID.String(), []byte{})
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		r, err := http.NewRequest(method, "http://server/v1/chunks/", bytes.NewReader(body))
		if err != nil {
			return
		}
		r.URL.Path += path
		m := &memory{kept: make(map[chunk.ID][]byte)}
		w := httptest.NewRecorder()
		NewHandler(m, HandlerOptions{}).ServeHTTP(w, r)
		for id, frame := range m.kept {
			if err := chunks.Verify(id, frame); err != nil {
				t.Error("stored:", err)
			}
		}
		if w.Code >= 500 {
			t.Errorf("%s %q is answered %d %s", method, path, w.Code, w.Body)
		}
		var said failure
		if w.Code >= 400 && (json.Unmarshal(w.Body.Bytes(), &said) != nil || said.Code == "") {
			t.Errorf("%s %q is answered %d %q", method, path, w.Code, w.Body)
		}
	})
}

// Whatever a server answers: the client gives nothing that is not the chunk, and ends.
func FuzzAnswers(f *testing.F) {
	one, other := chunkstest.Chunk(1, 50), chunkstest.Chunk(2, 50)
	good := append(gotRecord(one.ID, gotFrame, len(one.Bytes)), one.Bytes...)
	f.Add(200, good)
	f.Add(200, append(good, append(gotRecord(other.ID, gotError, 2), "{}"...)...))
	f.Add(200, one.Bytes)
	f.Add(200, []byte(`{"stored":1,"failed":[{"index":1}]}`))
	f.Add(429, []byte(`{"code":"RESOURCE_EXHAUSTED","retryAfterMs":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, status int, answer []byte) {
		if status < 200 || status > 599 {
			return
		}
		c, err := NewClient(ClientOptions{URL: "http://server", AttemptsMax: 1, Transport: answering(func(r *http.Request) *http.Response {
			return &http.Response{StatusCode: status, Status: "s", Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(answer)), ContentLength: int64(len(answer)), Request: r}
		})})
		if err != nil {
			t.Fatal(err)
		}
		ctx, ids := context.Background(), []chunk.ID{one.ID, other.ID}
		if frame, err := c.Get(ctx, one.ID); err == nil && chunks.Verify(one.ID, frame) != nil {
			t.Error("get gave something else")
		}
		frames, errs := c.GetBatch(ctx, ids)
		for i, id := range ids {
			if (errs[i] == nil) != (frames[i] != nil) || errs[i] == nil && chunks.Verify(id, frames[i]) != nil {
				t.Errorf("get batch gave %d bytes, %v", len(frames[i]), errs[i])
			}
		}
		if missing, err := c.Missing(ctx, ids); err == nil {
			for _, id := range missing {
				if id != one.ID && id != other.ID {
					t.Error("missing what was not asked for")
				}
			}
		}
		_ = c.PutBatch(ctx, []chunks.Frame{one, other})
	})
}

// answering is a server without a network.
type answering func(r *http.Request) *http.Response

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	return a(r), nil
}
