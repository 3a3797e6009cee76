// What a run ends with: the exit code, and the one line that says why.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
)

// exitError ends the run with a code of its own. Without an error nothing is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// report prints the error, in one line, and returns the exit code.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return exitcode.Done
	}
	code := exitcode.Of(err)
	var e *exitError
	if errors.As(err, &e) {
		code = e.code
		if e.err == nil {
			return code
		}
	}
	what := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "orchctl"), " ")
	if s := subjectOf(cmd, err); s != "" {
		what += " " + s
	}
	if what != "" {
		what += ": "
	}
	if errors.Is(err, context.Canceled) {
		code = exitcode.Failed
		err = errors.New("interrupted; whether it took effect is not known")
	}
	_, _ = io.WriteString(a.stderr, clean("orchctl: "+what+err.Error()+remedy(err))+"\n") // there is nowhere left to say that it failed
	return code
}

// remedy is what to do, for errors that do not say it themselves.
func remedy(err error) string {
	f := fault.As(err)
	switch {
	case f == nil:
		return ""
	case f.Kind == fault.Exhausted && f.RetryAfter > 0:
		return fmt.Sprintf("; try again in %s", f.RetryAfter.Round(time.Millisecond)) // the error itself does not say when
	case strings.Contains(f.Message, "; "):
		return ""
	}
	switch f.Kind {
	case fault.Unavailable:
		if strings.Contains(f.Message, "x509:") || strings.Contains(f.Message, "TLS handshake") {
			return "; give the cluster's CA with --tls-ca or a context, or run 'orchctl doctor'"
		}
		return "; check --addr, ORCHCTL_ADDR or the context, or run 'orchctl doctor'"
	case fault.Unauthenticated:
		return "; give a token with --token-file, ORCHCTL_TOKEN_FILE or a context"
	case fault.PermissionDenied:
		return "; use a token whose role may do this"
	case fault.Timeout:
		return "; allow more time with --timeout, or run 'orchctl doctor'"
	case fault.Exhausted:
		return "; try again later"
	case fault.Aborted:
		return "; try again"
	default:
		return ""
	}
}

// clean makes one printable line of a text: what a server or a user wrote must not steer the terminal.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '\uFFFD'
		default:
			return r
		}
	}, s)
	return strings.TrimSpace(s)
}
