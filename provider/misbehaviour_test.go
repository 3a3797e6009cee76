// Every way in which a provider misbehaves, in both dialects, whole and streamed: what the caller is told, how long it takes, and that
// no call was doubled.

package provider

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fakeprovider"
	"github.com/neolith/orchestrator/internal/fault"
)

type step = fakeprovider.Step

// answered stands for no error.
const answered fault.Kind = 255

func TestMisbehaviour(t *testing.T) {
	for _, c := range []struct {
		name   string
		script []step
		unsure bool // the caller lets unsure calls be repeated
		plain  bool // only for whole answers
		stream bool // only for streams

		kind     fault.Kind
		calls    int           // that the provider saw
		gone     int           // of which it lost the client
		min, max time.Duration // that the call took
		retry    time.Duration // at least, in the error
		pieces   string        // that a stream gave before it failed
	}{
		{name: "nothing is wrong", script: nil, kind: answered, calls: 1},
		{name: "429 with Retry-After", script: []step{{Status: 429, RetryAfter: "2"}}, kind: answered, calls: 2, min: 2 * time.Second, max: 3 * time.Second},
		{name: "429 with a date", script: []step{{Status: 429, RetryAfter: "Sat, 01 Jan 2000 00:00:03 GMT"}}, kind: answered, calls: 2, min: 3 * time.Second, max: 4 * time.Second},
		{name: "429 for long", script: []step{{Status: 429, RetryAfter: "60"}}, kind: fault.Exhausted, calls: 1, max: time.Millisecond, retry: 60 * time.Second},
		{name: "429 without Retry-After", script: []step{{Status: 429}}, kind: answered, calls: 2, min: 400 * time.Millisecond, max: 2 * time.Second},
		{name: "429 for ever", script: []step{{Status: 429}, {Status: 429}, {Status: 429}, {Status: 429}, {Status: 429}}, kind: fault.Exhausted, calls: 4, min: 3 * time.Second, max: 8 * time.Second},
		{name: "no money", script: []step{{Status: 429, ErrorType: "insufficient_quota"}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond, retry: 30 * time.Second},
		{name: "500 once", script: []step{{Status: 500}}, kind: answered, calls: 2, min: 200 * time.Millisecond, max: time.Second},
		{name: "500 for ever", script: []step{{Status: 500}, {Status: 500}, {Status: 500}, {Status: 500}, {Status: 500}}, kind: fault.Unavailable, calls: 4, max: 5 * time.Second},
		{name: "503", script: []step{{Status: 503, RetryAfter: "1"}}, kind: answered, calls: 2, min: time.Second, max: 2 * time.Second},
		{name: "529", script: []step{{Status: 529}}, kind: answered, calls: 2, max: time.Second},
		{name: "502: unsure, and not repeated", script: []step{{Status: 502}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond},
		{name: "502, repeated on request", script: []step{{Status: 502}}, unsure: true, kind: answered, calls: 2, max: time.Second},
		{name: "400", script: []step{{Status: 400}}, kind: fault.Invalid, calls: 1, max: time.Millisecond},
		{name: "404", script: []step{{Status: 404}}, kind: fault.NotFound, calls: 1, max: time.Millisecond},
		{name: "403", script: []step{{Status: 403}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond},
		{name: "307", script: []step{{Status: 307, Header: map[string]string{"Location": "http://b/"}}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond},
		{name: "401", script: []step{{Status: 401}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond, retry: 30 * time.Second},
		{name: "hangs, whole", plain: true, script: []step{{Hang: true}}, kind: fault.Timeout, calls: 1, gone: 1, min: 2 * time.Minute, max: 2 * time.Minute},
		{name: "hangs, streamed", stream: true, script: []step{{Hang: true}}, kind: fault.Timeout, calls: 1, gone: 1, min: time.Minute, max: time.Minute},
		{name: "slow first byte", script: []step{{Delay: 50 * time.Second}}, kind: answered, calls: 1, min: 50 * time.Second, max: 51 * time.Second},
		{name: "no answer", script: []step{{DropConnection: true}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond},
		{name: "no answer, repeated on request", script: []step{{DropConnection: true}}, unsure: true, kind: answered, calls: 2, max: time.Second},
		{name: "garbage", script: []step{{Garbage: true}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond},
		{name: "cut, whole", plain: true, script: []step{{Cut: true}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond},
		{name: "cut before the first piece", stream: true, script: []step{{Cut: true}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond},
		{name: "cut in the middle", stream: true, unsure: true, script: []step{{Text: "one two three", Cut: true, CutAfter: 2}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond, pieces: "one two "},
		{name: "stalls in the middle", stream: true, script: []step{{Text: "one two three", Stall: true, StallAfter: 1}}, kind: fault.Timeout, calls: 1, gone: 1, min: time.Minute, max: time.Minute, pieces: "one "},
		{name: "stalls, whole", plain: true, script: []step{{Stall: true}}, kind: fault.Timeout, calls: 1, gone: 1, min: 2 * time.Minute, max: 2 * time.Minute},
		{name: "slow, and never stalled", stream: true, script: []step{{Text: "one two three", Pause: 50 * time.Second}}, kind: fault.Timeout, calls: 1, gone: 1, min: 2 * time.Minute, max: 2 * time.Minute, pieces: "one two "},
		{name: "overloaded, told in the stream", stream: true, script: []step{{StreamError: "overloaded_error"}}, kind: answered, calls: 2, max: time.Second},
		{name: "failed, told in the stream", stream: true, script: []step{{StreamError: "api_error"}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond},
		{name: "overloaded, told in the middle", stream: true, unsure: true, script: []step{{Text: "one two", StreamError: "overloaded_error", CutAfter: 1}}, kind: fault.Unavailable, calls: 1, max: time.Millisecond, pieces: "one "},
	} {
		for _, dialect := range []string{OpenAI, Anthropic} {
			for _, streamed := range []bool{false, true} {
				if c.plain && streamed || c.stream && !streamed {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%t", c.name, dialect, streamed), func(t *testing.T) {
					inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(dialect, func(c *PoolConfig) { c.AcquireTimeout = 20 * time.Second })}}}, func(t *testing.T, w *world) {
						fake := w.fakes["a"]
						fake.Script(c.script...)
						r := ask(func(r *Request) { r.RepeatUnsure = c.unsure })
						began := time.Now()
						var res *Response
						var pieces string
						var err error
						if streamed {
							res, pieces, err = w.stream(t.Context(), r)
						} else {
							res, err = w.Chat(t.Context(), r)
						}
						took := time.Since(began)
						w.settle()
						if c.kind == answered {
							if err != nil {
								t.Fatal(err)
							}
							if res.Text != "echo: hello there" || streamed && pieces != res.Text || res.Attempts != c.calls || res.Stop != StopEnd || res.Usage.Estimated {
								t.Errorf("%+v, pieces %q", res, pieces)
							}
						} else {
							wantKind(t, err, c.kind)
							if pieces != c.pieces {
								t.Errorf("pieces %q", pieces)
							}
							if e := fault.As(err); e != nil && (e.RetryAfter < c.retry || c.retry > 0 && e.RetryAfter > c.retry+5*time.Second) {
								t.Errorf("come back in %s", e.RetryAfter)
							}
							t.Log(err)
						}
						if fake.Count() != c.calls || fake.Gone() != c.gone || fake.Running() != 0 {
							t.Errorf("the provider saw %d calls, lost %d, and answers %d", fake.Count(), fake.Gone(), fake.Running())
						}
						if took < c.min || took > max(c.max, time.Millisecond) {
							t.Errorf("took %s", took)
						}
						if s := w.List()[0]; s.InUse != 0 || s.Waiting != 0 || s.Sent != int64(c.calls) {
							t.Errorf("%+v", s)
						}
					})
				})
			}
		}
	}
}

// What a provider says of a refused key is not repeated, and a key in any other text is masked.
func TestKeysAreNeverShown(t *testing.T) {
	const key = "sk-very-secret-0123456789-abcdefghij"
	for _, s := range []step{
		{Status: 401, ErrorText: "bad key " + key}, {Status: 400, ErrorText: "you sent " + key + " with\nit"},
		{Status: 429, ErrorText: "key " + key[:12] + "... is slow"}, {Status: 500, ErrorText: key}, {Status: 502, ErrorText: "..." + key[len(key)-10:]},
		{StreamError: key},
	} {
		c := one(OpenAI, func(c *PoolConfig) { c.KeyFile, c.Insecure = keyFile(t, key), true })
		var log strings.Builder
		inBubble(t, Options{Logger: logTo(&log), Config: Config{AttemptsMax: 1, Pools: []PoolConfig{c}}}, func(t *testing.T, w *world) {
			w.fakes["a"].Script(s)
			_, _, err := w.stream(t.Context(), ask())
			if err == nil {
				t.Fatal("answered")
			}
			shown := fmt.Sprintf("%v %+v %#v %s %+v", err, w.List(), w.Pools.list[0].lanes[0].currentKey(), log.String(), *w.Pools.list[0].lanes[0].key.Load())
			for _, part := range []string{key, key[:12], key[len(key)-10:], "very-secret"} {
				if strings.Contains(shown, part) {
					t.Errorf("%q is in %s", part, shown)
				}
			}
			if got := w.fakes["a"].Calls()[0].Key; got != key {
				t.Errorf("the provider got %q", got)
			}
			if strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%q", err)
			}
		})
	}
}
