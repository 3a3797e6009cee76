// The messages as they stand on the wire, and their codes.

package socket

import (
	"encoding/json"
	"time"

	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

// The close codes of the protocol, beside those of WebSocket (1001 going away, 1008 limits, 1009 too large).
const (
	closeGoingAway    = 1001
	closeLimits       = 1008
	closeTooLarge     = 1009
	closeBadJSON      = 4000
	closeProtocol     = 4001
	closeHelloTimeout = 4002
	closeUnauthorized = 4003
)

// The codes of errors.
const (
	codeInvalidRequest = "INVALID_REQUEST"
	codeUnauthorized   = "UNAUTHORIZED"
	codeNotFound       = "NOT_FOUND"
	codeTimeout        = "TIMEOUT"
	codeValidation     = "VALIDATION_ERROR"
	codeOverCapacity   = "OVER_CAPACITY"
	codeDuplicate      = "DUPLICATE"
	codeInternal       = "INTERNAL_ERROR"
	codeUnavailable    = "SERVICE_UNAVAILABLE"
	codeToolNotFound   = "TOOL_NOT_FOUND"
	codeToolExecution  = "TOOL_EXECUTION_ERROR"
	codeProvider       = "PROVIDER_ERROR"
	codeProtocol       = "PROTOCOL_ERROR"
)

// codeOf says what each kind of fault is on the wire.
var codeOf = map[fault.Kind]string{
	fault.Internal:           codeInternal,
	fault.Invalid:            codeValidation,
	fault.NotFound:           codeNotFound,
	fault.AlreadyExists:      codeDuplicate,
	fault.FailedPrecondition: codeToolExecution,
	fault.Exhausted:          codeOverCapacity,
	fault.Unavailable:        codeUnavailable,
	fault.Unauthenticated:    codeUnauthorized,
	fault.PermissionDenied:   codeUnauthorized,
	fault.Timeout:            codeTimeout,
	fault.Aborted:            codeToolExecution,
	fault.Unimplemented:      codeToolExecution,
}

// transient are codes of outcomes that are not kept: who asks again is not told the same again.
var transient = map[string]bool{codeUnauthorized: true, codeTimeout: true, codeOverCapacity: true, codeUnavailable: true, codeInternal: true, codeProvider: true}

// failure is an error on the wire.
type failure struct {
	Code    string   `json:"code"`
	Message string   `json:"message"`
	Details *details `json:"details,omitempty"`
}

type details struct {
	RetryAfterMS int64  `json:"retry_after_ms,omitempty"`
	Field        string `json:"field,omitempty"`
}

func failed(code, message string) *failure { return &failure{Code: code, Message: message} }

// invalid is a refusal of one field of a message.
func invalid(field, message string) *failure {
	return &failure{Code: codeInvalidRequest, Message: field + ": " + message, Details: &details{Field: field}}
}

// full is a refusal for want of room.
func full(message string, retry time.Duration) *failure {
	return &failure{Code: codeOverCapacity, Message: message, Details: &details{RetryAfterMS: max(retry.Milliseconds(), 1)}}
}

// failureOf is an error of a tool on the wire.
func failureOf(err error) *failure {
	f := fault.As(err)
	if f == nil {
		return failed(codeInternal, err.Error())
	}
	out := failed(codeOf[f.Kind], f.Error())
	retry := f.RetryAfter
	if retry == 0 && (f.Kind == fault.Exhausted || f.Kind == fault.Unavailable) {
		retry = time.Second
	}
	if retry > 0 || f.Field != "" {
		out.Details = &details{RetryAfterMS: retry.Milliseconds(), Field: f.Field}
	}
	return out
}

// failureIn is the error of one tool on the wire: where a provider of models may fail, it is told from the cluster.
func failureIn(t *tools.Tool, err error) *failure {
	out := failureOf(err)
	if t.AsksModels && (out.Code == codeUnavailable || out.Code == codeTimeout && fault.Is(err, fault.Timeout)) {
		out.Code = codeProvider
	}
	return out
}

// message is anything that the gateway says. Op and, where there is one, RequestID stand in all of them.
type message struct {
	Op        string `json:"op"`
	RequestID string `json:"request_id,omitempty"`
	Seq       uint64 `json:"seq,omitempty"`

	// hello_ack, rotate_token_res
	OK        *bool  `json:"ok,omitempty"`
	SessionID string `json:"session_id,omitempty"`
	Server    string `json:"server,omitempty"`
	Resumed   bool   `json:"resumed,omitempty"`
	Reason    string `json:"-"` // of a hello_ack that is not ok: its error is a word

	Tools *[]toolInfo `json:"tools,omitempty"` // list_tools_res

	// call_tool_ack
	Name     string  `json:"name,omitempty"`
	Accepted bool    `json:"accepted,omitempty"`
	Timeout  float64 `json:"timeout,omitempty"` // seconds

	Message string `json:"message,omitempty"` // progress
	Chunk   string `json:"chunk,omitempty"`   // stream_chunk

	Truncated bool `json:"truncated,omitempty"` // stream_complete

	// call_tool_res, cancelled
	Order        uint64          `json:"order,omitempty"` // among the results that the cluster keeps of the session
	Outputs      json.RawMessage `json:"outputs,omitempty"`
	FromCache    bool            `json:"from_cache,omitempty"`
	FromInflight bool            `json:"from_inflight,omitempty"`

	Health *health  `json:"health,omitempty"` // health_res
	Error  *failure `json:"error,omitempty"`
}

// toolInfo is a tool in a list.
type toolInfo struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	InputSchema json.RawMessage `json:"inputSchema"`
}

// health is the state of a server as its clients need it.
type health struct {
	Status      string `json:"status"` // ok or degraded
	Reason      string `json:"reason,omitempty"`
	Server      string `json:"server"`
	Connections int    `json:"connections"`
	InFlight    int    `json:"in_flight"`
}

func yes() *bool { t := true; return &t }
func no() *bool  { f := false; return &f }
