// Package hclogger leads the logs of HashiCorp's libraries (raft, raft-wal, autopilot) into log/slog.
//
// It is apart from telemetry so that a program without them does not link hclog.
package hclogger

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"

	"github.com/neolith/orchestrator/telemetry"
)

// levelTrace lies below slog's lowest.
const levelTrace = slog.LevelDebug - 4

// New returns an hclog.Logger whose lines go to l. Levels are decided by l alone: SetLevel does nothing.
func New(l *slog.Logger, name string) hclog.Logger {
	return &logger{base: l, log: l.With("component", name), name: name}
}

type logger struct {
	base    *slog.Logger // without a name and implied arguments
	log     *slog.Logger
	name    string
	implied []any
}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Trace:
		return levelTrace
	case hclog.Debug:
		return slog.LevelDebug
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}

func (l *logger) Log(level hclog.Level, msg string, args ...any) {
	if level == hclog.Off || !l.log.Enabled(context.Background(), slogLevel(level)) {
		return
	}
	l.log.Log(context.Background(), slogLevel(level), msg, attrs(args)...)
}

// attrs turns hclog's arguments into slog's: keys may be anything there, and values may be formats.
func attrs(args []any) []any {
	out := make([]any, 0, len(args))
	for i := 0; i < len(args); i += 2 {
		if i+1 == len(args) {
			out = append(out, slog.Any("extra", args[i]))
			break
		}
		key, ok := args[i].(string)
		if !ok {
			key = fmt.Sprint(args[i])
		}
		switch v := args[i+1].(type) {
		case hclog.Format:
			if format, ok := first(v).(string); ok {
				out = append(out, slog.String(key, fmt.Sprintf(format, v[1:]...)))
			}
		case fmt.Stringer:
			out = append(out, slog.String(key, v.String()))
		default:
			out = append(out, slog.Any(key, v))
		}
	}
	return out
}

func first(f hclog.Format) any {
	if len(f) == 0 {
		return nil
	}
	return f[0]
}

func (l *logger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *logger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *logger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *logger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *logger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *logger) enabled(level hclog.Level) bool {
	return l.log.Enabled(context.Background(), slogLevel(level))
}

func (l *logger) IsTrace() bool { return l.enabled(hclog.Trace) }
func (l *logger) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *logger) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *logger) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *logger) IsError() bool { return l.enabled(hclog.Error) }

func (l *logger) ImpliedArgs() []any { return l.implied }
func (l *logger) Name() string       { return l.name }

func (l *logger) With(args ...any) hclog.Logger {
	implied := append(append([]any(nil), l.implied...), args...)
	return &logger{base: l.base, log: l.log.With(attrs(args)...), name: l.name, implied: implied}
}

func (l *logger) Named(name string) hclog.Logger {
	if l.name != "" {
		name = l.name + "." + name
	}
	return l.ResetNamed(name)
}

func (l *logger) ResetNamed(name string) hclog.Logger {
	log := l.base.With("component", name).With(attrs(l.implied)...)
	return &logger{base: l.base, log: log, name: name, implied: l.implied}
}

func (l *logger) SetLevel(hclog.Level) {}

func (l *logger) GetLevel() hclog.Level {
	for _, level := range []hclog.Level{hclog.Trace, hclog.Debug, hclog.Info, hclog.Warn, hclog.Error} {
		if l.enabled(level) {
			return level
		}
	}
	return hclog.Off
}

func (l *logger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return telemetry.StdLogger(l.log)
}

func (l *logger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
