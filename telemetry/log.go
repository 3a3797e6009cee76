// The log: text for people at a terminal, JSON for machines.

package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

// LogFormat says how lines look.
type LogFormat string

// The formats.
const (
	LogAuto LogFormat = "auto" // text on a terminal, JSON otherwise
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// UnmarshalText reads a format; it makes LogFormat a setting.
func (f *LogFormat) UnmarshalText(text []byte) error {
	switch v := LogFormat(text); v {
	case LogAuto, LogText, LogJSON:
		*f = v
		return nil
	}
	return fmt.Errorf("%.64q is not a log format; use auto, text or json", text)
}

// NewLogger returns a logger that writes to w. The level may be a *slog.LevelVar, to be changed later. Colours are for
// terminals only, and not where the environment says NO_COLOR.
func NewLogger(w io.Writer, format LogFormat, level slog.Leveler) *slog.Logger {
	terminal := isTerminal(w)
	if format == LogText || format != LogJSON && terminal {
		return slog.New(tint.NewTextHandler(w, &tint.Options{
			Level: level, TimeFormat: time.StampMilli, NoColor: !terminal || os.Getenv("NO_COLOR") != "",
		}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
