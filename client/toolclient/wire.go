// The messages as they stand on the wire, and what their error codes mean here.

package toolclient

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// subprotocol is offered to servers, and need not be spoken.
const subprotocol = "orchestrator.client.v1"

// sessionHeader names the session of an HTTP request that has no body.
const sessionHeader = "Orchestrator-Session-Id"

// The close codes that a client decides on.
const (
	closeTooLarge = 1009
	closeProtocol = 4001 // with a hello that was accepted: the session was taken over
)

// greeting is a hello.
type greeting struct {
	Op        string  `json:"op"`
	Token     string  `json:"token,omitempty"`
	SessionID string  `json:"session_id"`
	LastSeq   *uint64 `json:"last_seq,omitempty"`   // only to the server that numbered it
	LastOrder *uint64 `json:"last_order,omitempty"` // of ended calls, in the whole cluster
}

// request is any other message to a server.
type request struct {
	Op        string          `json:"op"`
	RequestID string          `json:"request_id,omitempty"`
	SessionID string          `json:"session_id,omitempty"` // over HTTP
	Name      string          `json:"name,omitempty"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	Priority  Priority        `json:"priority,omitempty"`
	Key       string          `json:"key,omitempty"`
	Deadline  int64           `json:"deadline_ms,omitempty"`
	Durable   *bool           `json:"durable,omitempty"`
	Old       *string         `json:"old,omitempty"`
	New       *string         `json:"new,omitempty"`
}

// encode writes a message; nothing in it can fail to be written.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("toolclient: a message cannot be written: " + err.Error()) // arguments were written once before
	}
	return b
}

// message is anything that a server says.
type message struct {
	Op        string `json:"op"`
	RequestID string `json:"request_id"`
	Seq       uint64 `json:"seq"`
	Order     uint64 `json:"order"`

	OK        bool   `json:"ok"`
	SessionID string `json:"session_id"`
	Resumed   bool   `json:"resumed"`
	Server    string `json:"server"`

	Tools   []Tool  `json:"tools"`
	Health  *Health `json:"health"`
	Timeout float64 `json:"timeout"`

	Message   string `json:"message"`
	Chunk     string `json:"chunk"`
	Truncated bool   `json:"truncated"`

	Outputs      []Output `json:"outputs"`
	FromCache    bool     `json:"from_cache"`
	FromInflight bool     `json:"from_inflight"`

	Error json.RawMessage `json:"error"` // an object; in a hello_ack a word
}

// Tool is something that can be called.
type Tool struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	InputSchema json.RawMessage `json:"inputSchema"` // a JSON Schema of its arguments
}

// Health is how the server does that the client is connected to.
type Health struct {
	Status      string `json:"status"` // ok or degraded
	Reason      string `json:"reason,omitempty"`
	Server      string `json:"server"`
	Connections int    `json:"connections"`
	InFlight    int    `json:"in_flight"`
}

// Output is a part of an answer.
type Output struct {
	Type string `json:"type"` // text
	Text string `json:"text"`
}

// Error is a refusal of a server, in its own words. Errors of calls wrap one; CodeOf finds its code.
type Error struct {
	Code       string // such as OVER_CAPACITY; docs/protocol/client-gateway.md lists them
	Message    string
	Field      string        // that is wrong; empty when none is named
	RetryAfter time.Duration // 0 when not said
}

// Error returns the server's sentence.
func (e *Error) Error() string { return e.Message }

// CodeOf returns the protocol's code of an error, such as TOOL_NOT_FOUND; empty for one that no server gave.
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// The codes that a client decides on.
const (
	codeInvalidRequest = "INVALID_REQUEST"
	codeNotFound       = "NOT_FOUND"
	codeOverCapacity   = "OVER_CAPACITY"
	codeUnavailable    = "SERVICE_UNAVAILABLE"
	codeUnauthorized   = "UNAUTHORIZED"
	codeTimeout        = "TIMEOUT"
)

// kinds says which fault a code is. What is not here is Internal.
var kinds = map[string]fault.Kind{
	codeInvalidRequest: fault.Invalid, "VALIDATION_ERROR": fault.Invalid, "PROTOCOL_ERROR": fault.Invalid,
	codeUnauthorized: fault.PermissionDenied, codeNotFound: fault.NotFound, "TOOL_NOT_FOUND": fault.NotFound, "DUPLICATE": fault.AlreadyExists,
	codeTimeout: fault.Timeout, codeOverCapacity: fault.Exhausted, codeUnavailable: fault.Unavailable,
	"TOOL_EXECUTION_ERROR": fault.FailedPrecondition, "PROVIDER_ERROR": fault.Unavailable,
}

// failure reads the error of a message; nil when it has none.
func (m *message) failure() *Error {
	if len(m.Error) == 0 || string(m.Error) == "null" {
		return nil
	}
	var said struct {
		Code, Message string
		Details       struct {
			Field        string
			RetryAfterMS int64 `json:"retry_after_ms"`
		}
	}
	if json.Unmarshal(m.Error, &said) != nil {
		return &Error{Code: "INTERNAL_ERROR", Message: fmt.Sprintf("an error that cannot be read: %.100s", m.Error)}
	}
	return &Error{Code: said.Code, Message: said.Message, Field: said.Details.Field, RetryAfter: time.Duration(said.Details.RetryAfterMS) * time.Millisecond}
}

// fault is the error as callers decide on it.
func (e *Error) fault() *fault.Error {
	f := fault.New(kinds[e.Code], "%w", e).WithField(e.Field)
	if f.Kind == fault.Exhausted || f.Kind == fault.Unavailable {
		f.RetryAfter = e.RetryAfter
	}
	return f
}

// passing reports whether the same call may be taken a little later: nothing was begun, or what was begun is found again.
func (e *Error) passing() bool { return e.Code == codeOverCapacity || e.Code == codeUnavailable }
