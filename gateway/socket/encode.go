// Writing the messages of which there are many. The bytes are those that encoding/json would write.

package socket

import (
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"github.com/neolith/orchestrator/gateway/tools"
)

// encode writes a message. Its outputs must be as appendOutputs writes them.
func (m *message) encode() []byte {
	if m.isOfCall() {
		return m.appendTo(make([]byte, 0, frameOverhead+len(m.RequestID)+len(m.Name)+len(m.Message)+len(m.Chunk)+len(m.Outputs)))
	}
	return encodeOther(*m) // a copy: what is passed to the library is allocated, and m need not be
}

// encodeOther writes a message of which there are few.
func encodeOther(m message) []byte {
	var v any = &m
	if m.Reason != "" { // the one error that is a word
		v = struct {
			*message
			Error string `json:"error"`
		}{&m, m.Reason}
	}
	b, err := json.Marshal(v)
	if err != nil { // nothing in it can fail to be written
		b, _ = json.Marshal(&message{Op: m.Op, RequestID: m.RequestID, Error: failed(codeInternal, "the answer could not be written")})
	}
	return b
}

// isOfCall reports whether it says no more than that a call was taken, goes on, or went well.
func (m *message) isOfCall() bool {
	return m.OK == nil && m.SessionID == "" && m.Server == "" && !m.Resumed && m.Reason == "" && m.Tools == nil && m.Health == nil && m.Error == nil
}

// appendTo writes a message of a call.
func (m *message) appendTo(b []byte) []byte {
	b = appendText(append(b, `{"op":`...), m.Op)
	if m.RequestID != "" {
		b = appendText(append(b, `,"request_id":`...), m.RequestID)
	}
	if m.Seq != 0 {
		b = strconv.AppendUint(append(b, `,"seq":`...), m.Seq, 10)
	}
	if m.Name != "" {
		b = appendText(append(b, `,"name":`...), m.Name)
	}
	if m.Accepted {
		b = append(b, `,"accepted":true`...)
	}
	if m.Timeout != 0 {
		b = append(b, `,"timeout":`...)
		if whole := int64(m.Timeout); float64(whole) == m.Timeout { // as it most often is
			b = strconv.AppendInt(b, whole, 10)
		} else {
			b = strconv.AppendFloat(b, m.Timeout, 'f', -1, 64)
		}
	}
	if m.Message != "" {
		b = appendText(append(b, `,"message":`...), m.Message)
	}
	if m.Chunk != "" {
		b = appendText(append(b, `,"chunk":`...), m.Chunk)
	}
	if m.Truncated {
		b = append(b, `,"truncated":true`...)
	}
	if m.Order != 0 {
		b = strconv.AppendUint(append(b, `,"order":`...), m.Order, 10)
	}
	if len(m.Outputs) > 0 {
		b = append(append(b, `,"outputs":`...), m.Outputs...)
	}
	if m.FromCache {
		b = append(b, `,"from_cache":true`...)
	}
	if m.FromInflight {
		b = append(b, `,"from_inflight":true`...)
	}
	return append(b, '}')
}

// appendOutputs writes the answer of a tool.
func appendOutputs(b []byte, outputs []tools.Output) []byte {
	b = append(b, '[')
	for i := range outputs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(b, `{"type":`...), outputs[i].Type)
		b = appendText(append(b, `,"text":`...), outputs[i].Text)
		b = append(b, '}')
	}
	return append(b, ']')
}

// appendText writes a string.
func appendText(b []byte, s string) []byte {
	start := len(b)
	b = append(b, '"')
	done := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(append(b, s[done:i]...), '\\')
			done = i
		case c == '\n':
			b = append(append(b, s[done:i]...), '\\', 'n')
			done = i + 1
		case c < ' ' || c >= utf8.RuneSelf || c == '<' || c == '>' || c == '&': // the library knows what each of these becomes
			text, _ := json.Marshal(s) // a string is never refused
			return append(b[:start], text...)
		}
	}
	return append(append(b, s[done:]...), '"')
}
