// The parts that need no network: events, headers, limits by the minute; and TLS, which needs one.

package provider

import (
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/internal/fakeprovider"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestEvents(t *testing.T) {
	long := strings.Repeat("x", eventBytesMax)
	for _, c := range []struct {
		text string
		want []string // name=data
		err  error
	}{
		{"", nil, io.EOF},
		{"data: a\n\n", []string{"=a"}, io.EOF},
		{"event: e\ndata: a\ndata:b\n\n: comment\n\nid: 7\ndata\n\n", []string{"e=a\nb", "="}, io.EOF},
		{"event: lost\n\ndata: a\r\n\r\n", []string{"=a"}, io.EOF},
		{"data: a\n\ndata: b", []string{"=a"}, io.ErrUnexpectedEOF},
		{"data: a\n", nil, io.ErrUnexpectedEOF},
		{"data: " + long + "\n\n", nil, errEventTooLong},
		{"data: " + long[:len(long)/2] + "\ndata: " + long[:len(long)/2] + "\n\n", nil, errEventTooLong},
	} {
		for _, r := range []io.Reader{strings.NewReader(c.text), iotest.HalfReader(strings.NewReader(c.text))} {
			s := newSSEReader(r, func() {})
			var got []string
			var err error
			for err == nil {
				var e sseEvent
				if e, err = s.next(); err == nil {
					got = append(got, e.name+"="+string(e.data))
				}
			}
			if strings.Join(got, "|") != strings.Join(c.want, "|") || !errors.Is(err, c.err) {
				t.Errorf("%.40q: %q, %v", c.text, got, err)
			}
		}
	}
}

// Whatever a provider sends, reading it ends, and makes no more than a bounded answer of it.
func FuzzAnswers(f *testing.F) {
	f.Add("data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
	f.Add("event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":-7}}}\n\n")
	f.Add(`{"choices":[{"message":{"content":null}}],"usage":{"prompt_tokens":1e9}}`)
	f.Add(`{"type":"message","content":[{"type":"text","text":"x"}],"usage":null}`)
	f.Add(`{"error":{"code":1113,"message":"x"}}`)
	f.Add(`{"error":"x"}`)
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range []string{OpenAI, Anthropic} {
			d := newDialect(PoolConfig{Dialect: name})
			var a answer
			_ = d.decode([]byte(text), &a)
			s := newSSEReader(strings.NewReader(text), func() {})
			for {
				e, err := s.next()
				if err != nil {
					break
				}
				if _, err := d.event(e, &a); err != nil && strings.ContainsAny(oneLine(err.Error(), excerptBytesMax), "\r\n") {
					t.Errorf("%q", err)
				}
			}
			if a.usage.InputTokens < 0 || a.usage.OutputTokens < 0 || a.bytes() > 2*len(text)+8 {
				t.Errorf("%+v of %d bytes", a.usage, len(text))
			}
		}
		readError([]byte(text))
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "0.5": 500 * time.Millisecond, "-3": 0, "soon": 0, "NaN": 0, "1e300": time.Hour, "999999999999": time.Hour, "6m0s": 6 * time.Minute, "20ms": 20 * time.Millisecond,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0, "2026-01-02T03:05:05Z": time.Minute, "2027-01-02T03:05:05Z": time.Hour,
	} {
		h := http.Header{}
		h.Set("Retry-After", text)
		if got := readLimits(h, now).retryAfter; got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if got := readLimits(http.Header{"Retry-After-Ms": {"1500"}, "Retry-After": {"9"}}, now).retryAfter; got != 1500*time.Millisecond {
		t.Errorf("%s", got)
	}
}

