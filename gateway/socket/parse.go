// Reading what clients say. Everything here comes from outside and is refused by default.

package socket

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/neolith/orchestrator/gateway/tools"
)

// request is a message of a client whose envelope could be read. Its fields are still JSON, in the bytes that were received.
type request struct {
	op     string
	id     string // request_id; empty when there is none, or it is wrong
	fields []field
	words  words
}

// words are texts that are said so often that nobody needs one of their own. It is made once, and then only read.
type words map[string]string

// newWords returns those of the protocol.
func newWords() words {
	w := words{}
	for op := range answers {
		w.add(op)
	}
	for _, p := range priorities {
		w.add(p)
	}
	return w
}

func (w words) add(s string) { w[s] = s }

// text returns bytes as a text.
func (w words) text(b []byte) string {
	if s, ok := w[string(b)]; ok {
		return s
	}
	return string(b)
}

type field struct {
	name  []byte
	value json.RawMessage
}

// keepFields is how many fields a request that is used again has room for.
const keepFields = 16

// borrowRequest returns an empty request, until returnRequest.
func (h *Hub) borrowRequest() *request {
	if r, ok := h.requests.Get().(*request); ok {
		return r
	}
	return &request{words: h.words}
}

// returnRequest takes one back: nothing of it may be used any more but its texts.
func (h *Hub) returnRequest(r *request) {
	if cap(r.fields) > keepFields {
		return
	}
	clear(r.fields)
	r.op, r.id, r.fields = "", "", r.fields[:0]
	h.requests.Put(r)
}

// field returns a field, nil where there is none. Of two with one name the last one counts.
func (r *request) field(name string) json.RawMessage {
	for _, f := range slices.Backward(r.fields) {
		if string(f.name) == name {
			return f.value
		}
	}
	return nil
}

// errEnvelope is what is wrong with a frame that is no message at all.
type errEnvelope struct{ why string }

func (e *errEnvelope) Error() string { return e.why }

// parse reads the envelope: one JSON object in UTF-8, not too deep, with an op. What it holds then is good as long as data is.
func (r *request) parse(data []byte) error {
	switch {
	case !utf8.Valid(data):
		return &errEnvelope{"the frame is not UTF-8"}
	case nesting(data) > maxNesting:
		return &errEnvelope{fmt.Sprintf("the frame nests deeper than %d", maxNesting)}
	}
	if !json.Valid(data) {
		var v json.RawMessage
		return &errEnvelope{fmt.Sprintf("the frame is not JSON: %v", json.Unmarshal(data, &v))}
	}
	var isObject bool
	if r.fields, isObject = appendFields(r.fields[:0], data); !isObject {
		return &errEnvelope{"the frame is not a JSON object"}
	}
	r.op, _ = r.text("op", len(data))
	if id, f := r.text("request_id", maxRequestIDBytes); f == nil && printable(id) {
		r.id = id
	}
	return nil
}

// appendFields adds the fields of valid JSON, as parts of it, when that is an object.
func appendFields(to []field, data []byte) (fields []field, isObject bool) {
	data = skipSpace(data)
	if data[0] != '{' {
		return to, false
	}
	rest := skipSpace(data[1:])
	for rest[0] != '}' {
		end := endOf(rest)
		name := rest[1 : end-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			s, _ := unquote(rest[:end], nil)
			name = []byte(s)
		}
		rest = skipSpace(rest[end:])
		rest = skipSpace(rest[1:]) // behind the colon
		end = endOf(rest)
		to = append(to, field{name, json.RawMessage(rest[:end:end])})
		rest = skipSpace(rest[end:])
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
	}
	return to, true
}

// skipSpace returns valid JSON from where it means something.
func skipSpace(data []byte) []byte {
	i := 0
	for i < len(data) && data[i] <= ' ' {
		i++
	}
	return data[i:]
}

// endOf is where the value ends with which valid JSON begins.
func endOf(data []byte) int {
	deep, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			if quoted = !quoted; !quoted && deep == 0 {
				return i + 1
			}
		case quoted:
		case c == '{' || c == '[':
			deep++
		case c == '}' || c == ']' || c == ',' || c <= ' ':
			if deep == 0 { // behind a number or a word
				return i
			}
			if c == '}' || c == ']' {
				if deep--; deep == 0 {
					return i + 1
				}
			}
		}
	}
	return len(data)
}

