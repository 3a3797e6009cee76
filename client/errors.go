// From gRPC statuses to faults: the kind, and the details that travel with a status.

package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
)

// wireError is a status whose text is the server's sentence alone.
type wireError struct{ st *status.Status }

func (e *wireError) Error() string              { return e.st.Message() }
func (e *wireError) GRPCStatus() *status.Status { return e.st }

// Is lets callers ask for the context errors that a status stands for.
func (e *wireError) Is(target error) bool {
	return target == context.Canceled && e.st.Code() == codes.Canceled ||
		target == context.DeadlineExceeded && e.st.Code() == codes.DeadlineExceeded
}

// Fault turns an error of a gRPC call into a fault: its kind by the code, its sentence by the message, RetryAfter by
// RetryInfo, Field by the first violation of BadRequest. Faults and nil pass unchanged.
func Fault(err error) error {
	if err == nil || fault.As(err) != nil {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
		if st.Code() == codes.Unknown {
			return fault.New(fault.Internal, "%w", err)
		}
	}
	f := fault.New(faultcode.Kind(st.Code()), "%w", error(&wireError{st}))
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.RetryInfo:
			f.RetryAfter = d.GetRetryDelay().AsDuration()
		case *errdetails.BadRequest:
			if v := d.GetFieldViolations(); len(v) > 0 {
				f.Field = v[0].GetField()
				// The sentence usually names the field already; when it does not, say what is wrong with it.
				if desc := v[0].GetDescription(); desc != "" && !strings.Contains(f.Message, desc) {
					f.Message = fmt.Sprintf("%s: %s: %s", f.Message, f.Field, desc)
				}
			}
		}
	}
	return f
}

// ErrorInfo returns the machine-readable reason of an error and what goes with it, such as ("MAILBOX_FULL",
// {"session_id": …}); empty when the server gave none.
func ErrorInfo(err error) (reason string, metadata map[string]string) {
	var w *wireError
	if !errors.As(err, &w) {
		return "", nil
	}
	for _, d := range w.st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason(), info.GetMetadata()
		}
	}
	return "", nil
}

// repeatable reports whether asking again may help: the outcome is unknown, or the call was overtaken. A call that its
// caller cancelled is of the same kind as an overtaken one and does not count.
func repeatable(err error) bool {
	f := fault.As(err)
	if f == nil || errors.Is(err, context.Canceled) {
		return false
	}
	return f.Kind == fault.Unavailable || f.Kind == fault.Aborted
}
