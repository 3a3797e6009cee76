// What the two dialects have in common, and the answer as it comes together.

package provider

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"
)

// dialect is how a provider speaks. It is pure: bytes in, bytes out.
type dialect interface {
	// chatPath and healthPath are appended to the endpoint's URL.
	chatPath() string
	healthPath() string
	// authorize puts the key, and what else each request needs, into its header.
	authorize(h http.Header, key secret)
	// encode writes a request's body. model is the provider's name for it.
	encode(r *Request, model string, maxTokens int, stream bool) ([]byte, error)
	// decode reads a whole answer.
	decode(body []byte, a *answer) error
	// event reads one event of a stream into the answer, and returns the piece that it brought.
	event(e sseEvent, a *answer) (Delta, error)
}

// newDialect returns a provider's dialect.
func newDialect(c PoolConfig) dialect {
	if c.Dialect == Anthropic {
		return anthropicDialect{}
	}
	return openAIDialect{maxTokensField: c.MaxTokensField}
}

// answer is what has come of an answer.
type answer struct {
	id              string
	text, reasoning strings.Builder
	stop            string
	usage           Usage
	hasUsage        bool
	ended           bool // the stream said that it is complete
}

// add takes a piece.
func (a *answer) add(d Delta) Delta {
	a.text.WriteString(d.Text)
	a.reasoning.WriteString(d.Reasoning)
	return d
}

// bytes is how much has come.
func (a *answer) bytes() int { return a.text.Len() + a.reasoning.Len() }

var (
	errNoAnswer = errors.New("what came is no answer of this dialect")
	errCut      = errors.New("the answer ended in the middle")
)

// upstreamError is the body of a refusal, in either dialect.
type upstreamError struct {
	Type    string
	Code    string
	Message string
}

func (e *upstreamError) Error() string { return e.Message }

// readError reads the body of a refusal; it returns nil when it is none. Codes are text at some providers, and numbers at others.
func readError(body []byte) *upstreamError {
	var b struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
	}
	if json.Unmarshal(body, &b) != nil {
		return nil
	}
	var e struct {
		Type    any    `json:"type"`
		Code    any    `json:"code"`
		Message string `json:"message"`
	}
	if len(b.Error) > 0 && json.Unmarshal(b.Error, &e) == nil {
		return &upstreamError{Type: word(e.Type), Code: word(e.Code), Message: e.Message}
	}
	var text string
	if len(b.Error) > 0 && json.Unmarshal(b.Error, &text) == nil {
		return &upstreamError{Message: text}
	}
	if b.Message != "" {
		return &upstreamError{Message: b.Message}
	}
	return nil
}

// word is a JSON string or number as text.
func word(v any) string {
	switch v := v.(type) {
	case string:
		return oneLine(v, 64)
	case float64:
		b, _ := json.Marshal(v) // of a number that was JSON: it cannot fail
		return string(b)
	}
	return ""
}

// oneLine makes somebody else's text fit into one line of ours.
func oneLine(s string, bytesMax int) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(s) <= bytesMax {
		return s
	}
	for bytesMax > 0 && !utf8.RuneStart(s[bytesMax]) {
		bytesMax--
	}
	return s[:bytesMax] + "…"
}

// stopWord is why an answer ended, in our words where there is one.
func stopWord(s string) string {
	switch s {
	case "stop", "end_turn", "stop_sequence":
		return StopEnd
	case "length", "max_tokens", "model_context_window_exceeded":
		return StopLength
	case "content_filter", "sensitive", "refusal":
		return StopFilter
	}
	return oneLine(s, 64)
}

// atLeastNothing guards against a provider that counts backwards.
func atLeastNothing(n int) int { return min(max(n, 0), maxTokensLimit*10) }
