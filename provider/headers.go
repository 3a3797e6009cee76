// What an answer's header says of limits.

package provider

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// retryAfterMax bounds for how long a provider may send us away.
const retryAfterMax = time.Hour

// left is what a provider says is left of a limit.
type left struct {
	known bool
	n     int64
	reset time.Duration // until it is full again; 0 when not said
}

// limits is what a header says.
type limits struct {
	requests, tokens left
	retryAfter       time.Duration // 0 when not said
}

// readLimits understands OpenAI's header and those who copy it, Anthropic's, and the standard ones.
func readLimits(h http.Header, now time.Time) limits {
	return limits{
		requests: readLeft(h, now, "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests",
			"Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset"),
		tokens: readLeft(h, now, "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens",
			"Anthropic-Ratelimit-Tokens-Remaining", "Anthropic-Ratelimit-Tokens-Reset"),
		retryAfter: readRetryAfter(h, now),
	}
}

// readLeft takes the first pair of names (remaining, reset) that is there.
func readLeft(h http.Header, now time.Time, names ...string) left {
	for i := 0; i < len(names); i += 2 {
		n, err := strconv.ParseInt(strings.TrimSpace(h.Get(names[i])), 10, 64)
		if err != nil {
			continue
		}
		return left{known: true, n: max(n, 0), reset: readSpan(h.Get(names[i+1]), now)}
	}
	return left{}
}

// readSpan reads "1s", "6m0s", "12" (seconds) or an instant; 0 when it is none.
func readSpan(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	var d time.Duration
	if seconds, err := strconv.ParseFloat(s, 64); err == nil {
		if seconds > 0 { // and a number
			d = time.Duration(min(seconds, retryAfterMax.Seconds()) * float64(time.Second))
		}
	} else if span, err := time.ParseDuration(s); err == nil {
		d = span
	} else if at, err := time.Parse(time.RFC3339, s); err == nil {
		d = at.Sub(now)
	} else if at, err := http.ParseTime(s); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), retryAfterMax)
}

func readRetryAfter(h http.Header, now time.Time) time.Duration {
	if ms, err := strconv.ParseInt(strings.TrimSpace(h.Get("Retry-After-Ms")), 10, 64); err == nil && ms > 0 {
		return min(time.Duration(min(ms, retryAfterMax.Milliseconds()))*time.Millisecond, retryAfterMax)
	}
	return readSpan(h.Get("Retry-After"), now)
}
