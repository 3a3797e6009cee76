// Package sinks opens the sink that a recorder's settings name.
package sinks

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/postgres"
	"github.com/neolith/orchestrator/recorder/sqlite"
)

// urlBytesMax bounds the file with a database's URL.
const urlBytesMax = 4 << 10

// Open opens the sink of settings that are valid. SQLite's file must be named. It returns nil and no error where nothing is to be recorded. A
// database that is away is no error; bad settings, and a file with the URL that cannot be used, are Invalid, and a SQLite file that cannot be is FailedPrecondition.
func Open(ctx context.Context, c recorder.Config, log *slog.Logger) (recorder.Sink, error) {
	switch c.Sink {
	case recorder.SinkNone:
		return nil, nil
	case recorder.SinkSQLite:
		if c.SQLite.File == "" {
			return nil, fault.New(fault.Invalid, "recorder: no file for SQLite is given")
		}
		s, err := sqlite.Open(ctx, c.SQLite.File)
		if err != nil {
			return nil, err // and no sink that is a nil *sqlite.Sink
		}
		return s, nil
	case recorder.SinkPostgres:
		url, err := databaseURL(c)
		if err != nil {
			return nil, err
		}
		s, err := postgres.Open(postgres.Options{URL: url, MaxConns: c.Postgres.MaxConns,
			Timeout: c.Postgres.Timeout, Logger: log})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	return nil, fault.New(fault.Invalid, "recorder: %q is not a sink", c.Sink)
}

// databaseURL returns the URL that is given, or that a file holds which nobody else may read.
func databaseURL(c recorder.Config) (string, error) {
	name := c.Postgres.URLFile
	if name == "" {
		return c.Postgres.URL, nil
	}
	st, err := os.Stat(name)
	if err != nil {
		return "", fault.New(fault.Invalid, "recorder.postgres.url_file: read the database's URL: %w", err)
	}
	if st.Mode().Perm()&0o007 != 0 {
		return "", fault.New(fault.Invalid, "recorder.postgres.url_file: every user can read %s, which holds the database's password (mode %04o); chmod 600 it", name, st.Mode().Perm())
	}
	if st.Size() > urlBytesMax {
		return "", fault.New(fault.Invalid, "recorder.postgres.url_file: %s has %d bytes; it is to hold one URL", name, st.Size())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return "", fault.New(fault.Invalid, "recorder.postgres.url_file: read the database's URL: %w", err)
	}
	url := strings.TrimSpace(string(b))
	if err := recorder.CheckURL(url); err != nil {
		return "", fault.New(fault.Invalid, "recorder.postgres.url_file: %s: %w", name, fmt.Errorf("what it holds %w", err))
	}
	return url, nil
}
