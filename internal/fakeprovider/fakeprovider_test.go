// The server itself: it speaks, misbehaves and counts as it says.

package fakeprovider

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	chatBody = `{"model":"m","messages":[{"role":"user","content":"hello there"}]}`
	chatSSE  = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hello there"}]}`
	msgSSE   = `{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hello there"}]}`
)

// post sends a body and returns the status and all of the answer that came.
func post(t *testing.T, url, body string) (int, string, http.Header, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Anthropic-Version", "2023-06-01")
	r.Header.Set("Authorization", "Bearer k")
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		return 0, "", nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), res.Header, err
}

func TestDialectsAndMisbehaviour(t *testing.T) {
	for _, c := range []struct {
		name, path, body string
		step             Step
		status           int
		want             string // in what came
		broken           bool   // the answer does not end well
	}{
		{"chat", "/v1/chat/completions", chatBody, Step{}, 200, `"content":"echo: hello there"`, false},
		{"chat stream", "/v1/chat/completions", chatSSE, Step{Text: "a b"}, 200, "data: [DONE]", false},
		{"messages stream", "/v1/messages", msgSSE, Step{Reasoning: "hm"}, 200, "event: message_stop", false},
		{"messages need max_tokens", "/v1/messages", chatBody, Step{}, 400, "max_tokens: field required", false},
		{"429", "/v1/messages", msgSSE, Step{Status: 429, RetryAfter: "7"}, 429, `"type":"error"`, false},
		{"500", "/v1/chat/completions", chatBody, Step{Status: 500}, 500, `"error":{`, false},
		{"garbage", "/v1/chat/completions", chatBody, Step{Garbage: true}, 200, "<html>", false},
		{"cut stream", "/v1/chat/completions", chatSSE, Step{Text: "one two three", Cut: true, CutAfter: 2}, 200, `"two "`, true},
		{"cut whole", "/v1/chat/completions", chatBody, Step{Cut: true}, 200, "{", true},
		{"no answer", "/v1/chat/completions", chatBody, Step{DropConnection: true}, 0, "", true},
		{"error in a stream", "/v1/messages", msgSSE, Step{StreamError: "overloaded_error"}, 200, "event: error", false},
		{"no such path", "/v1/else", chatBody, Step{}, 404, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New()
			url := s.Start(t)
			s.Script(c.step)
			status, text, header, err := post(t, url+c.path, c.body)
			if status != c.status || !strings.Contains(text, c.want) || (err != nil) != c.broken {
				t.Errorf("%d, %v: %s", status, err, text)
			}
			if got := header.Get("Retry-After"); got != c.step.RetryAfter {
				t.Errorf("Retry-After: %q", got)
			}
			if calls := s.Calls(); status != 404 && (len(calls) != 1 || s.Count() != 1 || calls[0].Key != "k" || calls[0].Model != "m") {
				t.Errorf("saw %+v", calls)
			}
		})
	}
}

// A client that leaves is noticed, under simulated time, and what was slow took its time.
func TestMemoryNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := New(), NewMemory()
		m.Serve("fake:80", s)
		defer m.Close()
		tr := &http.Transport{DialContext: m.DialContext}
		defer tr.CloseIdleConnections()
		send := func(ctx context.Context) error {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://fake/chat/completions", bytes.NewBufferString(chatBody))
			if err != nil {
				t.Fatal(err)
			}
			res, err := tr.RoundTrip(r)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			_, err = io.Copy(io.Discard, res.Body)
			return err
		}
		s.Script(Step{Delay: time.Minute}, Step{Hang: true})
		began := time.Now()
		if err := send(t.Context()); err != nil || time.Since(began) != time.Minute {
			t.Errorf("the slow one: %v after %s", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := send(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the hanging one: %v", err)
		}
		synctest.Wait()
		if s.Count() != 2 || s.Gone() != 1 || s.Running() != 0 || m.Dials("fake:80") != 1 || m.Open() != 0 {
			t.Errorf("count %d, gone %d, running %d, dials %d, open %d", s.Count(), s.Gone(), s.Running(), m.Dials("fake:80"), m.Open())
		}
		m.Refuse("fake:80", true)
		if err := send(t.Context()); err == nil {
			t.Error("refused, and it went through")
		}
	})
}

func TestKeysAndProbes(t *testing.T) {
	s := New()
	url := s.Start(t)
	s.Accept("other")
	if status, _, _, err := post(t, url+"/chat/completions", chatBody); status != 401 || err != nil {
		t.Errorf("%d, %v", status, err)
	}
	s.Accept("k")
	if status, _, _, err := post(t, url+"/chat/completions", chatBody); status != 200 || err != nil {
		t.Errorf("%d, %v", status, err)
	}
	s.Accept()
	s.Probe(503)
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(url + "/v1/models")
	if err != nil || res.StatusCode != 503 || s.Probes() != 1 {
		t.Errorf("%v, %v, %d", res, err, s.Probes())
	}
	if err == nil {
		res.Body.Close()
	}
}
