// Package faultcode says as which gRPC code each kind of fault travels, and which kind a code that came stands for. It is the one table for both.
package faultcode

import (
	"google.golang.org/grpc/codes"

	"github.com/neolith/orchestrator/internal/fault"
)

// ofKind has a code of its own for each kind.
var ofKind = [...]codes.Code{
	fault.Internal:           codes.Internal,
	fault.Invalid:            codes.InvalidArgument,
	fault.NotFound:           codes.NotFound,
	fault.AlreadyExists:      codes.AlreadyExists,
	fault.FailedPrecondition: codes.FailedPrecondition,
	fault.Exhausted:          codes.ResourceExhausted,
	fault.Unavailable:        codes.Unavailable,
	fault.Unauthenticated:    codes.Unauthenticated,
	fault.PermissionDenied:   codes.PermissionDenied,
	fault.Timeout:            codes.DeadlineExceeded,
	fault.Aborted:            codes.Aborted,
	fault.Unimplemented:      codes.Unimplemented,
}

// kinds is the inverse of ofKind, and what else gRPC itself, or another server, may answer with.
var kinds = func() map[codes.Code]fault.Kind {
	m := map[codes.Code]fault.Kind{
		codes.OutOfRange: fault.Invalid,
		codes.Canceled:   fault.Aborted,
	}
	for k, c := range ofKind {
		m[c] = fault.Kind(k)
	}
	return m
}()

// Of returns the code of a kind.
func Of(k fault.Kind) codes.Code {
	if int(k) < len(ofKind) {
		return ofKind[k]
	}
	return codes.Internal
}

// Kind returns the kind that a code stands for; Internal for one that stands for none.
func Kind(c codes.Code) fault.Kind { return kinds[c] }
