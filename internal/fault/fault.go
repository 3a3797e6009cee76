// Package fault gives errors the one thing that callers decide on, a kind, and keeps the sentence for people.
//
// A message says what failed, on what, why, and what to do, in one line. Kinds survive wrapping with %w, and the way from program to program as
// gRPC codes; programs end with exit codes for them. Packages faultcode and exitcode have the table of each.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Kind is what a caller may decide on.
type Kind uint8

// The kinds.
const (
	Internal           Kind = iota // a defect, or something nobody foresaw
	Invalid                        // the request can never succeed as it is
	NotFound                       // what it names is not there
	AlreadyExists                  // what it would make is there, or the idempotency key was used for something else
	FailedPrecondition             // it cannot be done in the present state
	Exhausted                      // a bound is reached; try again after RetryAfter
	Unavailable                    // the outcome is unknown or nobody could be asked; try again with the same idempotency key
	Unauthenticated                // who are you
	PermissionDenied               // you may not
	Timeout                        // the deadline passed
	Aborted                        // it was overtaken by something else
	Unimplemented                  // this build or node cannot do it
)

var names = [...]string{"internal", "invalid", "not found", "already exists", "failed precondition", "exhausted", "unavailable",
	"unauthenticated", "permission denied", "timeout", "aborted", "unimplemented"}

// String returns the kind's name.
func (k Kind) String() string {
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Error is an error with a kind.
type Error struct {
	Kind       Kind
	Message    string
	RetryAfter time.Duration // with Exhausted and Unavailable; 0 when not known
	Field      string        // with Invalid: the offending field's path
	cause      error
}

// New makes an error; format may use %w.
func New(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	cause := errors.Unwrap(err)
	if _, several := err.(interface{ Unwrap() []error }); several {
		cause = err
	}
	return &Error{Kind: k, Message: err.Error(), cause: cause}
}

// Error returns the sentence.
func (e *Error) Error() string { return e.Message }

// Unwrap returns what was wrapped with %w.
func (e *Error) Unwrap() error { return e.cause }

// WithRetry says when to come back.
func (e *Error) WithRetry(d time.Duration) *Error { e.RetryAfter = d; return e }

// WithField names the field that is wrong.
func (e *Error) WithField(f string) *Error { e.Field = f; return e }

// As returns the first Error in the chain, nil when there is none.
func As(err error) *Error {
	if err == nil { // as most often: errors.As has its target allocated
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// KindOf returns the kind of the first Error in the chain, Internal when there is none.
func KindOf(err error) Kind {
	if e := As(err); e != nil {
		return e.Kind
	}
	return Internal
}

// Is reports whether err has the kind.
func Is(err error, k Kind) bool { e := As(err); return e != nil && e.Kind == k }
