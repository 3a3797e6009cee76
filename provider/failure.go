// What a failed call means: for its caller, for its endpoint, and for whether it may be tried elsewhere.

package provider

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// certainty says whether a call took place.
type certainty uint8

const (
	refused certainty = iota // it certainly did not: it may be tried elsewhere
	unsure                   // it may have: only a caller who does not mind tries it elsewhere
	final                    // it would not go otherwise elsewhere, or the caller has seen a part
)

// failure is a call that failed.
type failure struct {
	err  *fault.Error
	sure certainty
	// unwell counts against the endpoint's breaker.
	unwell bool
	// block leaves the endpoint alone for so long; blockReason says why, in List.
	block       time.Duration
	blockReason string
	// hopeless is what the same endpoint would answer again.
	hopeless bool
	// badKey has the key read again.
	badKey bool
	// limited is an answer of the provider's rate limit.
	limited bool
	// unsent tells that nothing was sent.
	unsent bool
	// gone tells that the connection did not outlive the call.
	gone bool
	// waited is how much of its patience the call has used up.
	waited time.Duration
}

// Error is the sentence.
func (f *failure) Error() string { return f.err.Error() }

// repeatable reports whether the call may be tried elsewhere.
func (f *failure) repeatable(r *Request) bool {
	return f.sure == refused || f.sure == unsure && r.RepeatUnsure
}

// excerptBytesMax bounds what is shown of a provider's own words.
const excerptBytesMax = 300

// refusal reads an answer whose status is not 200. Text of the provider's is shown without the key; where it is about the key, not at all.
func (l *lane) refusal(status int, body []byte, lim limits, model string) *failure {
	u := readError(body)
	if u == nil {
		u = &upstreamError{}
	}
	said := ""
	if text := oneLine(l.currentKey().scrub(u.Message), excerptBytesMax); text != "" {
		said = ": " + text
	}
	f := func(kind fault.Kind, sure certainty, format string, args ...any) *failure {
		return &failure{sure: sure, err: fault.New(kind, "chat: %s: "+format, append([]any{l.name}, args...)...)}
	}
	switch {
	case outOfMoney(status, u):
		return f(fault.Unavailable, refused, "the account has run out of money or quota (status %d); top it up, or give another key", status).blocking(l.pool.cfg.BreakerOpen, "out of money")
	case status == http.StatusUnauthorized:
		x := f(fault.Unavailable, refused, "refuses the key (status %d); put a valid one into its key_file, which is read again by itself", status).blocking(l.pool.cfg.BreakerOpen, "key refused")
		x.badKey = true
		return x
	case status == http.StatusForbidden: // of this model or this request; the key may be good for others
		x := f(fault.Unavailable, refused, "does not allow its key what was asked of %q (status 403)%s; give the key that right, or take the model out of the configuration", model, said)
		x.hopeless = true
		return x
	case status == http.StatusTooManyRequests:
		x := f(fault.Exhausted, refused, "its rate limit is reached%s", said).blocking(l.backoff(lim.retryAfter), "rate limit")
		x.limited = true
		return x
	case status == http.StatusServiceUnavailable || status == 529:
		x := f(fault.Unavailable, refused, "is overloaded or down (status %d)%s", status, said).blocking(lim.retryAfter, "overloaded")
		x.unwell = true
		return x
	case status == http.StatusNotFound:
		x := f(fault.NotFound, refused, "knows no model %q, or nothing at its url (status 404)%s; correct models or url of the provider", model, said)
		x.hopeless = true
		return x
	case status == http.StatusInternalServerError:
		x := f(fault.Unavailable, refused, "failed (status 500)%s", said)
		x.unwell = true
		return x
	case status == http.StatusRequestTimeout || status >= 500:
		x := f(fault.Unavailable, unsure, "failed on its way (status %d)%s; the model may have worked: ask again if that does no harm", status, said)
		x.unwell = true
		return x
	case status >= 300 && status < 400:
		x := f(fault.Unavailable, refused, "answers with a redirect (status %d), which is not followed because it would take the key elsewhere; correct the provider's url", status)
		x.hopeless = true
		return x
	case status >= 400:
		return f(fault.Invalid, final, "refuses the request (status %d)%s; change what it complains of", status, said)
	}
	return f(fault.Unavailable, unsure, "answers with status %d, which is none for an answer", status).sick()
}

