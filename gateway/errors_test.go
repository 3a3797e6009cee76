// Errors on the wire: each kind has a code, and details that a client can act on.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestToStatus(t *testing.T) {
	for _, tc := range []struct {
		err    error
		code   codes.Code
		reason string
		retry  time.Duration
		field  string
	}{
		{fault.New(fault.Internal, "x"), codes.Internal, "INTERNAL", 0, ""},
		{fault.New(fault.Invalid, "x").WithField("spec.name"), codes.InvalidArgument, "INVALID_ARGUMENT", 0, "spec.name"},
		{fault.New(fault.NotFound, "x"), codes.NotFound, "NOT_FOUND", 0, ""},
		{fault.New(fault.AlreadyExists, "x"), codes.AlreadyExists, "ALREADY_EXISTS", 0, ""},
		{fault.New(fault.FailedPrecondition, "x"), codes.FailedPrecondition, "FAILED_PRECONDITION", 0, ""},
		{fault.New(fault.Exhausted, "x"), codes.ResourceExhausted, "RESOURCE_EXHAUSTED", time.Second, ""},
		{fault.New(fault.Exhausted, "x").WithRetry(7 * time.Second), codes.ResourceExhausted, "RESOURCE_EXHAUSTED", 7 * time.Second, ""},
		{fault.New(fault.Unavailable, "x").WithRetry(time.Minute), codes.Unavailable, "UNAVAILABLE", time.Minute, ""},
		{fault.New(fault.Unauthenticated, "x"), codes.Unauthenticated, "UNAUTHENTICATED", 0, ""},
		{fault.New(fault.PermissionDenied, "x"), codes.PermissionDenied, "PERMISSION_DENIED", 0, ""},
		{fault.New(fault.Timeout, "x"), codes.DeadlineExceeded, "DEADLINE_EXCEEDED", 0, ""},
		{fault.New(fault.Aborted, "x"), codes.Aborted, "ABORTED", 0, ""},
		{fault.New(fault.Unimplemented, "x"), codes.Unimplemented, "UNIMPLEMENTED", 0, ""},
		{fmt.Errorf("send: %w", fault.New(fault.NotFound, "x")), codes.NotFound, "NOT_FOUND", 0, ""},
		{errors.New("nobody foresaw it"), codes.Internal, "INTERNAL", 0, ""},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "DEADLINE_EXCEEDED", 0, ""},
		{context.Canceled, codes.Canceled, "CANCELED", 0, ""},
		{status.Error(codes.DataLoss, "as it is"), codes.DataLoss, "", 0, ""},
	} {
		s := status.Convert(toStatus(tc.err))
		var reason, field string
		var retry time.Duration
		for _, d := range s.Details() {
			switch d := d.(type) {
			case *errdetails.ErrorInfo:
				reason = d.GetReason()
				if d.GetDomain() != errorDomain {
					t.Errorf("%v: domain %q", tc.err, d.GetDomain())
				}
			case *errdetails.RetryInfo:
				retry = d.GetRetryDelay().AsDuration()
			case *errdetails.BadRequest:
				field = d.GetFieldViolations()[0].GetField()
			}
		}
		if s.Code() != tc.code || reason != tc.reason || retry != tc.retry || field != tc.field {
			t.Errorf("%v: %s %q retry %s field %q, want %s %q %s %q", tc.err, s.Code(), reason, retry, field, tc.code, tc.reason, tc.retry, tc.field)
		}
	}
	if toStatus(nil) != nil {
		t.Error("nothing became an error")
	}
}
