// Errors on the wire: kinds become codes, with details that clients can act on.

package gateway

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
)

// errorDomain names this product in ErrorInfo.
const errorDomain = "orchestrator.neolith.io"

// toStatus turns an error into a gRPC status with details; a status passes as it is.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	f := fault.As(err)
	switch {
	case f != nil:
	case errors.Is(err, context.DeadlineExceeded):
		return detailed(codes.DeadlineExceeded, err)
	case errors.Is(err, context.Canceled):
		return detailed(codes.Canceled, err)
	default:
		return detailed(codes.Internal, err)
	}
	var details []protoadapt.MessageV1
	if f.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	} else if f.Kind == fault.Exhausted {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	}
	if f.Field != "" {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: f.Field, Description: f.Message}}})
	}
	return detailed(faultcode.Of(f.Kind), err, details...)
}

// detailed is a status with the reason that every one has, and further details.
func detailed(code codes.Code, err error, details ...protoadapt.MessageV1) error {
	s := status.New(code, err.Error())
	info := &errdetails.ErrorInfo{Reason: reasonOf(code), Domain: errorDomain}
	if d, derr := s.WithDetails(append([]protoadapt.MessageV1{info}, details...)...); derr == nil {
		s = d
	}
	return s.Err()
}

// reasonOf is the code in the spelling of ErrorInfo.
func reasonOf(c codes.Code) string {
	out := make([]byte, 0, 24)
	for i, r := range c.String() {
		if i > 0 && r >= 'A' && r <= 'Z' {
			out = append(out, '_')
		}
		if r >= 'a' && r <= 'z' {
			r -= 'a' - 'A'
		}
		out = append(out, byte(r))
	}
	return string(out)
}
