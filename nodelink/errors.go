// Why a link ends, and how a failure is said in a frame.

package nodelink

import (
	"errors"
	"fmt"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// The WebSocket close codes of a link. Those from 4000 on mean the same as at the client gateway, where it has them.
const (
	CloseNormal       = 1000 // ended in good order
	CloseGoingAway    = 1001 // the process stops; dial another server
	CloseAbnormal     = 1006 // never sent: the carrier broke
	CloseLimit        = 1008 // a bound was reached: the other side does not take its frames
	CloseTooLarge     = 1009 // a frame of more than MaxFrameBytes
	CloseInternal     = 1011 // a defect of this side
	CloseBadFrame     = 4000 // not a frame
	CloseProtocol     = 4001 // a frame that has no place here, or no common protocol version
	CloseHelloTimeout = 4002 // no hello in time
	CloseAuth         = 4003 // the hello names a node that this caller is not
	CloseSuperseded   = 4004 // the node has a newer link
)

// CloseError says how a link ended. It matches ErrClosed.
type CloseError struct {
	Code   int    // a close code
	Reason string // one line, may be empty
	Remote bool   // the other side ended it
}

// Error returns one line.
func (e *CloseError) Error() string {
	by := "this side"
	if e.Remote {
		by = "the other side"
	}
	if e.Reason == "" {
		return fmt.Sprintf("nodelink: the link was closed by %s (%d)", by, e.Code)
	}
	return fmt.Sprintf("nodelink: the link was closed by %s (%d): %s", by, e.Code, e.Reason)
}

// Is makes every CloseError an ErrClosed.
func (e *CloseError) Is(target error) bool { return target == ErrClosed }

// RefusalCode is the close code of a link whose hello was refused: whether the node had better try again, or somebody has
// to mend something first.
func RefusalCode(err error) int {
	switch fault.KindOf(err) {
	case fault.PermissionDenied, fault.Unauthenticated:
		return CloseAuth
	case fault.Unavailable, fault.Timeout, fault.Aborted:
		return CloseNormal
	case fault.Exhausted:
		return CloseLimit
	case fault.Internal:
		return CloseInternal
	default:
		return CloseProtocol
	}
}

// violation is what the other side may not send. It is answered with an error frame, and the link is closed.
type violation struct {
	code int // the close code
	err  *fault.Error
}

func (v *violation) Error() string { return v.err.Error() }
func (v *violation) Unwrap() error { return v.err }

func violates(code int, kind fault.Kind, format string, args ...any) *violation {
	return &violation{code: code, err: fault.New(kind, format, args...)}
}

// codeNames names each fault kind as a google.rpc.Code; the index is the kind.
var codeNames = [...]string{
	fault.Internal: "INTERNAL", fault.Invalid: "INVALID_ARGUMENT", fault.NotFound: "NOT_FOUND",
	fault.AlreadyExists: "ALREADY_EXISTS", fault.FailedPrecondition: "FAILED_PRECONDITION",
	fault.Exhausted: "RESOURCE_EXHAUSTED", fault.Unavailable: "UNAVAILABLE", fault.Unauthenticated: "UNAUTHENTICATED",
	fault.PermissionDenied: "PERMISSION_DENIED", fault.Timeout: "DEADLINE_EXCEEDED", fault.Aborted: "ABORTED",
	fault.Unimplemented: "UNIMPLEMENTED",
}

// CodeOf is the google.rpc.Code that a kind travels as.
func CodeOf(k fault.Kind) string {
	if int(k) < len(codeNames) {
		return codeNames[k]
	}
	return codeNames[fault.Internal]
}

// ToError says an error as the payload of an error frame; requestType is the type of the frame that failed, if any.
func ToError(requestType string, err error) *nodev1.Error {
	kind := fault.KindOf(err)
	if errors.Is(err, ErrQueueFull) {
		kind = fault.Exhausted
	} else if errors.Is(err, ErrClosed) {
		kind = fault.Unavailable
	}
	return &nodev1.Error{
		Error: err.Error(), RequestType: requestType, Code: CodeOf(kind),
		Retryable: kind == fault.Exhausted || kind == fault.Unavailable || kind == fault.Aborted,
	}
}

// FromError is the inverse of ToError: an error of the kind that the code names, Internal for codes of later releases.
// nil gives nil.
func FromError(e *nodev1.Error) error {
	if e == nil {
		return nil
	}
	for k, c := range codeNames {
		if c == e.GetCode() {
			return fault.New(fault.Kind(k), "%s", e.GetError())
		}
	}
	return fault.New(fault.Internal, "%s (%s)", e.GetError(), e.GetCode())
}

// ErrorFrame answers the request with a failure. Without a request it says why the link is about to be closed.
func ErrorFrame(request *nodev1.Frame, err error) *nodev1.Frame {
	return &nodev1.Frame{
		RequestId: request.GetRequestId(), Epoch: request.GetEpoch(),
		Payload: &nodev1.Frame_Error{Error: ToError(FrameType(request), err)},
	}
}
