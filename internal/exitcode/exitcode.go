// Package exitcode says with which code a program ends. The codes are a promise to scripts, and the same for all programs.
package exitcode

import (
	"context"
	"errors"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
)

// The codes.
const (
	Done        = 0
	Failed      = 1 // it was tried and failed
	Usage       = 2 // wrong usage or bad configuration
	NotFound    = 3
	Refused     = 4 // permission, conflict, no capacity, a bound reached
	Unreachable = 5 // or timed out
)

// codes says which code a kind of error is. What is not here is Failed.
var codes = map[fault.Kind]int{
	fault.Invalid:            Usage,
	fault.NotFound:           NotFound,
	fault.AlreadyExists:      Refused,
	fault.FailedPrecondition: Refused,
	fault.Exhausted:          Refused,
	fault.Unauthenticated:    Refused,
	fault.PermissionDenied:   Refused,
	fault.Aborted:            Refused,
	fault.Unavailable:        Unreachable,
	fault.Timeout:            Unreachable,
}

// Of is the code of an error; Done when there is none.
func Of(err error) int {
	switch f := fault.As(err); {
	case err == nil:
		return Done
	case f != nil:
		if code, ok := codes[f.Kind]; ok {
			return code
		}
		return Failed
	case errors.Is(err, context.DeadlineExceeded):
		return Unreachable
	case cobraComplains(err.Error()):
		return Usage
	default:
		return Failed
	}
}

// cobraComplains recognizes wrong usage by the beginnings of cobra's messages, which have no type.
func cobraComplains(message string) bool {
	for _, beginning := range []string{"unknown command", "unknown flag", "unknown shorthand", "required flag", "accepts ", "requires ", "invalid argument", "flag needs an argument"} {
		if strings.HasPrefix(message, beginning) {
			return true
		}
	}
	return false
}