// In no minute is more taken than the limit, whatever comes when; and whoever is told to wait may take afterwards.
func TestQuotaHoldsInAnyMinute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(1, 50).Draw(t, "limit")
		q := quota{perMinute: limit}
		type taken struct {
			at time.Time
			n  int64
		}
		var all []taken
		now := time.Unix(1_000_000, rapid.Int64Range(0, 999_999_999).Draw(t, "start"))
		for range rapid.IntRange(1, 120).Draw(t, "calls") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(20*time.Second)).Draw(t, "pause")))
			n := rapid.Int64Range(1, limit).Draw(t, "n")
			if d := q.wait(n, now); d > 0 {
				if d > time.Minute+time.Second {
					t.Fatalf("wait for %s", d)
				}
				if again := q.wait(n, now.Add(d)); again > 0 {
					t.Fatalf("told to wait for %s, and then for %s", d, again)
				}
				now = now.Add(d)
			}
			q.take(n, now)
			all = append(all, taken{now, n})
		}
		for i, first := range all {
			sum := int64(0)
			for _, other := range all[i:] {
				if other.at.Sub(first.at) < 59*time.Second {
					sum += other.n
				}
			}
			if sum > limit {
				t.Fatalf("%d in the minute from %s on; the limit is %d", sum, first.at, limit)
			}
		}
	})
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{"a\r\n\tb\x00c \u2028 d": "a b c d", "äöü": "äö…", "\xff\xfe": "?"} {
		if got := oneLine(in, 5); in == "äöü" && got != want || in != "äöü" && oneLine(in, 50) != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

// Many calls at once, against providers that do anything: no call is worked on twice.
func TestNoCallIsDoubled(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	kinds := []step{{}, {}, {}, {Status: 429}, {Status: 429, RetryAfter: "1"}, {Status: 500}, {Status: 503}, {Status: 502}, {Delay: time.Second}, {DropConnection: true},
		{Garbage: true}, {Cut: true, CutAfter: 1, Text: "a b c"}, {Status: 400}, {Stall: true}, {Hang: true}, {StreamError: "overloaded_error"}}
	refusal := func(s step) bool {
		return s.Status == 429 || s.Status == 500 || s.Status == 503 || s.Status == 400 || s.StreamError != ""
	}
	c := one(OpenAI, func(c *PoolConfig) {
		c.Max, c.WaitingMax, c.BreakerFailures, c.AcquireTimeout = 7, 1000, 1000, 10*time.Minute
	})
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{c, named("b", c)}}}, func(t *testing.T, w *world) {
		w.run()
		for _, f := range w.fakes {
			for range 600 {
				f.Script(kinds[chance.IntN(len(kinds))])
			}
		}
		good := make(chan string, 400)
		w.each(400, func(i int) {
			text := "message " + strings.Repeat("x", i)
			r := ask(func(r *Request) { r.Messages[0].Text = text })
			if _, _, err := w.stream(t.Context(), r); err == nil {
				good <- text
			}
		})
		close(good)
		w.settle()
		worked := map[string]int{}
		sent := int64(0)
		for _, f := range w.fakes {
			for _, call := range f.Calls() {
				sent++
				if !refusal(call.Step) {
					messages := call.Body["messages"].([]any)
					worked[messages[0].(map[string]any)["content"].(string)]++
				}
			}
		}
		for text, n := range worked {
			if n != 1 {
				t.Errorf("a message of %d bytes was worked on %d times", len(text), n)
			}
		}
		answers := 0
		for text := range good {
			if answers++; worked[text] != 1 {
				t.Errorf("answered, and worked on %d times", worked[text])
			}
		}
		var s, a int64
		for _, p := range w.List() {
			s, a = s+p.Sent, a+p.Answered
			if p.InUse != 0 || p.Waiting != 0 || p.Open > p.Max {
				t.Errorf("%+v", p)
			}
		}
		if s != sent || a != int64(answers) || answers < 50 {
			t.Errorf("counted %d sent and %d answered, and they saw %d; %d answers", s, a, sent, answers)
		}
	})
}

// A real server with a certificate of an authority of its own.
func TestOverTLS(t *testing.T) {
	fake := fakeprovider.New()
	h := httptest.NewUnstartedServer(fake)
	h.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that is to fail
	h.StartTLS()
	defer h.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})))
	c := one(Anthropic, func(c *PoolConfig) { c.URL, c.CAFile, c.KeyFile = h.URL, ca, keyFile(t, "secret-key") })
	for _, trusted := range []bool{true, false} {
		if !trusted {
			c.CAFile, c.AcquireTimeout = "", 50*time.Millisecond
		}
		p, err := New(Options{Config: Config{AttemptsMax: 1, Pools: []PoolConfig{c}}})
		if err != nil {
			t.Fatal(err)
		}
		res, err := p.Chat(t.Context(), ask())
		if trusted && (err != nil || res.Text != "echo: hello there" || fake.Calls()[0].Key != "secret-key") {
			t.Errorf("%+v, %v", res, err)
		}
		if !trusted {
			wantKind(t, err, fault.Unavailable)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if fake.Count() != 1 {
		t.Errorf("%d calls: the key was shown to a stranger", fake.Count())
	}
}
