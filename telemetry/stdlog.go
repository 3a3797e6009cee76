// Libraries that log through the standard library's log package.

package telemetry

import (
	"bytes"
	"context"
	"log"
	"log/slog"
)

// StdLogger returns a standard logger whose lines go to l. It understands the levels that memberlist and others put in
// front ("[WARN] memberlist: …"); a line without one is of level info.
func StdLogger(l *slog.Logger) *log.Logger {
	return log.New(stdWriter{l}, "", 0)
}

type stdWriter struct{ to *slog.Logger }

var stdLevels = []struct {
	prefix string
	level  slog.Level
}{
	{"[TRACE]", slog.LevelDebug - 4}, {"[DEBUG]", slog.LevelDebug}, {"[INFO]", slog.LevelInfo},
	{"[WARN]", slog.LevelWarn}, {"[WARNING]", slog.LevelWarn}, {"[ERR]", slog.LevelError}, {"[ERROR]", slog.LevelError},
}

// Write logs one line; log.Logger calls it once for each.
func (w stdWriter) Write(line []byte) (int, error) {
	text, level := bytes.TrimSpace(line), slog.LevelInfo
	for _, l := range stdLevels {
		if rest, ok := bytes.CutPrefix(text, []byte(l.prefix)); ok {
			text, level = bytes.TrimSpace(rest), l.level
			break
		}
	}
	w.to.Log(context.Background(), level, string(text))
	return len(line), nil
}