// blocking leaves the endpoint alone for a while.
func (f *failure) blocking(d time.Duration, why string) *failure {
	f.block, f.blockReason, f.err.RetryAfter = d, why, d
	return f
}

func (f *failure) sick() *failure { f.unwell = true; return f }

// outOfMoney tells an empty account from a rate limit, which some providers answer with the same status.
func outOfMoney(status int, u *upstreamError) bool {
	if status == http.StatusPaymentRequired {
		return true
	}
	if status != http.StatusTooManyRequests && status != http.StatusForbidden {
		return false
	}
	for _, w := range []string{u.Type, u.Code} {
		switch w {
		case "insufficient_quota", "credit_balance_exhausted", "exceeded_current_quota_error", "enforced_spend_limit_reached", "billing_error",
			"1113": // zhipuai
			return true
		}
	}
	return false
}

// Causes of a call that we ended.
var (
	errFirstByte = errors.New("the answer did not begin in time")
	errStalled   = errors.New("the answer stalled")
	errTooLong   = errors.New("the call took too long")
	errClosed    = errors.New("the server is stopping")
)

// broken is a call whose connection or stream failed. connected tells whether there was a connection, and came how many bytes of an answer
// there were. The cause of ctx tells whether it was we who ended it, and why.
func (l *lane) broken(ctx, caller context.Context, err error, connected bool, came int) *failure {
	sure := unsure
	if came > 0 {
		sure = final
	}
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errClosed):
		return &failure{gone: true, sure: final, err: fault.New(fault.Unavailable, "chat: %s: %w; ask another server, or this one when it is back", l.name, cause)}
	case caller.Err() != nil:
		kind := fault.Aborted
		if errors.Is(caller.Err(), context.DeadlineExceeded) {
			kind = fault.Timeout
		}
		return &failure{gone: true, sure: final, err: fault.New(kind, "chat: %s: %w; the call was ended there, too", l.name, context.Cause(caller))}
	case !connected:
		return &failure{gone: true, sure: refused, unsent: true, unwell: true,
			err: fault.New(fault.Unavailable, "chat: %s cannot be reached: %w; check the network, and the provider's url", l.name, err)}
	case errors.Is(cause, errFirstByte), errors.Is(cause, errStalled), errors.Is(cause, errTooLong):
		setting := map[error]string{errFirstByte: "first_byte_timeout", errStalled: "stall_timeout", errTooLong: "call_timeout"}[cause]
		return &failure{gone: true, sure: sure, unwell: true,
			err: fault.New(fault.Timeout, "chat: %s: %w; the model may have worked: ask again if that does no harm, or raise %s", l.name, cause, setting)}
	}
	var u *upstreamError
	if errors.As(err, &u) { // an error event within a stream
		return l.brokenStream(u, came)
	}
	return &failure{gone: true, sure: sure, unwell: true,
		err: fault.New(fault.Unavailable, "chat: %s: %w; the model may have worked: ask again if that does no harm", l.name, err)}
}

// brokenStream is an error that came instead of, or within, a stream.
func (l *lane) brokenStream(u *upstreamError, came int) *failure {
	said := oneLine(l.currentKey().scrub(strings.TrimSpace(u.Type+" "+u.Message)), excerptBytesMax)
	f := &failure{gone: true, sure: unsure, unwell: true, err: fault.New(fault.Unavailable, "chat: %s broke its answer off: %s; ask again if that does no harm", l.name, said)}
	switch {
	case came > 0:
		f.sure = final
	case u.Type == "overloaded_error" || u.Type == "rate_limit_error" || u.Code == "rate_limit_exceeded":
		f.sure = refused
	}
	return f
}