// unquote reads a string of valid JSON in UTF-8; anything else is none.
func unquote(raw []byte, known words) (s string, isString bool) {
	if raw[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return known.text(raw[1 : len(raw)-1]), true
	}
	return s, json.Unmarshal(raw, &s) == nil
}

// nesting is how deep objects and arrays lie in one another, found without reading them.
func nesting(data []byte) int {
	deep, most, quoted := 0, 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			deep++
			most = max(most, deep)
		case c == '}' || c == ']':
			deep--
		}
	}
	return most
}

func isNull(b json.RawMessage) bool { return len(b) == 0 || bytes.Equal(b, []byte("null")) }

// printable reports whether a text can stand in a log and a header: ASCII without spaces and controls.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// text reads a field that is a string; empty when it is missing.
func (r *request) text(field string, maxBytes int) (string, *failure) {
	raw := r.field(field)
	if isNull(raw) {
		return "", nil
	}
	s, isString := unquote(raw, r.words)
	if !isString {
		return "", invalid(field, "is not a string")
	}
	if len(s) > maxBytes {
		return "", invalid(field, fmt.Sprintf("is %d bytes, more than %d", len(s), maxBytes))
	}
	return s, nil
}

// requestID reads the request_id, which must be there.
func (r *request) requestID() (string, *failure) {
	if r.id != "" {
		return r.id, nil
	}
	id, f := r.text("request_id", maxRequestIDBytes)
	switch {
	case f != nil:
		return "", f
	case id == "":
		return "", invalid("request_id", "is missing; give each call one of its own")
	case !printable(id):
		return "", invalid("request_id", "has characters other than printable ASCII without spaces")
	}
	return id, nil
}

// toolCall is a call_tool whose own fields are right; the arguments are not checked yet.
type toolCall struct {
	id, name, priority string
	arguments          json.RawMessage
	timeout            time.Duration // 0 for none given
	durable            choice
	key                string      // calls with one run one after the other
	tool               *tools.Tool // once it was found
}

// choice is something that a client may leave open.
type choice byte

const (
	unsaid choice = iota
	said
	denied
)

// nothing is the arguments of calls that have none. It is never changed.
var nothing = json.RawMessage("{}")

// priorities are those that a call may have.
var priorities = [...]string{"critical", "high", "normal", "low"}

// orderKey is the key that the call names, or else the conversation that it belongs to.
func (t *toolCall) orderKey() string {
	if t.key != "" || t.tool.OrderKey == nil {
		return t.key
	}
	return t.tool.OrderKey(t.arguments)
}

// toolCall reads a call_tool.
func (r *request) toolCall(l *Limits) (c toolCall, f *failure) {
	if c.id, f = r.requestID(); f != nil {
		return c, f
	}
	if c.name, f = r.text("name", maxRequestIDBytes); f != nil {
		return c, f
	}
	if c.name == "" {
		return c, invalid("name", "is missing; list_tools tells the names")
	}
	switch raw := r.field("arguments"); {
	case isNull(raw), bytes.Equal(raw, nothing):
		c.arguments = nothing
	default:
		c.arguments = slices.Clone(raw) // the call outlives the message
	}
	switch {
	case len(c.arguments) > l.ArgumentBytes:
		return c, invalid("arguments", fmt.Sprintf("are %d bytes, more than %d", len(c.arguments), l.ArgumentBytes))
	case c.arguments[0] != '{':
		return c, invalid("arguments", "are not an object")
	}
	if c.priority, f = r.text("priority", maxRequestIDBytes); f != nil {
		return c, f
	}
	if c.priority != "" && !slices.Contains(priorities[:], c.priority) {
		return c, invalid("priority", "is not one of critical, high, normal, low")
	}
	switch raw := r.field("durable"); {
	case isNull(raw):
	case string(raw) == "true":
		c.durable = said
	case string(raw) == "false":
		c.durable = denied
	default:
		return c, invalid("durable", "is not true or false")
	}
	if c.key, f = r.text("key", maxRequestIDBytes); f != nil {
		return c, f
	}
	if raw := r.field("deadline_ms"); !isNull(raw) {
		var ms int64
		if err := json.Unmarshal(raw, &ms); err != nil {
			return c, invalid("deadline_ms", "is not a whole number")
		}
		if ms < 1 || ms > l.CallMax.Milliseconds() {
			return c, invalid("deadline_ms", fmt.Sprintf("%d is outside 1–%d", ms, l.CallMax.Milliseconds()))
		}
		c.timeout = time.Duration(ms) * time.Millisecond
	}
	return c, nil
}
